"""Generated C kernels against the path composed of the framework's operations, and the cache."""

import ctypes
import functools
import itertools
import multiprocessing
import os
import re
import subprocess
import threading
from pathlib import Path

import jax
import numpy as np
import oracles  # noqa: F401, registers test-everything
import pytest
import torch
from kernels import PROBLEMS, answer

import parnl
from parnl import ops
from parnl.backends.c import build, calls
from parnl.backends.jax import ffi as jax_ffi
from parnl.backends.torch import threads as threads_of_torch
from parnl.frameworks import get_backend
from parnl.params import vector

# Rows of several (8), of one group (24, 64), rows and channels left over (70, 130, 136), gathered.
CHANNELS = [1, 8, 17, 24, 64, 70, 130, 136]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        *(("gru", c) for c in CHANNELS),
        *itertools.product(["lrc", "lstm", "ltc", "test-everything"], (5, 64, 70)),
    ],
)
@pytest.mark.turns("name", "channels")
def test_c_equals_the_composed_path(monkeypatch, name, channels, problem):
    cell = parnl.get_cell(name, 3, channels)
    found = answer(monkeypatch, "c", cell, problem)
    expected = answer(monkeypatch, "off", cell, problem)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-10 * max(1.0, np.abs(e).max()))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gru", PROBLEMS[0]),
        ("gru", PROBLEMS[4]),
        ("lstm", PROBLEMS[3]),
        *([("test-everything", (2, 20, 5, False, None))] if "PARNL_EVERY" in os.environ else []),
    ],
    ids=str,
)
@pytest.mark.turns("name")
def test_jax_gets_the_same_from_c_and_from_its_own_operations(monkeypatch, name, problem):
    batch, steps, chunks, reverse, _ = problem
    cell = parnl.get_cell(name, 3, 70)
    rng = np.random.default_rng(0)
    params = cell.init(0, "jax", "float64")
    inputs = jax.numpy.asarray(rng.normal(size=(2, batch, steps, 3)))

    def loss(params, u):
        out = parnl.solve(cell, params, u, chunks=chunks, reverse=reverse)
        return (out.outputs * jax.numpy.cos(out.outputs)).sum(), out.outputs

    results = {}
    for kernels in ("c", "off"):
        monkeypatch.setenv("PARNL_KERNELS", kernels)
        jax.clear_caches()  # the choice is made when a function is traced
        every = jax.vmap(jax.value_and_grad(loss, has_aux=True), in_axes=(None, 0))
        one = jax.value_and_grad(loss, has_aux=True)(params, inputs[0])
        called = "parnl_" in jax.jit(loss).lower(params, inputs[0]).as_text()
        assert called == (kernels == "c")
        results[kernels] = jax.tree.leaves((jax.jit(every)(params, inputs), one))
    for c, own in zip(results["c"], results["off"], strict=True):
        own = np.asarray(own)
        np.testing.assert_allclose(c, own, rtol=0, atol=1e-10 * max(1.0, np.abs(own).max()))


@pytest.mark.parametrize("name", ["gru", "lrc", "lstm", "ltc"])
def test_float32_is_as_accurate_as_it_can_be(monkeypatch, name):
    cell = parnl.get_cell(name, 3, 64)
    problem = (2, 300, 6, False, None)
    found = answer(monkeypatch, "c", cell, problem, "float32")
    expected = answer(monkeypatch, "off", cell, problem, "float64")
    # the parameters are the same numbers, rounded to float32
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == np.float32
        np.testing.assert_allclose(f, e, rtol=0, atol=2e-5 * max(1.0, np.abs(e).max()))


@pytest.mark.parametrize(
    ("op", "units"), [("exp", 1.1), ("tanh", 6.3), ("sigmoid", 2.6)], ids=lambda p: str(p)
)
def test_own_mathematics_over_all_magnitudes(monkeypatch, op, units):
    """Every 65521st float there is, NaN and infinities with them, in units in the last place."""
    monkeypatch.setenv("PARNL_KERNELS", "c")

    class Forgetful(parnl.Cell):
        def features(self, p, u):
            return {"a": u}

        def step(self, p, x, f, dt):
            return getattr(ops, op)(f.a)

    some = np.arange(0, 2**32, 65521, dtype="uint32")
    x = np.append(some[: some.size // 64 * 64 - 3], [0x7F800000, 0xFF800000, 0x80000000])
    x = x.astype("uint32").view("float32").reshape(1, -1, 64)
    found = parnl.solve(Forgetful(64, 64), {}, x).outputs.astype("float64")
    exact = {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}[op]
    with np.errstate(all="ignore"):
        expected = exact(x.astype("float64"))
        whole = np.abs(expected) <= np.finfo("float32").max
        np.testing.assert_array_equal(found[~whole], expected[~whole].astype("float32"))
    found, expected, x = found[whole], expected[whole], x[whole]
    unit = 2.0 ** (np.frexp(np.maximum(np.abs(expected), 2.0**-126))[1] - 24)
    # sigmoid may round its denormal results to zero
    allowed = np.where((op == "sigmoid") & (expected < 2.0**-126), 2.0**-126, units * unit)
    assert (np.abs(found - expected) <= np.where(np.isinf(x), 0, allowed)).all()
    assert op == "exp" or (np.abs(found) <= 1).all()


class _Decay(parnl.Cell):
    """The gradient of the last state for the input before it by n steps is 1 / 2^n."""

    def features(self, p, u):
        return {"a": u}

    def step(self, p, x, f, dt):
        return 0.5 * x + f.a


@pytest.mark.parametrize("chunks", [1, 3])  # backward with no scan, and with one
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_fades_to_zero_and_a_state_does_not(use_threads, dtype, threads, chunks):
    """Each keeps its normal numbers; those below them, where a processor is slow, only states."""
    used = use_threads("torch", threads)
    steps, tiny = 2400, np.finfo(dtype).tiny
    cell, kind = _Decay(64, 64), getattr(torch, dtype)
    u = torch.zeros(4, steps, 64, dtype=kind).requires_grad_()
    x0 = torch.ones(4, 64, dtype=kind).requires_grad_()
    y = parnl.solve(cell, {}, u, x0, chunks=chunks).outputs
    expected = np.ldexp(np.ones(steps, dtype), -np.arange(1, steps + 1))
    assert (expected[expected < tiny] > 0).any()
    np.testing.assert_array_equal(y[1, :, 7].detach(), expected)
    y[:, -1].sum().backward()
    expected = np.ldexp(np.ones(steps, dtype), -np.arange(steps))[::-1]
    np.testing.assert_array_equal(u.grad[1, :, 7], np.where(expected < tiny, 0, expected))
    # as the processor was set before, in this thread and in those of the pool
    assert set(used) == {threads}
    small = torch.full((1 << 20,), float(tiny), dtype=kind)
    assert (small * 0.5 > 0).all()


def test_c_really_runs(monkeypatch):
    """Else everything above compares the composed path with itself."""
    monkeypatch.setenv("PARNL_KERNELS", "c")
    backend = get_backend("torch")
    assert backend.compiles(torch.zeros(1))
    assert not backend.compiles(torch.zeros(1, dtype=torch.float16))
    monkeypatch.setenv("PARNL_KERNELS", "off")
    assert not backend.compiles(torch.zeros(1))


class _Unprojected(parnl.Cell):
    """Its inputs are its features: nothing but the kernels has work for several threads."""

    parameters = dict(w=vector("hidden"))

    def features(self, p, u):
        return {"a": u}

    def step(self, p, x, f, dt):
        return ops.sigmoid(f.a) * ops.tanh(p.w * x + f.a)


def _solved(backend, chunks=8):
    cell, target = _Unprojected(33, 33), get_backend(backend)
    u = target.asarray(
        np.random.default_rng(0).normal(size=(3, 4000, 33)).astype("float32"), "float32"
    )
    return target.to_numpy(parnl.solve(cell, cell.init(0, backend), u, chunks=chunks).outputs)


@pytest.fixture
def use_threads(monkeypatch):
    """use(backend, n): let kernels run on n threads; the list says on how many they did."""
    used = []
    monkeypatch.setenv("PARNL_KERNELS", "c")

    def counted(*args, **options):
        used.append(worthwhile(*args, **options))
        return used[-1]

    worthwhile = calls.worthwhile
    monkeypatch.setattr(calls, "worthwhile", counted)
    monkeypatch.setattr(jax_ffi, "worthwhile", counted)

    def use(backend, n):
        used.clear()
        monkeypatch.setenv("OMP_NUM_THREADS", str(n))
        jax.clear_caches()  # else what was traced stays
        if backend == "torch":
            torch.set_num_threads(n)
        return used

    before = torch.get_num_threads()
    yield use
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_same_bits_for_any_number_of_threads(use_threads, backend):
    results = []
    for threads in (1, 2, 3, 8):
        used = use_threads(backend, threads)
        results += [_solved(backend) for _ in range(10)]
        assert threads == 1 or max(used) > 1
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_several_python_threads_at_once(use_threads, backend):
    used = use_threads(backend, 4)
    expected = _solved(backend)
    assert max(used) > 1
    found = [None] * 8

    def work(i):
        found[i] = _solved(backend)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        np.testing.assert_array_equal(result, expected)


def _solve_in_child(queue, backend):
    queue.put(_solved(backend, chunks=1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_solve_after_fork_ends(use_threads, backend):
    """OpenMP's threads are not in the child, which must not wait for them.

    PyTorch's own operations do, so there are none here: one chunk.
    """
    used = use_threads(backend, 4)
    expected = _solved(backend, chunks=1)
    assert max(used) > 1
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_solve_in_child, args=(queue, backend), daemon=True)
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected)
    child.join(60)
    assert child.exitcode == 0


def test_pytorch_lends_its_threads(use_threads):
    use_threads("torch", 2)
    assert get_backend("torch").team() == threads_of_torch.openmp() != 0


def test_strided_operands_are_read_where_they_are(monkeypatch):
    monkeypatch.setenv("PARNL_KERNELS", "c")
    cell = parnl.get_cell("gru", 3, 64)
    params = cell.init(0, "torch")
    u = torch.randn(40, 2, 3)
    wide = torch.randn(2, 80, 6)
    for inputs in (u.transpose(0, 1), wide[:, ::2, ::2], wide[:, 10:50, 3:]):
        found = parnl.solve(cell, params, inputs).outputs
        expected = parnl.solve(cell, params, inputs.contiguous()).outputs
        assert torch.equal(found, expected)


def test_jax_gradients_run_the_backward_kernel_in_any_order_of_grad_and_vmap(monkeypatch):
    monkeypatch.delenv("PARNL_KERNELS", raising=False)
    cell = parnl.get_cell("lrc", 3, 16)
    params, u = cell.init(0, "jax"), jax.numpy.ones((2, 2, 50, 3))

    def loss(params, u):
        return (parnl.solve(cell, params, u).outputs ** 2).sum()

    over = functools.partial(jax.vmap, in_axes=(None, 0))
    forms = [jax.grad(loss), over(jax.grad(loss)), jax.grad(lambda *a: over(loss)(*a).sum())]
    for form in forms:
        text = jax.jit(form).lower(params, u).as_text()
        # the product with the inputs, forward and backward
        assert len(re.findall(r"custom_call @parnl_", text)) == 3
        assert "stablehlo.while" not in text


def test_without_vector_mathematics_results_are_the_same(tmp_path, monkeypatch):
    """A platform whose C library has none builds the same text with scalar functions."""
    monkeypatch.setattr(build, "FLAGS", tuple(f for f in build.FLAGS if "openmp" not in f))
    from parnl.backends.c.kernel import CKernel, Lanes
    from parnl.backends.c.text import source

    cell = parnl.get_cell("gru", 2, 64)
    layouts = "".join("c" if o.kind == "parameter" else "f" for o in cell.program.operands)
    text = source(
        CKernel(cell.program, "trajectory", "float64", layouts, Lanes(64, 64, True, False))
    )
    path = tmp_path / "scalar.so"
    command = ["cc", *build.FLAGS, "-x", "c", "-", "-o", str(path), "-lm", "-lpthread"]
    subprocess.run(command, input=text, text=True, check=True)
    assert b"_ZGV" not in Path(path).read_bytes()
    assert ctypes.CDLL(str(path)).kernel
