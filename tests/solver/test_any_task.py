"""Random tasks, of any shape and chunk count, equal the loop; `make fuzz` draws ten times more."""

import os

import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from oracles import (
    TIME_AWARE,
    assert_close,
    assert_same,
)
from small_cells import BOUNDED, own

import parnl

MORE = 10 if "PARNL_FUZZ" in os.environ else 1


@st.composite
def tasks(draw, max_steps=17):
    name = draw(st.sampled_from(sorted(oracles.VARIANTS)))
    name, options = oracles.VARIANTS[name]
    batch = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    steps = draw(st.integers(0, max_steps))
    lengths = None
    if draw(st.booleans()):
        count = int(np.prod(batch))
        n = st.lists(st.integers(0, steps), min_size=count, max_size=count)
        lengths = np.array(draw(n), dtype=np.int64).reshape(batch)
    task = oracles.problem(
        name,
        steps=steps,
        batch=batch,
        n_in=draw(st.integers(1, 3)),
        hidden=draw(st.integers(1, 4)),
        times=draw(st.sampled_from([None, "shared", "own"])) if name in TIME_AWARE else None,
        lengths=lengths,
        reverse=draw(st.booleans()),
        start=draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
        **options,
    )
    chunks = draw(st.sampled_from([None, "auto"]) | st.integers(1, max(steps, 1)))
    return task, chunks if steps else None


@given(tasks())
@settings(max_examples=60 * MORE)
def test_any_task_on_numpy(drawn):
    task, chunks = drawn
    expected = oracles.reference(task)
    assert_same(oracles.answer(task, "numpy", chunks=chunks), expected, 1e-10)


@pytest.mark.long
@given(tasks())
@settings(max_examples=40 * MORE)
def test_any_task_with_gradients_on_torch(drawn):
    task, chunks = drawn
    expected = oracles.reference(task)
    found = oracles.answer(task, "torch", gradients=True, chunks=chunks)
    assert_same(found, expected, 1e-10)


@pytest.mark.long
@given(tasks(max_steps=6))
@settings(max_examples=8 * MORE)
def test_any_task_with_gradients_on_jax(drawn):
    task, chunks = drawn
    expected = oracles.reference(task)
    assert_same(oracles.answer(task, "jax", gradients=True, chunks=chunks), expected, 1e-10)


@pytest.mark.long
@given(
    name=st.sampled_from(BOUNDED),
    steps=st.integers(1, 40),
    chunks=st.integers(1, 40),
    reverse=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80 * MORE)
def test_any_own_cell_on_numpy(name, steps, chunks, reverse, seed):
    cell, params, inputs, state = own(name, steps=steps, seed=seed)
    expected, finals = oracles.loop(cell, params, inputs, state, reverse=reverse)
    out = parnl.solve(
        cell, params, inputs, state, chunks=min(chunks, steps), reverse=reverse, tolerance=0
    )
    assert_close(out.outputs, expected, 1e-10)
    for a, e in zip(out.final_state, finals, strict=True):
        assert_close(a, e, 1e-10)
