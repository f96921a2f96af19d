"""Random cells through every kind of kernel: each must give what a plain loop gives.

`make test` draws a few. `make fuzz` draws PARNL_FUZZ cells (10000) in parts of 100, each from a
seed of its own, PARNL_FUZZ_SEED (0) and those that follow: a run that was cut off goes on from the
seed it is at, and runs with seeds far apart draw different cells. A failure prints the smallest
cell that hypothesis finds, as source. Nearly all of the time of a cell is the C compiler's (0.24 s
for a kernel, three kernels a cell), so parts are run in parallel.
"""

import os
from typing import NamedTuple

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

import parnl
from parnl.frameworks import get_backend
from parnl.testing import cells, loop
from parnl.testing.kinds import unusual

PART = 100
CELLS = int(os.environ.get("PARNL_FUZZ", "8"))
FIRST = int(os.environ.get("PARNL_FUZZ_SEED", "0"))
PARTS = -(-CELLS // PART)
CHANNELS = (1, 3, 16, 17, 64, 70)
FEW = (1, 3, 5)


class Way(NamedTuple):
    """A path through the backends: it is given one in `every` of the cells that are drawn.

    runs: (backend, PARNL_KERNELS) to be compared with the loop. smooth: only cells without jumps
    and kinks, where single precision may take the other side.
    """

    every: int
    runs: tuple[tuple[str, str], ...]
    channels: tuple[int, ...] = CHANNELS
    steps: int = 40
    dtype: str = "float64"
    smooth: bool = False


WAYS = {
    "cpu": Way(1, (("torch", "c"), ("torch", "off"), ("numpy", "c"), ("numpy", "off"))),
    "float32": Way(5, (("torch", "c"), ("numpy", "c")), dtype="float32", smooth=True),
    "jax": Way(10, (("jax", "c"), ("jax", "off")), steps=20),
    "triton": Way(10, (("torch", "triton"), ("jax", "triton")), FEW, 9),
}


class Case(NamedTuple):
    """A solve; its arrays are drawn from `seed`."""

    cell: parnl.Cell
    batch: int
    steps: int
    chunks: int
    reverse: bool
    seed: int


@st.composite
def cases(draw, way):
    steps = draw(st.integers(1, way.steps))
    return Case(
        draw(cells(way.channels, smooth=way.smooth)),
        draw(st.integers(1, 3)),
        steps,
        draw(st.integers(1, steps)),
        draw(st.booleans()),
        draw(st.integers(0, 2**31)),
    )


def by_solve(case, params, u, x0, dt):
    out = parnl.solve(
        case.cell, params, u, x0, dt=dt, reverse=case.reverse, chunks=case.chunks
    )  # fmt: skip
    return out.outputs, out.final_state


def by_loop(case, params, u, x0, dt):
    return loop(case.cell, params, u, x0, dt=dt, reverse=case.reverse)


def answer(case, backend, dtype, run):
    """Return outputs, final state and, where there are any, all gradients.

    What a solve is given is of unusual memory: the arguments, and the gradients of its results.
    """
    rng, cell = np.random.default_rng(case.seed), case.cell
    batch, steps = case.batch, case.steps
    kinds = np.random.default_rng(case.seed)

    def make(values, dtype):
        array = get_backend(backend).asarray(values, dtype)
        return array if run is by_loop else unusual(backend, array, kinds)

    given = dict(cell.init(case.seed, dtype="float64"))
    arrays = (
        {n: make(v, dtype) for n, v in given.items()},
        make(rng.normal(size=(batch, steps, 2)), dtype),
        [make(rng.normal(size=(batch, cell.hidden_size)), dtype) for _ in cell.states],
        make(rng.uniform(0.1, 1.0, (batch, steps)), dtype),
    )
    weights = make(rng.normal(size=(batch, steps, cell.hidden_size)), dtype)

    def results(arrays):
        outputs, final = run(case, *arrays)
        return [outputs, *final]

    def loss(arrays):  # for JAX
        outputs, *final = found = results(arrays)
        return (outputs * weights).sum() + sum(s.sum() for s in final), found

    if backend == "numpy":
        with np.errstate(all="ignore"):
            return results(arrays)
    if backend == "jax":
        (_, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
        return [np.asarray(x) for x in (*found, *leaves(grads))]
    for leaf in leaves(arrays):
        leaf.requires_grad_()
    found = results(arrays)
    upstream = [weights, *(make(np.ones(s.shape), dtype) for s in found[1:])]
    # a loop's state is a constant where the step returns a number
    pairs = [(x, g) for x, g in zip(found, upstream, strict=True) if x.requires_grad]
    ends, upstream = zip(*pairs, strict=True)
    grads = torch.autograd.grad(ends, leaves(arrays), upstream, materialize_grads=True)
    return [x.numpy(force=True) for x in (*found, *grads)]


def leaves(arrays):
    params, u, x0, dt = arrays
    return [*params.values(), u, *x0, dt]


def error(found, expected):
    """Relative to the largest number, at least 1."""
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return float(np.abs(found - expected).max(initial=0.0)) / scale


def compare(way, case):
    expected = answer(case, "torch", "float64", by_loop)
    allowed = [1e-9] * len(expected)
    if way.dtype == "float32":  # what single precision makes of the loop is nobody's fault
        rounded = answer(case, "torch", "float32", by_loop)
        allowed = [2e-5 + 4 * error(r, e) for r, e in zip(rounded, expected, strict=True)]
    for backend, kernels in way.runs:
        os.environ["PARNL_KERNELS"] = kernels
        if backend == "jax":
            jax.clear_caches()  # the choice of kernels is made when a function is traced
        found = answer(case, backend, way.dtype, by_solve)
        count = len(expected) if backend != "numpy" else 1 + len(case.cell.states)
        assert len(found) == count
        for i, (f, e, a) in enumerate(zip(found, expected, allowed, strict=False)):
            assert f.dtype == way.dtype
            assert f.shape == e.shape
            wrong = error(f, e)
            assert wrong <= a, f"{backend}, {kernels}: result {i} is off by {wrong:.3g}\n{case!r}"


@pytest.fixture
def apart(monkeypatch):
    """Each run chooses its kernels; interpreters in place of GPUs, and no time for optimising."""
    monkeypatch.setenv("PARNL_KERNELS", "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("part", range(FIRST, FIRST + PARTS))
@pytest.mark.parametrize("name", WAYS)
def test_random_cells(name, part, record_property):
    way = WAYS[name]
    if name == "triton":
        pytest.importorskip("triton", minversion="3.6")
    here = min(PART, CELLS - (part - FIRST) * PART)
    drawn = 0

    @seed(part * len(WAYS) + list(WAYS).index(name))
    @settings(
        max_examples=max(2, here // way.every),  # the first is the simplest cell there is
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(way))
    def check(case):
        nonlocal drawn
        drawn += 1
        compare(way, case)

    try:
        check()
    finally:
        record_property("cells", f"{name} {drawn}")
