"""Lengths of sequences, in either direction: padding may hold anything."""

import itertools
from typing import Any

import numpy as np
import oracles
import pytest
from oracles import (
    BACKENDS,
    CELLS,
    assert_bits,
    assert_same,
)
from small_cells import T

DIFFERENTIABLE = ("torch", "jax")


@pytest.mark.parametrize(
    ("backend", "name", "reverse"),
    [
        (backend, name, reverse)
        for backend, name, reverse in itertools.product(BACKENDS, CELLS, (False, True))
        if backend != "jax" or reverse == (name in ("gru", "ltc"))  # compile time
    ],
)
def test_lengths_and_reverse_equal_the_loop(backend, name, reverse):
    """Also with nothing but NaN in the padding, which must reach no result and no gradient."""
    lengths = [0, 1, 9, T]
    task = oracles.problem(name, steps=T, batch=(4,), lengths=lengths, reverse=reverse)
    expected = oracles.reference(task)
    for b, n in enumerate(lengths):
        task.inputs[b, n:] = np.nan
    for chunks in (4,) if backend == "jax" else (1, 4, T):
        how: dict[str, Any] = {"chunks": chunks, "gradients": backend in DIFFERENTIABLE}
        found = oracles.answer(task, backend, **how)
        assert_same(found, expected, 1e-10)
        assert (found.outputs[0] == 0).all()
        assert task.initial_state is not None
        for s, s0 in zip(found.final_state, task.initial_state, strict=True):
            assert_bits(s[0], s0[0])


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_dt_padding_may_hold_nan(backend):
    task = oracles.problem("lrc", steps=T, batch=(2,), lengths=[5, T], times="own")
    expected = oracles.reference(task)
    assert task.dt is not None
    task.dt[0, 5:] = np.nan
    how: dict[str, Any] = {"chunks": 3, "gradients": backend in DIFFERENTIABLE}
    assert_same(oracles.answer(task, backend, **how), expected, 1e-10)
    short = oracles.problem("lrc", steps=1, batch=(2,), lengths=[1, 0], times="own")
    expected = oracles.reference(short)
    short.dt[1] = np.nan  # one step for each sequence, not one for all
    assert_same(oracles.answer(short, backend, **(how | {"chunks": 1})), expected, 1e-10)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[[1, 0], [7, 3], [2, 7]], [[0, 0], [0, 0], [0, 0]]])
def test_lengths_have_the_batch_shape(backend, lengths):
    for name, reverse in itertools.product(("gru", "lstm"), (False, True)):
        task = oracles.problem(name, batch=(3, 2), steps=7, lengths=lengths, reverse=reverse)
        found = oracles.answer(task, backend, chunks=3)
        assert_same(found, oracles.reference(task), 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_length_without_a_batch(backend):
    task = oracles.problem("gru", batch=(), steps=7, lengths=4)
    assert_same(oracles.answer(task, backend, chunks=2), oracles.reference(task), 1e-10)
