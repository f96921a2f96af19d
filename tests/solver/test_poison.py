"""NaN and inf reach neither other sequences, nor other channels, nor earlier steps."""

import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from oracles import (
    BACKENDS,
    CELLS,
    assert_bits,
    assert_close,
)
from small_cells import T

DIFFERENTIABLE = ("torch", "jax")


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_poison_stays_where_it_is(backend, name, poison):
    """NaN or inf at one step of one sequence: the others, and what came before, keep their bits."""
    task = oracles.problem(name, steps=T)
    where, when = 1, 13
    bad = task.inputs.copy()
    bad[where, when] = poison
    with np.errstate(all="ignore"):
        expected = oracles.answer(task._replace(inputs=bad), "numpy", method="sequential")
    for chunks in (2, T) if backend == "jax" else (1, 2, 7, "auto", T):
        with np.errstate(all="ignore"):
            clean = oracles.answer(task, backend, chunks=chunks)
            found = oracles.answer(task._replace(inputs=bad), backend, chunks=chunks)
        others = [0, 2]
        assert_bits(found.outputs[others], clean.outputs[others], "other sequences")
        for a, e in zip(found.final_state, clean.final_state, strict=True):
            assert_bits(a[others], e[others], "other final states")
        assert_bits(found.outputs[where, :when], clean.outputs[where, :when], "earlier steps")
        assert_close(found.outputs, expected.outputs, 1e-10)
        if np.isnan(poison):
            assert np.isnan(found.outputs[where, when:]).all()


@pytest.mark.parametrize("chunks", [1, 2, 7, T])
@pytest.mark.parametrize("name", CELLS)
def test_poisoned_initial_state_stays_in_its_channel(name, chunks):
    """Channels are independent recurrences, so NaN in one start reaches that channel only."""
    task = oracles.problem(name, steps=T)
    assert task.initial_state is not None
    state = tuple(s.copy() for s in task.initial_state)
    for s in state:
        s[1, 2] = np.nan
    clean = oracles.answer(task, "numpy", chunks=chunks)
    found = oracles.answer(task._replace(initial_state=state), "numpy", chunks=chunks)
    others = np.ones((3, 4), bool)
    others[1, 2] = False
    for a, e in [(found.outputs.swapaxes(1, 2), clean.outputs.swapaxes(1, 2))]:
        assert_bits(a[others], e[others])
        assert np.isnan(a[~others]).all()


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_poison_leaves_the_gradients_of_others(backend):
    """The inputs' gradient of a sequence does not see what another sequence holds."""
    task = oracles.problem("gru", steps=T)
    expected = oracles.reference(task)
    task.inputs[1, 13] = np.nan
    for chunks in (1, 5):
        found = oracles.answer(task, backend, gradients=True, chunks=chunks)
        for k in ("inputs", "state.0"):
            assert_close(found.gradients[k][[0, 2]], expected.gradients[k][[0, 2]], 1e-10)


@given(steps=st.integers(1, 40), chunks=st.integers(1, 40), at=st.integers(0, 39))
@settings(max_examples=60)
def test_any_poisoned_step_keeps_the_past(steps, chunks, at):
    task = oracles.problem("lstm", steps=steps, batch=(2,))
    chunks, at = min(chunks, steps), min(at, steps - 1)
    clean = oracles.answer(task, "numpy", chunks=chunks)
    task.inputs[0, at] = np.nan
    found = oracles.answer(task, "numpy", chunks=chunks)
    assert_bits(found.outputs[1], clean.outputs[1])
    assert_bits(found.outputs[0, :at], clean.outputs[0, :at])
    assert np.isnan(found.outputs[0, at:]).all()
