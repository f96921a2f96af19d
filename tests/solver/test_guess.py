"""Chunk starts guessed from the last steps before them: used where exact, and only there."""

import numpy as np
import pytest
from oracles import BACKENDS, assert_bits, assert_close, numpy_of, to

import parnl
from parnl import ops
from parnl.params import vector
from parnl.solver.cost import GUESSED_FROM

CHUNK = 4 * GUESSED_FROM  # the shortest chunk whose start is guessed


class Memory(parnl.Cell):
    """x' = tanh(a x + u): forgets for small a, has two attractors for large a."""

    parameters = dict(a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u)

    def step(self, p, x, f):
        return ops.tanh(p.a * x + f.f)


def loop(a, u, reverse=False):
    x, found = np.zeros(u.shape[::2], u.dtype), np.empty_like(u)
    for t in reversed(range(u.shape[1])) if reverse else range(u.shape[1]):
        x = np.tanh(a * x + u[:, t])
        found[:, t] = x
    return found


def solved(backend, a, u, **options):
    cell = Memory(u.shape[-1], u.shape[-1])
    return parnl.solve(cell, {"a": to(backend, a)}, to(backend, u), **options)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kernels", ["", "off"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_that_forgets_takes_no_update(backend, kernels, reverse, monkeypatch):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    steps = 3 * CHUNK + 5
    u = np.random.default_rng(0).normal(size=(2, steps, 3))
    a = np.array([0.5, -0.3, 0.9])
    out = solved(backend, a, u, chunks=3, reverse=reverse)
    assert int(out.info.iterations) == 0
    assert bool(out.info.converged)
    assert_close(out.outputs, loop(a, u, reverse), 1e-12)
    plain = solved(backend, a, u, method="sequential", reverse=reverse)
    assert_close(out.outputs, numpy_of(plain.outputs), 1e-14)
    if kernels == "" or backend != "jax":  # XLA may round differently in other shapes
        assert_bits(numpy_of(out.outputs), numpy_of(plain.outputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_guess_in_the_wrong_attractor_is_found_out(backend):
    """Both short runs meet, far from where the sequence really is: pushed there long before."""
    u = np.zeros((1, 4 * CHUNK, 3))
    u[0, :20, 1] = -9.0
    u[0, CHUNK + 50, 2] = -9.0
    a = np.array([3.0, 3.0, 3.0])
    u[..., 0] = 0.1
    exact = loop(a, u)
    assert exact[0, -1, 1] < -0.9
    assert exact[0, -1, 2] < -0.9 < 0.9 < exact[0, -1, 0]
    out = solved(backend, a, u + 1e-3, chunks=4)
    assert int(out.info.iterations) > 0
    assert_close(out.outputs, loop(a, u + 1e-3), 1e-12)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("where", [10, CHUNK - 5, CHUNK + 7])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_poison_spoils_no_guess_of_others(backend, where, poison):
    u = np.random.default_rng(1).normal(size=(3, 3 * CHUNK, 2))
    a = np.array([0.6, 0.999])  # one channel does not forget
    clean = numpy_of(solved(backend, a, u, chunks=3).outputs)
    u[1, where, 0] = poison
    out = numpy_of(solved(backend, a, u, chunks=3).outputs)
    assert_bits(out[[0, 2]], clean[[0, 2]])
    assert_bits(out[1, :, 1], clean[1, :, 1])
    assert_bits(out[1, :where, 0], clean[1, :where, 0])
    assert_close(out[1, :, 0], loop(a, u)[1, :, 0], 1e-12)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_of_operands(backend):
    """Inputs shared by the batch, numbers in place of arrays, one dt for each step, lengths."""
    rng = np.random.default_rng(2)
    steps = 2 * CHUNK
    cell = parnl.get_cell("lrc", input_size=2, hidden_size=3)
    params = {n: to(backend, v) for n, v in cell.init(0, dtype="float64").items()}
    u, dt = (
        to(backend, rng.normal(size=(2, steps, 2))),
        to(backend, rng.uniform(0.2, 1, (2, steps))),
    )
    lengths = to(backend, np.array([steps, CHUNK - 3]))
    for given in ({}, {"dt": dt}, {"lengths": lengths}, {"dt": dt, "lengths": lengths}):
        for reverse in (False, True):
            options = dict(given, reverse=reverse)
            found = parnl.solve(cell, params, u, chunks=2, **options)
            plain = parnl.solve(cell, params, u, method="sequential", **options)
            assert_close(found.outputs, numpy_of(plain.outputs), 1e-13)
            assert_close(found.final_state[0], numpy_of(plain.final_state[0]), 1e-13)


def test_a_few_channels_are_worth_chunks(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("PARNL_KERNELS", "")
    u = np.random.default_rng(3).normal(size=(1, 64 * CHUNK, 2)).astype(np.float32)
    out = solved("numpy", np.array([0.5, 0.7], np.float32), u)
    assert out.info.chunks > 8
    assert out.info.iterations == 0
    short = solved("numpy", np.array([0.5, 0.7], np.float32), u[:, : CHUNK // 2], chunks=4)
    assert short.info.iterations > 0  # too short to be guessed
