"""What `to_c` takes and refuses, and what its files hold."""

import doctest
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from c_models import INPUTS, Delays, Layered
from optional import jax
from torch import nn

import parnl
from parnl import ops
from parnl.export import to_c as public
from parnl.params import matrix, vector


class Own(nn.Module):
    """A module whose step is the function given."""

    input_size = 3

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)
        self.eval()

    def step(self, input_t, state):
        state = torch.zeros(3) if state is None else state
        return self.function(input_t, state)


def test_the_example():
    assert doctest.testmod(public).failed == 0


@pytest.mark.long
def test_arrays_of_any_framework_give_the_same_files(tmp_path):
    cell = parnl.get_cell("lstm", 3, 4)
    for backend in ("numpy", "torch", "jax"):
        if backend == "jax" and not hasattr(jax, "jit"):
            continue
        parnl.to_c(cell, cell.init(1, backend=backend), tmp_path / backend)
    texts = {(p / "model.c").read_text() for p in tmp_path.iterdir()}
    assert len(texts) == 1


def test_half_precision_parameters(tmp_path):
    cell = parnl.get_cell("gru", 3, 4)
    halves = cell.init(1, backend="torch", dtype="bfloat16")
    parnl.to_c(cell, halves, tmp_path, name="half")
    parnl.to_c(cell, {n: a.float() for n, a in halves.items()}, tmp_path, name="single")
    half, single = ((tmp_path / f"{n}.c").read_text() for n in ("half", "single"))
    assert half == single.replace("single", "half")


def test_the_state_of_pytorch_makes_no_difference(tmp_path):
    cell = parnl.get_cell("s5", 3, 4)
    parnl.to_c(cell, cell.init(1), tmp_path / "plain")
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.inference_mode():
            parnl.to_c(cell, cell.init(1), tmp_path / "other")
    finally:
        torch.set_default_dtype(before)
    assert len({(tmp_path / f / "model.c").read_text() for f in ("plain", "other")}) == 1


def test_what_nobody_reads_is_left_out(tmp_path):
    needless = nn.Linear(3, 1000)

    def function(x, state):
        needless(x).exp()
        return x + state, state * 0.5

    assert parnl.to_c(Own(function, needless=needless), folder=tmp_path) == (0, 12, 0)


def test_what_is_dear_is_computed_once(tmp_path):
    parnl.to_c(Layered().eval(), folder=tmp_path, name="layered")
    body = (tmp_path / "layered.c").read_text().partition("void layered_step")[2]
    counts = {name: body.count(name + "(") for name in ("erff", "tanhf", "own_sigmoid")}
    assert counts == {"erff": 2, "tanhf": 3, "own_sigmoid": 7}  # two MLPs; lrc, lstm, v of lrc

    def function(x, state):
        dear = torch.tanh(x + state)
        scale = torch.exp(dear.sum())
        return torch.cat([dear * scale, (dear @ torch.eye(3)[:, :1]) * dear]), dear

    parnl.to_c(Own(function), folder=tmp_path, name="own")
    body = (tmp_path / "own.c").read_text().partition("void own_step")[2]
    assert body.count("tanhf(") == body.count("expf(") == 1
    block = body[: body.index("expf(")].rpartition("\n    {")[2]
    assert "for (" not in block  # one number, hence in no loop


def test_equal_weights_stand_once(tmp_path):
    layer = nn.Linear(3, 3, bias=False)
    sizes = parnl.to_c(Own(lambda x, s: (layer(x) + layer(s), x), layer=layer), folder=tmp_path)
    assert sizes.constants == 4 * 9


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
@pytest.mark.parametrize("make", [Layered, Delays])
def test_memory_is_what_the_header_says(tmp_path, make):
    """No memory but the stack's, as much as is said, and no function but libm's."""
    sizes = parnl.to_c(make().eval(), folder=tmp_path, input_size=INPUTS)
    header = (tmp_path / "model.h").read_text()
    said = [int(x) for x in re.findall(r"(?:constants|state|scratch) (\d+)", header)]
    assert said == list(sizes)
    for options in ("-O1 -fstack-usage -c model.c -o small.o", "-O0 -c model.c"):
        subprocess.run(["gcc", "-std=c99", *options.split()], cwd=tmp_path, check=True)
    usage = (tmp_path / "small.su").read_text().split()
    where = next(i for i, word in enumerate(usage) if word.endswith("model_step"))
    assert usage[where + 2] == "static"
    assert sizes.scratch <= int(usage[where + 1]) <= sizes.scratch + 512
    found = subprocess.run(
        ["nm", "-S", "model.o"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    kinds = [line.split() for line in found.splitlines()]
    assert {k[-2] for k in kinds} <= {"T", "t", "r", "U"}  # code, constants, what libm has
    wanted = {k[-1] for k in kinds if k[-2] == "U"} - {"_GLOBAL_OFFSET_TABLE_"}
    assert wanted <= {"expf", "tanhf", "erff", "sqrtf", "logf", "log1pf", "expm1f"}
    assert sum(int(k[1], 16) for k in kinds if k[-1][0] in "ws" and k[-2] == "r") == sizes.constants


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x, s: (x.flip(0), s), "aten.flip"),
        (lambda x, s: (x.cumsum(0), s), "aten.cumsum"),
        (lambda x, s: (x.sort()[0], s), "aten.sort"),
        (lambda x, s: (torch.div(x, s + 1, rounding_mode="floor"), s), "aten.div"),
        (lambda x, s: (x ** (s + 1), s), "aten.pow"),
        (lambda x, s: (x + x.argmax(), s), "aten.argmax"),
        (lambda x, s: (x.as_strided((2,), (2,)), s), "aten.as_strided"),
        (lambda x, s: (x.view(torch.int32).view(torch.float32), s), "aten.view.dtype"),
        (lambda x, s: (x + x.max(0).indices, s), "where an extremum stands"),
    ],
)
def test_an_operation_without_c_is_refused_by_name(tmp_path, function, name):
    with pytest.raises(NotImplementedError, match=rf"cannot write {name}.* as C"):
        parnl.to_c(Own(function), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def _branch(x, state):
    return (x if float(state.sum()) > 1e9 else -x), state


def _leak(x, state):
    return x * float(x.numpy().sum()), state


@pytest.mark.parametrize(
    ("model", "keywords", "error", "message"),
    [
        (Own(lambda x, s: (x, s)).train(), {}, ValueError, "eval mode"),
        (Own(lambda x, s: (x, s)).double(), {"params": {}}, TypeError, "params: expected None"),
        (nn.Linear(3, 3).eval(), {}, TypeError, "a method step"),
        (Own(lambda x, s: (x, s), part=nn.Linear(3, 3).half()), {}, TypeError, "part.weight is"),
        (Own(lambda x, s: (x, (s, s))), {}, ValueError, "a state like the one"),
        (Own(lambda x, s: (x, torch.cat([s, s]))), {}, ValueError, "states of the shapes"),
        (Own(lambda x, s: (x, None)), {}, TypeError, "state: expected tensors"),
        (Own(lambda x, s: (x, s.long())), {}, TypeError, "state: expected tensors"),
        (Own(lambda x, s: (x > 0.0, s)), {}, TypeError, "an output of floating point"),
        (Own(lambda x, s: (torch.rand_like(x), s)), {}, ValueError, "on chance"),
        (Own(_branch), {}, ValueError, "depends on values"),
        (Own(_leak), {}, ValueError, "depends on values"),
        (Own(lambda x, s: (x, s)), {"variable_dt": True}, ValueError, "no argument dt"),
        (Own(lambda x, s: (x, s)), {"name": "my model"}, ValueError, "name: expected a C"),
        (Own(lambda x, s: (x, s)), {"name": "größe"}, ValueError, "name: expected a C"),
        ("gru", {}, TypeError, "model: expected a parnl.Cell, a torch"),
        (parnl.get_cell("gru", 3, 4), {}, TypeError, "params: expected the parameters"),
        (parnl.get_cell("gru", 3, 4), {"params": {}}, ValueError, "params: missing"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, model, keywords, error, message):
    with pytest.raises(error, match=message):
        parnl.to_c(model, folder=tmp_path, **keywords)


def test_a_start_that_is_not_zeros_is_asked_for(tmp_path):
    class Started(nn.Module):
        input_size = 3

        def step(self, input_t, state):
            state = torch.ones(3) if state is None else state
            return input_t * state, state + input_t

    with pytest.raises(ValueError, match="give it a method initial_state"):
        parnl.to_c(Started().eval(), folder=tmp_path)


def test_the_size_of_the_input_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="input_size: Delays has no attribute"):
        parnl.to_c(Delays().eval(), folder=tmp_path)


def test_features_of_another_framework_are_explained(tmp_path):
    class Foreign(parnl.Cell):
        parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

        def features(self, p, u):
            return dict(x=np.positive(u) @ p.W if isinstance(u, np.ndarray) else u.astype(float))

        def step(self, p, x, f):
            return ops.tanh(p.a * x + f.x)

    cell = Foreign(3, 4)
    with pytest.raises(TypeError, match="Foreign cannot be run on tensors of PyTorch"):
        parnl.to_c(cell, cell.init(0), tmp_path)
