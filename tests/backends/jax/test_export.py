"""jax.export: what is exported is run by a process that does not have parnl."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import parnl
from parnl.backends.jax import ffi

pytest.importorskip("flatbuffers")  # which JAX asks for to write an artefact

RUN = """
import importlib.abc, sys
import numpy as np

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "parnl":
            raise ModuleNotFoundError(f"{name} is refused")

sys.meta_path.insert(0, Refused())
import jax
from jax import export

saved, *files = sys.argv[1:]
with open(saved, "rb") as file:
    function = export.deserialize(bytearray(file.read()))
for given in files:
    *params, u, g = np.load(given).values()
    outputs, back = jax.vjp(function.call, params, u)
    of_params, of_inputs = back(g)
    np.savez(given, outputs, of_inputs, *of_params)
assert "parnl" not in sys.modules
"""
SIZES = (5, 33), (1, 1), (2, 700)


def function_of(name, **how):
    """Return solve's outputs as a function of a list of parameters and the inputs; these first."""
    cell = parnl.get_cell(name, 3, 4)
    params = cell.init(0, "jax", "float64")

    def outputs(values, u):
        return parnl.solve(cell, dict(zip(params, values, strict=True)), u, **how).outputs

    return outputs, list(params.values())


def inputs(*shape):
    u = np.random.default_rng(0).standard_normal((*shape, 3))
    return jnp.asarray(u, jnp.float64)


@pytest.mark.long
@pytest.mark.parametrize("name", ["lrc", "lstm"])
def test_another_process_needs_no_parnl(tmp_path, name):
    function, params = function_of(name)
    jitted = jax.jit(function)
    free = jax.ShapeDtypeStruct((*export.symbolic_shape("batch, time"), 3), jnp.float64)
    saved = tmp_path / "saved"
    saved.write_bytes(export.export(jitted)(params, free).serialize(vjp_order=1))
    given = []
    for size in SIZES:
        g = jnp.cos(jnp.arange(np.prod(size) * 4, dtype=jnp.float64)).reshape(*size, 4)
        given.append((inputs(*size), g))
    files = [str(tmp_path / f"{i}.npz") for i in range(len(SIZES))]
    for file, arrays in zip(files, given, strict=True):
        np.savez(file, *params, *arrays)
    subprocess.run([sys.executable, "-c", RUN, str(saved), *files], check=True, timeout=120)
    for file, (u, g) in zip(files, given, strict=True):
        outputs, back = jax.vjp(jitted, params, u)
        of_params, of_inputs = back(g)
        with np.load(file) as results:
            pairs = zip([outputs, of_inputs, *of_params], results.values(), strict=True)
            for value, result in pairs:
                largest = max(1.0, float(abs(value).max()))
                np.testing.assert_allclose(result / largest, value / largest, atol=1e-10)


@pytest.mark.long
def test_what_was_compiled_with_kernels_is_exported_without(monkeypatch):
    """What JAX keeps of a function's earlier compilation has the kernels of this process."""
    monkeypatch.delenv("PARNL_KERNELS", raising=False)
    if not ffi.usable("float64"):
        pytest.skip("the C kernels of JAX are not in use")
    function, params = function_of("gru", chunks=4)
    gradient = jax.jit(jax.grad(lambda p, u: function(p, u).sum()))
    u = inputs(2, 64)
    expected = gradient(params, u)
    assert ffi.TARGET in gradient.lower(params, u).as_text()
    exported = export.export(gradient)(params, u)
    assert ffi.TARGET not in exported.mlir_module()
    for one, other in zip(exported.call(params, u), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
    anew = jax.jit(lambda p, u: gradient(p, u))  # and kernels are there again
    assert ffi.TARGET in anew.lower(params, u).as_text()


def test_states_go_in_and_out_as_plain_tuples():
    cell = parnl.get_cell("lstm", 3, 4)
    params = cell.init(0, "jax", "float64")

    def run(u, state):
        return parnl.solve(cell, params, u, state)[:2]

    state = (jnp.full((2, 4), 0.5, jnp.float64), jnp.full((2, 4), -0.5, jnp.float64))
    u = inputs(2, 30)
    exported = export.deserialize(export.export(jax.jit(run))(u, state).serialize())
    _, middle = exported.call(u, state)
    outputs, _ = exported.call(u, middle)
    twice = run(jnp.concatenate([u, u], axis=1), state)[0]
    np.testing.assert_allclose(outputs, twice[:, 30:], atol=1e-10)


def chunk_axes(exported, rows, channels):
    """Return the sizes of the middle axis of all arrays (rows, size, channels)."""
    found = re.findall(rf"tensor<{rows}x(\d+)x{channels}xf64>", exported.mlir_module())
    return {int(size) for size in found}


def exported_for(function, *arrays, platforms, **how):
    return export.export(jax.jit(function), platforms=platforms, **how)(*arrays)


@pytest.mark.long
@pytest.mark.parametrize("gradient", [False, True])
def test_chunks_are_those_of_the_platform_that_is_exported_for(gradient):
    """On a GPU a chunk of such few channels is as short as chunks get: 16 steps."""
    steps = 2048
    function, params = function_of("gru")
    automatic, told = (
        jax.grad(lambda p, u, f=f: (f(p, u) ** 2).sum(), (0, 1)) if gradient else f
        for f in (function, function_of("gru", chunks=40)[0])
    )
    u = inputs(2, steps)
    cpu, cuda, both = (
        exported_for(automatic, params, u, platforms=names)
        for names in (["cpu"], ["cuda"], ["cpu", "cuda"])
    )
    # B = 2, D = 4: the arrays that a solve in chunks has, and a loop does not
    assert steps // 16 in chunk_axes(cuda, 2, 4)
    assert chunk_axes(cpu, 2, 4) <= {1, steps - 1, steps}
    assert chunk_axes(both, 2, 4) == chunk_axes(cpu, 2, 4) | chunk_axes(cuda, 2, 4)
    # what is asked for stays
    as_told = chunk_axes(exported_for(told, params, u, platforms=["cuda"]), 2, 4)
    assert 40 in as_told
    assert steps // 16 not in as_told
    expected = jax.tree.leaves(jax.jit(automatic)(params, u))
    for found in (cpu, both):
        assert_near(found.call(params, u), expected)


@pytest.mark.parametrize("gradient", [False, True])
def test_what_a_gpu_is_given_is_the_answer(gradient):
    """Run by a CPU, where XLA takes what JAX writes for a GPU."""
    function, params = function_of("gru")
    run = jax.grad(lambda p, u: (function(p, u) ** 2).sum(), (0, 1)) if gradient else function
    u = inputs(2, 2048)
    expected = jax.tree.leaves(jax.jit(run)(params, u))
    anywhere = [export.DisabledSafetyCheck.platform()]
    gpu_s = exported_for(run, params, u, disabled_checks=anywhere, platforms=["cuda"])
    try:
        found = gpu_s.call(params, u)
    except jax.errors.JaxRuntimeError as error:
        if "UNIMPLEMENTED" not in str(error):
            raise
        pytest.skip("XLA of JAX 0.12 does not compile it for a CPU")
    assert_near(found, expected)


def assert_near(found, expected):
    for value, true in zip(jax.tree.leaves(found), expected, strict=True):
        scale = max(1.0, float(abs(true).max()))
        np.testing.assert_allclose(value / scale, true / scale, atol=1e-10)


@pytest.mark.long
def test_a_cpu_keeps_the_chunks_it_has_chosen(monkeypatch):
    monkeypatch.delenv("PARNL_KERNELS", raising=False)
    if not ffi.usable("float64"):
        pytest.skip("the C kernels of JAX are not in use")
    cell = parnl.get_cell("gru", 3, 1)
    params, u = cell.init(0, "jax", "float64"), inputs(1, 1 << 14)
    chosen = parnl.solve(cell, params, u).info.chunks
    assert 1 < chosen <= 16

    def outputs(params, u):
        return parnl.solve(cell, params, u).outputs

    cpu = exported_for(outputs, params, u, platforms=["cpu"])
    assert chosen in chunk_axes(cpu, 1, 1)
    assert 1024 not in chunk_axes(cpu, 1, 1)
    assert 1024 in chunk_axes(exported_for(outputs, params, u, platforms=["cuda"]), 1, 1)
    # from a GPU, it is the loop
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def again(params, u):  # JAX remembers what it has lowered
        return outputs(params, u)

    other = exported_for(again, params, u, platforms=["cpu"])
    assert chunk_axes(other, 1, 1) <= {1, (1 << 14) - 1, 1 << 14}
    np.testing.assert_allclose(other.call(params, u), cpu.call(params, u), atol=1e-10)


def test_an_update_is_worth_what_it_is_worth_on_that_platform():
    """A solve gives up after so many updates: 2 on a CPU without kernels, more on a GPU."""
    function, params = function_of("gru", chunks=64)
    module = {
        name: exported_for(function, params, inputs(2, 2048), platforms=[name]).mlir_module()
        for name in ("cpu", "cuda")
    }
    found = {
        name: {int(n) for n in re.findall(r"dense<(\d+)> : tensor<i32>", text)}
        for name, text in module.items()
    }
    assert 2 in found["cpu"]
    assert max(found["cuda"] - found["cpu"]) > 2  # JAX 0.9 has a 2 of its own in either


def test_sizes_left_open_have_one_chunk_on_every_platform():
    function, params = function_of("gru")
    free = jax.ShapeDtypeStruct((*export.symbolic_shape("batch, time"), 3), jnp.float64)
    both = exported_for(function, params, free, platforms=["cpu", "cuda"])
    u = inputs(2, 40)
    np.testing.assert_allclose(both.call(params, u), function(params, u), atol=1e-10)
