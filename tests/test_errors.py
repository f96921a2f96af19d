"""Each wrong input and the message it gets: what was wrong, what was given, what was expected."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from optional import torch

import parnl

CELL = parnl.get_cell("gru", input_size=3, hidden_size=4)

LSTM = parnl.get_cell("lstm", input_size=3, hidden_size=4)

LRC = parnl.get_cell("lrc", input_size=3, hidden_size=4)

PARAMS = CELL.init(seed=0, backend="numpy")

INPUTS = np.zeros((2, 6, 3), np.float32)

STATE = (np.zeros((2, 4), np.float32),)


def get(name="gru", **changes: Any):
    return parnl.get_cell(name, **{"input_size": 3, "hidden_size": 4, **changes})


def solve(cell=CELL, params=None, inputs=INPUTS, initial_state=None, **how: Any):
    params = cell.init(seed=0, backend="numpy") if params is None else params
    return parnl.solve(cell, params, inputs, initial_state, **how)


def without(name):
    return {k: v for k, v in PARAMS.items() if k != name}


def in_torch(values=PARAMS, device="cpu"):
    return {k: torch.from_numpy(v).to(device) for k, v in values.items()}


def in_jax(array):
    from optional import jnp

    return jnp.asarray(array)


def state(*shapes, dtype="float32"):
    return tuple(np.zeros(s, dtype) for s in shapes)


def step(inputs, initial_state, cell=CELL):
    return parnl.step(cell, cell.init(seed=0, backend="numpy"), inputs, initial_state)


def rnn(*args, **kwargs):
    pytest.importorskip("torch")
    from parnl.torch import RNN

    return RNN(*args, **kwargs)


def scan(a, b, x0=None):
    return parnl.affine_scan(np.zeros(a), np.zeros(b), None if x0 is None else np.zeros(x0))


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


WRONG: dict[str, tuple[Callable[[], Any], Any, str]] = {
    # cells and options
    "unknown cell": (lambda: get("grru"), ValueError, r"grru.*\bgru\b"),
    "unknown cell, other case": (lambda: get("LrcSSM"), ValueError, r"LrcSSM.*\blrc\b"),
    "unknown cell, nothing close": (lambda: get("qqqqqqqq"), ValueError, r"qqqqqqqq.*\blstm\b"),
    "unknown option": (
        lambda: get("lstm", peep=True),
        TypeError,
        r"(?=.*\bpeep\b)(?=.*\bpeephole\b)(?=.*\bcoupled\b)",
    ),
    "option of a cell that has none": (
        lambda: get("gru", dt=0.1),
        TypeError,
        r"(?i)(?=.*\bgru\b)(?=.*\bdt\b)",
    ),
    "unknown value of positive": (
        lambda: get("ltc", positive="relu"),
        ValueError,
        r"positive.*(relu.*softplus|softplus.*relu)",
    ),
    "no unfolds": (lambda: get("ltc", unfolds=0), ValueError, r"unfolds.*0"),
    "hidden size zero": (lambda: get(hidden_size=0), ValueError, r"hidden_size.*\b0\b"),
    "input size negative": (lambda: get(input_size=-1), ValueError, r"input_size.*-1"),
    "unknown backend": (
        lambda: CELL.init(seed=0, backend="tensorflow"),
        ValueError,
        r"backend.*(?=.*tensorflow)(?=.*numpy)(?=.*torch)(?=.*jax)",
    ),
    # arrays
    "inputs without time": (lambda: solve(inputs=zeros(3)), ValueError, r"inputs.*\(3,\)"),
    "inputs of another size": (
        lambda: solve(inputs=zeros(2, 6, 5)),
        ValueError,
        r"inputs.*(\b3\b.*\(2, 6, 5\)|\(2, 6, 5\).*\b3\b)",
    ),
    "integer inputs": (
        lambda: solve(inputs=zeros(2, 6, 3, dtype="int64")),
        TypeError,
        r"inputs.*int64",
    ),
    "boolean inputs": (
        lambda: solve(inputs=zeros(2, 6, 3, dtype="bool")),
        TypeError,
        r"inputs.*bool",
    ),
    "complex inputs": (
        lambda: solve(inputs=zeros(2, 6, 3, dtype="complex64")),
        TypeError,
        r"inputs.*complex64",
    ),
    "inputs as a list": (lambda: solve(inputs=[[0.0, 1.0, 2.0]]), TypeError, r"inputs.*list"),
    # what decides on the computation
    "an array as tolerance": (
        lambda: solve(tolerance=in_jax(1e-3)),
        TypeError,
        r"tolerance: expected a number, got Array",
    ),
    "a broken max_iterations": (
        lambda: solve(max_iterations=2.0),
        TypeError,
        r"max_iterations: expected an integer, got 2\.0",
    ),
    "reverse that is no truth value": (
        lambda: solve(reverse=in_jax(True)),
        TypeError,
        r"reverse: expected True or False, got Array",
    ),
    "chunks as a truth value": (
        lambda: solve(chunks=True),
        TypeError,
        r"chunks: expected an integer or 'auto', got True",
    ),
    "torch inputs, numpy parameters": (
        lambda: solve(inputs=torch.zeros(2, 6, 3)),
        TypeError,
        r"(?=.*numpy)(?=.*torch)",
    ),
    "numpy inputs, torch parameters": (
        lambda: solve(params=in_torch()),
        TypeError,
        r"(?=.*numpy)(?=.*torch)",
    ),
    "jax inputs, torch parameters": (
        lambda: solve(params=in_torch(), inputs=in_jax(INPUTS)),
        TypeError,
        r"(?=.*jax)(?=.*torch)",
    ),
    "one parameter of another framework": (
        lambda: solve(params=PARAMS | {"a_r": torch.zeros(4)}),
        TypeError,
        r"a_r.*torch|torch.*a_r",
    ),
    "numpy state, torch inputs": (
        lambda: solve(params=in_torch(), inputs=torch.zeros(2, 6, 3), initial_state=STATE),
        TypeError,
        r"initial_state.*(?=.*numpy)",
    ),
    "two devices": (
        lambda: solve(params=in_torch(device="meta"), inputs=torch.zeros(2, 6, 3)),
        (ValueError, TypeError),
        r"(?=.*\bmeta\b)(?=.*\bcpu\b)(?=.*W_r)(?=.*inputs)",
    ),
    # parameters
    "missing parameter": (lambda: solve(params=without("W_z")), ValueError, r"W_z"),
    "parameter of another shape": (
        lambda: solve(params=PARAMS | {"W_z": zeros(4, 3)}),
        ValueError,
        r"W_z.*(\(4, 3\).*\(3, 4\)|\(3, 4\).*\(4, 3\))",
    ),
    "parameters of another cell": (
        lambda: solve(params=LSTM.init(seed=0, backend="numpy")),
        ValueError,
        r"W_r",
    ),
    "unknown parameter": (
        lambda: solve(params=PARAMS | {"W_zz": zeros(3, 4)}),
        ValueError,
        r"W_zz",
    ),
    "integer parameter": (
        lambda: solve(params=PARAMS | {"a_r": zeros(4, dtype="int32")}),
        TypeError,
        r"a_r.*int32",
    ),
    # initial state
    "state of another size": (
        lambda: solve(initial_state=state((2, 5))),
        ValueError,
        r"initial_state.*(\(2, 5\).*\(2, 4\)|\(2, 4\).*\(2, 5\))",
    ),
    "state of another batch": (
        lambda: solve(initial_state=state((3, 4))),
        ValueError,
        r"initial_state.*(\(3, 4\).*\(2, 4\)|\(2, 4\).*\(3, 4\))",
    ),
    "too few states": (
        lambda: solve(LSTM, initial_state=STATE),
        ValueError,
        r"initial_state.*(?=.*\b2\b|.*two)(?=.*\b1\b|.*one)",
    ),
    "too many states": (
        lambda: solve(initial_state=state((2, 4), (2, 4))),
        ValueError,
        r"initial_state.*(?=.*\b2\b|.*two)(?=.*\b1\b|.*one)",
    ),
    "integer state": (
        lambda: solve(initial_state=state((2, 4), dtype="int64")),
        TypeError,
        r"initial_state.*int64",
    ),
    # the dial
    "no chunks": (lambda: solve(chunks=0), ValueError, r"chunks.*(\b0\b.*1.*6|1.*6.*\b0\b)"),
    "negative chunks": (lambda: solve(chunks=-2), ValueError, r"chunks.*(-2.*1.*6|1.*6.*-2)"),
    "more chunks than steps": (
        lambda: solve(chunks=7),
        ValueError,
        r"chunks.*(\b7\b.*1.*6|1.*6.*\b7\b)",
    ),
    "chunks by another name": (
        lambda: solve(chunks="many"),
        (TypeError, ValueError),
        r"chunks.*many",
    ),
    "chunks as a fraction": (
        lambda: solve(chunks=2.5),
        (TypeError, ValueError),
        r"chunks.*2\.5|chunks.*float",
    ),
    "unknown method": (
        lambda: solve(method="deer"),
        ValueError,
        r"method.*(?=.*deer)(?=.*newton)(?=.*sequential)",
    ),
    "negative tolerance": (lambda: solve(tolerance=-1e-3), ValueError, r"tolerance.*-0\.001"),
    "no iterations": (lambda: solve(max_iterations=0), ValueError, r"max_iterations.*\b0\b"),
    # lengths and dt
    "lengths of another shape": (
        lambda: solve(lengths=np.array([1, 2, 3])),
        ValueError,
        r"lengths.*(\(3,\).*\(2,\)|\(2,\).*\(3,\))",
    ),
    "lengths beyond the steps": (
        lambda: solve(lengths=np.array([1, 7])),
        ValueError,
        r"lengths.*(?=.*\b7\b)(?=.*\b6\b)",
    ),
    "negative lengths": (lambda: solve(lengths=np.array([1, -1])), ValueError, r"lengths.*-1"),
    "fractional lengths": (
        lambda: solve(lengths=np.array([1.0, 2.0])),
        TypeError,
        r"lengths.*float64",
    ),
    "dt of another shape": (
        lambda: solve(LRC, dt=zeros(2, 5)),
        ValueError,
        r"\bdt\b.*\(2, 5\)",
    ),
    "integer dt": (
        lambda: solve(LRC, dt=zeros(6, dtype="int64")),
        TypeError,
        r"\bdt\b.*int64",
    ),
    "dt for a cell without time": (
        lambda: solve(dt=zeros(2, 6)),
        (TypeError, ValueError),
        r"(?i)\bdt\b.*gru|gru.*\bdt\b",
    ),
    # streaming
    "step on a whole sequence": (
        lambda: step(zeros(2, 6, 3), STATE),
        ValueError,
        r"state.*\(2, 4\)",
    ),
    "step on inputs of another size": (lambda: step(zeros(2, 5), STATE), ValueError, r"\(2, 5\)"),
    "step with too few states": (
        lambda: step(zeros(2, 3), STATE, LSTM),
        ValueError,
        r"state.*(?=.*\b2\b|.*two)",
    ),
    # the affine scan
    "scan of unlike times": (lambda: scan((2, 5, 3), (2, 6, 3)), ValueError, r"\(2, 5, 3\)"),
    "scan of unlike blocks": (
        lambda: scan((2, 5, 3, 2, 2), (2, 5, 3, 3)),
        ValueError,
        r"\(2, 5, 3, 2, 2\)",
    ),
    "scan of oblong blocks": (
        lambda: scan((2, 5, 3, 2, 3), (2, 5, 3, 2)),
        ValueError,
        r"\(2, 5, 3, 2, 3\)",
    ),
    "scan from another shape": (
        lambda: scan((2, 5, 3), (2, 5, 3), (2, 4)),
        ValueError,
        r"x0.*\(2, 4\)",
    ),
    "scan of two frameworks": (
        lambda: parnl.affine_scan(torch.zeros(5, 3), np.zeros((5, 3))),
        TypeError,
        r"(?=.*numpy)(?=.*torch)",
    ),
    # the module
    "module of an unknown cell": (lambda: rnn("gruu", 3, 4), ValueError, r"gruu.*\bgru\b"),
    "module without layers": (
        lambda: rnn("gru", 3, 4, num_layers=0),
        ValueError,
        r"num_layers.*\b0\b",
    ),
    "module with dropout above one": (
        lambda: rnn("gru", 3, 4, num_layers=2, dropout=1.5),
        ValueError,
        r"dropout.*1\.5",
    ),
    "module on inputs of another size": (
        lambda: rnn("gru", 3, 4)(torch.zeros(6, 2, 5)),
        ValueError,
        r"input.*(?=.*\b5\b)(?=.*\b3\b)",
    ),
    "module on a flat input": (
        lambda: rnn("gru", 3, 4)(torch.zeros(3)),
        ValueError,
        r"input.*\(3,\)|input.*1-?D|input.*1 dim",
    ),
    "module with a state of another size": (
        lambda: rnn("gru", 3, 4)(torch.zeros(6, 2, 3), torch.zeros(1, 2, 5)),
        ValueError,
        r"\(1, 2, 5\).*\(1, 2, 4\)|\(1, 2, 4\).*\(1, 2, 5\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case):
    call, kind, pattern = WRONG[case]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert re.search(pattern, message, re.DOTALL), message
    assert "\n" not in message, "a message is a sentence, not a dump of arrays"


@pytest.mark.parametrize("backend", ["numpy", "jax", "torch"])
def test_numbers_of_numpy_are_numbers(backend):
    how = dict(chunks=2, tolerance=1e-6, max_iterations=3, reverse=True, dt=0.5)
    kinds = (np.int64, np.float32, np.int32, np.bool_, np.float32)
    as_numpy = {n: kind(v) for (n, v), kind in zip(how.items(), kinds, strict=True)}
    inputs = {"numpy": np.asarray, "jax": in_jax, "torch": torch.from_numpy}[backend](
        np.random.default_rng(0).normal(size=(2, 6, 3)).astype("float32")
    )
    params = LRC.init(seed=0, backend=backend)
    found = parnl.solve(LRC, params, inputs, **as_numpy).outputs
    expected = parnl.solve(LRC, params, inputs, **how).outputs
    assert found.dtype == expected.dtype
    assert (found == expected).all()
