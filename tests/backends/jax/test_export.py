"""jax.export: what is exported is run by a process that does not have parnl."""

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
