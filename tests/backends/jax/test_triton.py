"""The Triton kernels in JAX: by Triton's interpreter, and when they are chosen.

What is launched on a GPU is looked at in `test_triton_lowered.py`.
"""

import functools
import os
import sys

import children
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from launches import BUILT_IN, lowered, needs_plugin
from oracles import assert_close

import parnl
from parnl.backends.jax import triton as jax_triton
from parnl.backends.triton import build, launch
from parnl.backends.triton.launch import CHUNKS
from parnl.frameworks import get_backend

pytest.importorskip("triton", minversion="3.6")


# -- by the interpreter ---------------------------------------------------------------------------


@pytest.fixture
def ran(fresh):
    """The kinds of kernels that are run, in the order they are."""
    pytest.importorskip("torch")
    fresh.setenv("TRITON_INTERPRET", "1")
    found, loaded = [], build.loaded

    def spied(kernel, tiled, interpreted):
        found.append(kernel.kind)
        assert interpreted
        return loaded(kernel, tiled, interpreted)

    fresh.setattr(build, "loaded", spied)
    return found


HOWS = [
    (4, {}),
    (5, {"reverse": True, "lengths": [0, 13, 8]}),
    (1, {"lengths": [13, 1, 8]}),
]


def test_all_cells_are_here():
    builtin = {n for n in parnl.list_cells() if not n.startswith("test-")}
    assert set(BUILT_IN) == builtin


EVERY = "PARNL_EVERY" in os.environ  # `make fuzz`


@pytest.mark.long
@pytest.mark.parametrize("name", BUILT_IN if EVERY else ["gru", "lstm", "ltc", "lru"])
def test_solve(ran, name):
    """Outputs, final states and all gradients, by a plain loop in float64."""
    at = BUILT_IN.index(name)
    for chunks, how in HOWS if EVERY or name == "gru" else [HOWS[at % len(HOWS)]]:
        times = {"times": ("own", "shared")[at % 2]} if oracles.is_time_aware(name) else {}
        task = oracles.problem(name, steps=13, hidden=3, **how, **times)
        found = oracles.answer(task, "jax", chunks=chunks, gradients=True)
        oracles.assert_same(found, oracles.reference(task), 1e-9)
        assert ran == ["solve", "gradients"]
        ran.clear()


@pytest.mark.long
@pytest.mark.parametrize("name", ["gru", "mingru", *(["lstm"] if EVERY else [])])
def test_single_precision(ran, name):
    task = oracles.problem(name, steps=21, hidden=37, batch=(1,), dtype="float32")
    found = oracles.answer(task, "jax", chunks=3, gradients=True)
    assert found.outputs.dtype == np.float32
    oracles.assert_same(found, oracles.reference(task), 5e-5)
    assert ran == ["solve", "gradients"]


@pytest.mark.skipif(not EVERY, reason="the same text as in PyTorch: make fuzz")
def test_every_operation(ran):
    """A cell of all of them, with a feature of each layout; NaN-safe sums apart."""
    cell = parnl.get_cell("test-everything", 2, 3)
    params = cell.init(0, "jax", "float64")
    u = jnp.asarray(np.random.default_rng(0).normal(size=(2, 11, 2)))

    def loss(params, u):
        return (parnl.solve(cell, params, u, chunks=4).outputs ** 2).sum()

    results = []
    for kernels in ("triton", "off"):
        jax.clear_caches()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PARNL_KERNELS", kernels)
            results.append(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, u))
    assert ran == ["solve", "gradients"]
    found, expected = map(jax.tree.leaves, results)
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e, 1e-9)


@pytest.mark.long
def test_vmap_grad_jvp_and_second_derivatives(ran):
    """An axis of vmap is part of the batch; what is not fused is made of solves."""
    task = oracles.problem("gru", steps=7, batch=(3,), hidden=4)
    params = {n: jnp.asarray(p) for n, p in task.params.items()}
    u, state = jnp.asarray(task.inputs), jnp.asarray(task.initial_state[0])

    def loss(run, params, u, state):
        return (run(task.cell, params, u, (state,))[0] ** 2).sum()

    def solve(*arguments):
        return parnl.solve(*arguments, chunks=3)[:2]

    by_solve, by_scan = (functools.partial(loss, run) for run in (solve, oracles.scan_loop))

    def several(loss):
        each = jax.vmap(jax.grad(loss), (None, 0, 0))(params, u, state)
        rows = jax.vmap(jax.grad(loss, 1), (0, None, None))(
            jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params), u[0], state[0]
        )
        along = jax.jvp(lambda u: loss(params, u, state), (u,), (jnp.cos(u),))
        slope = functools.partial(jax.grad(loss, 1), params)
        second = jax.grad(lambda u: (slope(u, state[0]) ** 2).sum())(u[0])
        return each, rows, along, second

    found, expected = jax.jit(several, static_argnums=0)(by_solve), several(by_scan)
    for f, e in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert_close(f, e, 1e-8)
    assert {"solve", "gradients"} == set(ran)


@pytest.mark.long
def test_statistics(ran):
    cell = parnl.get_cell("lstm", 2, 3)
    params = cell.init(0, "jax", "float64")
    u = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 2)))
    for chunks in (1, 4):
        infos = []
        for kernels in ("triton", "off"):
            jax.clear_caches()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PARNL_KERNELS", kernels)
                infos.append(parnl.solve(cell, params, u, chunks=chunks).info)
        for f, e in zip(*map(jax.tree.leaves, infos), strict=True):
            np.testing.assert_allclose(f, e, rtol=1e-6, atol=1e-12)
    assert ran == ["solve", "solve"]


@pytest.mark.long
def test_without_jit_and_with_nothing_to_do(ran):
    cell = parnl.get_cell("gru", 2, 3)
    params, u = cell.init(0, "jax"), jnp.ones((1, 5, 2), jnp.float32)
    expected = parnl.solve(cell, params, u, chunks=2).outputs
    with jax.disable_jit():
        found = parnl.solve(cell, params, u, chunks=2).outputs
    np.testing.assert_array_equal(found, expected)
    assert parnl.solve(cell, params, u[:0], chunks=2).outputs.shape == (0, 5, 3)
    assert parnl.solve(cell, params, u[:, :0]).outputs.shape == (1, 0, 3)
    many = jnp.ones((1, CHUNKS + 1, 2), jnp.float32)
    with pytest.raises(ValueError, match="chunks: a Triton kernel takes at most 2048, got 2049"):
        parnl.solve(cell, params, many, chunks=CHUNKS + 1)


def test_a_cpu_without_the_interpreter_is_an_error(fresh):
    cell = parnl.get_cell("gru", 2, 3)
    with pytest.raises(RuntimeError, match=r"arrays are on cpu, .*TRITON_INTERPRET=1"):
        parnl.solve(cell, cell.init(0, "jax"), jnp.ones((1, 5, 2), jnp.float32))


def test_the_interpreter_without_pytorch_is_an_error(fresh):
    fresh.setenv("TRITON_INTERPRET", "1")
    fresh.setitem(sys.modules, "torch", None)
    cell = parnl.get_cell("gru", 2, 3)
    with pytest.raises(ImportError, match="needs PyTorch, which is not installed"):
        parnl.solve(cell, cell.init(0, "jax"), jnp.ones((1, 5, 2), jnp.float32))


# -- when it is chosen ----------------------------------------------------------------------------


@pytest.fixture
def gpu(fresh):
    """As if the default device were a GPU."""
    fresh.setenv("PARNL_KERNELS", "")
    fresh.setattr(jax, "default_backend", lambda: "gpu")
    return fresh


def text_for_cuda(**how):
    return lowered(parnl.get_cell("gru", 2, 3), (2, 12), gradient=False, **how).as_text()


def composed(text):
    """Whether a solve is made of JAX's own operations, and no kernel."""
    return "stablehlo.while" in text and "custom_call" not in text


@pytest.mark.long
@needs_plugin
def test_a_gpu_gets_triton(gpu):
    text = text_for_cuda()
    assert text.count("@triton_kernel_call(") == 1
    assert "stablehlo.while" not in text  # nothing else is lowered beside it
    for choice in ("off", "c"):
        gpu.setenv("PARNL_KERNELS", choice)
        jax.clear_caches()
        assert composed(text_for_cuda())


@needs_plugin
def test_chunks_that_are_chosen_are_not_too_many(gpu):
    like = jnp.zeros((1, 4), jnp.float32)
    backend = get_backend("jax")
    assert backend.device(like).lanes == launch.FEWER * 4
    assert backend.device(jnp.zeros((64, 1024), jnp.float32)).lanes == jax_triton.LANES
    gpu.setenv("PARNL_KERNELS", "off")
    assert backend.device(like).lanes == jax_triton.LANES


def test_without_the_plugin_or_triton_it_is_composed(gpu):
    for reason in ("JAX's CUDA plugin is not installed", "No module named 'triton'"):
        gpu.setattr(launch, "importable", lambda: "")
        gpu.setattr(jax_triton, "TRITON_ABSENT", "")
        if "triton" in reason:
            gpu.setattr(jax_triton, "importable", lambda: "No module named 'triton'")
        else:
            gpu.setattr(jax_triton, "TRITON_ABSENT", reason)
        jax.clear_caches()
        with pytest.warns(RuntimeWarning, match=f"without Triton kernels.*{reason}") as record:
            text = text_for_cuda()
        assert len(record) == 1
        assert composed(text)
        jax.clear_caches()
        assert composed(text_for_cuda())  # and that is said once
        gpu.setenv("PARNL_KERNELS", "triton")
        jax.clear_caches()
        with pytest.raises(NotImplementedError, match=f"=triton: {reason}"):
            text_for_cuda()
        gpu.setenv("PARNL_KERNELS", "")


def test_more_chunks_than_an_instance_holds_are_composed(gpu):
    gpu.setattr(jax_triton, "TRITON_ABSENT", "")
    gpu.setattr(jax_triton, "CHUNKS", 2)
    assert composed(text_for_cuda())


def test_an_operation_without_a_form_is_named(gpu):
    gpu.setattr(jax_triton, "TRITON_ABSENT", "")
    forms = {n: f for n, f in launch.forms().items() if n != "tanh"}
    gpu.setattr(launch, "forms", lambda: forms)
    with pytest.warns(RuntimeWarning, match="Triton kernels.*Triton has no form of tanh"):
        assert composed(text_for_cuda())
    gpu.setenv("PARNL_KERNELS", "triton")
    jax.clear_caches()
    with pytest.raises(NotImplementedError, match="=triton: Triton has no form of tanh"):
        text_for_cuda()


@pytest.mark.long
@needs_plugin
def test_pytorch_is_not_needed():
    text = """
import sys
sys.modules["torch"] = None
import jax, jax.numpy as jnp, parnl
cell = parnl.get_cell("gru", 2, 3)
f = jax.jit(lambda p, u: parnl.solve(cell, p, u, chunks=2).outputs)
found = f.trace(cell.init(0, "jax"), jnp.ones((2, 12, 2))).lower(lowering_platforms=("cuda",))
print(found.as_text().count("@triton_kernel_call("))
"""
    found = children.run(
        text, PARNL_KERNELS="triton", JAX_PLATFORMS="cpu", without=("TRITON_INTERPRET",)
    )
    assert found.stdout.strip() == "1", found.stderr
