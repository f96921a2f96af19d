"""Arrays of two frameworks in one call: the error says how to convert, and that works."""

import re

import numpy as np
import pytest

import parnl
from parnl import ops

CELL = parnl.get_cell("ltc", 2, 3)
PAIRS = [
    ("numpy", "jax"), ("numpy", "torch"), ("jax", "numpy"),
    ("torch", "numpy"), ("jax", "torch"), ("torch", "jax"),
]  # fmt: skip


def array(backend, *shape):
    """Return an array of the framework."""
    value = np.linspace(-1.0, 1.0, int(np.prod(shape))).reshape(shape).astype("float32")
    if backend == "numpy":
        return value
    if backend == "jax":
        return pytest.importorskip("jax.numpy").asarray(value)
    return pytest.importorskip("torch").from_numpy(value)


def names(*backends):
    found = {}
    if "jax" in backends:
        found["jnp"] = pytest.importorskip("jax.numpy")
    if "torch" in backends:
        found["torch"] = pytest.importorskip("torch")
    return found


def said(call):
    with pytest.raises(TypeError, match="must come from one framework: ") as caught:
        call()
    return str(caught.value).split("one framework: ")[1]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_parameters_and_inputs(ours, theirs):
    """Of parameters `ours` and inputs `theirs`, NumPy's are converted, else the parameters."""
    scope = names(ours, theirs)
    params, inputs = CELL.init(0, ours), array(theirs, 2, 5, 2)
    hint = said(lambda: parnl.solve(CELL, params, inputs))
    expected = np.asarray(parnl.solve(CELL, CELL.init(0), array("numpy", 2, 5, 2)).outputs)
    if theirs == "numpy":
        code = re.fullmatch(r"convert inputs by (.*)", hint)[1]
        inputs = eval(code, scope, {"inputs": inputs})
    else:
        made, code = re.fullmatch(
            r"make the parameters by (.*), or convert them: (.*)", hint
        ).groups()
        assert made == f'cell.init(backend="{theirs}")'
        again = parnl.solve(CELL, eval(made, {"cell": CELL}), inputs).outputs
        np.testing.assert_allclose(np.asarray(again), expected, rtol=1e-5, atol=1e-6)
        params = eval(code, scope, {"params": params})
    found = parnl.solve(CELL, params, inputs).outputs
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_other_arguments(ours, theirs):
    scope = names(ours, theirs)
    params, inputs = CELL.init(0, theirs), array(theirs, 2, 5, 2)
    dt, state, a = array(ours, 5), array(ours, 2, 3), array(ours, 5, 2)
    hints = {
        "dt": said(lambda: parnl.solve(CELL, params, inputs, dt=dt)),
        "initial_state": said(lambda: parnl.solve(CELL, params, inputs, state)),
        "input_t": said(lambda: parnl.step(CELL, params, array(ours, 2, 2))),
        "b": said(lambda: parnl.affine_scan(a, inputs[0])),
        "ops": said(lambda: ops.maximum(a, inputs[0])),
    }
    for argument, hint in hints.items():
        assert re.search(r"torch\.from_|jnp\.(asarray|from_dlpack)|cell\.init", hint), (
            argument,
            hint,
        )
    code = hints["dt"].split(" by ")[1]
    converted = eval(code, scope, {"dt": dt, "inputs": inputs})
    assert type(converted) is type(inputs if ours == "numpy" or theirs != "numpy" else dt)


@pytest.mark.parametrize("backend", ["numpy", "jax", "torch"])
def test_numbers_go_with_every_framework(backend):
    inputs = array(backend, 2, 5, 2)
    params = CELL.init(0, backend)
    expected = np.asarray(parnl.solve(CELL, params, inputs, dt=0.5).outputs)
    for dt in (np.float32(0.5), np.float64(0.5)):
        np.testing.assert_array_equal(parnl.solve(CELL, params, inputs, dt=dt).outputs, expected)
    for lengths in ([5, 5], np.array([5, 5])):
        found = parnl.solve(CELL, params, inputs, dt=0.5, lengths=lengths).outputs
        np.testing.assert_allclose(found, expected, rtol=1e-6)
