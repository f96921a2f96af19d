"""Steps that cannot be traced, and the messages they get."""

import importlib
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from optional import torch

import parnl
from parnl import ops
from parnl.params import matrix, vector


def _mixing_sum(p, x, f):
    return x + sum(x)


def _loop_over_channels(p, x, f):
    return [channel + f.f for channel in x]


def _branch(p, x, f):
    return x if x > 0 else f.f


def _in_place(p, x, f):
    x[0] = 1.0
    return x


STEPS: dict[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "index": (lambda p, x, f: x[0] + f.f, r"(?i)index|getitem|\[\]|\[0\]"),
    "slice": (lambda p, x, f: x[1:] + f.f, r"(?i)index|slic|getitem"),
    "assignment": (_in_place, r"(?i)index|assign|setitem"),
    "matmul": (lambda p, x, f: x @ p.a + f.f, r"(?i)@|matmul|matrix product"),
    "matmul of the feature": (lambda p, x, f: f.f @ x, r"(?i)@|matmul|matrix product"),
    "a matrix": (lambda p, x, f: x @ p.W + f.f, r"(?i)@|matmul|matrix product|\bW\b"),
    "matmul of an array": (lambda p, x, f: np.eye(3) @ x, r"(?i)@|matmul|matrix product"),
    "sum method": (lambda p, x, f: x + x.sum(), r"sum"),
    "mean method": (lambda p, x, f: x + x.mean(-1), r"mean"),
    "builtin sum": (_mixing_sum, r"(?i)iter|sum|loop"),
    "iteration": (_loop_over_channels, r"(?i)iter|loop"),
    "numpy sum": (lambda p, x, f: x + np.sum(x), r"sum"),
    "numpy cumsum": (lambda p, x, f: x + np.cumsum(x), r"cumsum"),
    "transpose": (lambda p, x, f: x.T + f.f, r"\bT\b|transpose"),
    "reshape": (lambda p, x, f: x.reshape(-1) + f.f, r"reshape"),
    "length": (lambda p, x, f: x * len(x), r"len"),
}


def register(step, name="test-wrong-step"):
    members = dict(
        parameters=dict(W=matrix("input", "hidden"), a=vector("hidden")),
        features=lambda self, p, u: dict(f=u @ p.W),
        step=lambda self, p, x, f: step(p, x, f),
    )
    return parnl.register(name)(type("Wrong", (parnl.Cell,), members))


@pytest.mark.parametrize("case", STEPS)
def test_a_step_that_mixes_channels_is_refused_at_registration(case):
    step, operation = STEPS[case]
    with pytest.raises(parnl.StepError) as caught:
        register(step)
    message = str(caught.value)
    assert re.search(operation, message), message
    assert "features" in message
    assert "test-wrong-step" not in parnl.list_cells()


OTHER_STEPS: dict[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "branch on a symbol": (_branch, r"ops\.where"),
    "and of symbols": (lambda p, x, f: ops.where((x > 0) and (x < 1), x, f.f), r"ops\.where"),
    "chained comparison": (lambda p, x, f: ops.where(0 < x < 1, x, f.f), r"ops\.where"),
    "float of a symbol": (lambda p, x, f: x * float(f.f), r"float"),
    "numpy function": (lambda p, x, f: np.tanh(x) + f.f, r"tanh"),
    "torch function": (lambda p, x, f: torch.tanh(x) + f.f, r"tanh"),
    "unknown parameter": (lambda p, x, f: x * p.b + f.f, r"\bb\b"),
    "nothing returned": (lambda p, x, f: None, r"(?i)none|return"),
    "two values for one state": (lambda p, x, f: (x, f.f), r"(?=.*\b2\b|.*two)(?=.*\b1\b|.*one)"),
}


@pytest.mark.parametrize("case", OTHER_STEPS)
def test_a_step_that_cannot_be_traced_says_why(case):
    step, pattern = OTHER_STEPS[case]
    with pytest.raises((TypeError, ValueError, AttributeError)) as caught:
        register(step)
    assert re.search(pattern, str(caught.value), re.DOTALL), str(caught.value)
    assert "test-wrong-step" not in parnl.list_cells()


@pytest.mark.parametrize(
    "arguments", ["p, x, f", "p, h, c", "p, h, c, n, f", "p, h, c, f, *, gate"]
)
def test_a_step_with_other_arguments_than_its_states_names_them(arguments):
    members = dict(states=("h", "c"), step=eval(f"lambda self, {arguments}: (0.0, 0.0)"))
    got = re.escape(f"got ({arguments})")
    with pytest.raises(parnl.StepError, match=rf"expected the arguments \(p, h, c, f\).*{got}"):
        type("Wrong", (parnl.Cell,), members)(1, 2)


def test_step_error_is_a_type_error():
    assert issubclass(parnl.StepError, TypeError)


def test_a_step_that_reads_an_unknown_feature():
    def use():
        register(lambda p, x, f: x + f.gate, "test-unknown-feature")
        cell = parnl.get_cell("test-unknown-feature", input_size=3, hidden_size=4)
        parnl.solve(cell, cell.init(0), np.zeros((2, 6, 3), np.float32))

    with pytest.raises((TypeError, ValueError, AttributeError), match=r"\bgate\b"):
        use()


# Functions of the frameworks where those of parnl.ops belong, and what the message names.
FOREIGN = {
    "jnp.tanh(x) + f.f": "ops.tanh",
    "x + jnp.where(x > 0, x, f.f)": "ops.where",
    "jnp.maximum(x, f.f)": "ops.maximum",
    "x + jax.nn.sigmoid(f.f)": "ops.sigmoid",
    "jax.nn.softplus(x) * f.f": "ops.softplus",
    "jax.lax.exp(x)": "ops.exp",
    "jnp.arctan2(x, f.f)": "parnl.ops",
    "torch.tanh(x) + f.f": "ops.tanh",
    "torch.nn.functional.silu(x)": "ops.silu",
    "torch.maximum(x, f.f) + torch.exp(x)": "ops.maximum",
    "torch.where(x > 0, x, f.f)": "ops.where",
    "math.tanh(x)": "parnl.ops",
    "np.tanh(x)": "ops.tanh",
    "np.clip(x, 0, 1)": "clip",
    "x.tanh() + f.f": "write ops.tanh",
    "x.cumsum(-1)": "a step cannot read states of other channels",
    "x + torch.ones(3)": "add got a value of type Tensor, expected a number",
    "x + f": "add got a value of type Features, expected a number",
    "x + None": "add got a value of type NoneType, expected a number",
}


@pytest.mark.parametrize("text", FOREIGN)
def test_functions_of_a_framework_are_refused_by_their_name_in_ops(tmp_path, text):
    scope = {"math": math, "np": np}
    for module in {"jax", "torch"} & set(re.findall(r"\w+", text.replace("jnp", "jax"))):
        scope[module] = pytest.importorskip(module)
    if "jnp" in text:
        scope["jnp"] = importlib.import_module("jax.numpy")
    path = tmp_path / "step.py"  # in a file, for the message shows the line
    path.write_text(f"def step(p, x, f):\n    return {text}\n")
    exec(compile(path.read_text(), str(path), "exec"), scope)
    with pytest.raises(parnl.StepError, match=re.escape(FOREIGN[text])):
        register(scope["step"])


def test_other_type_errors_of_a_step_are_its_own():
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        register(lambda p, x, f: x + f.f + (1 + "a"))
    assert not isinstance(caught.value, parnl.StepError)
    assert caught.value.__cause__ is None
