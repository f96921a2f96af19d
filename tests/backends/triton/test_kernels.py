"""Triton kernels: by the interpreter against the composed path, and compiled without a GPU.

The interpreter is chosen by TRITON_INTERPRET when a kernel is first loaded, and a kernel is loaded
for each of the two, so both kinds of test live in one process.
"""

import itertools
import os
import re
import subprocess
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from kernels import answer, problems
from oracles import CELLS, VARIANTS, assert_bits

import parnl
from parnl.backends.torch.adaptor import backend
from parnl.backends.triton import calls as triton_calls
from parnl.backends.triton import launch
from parnl.backends.triton.launch import PRICE, Launch
from parnl.backends.triton.text import Kernel
from parnl.graph.program import affine_program
from parnl.params import vector
from parnl.solver.cost import Device
from parnl.solver.newton import Plan

triton = pytest.importorskip("triton", minversion="3.6")

EVERY = "PARNL_EVERY_CUBIN" in os.environ


@pytest.fixture
def interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PARNL_KERNELS", "triton")


# -- by the interpreter ---------------------------------------------------------------------------

# batch, steps, chunks, reverse, lengths
PROBLEMS = [
    (1, 5, 1, True, None),
    (2, 7, 2, True, [7, 3]),
    (2, 13, 7, False, [0, 13]),
    (1, 5, 5, False, None),
]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        *itertools.product(CELLS, PROBLEMS),
        pytest.param("test-everything", PROBLEMS[1], marks=pytest.mark.long),
    ],
    ids=str,
)
@pytest.mark.turns("name")
def test_triton_equals_the_composed_path(monkeypatch, name, problem):
    # 37 channels: a whole block and a part of one
    options = {"unfolds": 2} if name == "ltc" else {}
    cell = parnl.get_cell(name, 3, 37 if problem[2] == 1 else 3, **options)
    expected = answer(monkeypatch, "off", cell, problem)
    for dtype, tolerance in (("float64", 1e-10), ("float32", 2e-5))[: problem[2]]:
        found = answer(monkeypatch, "triton", cell, problem, dtype)
        for f, e in zip(found, expected, strict=True):
            assert f.dtype == dtype
            np.testing.assert_allclose(f, e, rtol=0, atol=tolerance * max(1.0, np.abs(e).max()))


@pytest.mark.long
@pytest.mark.usefixtures("interpreter")
@settings(
    max_examples=int(os.environ.get("PARNL_FUZZ", "4")),
    deadline=None,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    derandomize="PARNL_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(problems(channels=(1, 3, 5), steps=9), st.data())
def test_random_cells(problem, data):
    cell, batch, steps, seed, reverse, _ = problem
    chunks = data.draw(st.integers(1, steps))
    rng = np.random.default_rng(seed)
    params = {n: v.requires_grad_() for n, v in cell.init(seed, "torch", "float64").items()}
    u = torch.tensor(rng.normal(size=(batch, steps, 2))).requires_grad_()
    x0 = [torch.tensor(rng.normal(size=(batch, cell.hidden_size))) for _ in cell.states]
    dt = torch.tensor(rng.uniform(0.1, 1.0, (batch, steps))).requires_grad_()
    weights = torch.tensor(rng.normal(size=(batch, steps, cell.hidden_size)))
    results = {}
    for kernels in ("triton", "off"):
        os.environ["PARNL_KERNELS"] = kernels
        out = parnl.solve(cell, params, u, x0, dt=dt, reverse=reverse, chunks=chunks)
        leaves = [u, dt, *params.values()]
        found = torch.autograd.grad((out.outputs * weights).sum(), leaves, materialize_grads=True)
        results[kernels] = [x.detach().numpy() for x in (out.outputs, *out.final_state, *found)]
    for f, e in zip(results["triton"], results["off"], strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-9 * max(1.0, np.abs(e).max()))


def arrays(cell, batch=2, steps=12, dtype=torch.float64):
    """Operands of the cell's program, and initial states."""
    rng, d = np.random.default_rng(0), cell.hidden_size
    shapes = {"parameter": (1, 1, d), "feature": (batch, steps, d), "dt": (batch, steps, 1)}
    operands = [
        torch.tensor(rng.uniform(0.2, 1, shapes[kind]), dtype=dtype)
        for kind, _ in cell.program.operands
    ]
    return operands, [torch.tensor(rng.normal(size=(batch, d))) for _ in cell.states]


@pytest.mark.long
@pytest.mark.usefixtures("interpreter")
@pytest.mark.turns("name")
@pytest.mark.parametrize("chunks", [5, 2, 1])
@pytest.mark.parametrize("name", ["lrc", "lstm", "affine"])
def test_statistics_are_those_of_the_algorithm(monkeypatch, name, chunks):
    cell = parnl.get_cell("gru" if name == "affine" else name, 2, 3)
    operands, x0 = arrays(cell)
    program = cell.program
    if name == "affine":
        program, operands = affine_program(1), operands[-2:]
    # not 0: rounding, which differs between the two, would decide how many updates are made
    for most, tolerance in ((None, None), (1, None), (2, 1e-12)):
        plan = Plan.make(12, chunks, 2.0**-52, tolerance, most)
        found_states, found = backend.run(program, plan, operands, x0)
        monkeypatch.setenv("PARNL_KERNELS", "off")
        states, expected = backend.run(program, plan, operands, x0)
        monkeypatch.setenv("PARNL_KERNELS", "triton")
        for f, e in zip(found_states, states, strict=True):
            torch.testing.assert_close(f, e, rtol=0, atol=1e-13 if most is None else 1e-12)
        assert int(found.iterations) == int(expected.iterations)
        assert bool(found.converged) == bool(expected.converged)
        assert int(found.sequential) == int(expected.sequential)
        assert found.converged.dtype == torch.bool
        # an update at rounding level may be any; it is kept in single precision
        for f, e in ((found.update, expected.update), (found.residual, expected.residual)):
            torch.testing.assert_close(f, e, rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_it_is(monkeypatch, dtype):
    """Operands are not copied; the gradient of a feature comes in the feature's dtype."""
    cell = parnl.get_cell("gru", 2, 5)
    operands, x0 = arrays(cell, dtype=torch.float32)
    operands = [a if a.shape[1] == 1 else a.to(dtype) for a in operands]
    x0 = [x.float() for x in x0]
    plan = Plan.make(12, 3, 2.0**-23)
    states, _ = triton_calls.solve(cell.program, plan, operands, x0)
    wide = [a.double() for a in operands]
    monkeypatch.setenv("PARNL_KERNELS", "off")
    expected, _ = backend.run(cell.program, plan, wide, [x.double() for x in x0])
    torch.testing.assert_close(states[0].double(), expected[0], rtol=0, atol=1e-6)
    weights = torch.ones_like(states[0])
    back, feature = plan._replace(reverse=True), len(operands) - 1
    assert cell.program.operands[0].kind == "parameter"
    assert cell.program.operands[feature].kind == "feature"
    _, (of_parameter, of_feature) = triton_calls.gradients(
        cell.program, back, operands, x0, states, [weights], [0, feature]
    )
    assert (of_parameter.dtype, of_feature.dtype) == (torch.float32, dtype)
    leaf = wide[feature].requires_grad_()
    solved, _ = backend.solve(cell.program, plan, wide, [x.double() for x in x0])
    (gradient,) = torch.autograd.grad(solved[0].sum(), leaf)
    torch.testing.assert_close(of_feature, gradient.to(dtype), rtol=1e-2, atol=1e-6)


@pytest.mark.long
@pytest.mark.usefixtures("interpreter")
def test_strides_are_followed(monkeypatch):
    """Broadcast, transposed and sliced operands give the bits of their copies."""
    cell = parnl.get_cell("lrc", 2, 5)
    operands, x0 = arrays(cell, steps=4)
    feature = next(i for i, a in enumerate(operands) if a.shape[1:] == (4, 5))
    for strange in (
        torch.randn(5, 4, 2, dtype=torch.float64).permute(2, 1, 0),
        torch.randn(2, 8, 10, dtype=torch.float64)[:, ::2, ::2],
        torch.randn(1, 4, 5, dtype=torch.float64).expand(2, 4, 5),
        torch.randn(1, 4, 5, dtype=torch.float64),
    ):
        operands[feature] = strange
        plan = Plan.make(4, 2, 2.0**-52)
        found, _ = triton_calls.solve(cell.program, plan, operands, x0)
        copies = [a.contiguous() for a in operands]
        copies[feature] = strange.expand(2, 4, 5).contiguous()
        expected, _ = triton_calls.solve(cell.program, plan, copies, x0)
        assert torch.equal(found[0], expected[0])
        # places that need 64 bits
        monkeypatch.setattr(triton_calls, "_wide", lambda array: True)
        found, _ = triton_calls.solve(cell.program, plan, operands, x0)
        monkeypatch.undo()
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert torch.equal(found[0], expected[0])


@parnl.register("test-triton-logistic")
class Logistic(parnl.Cell):
    """Chaos: no rounding may be left at a chunk start."""

    def features(self, p, u):
        return {}

    def step(self, p, x, f):
        return 4.0 * x * (1.0 - x)


@parnl.register("test-triton-expanding")
class Expanding(parnl.Cell):
    """x' = 5 x + u of positive x, written so that it is no linear program."""

    def features(self, p, u):
        return dict(u=u)

    def step(self, p, x, f):
        return x + 4.0 * abs(x) + f.u


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(("chunks", "tolerance"), [(2, None), (5, 0.0), (48, None)])
def test_chaos_ends_with_the_sequential_bits(chunks, tolerance):
    cell = parnl.get_cell("test-triton-logistic", 1, 2)
    x = np.array([0.2, 0.77])
    u, x0 = torch.zeros(48, 1, dtype=torch.float64), torch.tensor(x)
    out = parnl.solve(cell, {}, u, x0, chunks=chunks, tolerance=tolerance)
    for t in range(48):
        x = 4.0 * x * (1.0 - x)
        assert_bits(out.outputs[t], x)
    assert 1 <= int(out.info.iterations) <= chunks
    assert bool(out.info.converged)


@pytest.mark.long
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_expansion_overflows_where_the_loop_does(dtype):
    cell = parnl.get_cell("test-triton-expanding", 1, 1)
    steps = 62 if dtype == "float32" else 500
    u = np.random.default_rng(0).uniform(0.5, 1.0, (steps, 1)).astype(dtype)
    expected, x = np.empty_like(u), np.zeros(1, dtype)
    with np.errstate(over="ignore"):
        for t in range(steps):
            x = x + x.dtype.type(4) * abs(x) + u[t]
            expected[t] = x
    assert 0 < np.isinf(expected).sum() < steps / 5
    out = parnl.solve(cell, {}, torch.tensor(u), chunks=10)
    assert bool(out.info.converged)
    assert_bits(np.isfinite(out.outputs.numpy()), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(out.outputs.numpy()[finite], expected[finite], rtol=1e-5)


@pytest.mark.long
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("chunks", [1, 4])
def test_poison_stays_where_it_is(monkeypatch, chunks, poison):
    """NaN or inf at one step of one sequence: the others, and what came before, keep their bits."""
    cell = parnl.get_cell("lstm", 2, 3)
    params = {k: v.requires_grad_() for k, v in cell.init(0, "torch", "float64").items()}
    clean = torch.tensor(np.random.default_rng(0).normal(size=(2, 12, 2)))
    bad = clean.clone()
    bad[1, 8] = poison
    results = []
    for u in (clean, bad):
        u = u.clone().requires_grad_()
        out = parnl.solve(cell, params, u, chunks=chunks)
        (gradient,) = torch.autograd.grad(out.outputs.sum(), u)
        results.append((out.outputs.detach(), gradient))
    (expected, of_clean), (found, of_bad) = results
    assert torch.equal(found[0], expected[0])
    assert torch.equal(of_bad[0], of_clean[0])
    assert torch.equal(found[1, :8], expected[1, :8])
    monkeypatch.setenv("PARNL_KERNELS", "off")
    reference = parnl.solve(cell, params, bad, chunks=1).outputs.detach()
    torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.long
@pytest.mark.usefixtures("interpreter")
def test_sums_over_time_do_not_round():
    """The gradient of a per-channel parameter, in float32, over a thousand steps."""

    class Sum(parnl.Cell):
        parameters = dict(a=vector("hidden"))

        def features(self, p, u):
            return dict(u=u)

        def step(self, p, x, f):
            return p.a * f.u + 0.0 * x

    cell = Sum(1, 1)
    u = torch.tensor(np.random.default_rng(0).uniform(0.9, 1.1, (1, 1000, 1)), dtype=torch.float32)
    x0, a = [torch.zeros(1, 1)], torch.ones(1, 1, 1)
    back = Plan.make(1000, 1, 1e-7, reverse=True)
    states = [(a * u).contiguous()]
    grads = [torch.ones_like(u)]
    _, found = triton_calls.gradients(cell.program, back, [a, u], x0, states, grads, [0])
    assert float(found[0]) == np.float32(u.double().sum())


@pytest.mark.usefixtures("interpreter")
def test_empty_batch_and_many_chunks():
    cell = parnl.get_cell("gru", 2, 3)
    params = cell.init(0, "torch")
    assert parnl.solve(cell, params, torch.zeros(0, 5, 2)).outputs.shape == (0, 5, 3)
    assert parnl.solve(cell, params, torch.zeros(2, 0, 2)).outputs.shape == (2, 0, 3)
    u = torch.randn(1, triton_calls.CHUNKS + 1, 2)
    with pytest.raises(ValueError, match="chunks: a Triton kernel takes at most 2048, got 2049"):
        parnl.solve(cell, params, u, chunks=triton_calls.CHUNKS + 1)


def test_an_older_triton_is_named(monkeypatch):
    launch.importable.cache_clear()
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    monkeypatch.setenv("PARNL_KERNELS", "triton")
    cell = parnl.get_cell("gru", 2, 3)
    try:
        with pytest.raises(
            NotImplementedError, match=r"=triton: Triton 3\.5\.1 is too old, 3\.6 is"
        ):
            parnl.solve(cell, cell.init(0, "torch"), torch.zeros(5, 2))
    finally:
        launch.importable.cache_clear()


def test_triton_without_a_device_is_an_error(monkeypatch):
    monkeypatch.setenv("PARNL_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cell = parnl.get_cell("gru", 2, 3)
    with pytest.raises(RuntimeError, match=r"tensors are on cpu, .*TRITON_INTERPRET=1"):
        parnl.solve(cell, cell.init(0, "torch"), torch.zeros(5, 2))


def test_triton_really_runs(monkeypatch):
    """Else everything above compares the composed path with itself."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for kernels, expected in (("triton", True), ("", False), ("c", False), ("off", False)):
        monkeypatch.setenv("PARNL_KERNELS", kernels)
        assert triton_calls.serves(torch.zeros(1)) == expected


# -- compiled for a GPU that is not there ---------------------------------------------------------


def resources(kernel, chunks, channels, capability):
    """Registers a thread, and instructions that spill them, of the kernel's machine code."""
    batch, steps = 2, 2048
    whole, rows = (batch, steps, channels), (batch, channels)
    shapes = {"f": whole, "t": (batch, steps, 1), "c": (1, 1, channels), "s": (1, 1, 1)}
    k, backward = len(kernel.program.states), kernel.kind == "gradients"
    plan = Plan.make(steps, chunks, 2.0**-23, reverse=backward)
    launch = Launch(kernel, plan, Device(1 << 16, PRICE))
    read = [*(shapes[kernel.layouts[i]] for i in launch.order), *[rows] * k]
    compiled = launch.compiled(read + [whole] * (2 * k * backward), capability)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.cubin)
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        code = subprocess.run(
            [tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    (registers,) = map(int, re.findall(r"REG:(\d+)", usage))
    assert "FFMA" in code or "DFMA" in code
    return registers, len(re.findall(r"\b(?:STL|LDL)\b", code))


# All registers are taken. These are before and after the loops over steps, once in a launch.
SPILLED = {
    ("lstm-peephole", "gradients", 256, 80, False): 43,
    ("gru", "solve", 256, 90, True): 16,
    ("lstm", "gradients", 256, 80, True): 82,
}


def cubins():
    """All, or for `make test` the most demanding."""
    variants = VARIANTS if EVERY else {n: VARIANTS[n] for n in ("gru", "lrc-symmetric")}
    for name, kind, chunks in itertools.product(
        variants, ("solve", "gradients"), (1, 16, 64, 256) if EVERY else (1, 16)
    ):
        for capability in (80, 90) if EVERY else (90 if chunks == 1 else 80,):
            yield name, kind, chunks, capability, False
    if not EVERY:
        yield "gru", "solve", 16, 80, True
        yield "lstm", "gradients", 16, 90, True
        return
    for name, kind, chunks, capability in itertools.product(
        ("gru", "lstm", "lrc", "lru"), ("solve", "gradients"), (1, 16, 64, 256), (80, 90)
    ):
        yield name, kind, chunks, capability, True


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind", "chunks", "capability", "restarting"), list(cubins()))
def test_kernels_compile_without_spills(monkeypatch, name, kind, chunks, capability, restarting):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cell_name, options = VARIANTS[name]
    program = parnl.get_cell(cell_name, 3, 64, **options).program
    program = program.restarting if restarting else program
    letters = {"parameter": "c", "feature": "f", "dt": "s", "reset": "t", "initial": "f"}
    layouts = "".join(letters[operand] for operand, _ in program.operands)
    wanted = tuple(range(len(layouts))) if kind == "gradients" else ()
    kernel = Kernel(program, kind, "float32", layouts, chunks > 1, False, wanted)
    registers, spilled = resources(kernel, chunks, 64, capability)
    assert registers <= 255
    assert spilled <= SPILLED.get((name, kind, chunks, capability, restarting), 0)


# -- the operators --------------------------------------------------------------------------------


def test_operators_are_well_formed():
    """Schemas, fake results, autograd: by torch's own checks."""
    cell = parnl.get_cell("gru", 2, 3)
    operands, x0 = arrays(cell)
    operands = [a.requires_grad_() for a in operands]
    arguments = (cell.program.text, *Plan.make(12, 3, 2.0**-52)[:-1], x0, operands)
    torch.library.opcheck(torch.ops.parnl.solve.default, arguments)
