"""What PyTorch users rely on: autograd to second order, torch.func, and the nn.Module."""

import mmap
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from oracles import CELLS, VARIANTS, assert_bits, assert_close
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.flop_counter import FlopCounterMode

import parnl
from parnl import ops
from parnl.backends.torch import memory
from parnl.frameworks import get_backend
from parnl.params import matrix, vector
from parnl.torch import RNN

DOUBLE = torch.float64


def small(name, *, steps=5, batch=(2,), n_in=2, hidden=2, **options):
    """Draw (cell, params, inputs, initial state) as float64 leaves."""
    task = oracles.problem(name, steps=steps, batch=batch, n_in=n_in, hidden=hidden, **options)
    params = {k: torch.from_numpy(v).requires_grad_() for k, v in task.params.items()}
    inputs = torch.from_numpy(task.inputs).requires_grad_()
    state = tuple(torch.from_numpy(s).requires_grad_() for s in task.initial_state or ())
    return task.cell, params, inputs, state


def flat_solve(cell, names, n_states, **how):
    """Return a function of plain tensors that gives outputs and final states."""

    def f(inputs, *leaves):
        params = dict(zip(names, leaves[n_states:], strict=True))
        out = parnl.solve(cell, params, inputs, leaves[:n_states], **how)
        return out.outputs, *out.final_state

    return f


# -- autograd -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"chunks": 3}, {"method": "sequential"}], ids=str)
@pytest.mark.parametrize("variant", ["lrc-symmetric", "gru", "lstm-peephole", "ltc-unfolds"])
def test_gradcheck(variant, how):
    name, options = VARIANTS[variant]
    cell, params, inputs, state = small(name, **options)
    f = flat_solve(cell, list(params), len(state), **how)
    assert torch.autograd.gradcheck(f, (inputs, *state, *params.values()), check_forward_ad=True)


@pytest.mark.parametrize("how", [{"chunks": 2}, {"method": "sequential"}], ids=str)
@pytest.mark.parametrize("variant", ["lrc-symmetric", "gru", "lstm-peephole", "ltc-unfolds"])
def test_gradgradcheck(variant, how):
    name, options = VARIANTS[variant]
    cell, params, inputs, state = small(name, steps=4, batch=(), **options)
    f = flat_solve(cell, list(params), len(state), **how)
    assert torch.autograd.gradgradcheck(f, (inputs, *state, *params.values()))


@pytest.mark.parametrize("name", ["lrc", "ltc"])
def test_gradcheck_in_dt_with_lengths_and_reverse(name):
    cell, params, inputs, state = small(name, steps=4)
    dt = torch.tensor([[0.3, 0.9, 0.4, 0.6], [0.2, 0.5, 0.7, 0.8]], dtype=DOUBLE)

    def f(dt, inputs):
        how: dict[str, Any] = {"lengths": torch.tensor([4, 2]), "reverse": True, "chunks": 2}
        out = parnl.solve(cell, params, inputs, state, dt=dt, **how)
        return out.outputs, *out.final_state

    assert torch.autograd.gradcheck(f, (dt.requires_grad_(), inputs), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, (dt, inputs), check_fwd_over_rev=True)


@pytest.mark.parametrize("name", CELLS)
def test_hessian_product_equals_the_loop(name):
    """A penalty on the gradient, which needs the derivative of the implicit gradient."""
    cell, params, inputs, state = small(name, steps=12, hidden=3)

    def penalty(run):
        outputs, final_state = run()
        loss = outputs.square().sum() + sum(s.sum() for s in final_state)
        (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [inputs, *state, *params.values()])

    def solve():
        return parnl.solve(cell, params, inputs, state, chunks=4)[:2]

    expected = penalty(lambda: oracles.loop(cell, params, inputs, state))
    for a, e in zip(penalty(solve), expected, strict=True):
        assert_close(a, e, 1e-9)


def test_only_what_needs_a_gradient_gets_one():
    cell, params, inputs, state = small("gru")
    frozen = {k: v.detach() for k, v in params.items()}
    out = parnl.solve(cell, frozen, inputs.detach(), tuple(s.detach() for s in state))
    assert not out.outputs.requires_grad
    some = frozen | {"a_n": params["a_n"]}
    expected = parnl.solve(cell, params, inputs, state, chunks=2).outputs.sum()
    found = parnl.solve(cell, some, inputs.detach(), state, chunks=2).outputs.sum()
    (e,) = torch.autograd.grad(expected, params["a_n"])
    (a,) = torch.autograd.grad(found, params["a_n"])
    assert_close(a, e, 1e-13)
    with torch.no_grad():
        assert not parnl.solve(cell, params, inputs, state).outputs.requires_grad


def test_gradient_of_the_final_state_alone():
    cell, params, inputs, state = small("lstm", steps=9)
    for i in (0, 1):
        found = parnl.solve(cell, params, inputs, state, chunks=4).final_state[i].sum()
        expected = oracles.loop(cell, params, inputs, state)[1][i].sum()
        leaves = [inputs, *state, *params.values()]
        found_gradients = torch.autograd.grad(found, leaves, allow_unused=True)
        expected_gradients = torch.autograd.grad(expected, leaves, allow_unused=True)
        for a, e in zip(found_gradients, expected_gradients, strict=True):
            e = torch.zeros(()) if e is None else e
            assert_close(torch.zeros_like(e) if a is None else a, e, 1e-11)


def test_backward_twice_needs_retain_graph_and_accumulates():
    cell, params, inputs, state = small("gru")
    loss = parnl.solve(cell, params, inputs, state, chunks=2).outputs.sum()
    loss.backward(retain_graph=True)
    first = params["W_n"].grad.clone()
    loss.backward()
    assert_close(params["W_n"].grad, 2 * first, 1e-14)


# -- forward mode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_tangents_equal_those_of_the_loop(name):
    cell, params, inputs, state = small(name, steps=12, hidden=3)
    arguments = {k: v.detach() for k, v in params.items()}, inputs.detach(), state
    tangents = torch.utils._pytree.tree_map(torch.randn_like, arguments)
    _, expected = torch.func.jvp(lambda *a: oracles.loop(cell, *a), arguments, tangents)

    def solve(*arguments):
        return parnl.solve(cell, *arguments, chunks=4)[:2]

    _, found = torch.func.jvp(solve, arguments, tangents)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("variant", ["gru", "lstm-peephole"])
def test_hessian(variant):
    name, options = VARIANTS[variant]
    cell, params, inputs, state = small(name, batch=(), **options)

    def loss(run, u):
        outputs, final_state = run(u)
        return outputs.square().sum() + sum(s.sum() for s in final_state)

    def solve(u):
        return loss(lambda u: parnl.solve(cell, params, u, state, chunks=2)[:2], u)

    expected = torch.func.hessian(lambda u: loss(lambda u: oracles.loop(cell, params, u, state), u))
    inputs = inputs.detach()
    for found in (torch.func.hessian(solve), torch.func.jacrev(torch.func.jacfwd(solve))):
        assert_close(found(inputs), expected(inputs), 1e-11)
    # of which PyTorch makes zero, for any autograd function
    with pytest.raises(NotImplementedError, match=r"jacfwd of torch\.func\.jacrev"):
        torch.func.jacfwd(torch.func.jacfwd(solve))(inputs)


def test_half_precision_and_what_does_not_move():
    cell = parnl.get_cell("lrc", 2, 3)
    params, inputs = cell.init(0, "torch", "float64"), torch.randn(2, 7, 2, dtype=DOUBLE)
    name = next(n for n in params if n.startswith("W"))

    def outputs(dtype, weight):
        cast = {k: v.to(dtype) for k, v in params.items()} | {name: weight.to(dtype)}
        return parnl.solve(cell, cast, inputs.to(dtype)).outputs

    given = (params[name],), (torch.ones_like(params[name]),)
    _, expected = torch.func.jvp(lambda w: outputs(DOUBLE, w), *given)
    _, found = torch.func.jvp(lambda w: outputs(torch.bfloat16, w), *given)
    assert found.dtype == torch.bfloat16
    assert_close(found.double(), expected, 0.05)


def test_tangents_of_what_lengths_leave():
    cell, params, inputs, _ = small("gru")
    given = inputs.detach().clone()
    given[1, 3:] = torch.nan
    moved = torch.randn_like(given)
    lengths = torch.tensor([5, 3])

    def solve(u):
        return parnl.solve(cell, params, u, lengths=lengths, chunks=2).outputs

    _, found = torch.func.jvp(solve, (given,), (moved,))
    for b, n in enumerate(lengths):
        short = given[b, :n], moved[b, :n]
        _, expected = torch.func.jvp(lambda u: oracles.loop(cell, params, u, None)[0], *zip(short))
        assert_close(found[b, :n], expected, 1e-12)
        assert not found[b, n:].any()


# -- tensors without values, graphs ----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_tensors_without_values_have_shapes():
    cell, params, inputs, state = small("lstm", hidden=3)
    with FakeTensorMode() as fakes:
        given = torch.utils._pytree.tree_map(fakes.from_tensor, (params, inputs, state))
        out = parnl.solve(cell, *given)
        with pytest.raises(TypeError, match="FakeTensor has no values"):
            get_backend("torch").address(out.outputs)
    outside = parnl.solve(cell, *given)  # where the class alone tells
    for result in (out, outside):
        assert isinstance(result.outputs, FakeTensor)
        assert result.outputs.dtype == DOUBLE
        assert result.outputs.shape == (2, 5, 3)
        assert [s.shape for s in result.final_state] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("how", [{"chunks": 2}, {"lengths": torch.tensor([5, 2])}], ids=str)
@pytest.mark.parametrize("name", ["gru", "ltc"])
def test_recorded_graphs_compute_anew(name, how):
    cell, params, inputs, _ = small(name)

    def gradient(u):
        out = parnl.solve(cell, params, u, **how)
        return torch.autograd.grad(out.outputs.square().sum() + out.final_state[0].sum(), u)[0]

    other = (inputs * 1.7).detach().requires_grad_()
    graph = make_fx(gradient)(inputs)
    assert_close(graph(other), gradient(other), 1e-14)


def test_exported_programs_compute_anew():
    layer = RNN("gru", 2, 3).to(DOUBLE)
    u, other = torch.randn(2, 5, 2, 2, dtype=DOUBLE)
    program = torch.export.export(layer, (u,))
    with torch.no_grad():
        assert_close(program.module()(other)[0], layer(other)[0], 1e-14)


def test_forward_mode_is_refused_where_its_tangents_would_be_lost():
    cell, params, inputs, _ = small("gru")
    with pytest.raises(NotImplementedError, match=r"parnl\.solve: forward mode is not supported"):
        torch.func.linearize(lambda u: parnl.solve(cell, params, u).outputs, inputs.detach())


# -- torch.func -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 3, 7])
@pytest.mark.parametrize("name", CELLS)
def test_vmap_over_inputs(name, chunks):
    cell, params, inputs, state = small(name, steps=7, batch=(3,))
    whole = parnl.solve(cell, params, inputs, state, chunks=chunks)

    def one(u, *s):
        out = parnl.solve(cell, params, u, s, chunks=chunks)
        return out.outputs, out.final_state

    found = torch.func.vmap(one)(inputs, *state)
    assert_close(found[0], whole.outputs, 1e-12)
    for a, e in zip(found[1], whole.final_state, strict=True):
        assert_close(a, e, 1e-12)
    moved = torch.func.vmap(lambda u: parnl.solve(cell, params, u).outputs, 1)
    expected = parnl.solve(cell, params, inputs).outputs
    assert_close(moved(inputs.transpose(0, 1)), expected, 1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_vmap_over_params(name):
    """An ensemble: several sets of parameters, the same inputs."""
    cell, params, inputs, state = small(name, steps=7, batch=(2,))
    factors = torch.tensor([0.5, 1.0, 1.3], dtype=DOUBLE)
    many = {k: torch.stack([c * v for c in factors]) for k, v in params.items()}
    found = torch.func.vmap(lambda p: parnl.solve(cell, p, inputs, state, chunks=3).outputs)(many)
    for i, c in enumerate(factors):
        scaled = {k: c * v for k, v in params.items()}
        assert_close(found[i], oracles.loop(cell, scaled, inputs, state)[0], 1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_per_sample(name):
    cell, params, inputs, state = small(name, steps=7, batch=(3,))
    params = {k: v.detach() for k, v in params.items()}

    def loss(p, u, s):
        return parnl.solve(cell, p, u, s, chunks=3).outputs.square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(
        params, inputs.detach(), tuple(s.detach() for s in state)
    )
    for i in range(3):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        one = tuple(s[i].detach() for s in state)
        outputs, _ = oracles.loop(cell, leaves, inputs[i].detach(), one)
        expected = torch.autograd.grad(outputs.square().sum(), list(leaves.values()))
        for k, e in zip(leaves, expected, strict=True):
            assert_close(found[k][i], e, 1e-10, k)


@pytest.mark.parametrize("name", CELLS)
def test_func_grad_equals_autograd(name):
    cell, params, inputs, state = small(name, steps=7)

    def loss(p, u):
        out = parnl.solve(cell, p, u, state, chunks=3)
        return out.outputs.square().sum() + out.final_state[0].sum()

    expected = torch.autograd.grad(loss(params, inputs), [*params.values(), inputs])
    found_params, found_inputs = torch.func.grad(loss, (0, 1))(params, inputs)
    for a, e in zip([*found_params.values(), found_inputs], expected, strict=True):
        assert_close(a, e, 1e-13)


def test_gradient_under_vmap_over_params_and_inputs():
    cell, params, inputs, _ = small("lstm", steps=6, batch=(2,))
    many = {k: torch.stack([v, -v]).detach() for k, v in params.items()}
    inputs = inputs.detach()

    def loss(p, u):
        return parnl.solve(cell, p, u, chunks=2).outputs.square().sum()

    grad = torch.func.grad(loss, (0, 1))
    found_params, found_inputs = torch.func.vmap(grad)(many, inputs)
    for i in range(2):
        e_params, e_inputs = grad({k: v[i] for k, v in many.items()}, inputs[i])
        assert_close(found_inputs[i], e_inputs, 1e-12)
        for k, e in e_params.items():
            assert_close(found_params[k][i], e, 1e-12)


def test_vmap_with_lengths_and_dt():
    task = oracles.problem("lrc", steps=6, batch=(3,), lengths=[0, 4, 6], times="own")
    params = {k: torch.from_numpy(v) for k, v in task.params.items()}

    def one(u, x, n, dt):
        out = parnl.solve(task.cell, params, u, (x,), lengths=n, dt=dt, chunks=2)
        return out.outputs, out.final_state[0]

    assert task.initial_state is not None
    assert task.dt is not None
    arrays = (task.inputs, task.initial_state[0], task.lengths, task.dt)
    outputs, final = torch.func.vmap(one)(*(torch.as_tensor(a) for a in arrays))
    expected = oracles.reference(task)
    assert_close(outputs, expected.outputs, 1e-10)
    assert_close(final, expected.final_state[0], 1e-10)


@pytest.fixture
def huge(monkeypatch):
    """Products written into memory of their own, which holds NaN before; says how many were."""
    found = []

    def expect(tensor):
        found.append(tensor.shape)
        tensor.fill_(float("nan"))

    monkeypatch.setattr(memory, "_LARGE", 0)
    monkeypatch.setattr(memory, "_expect", expect)
    return found


def test_large_products_and_their_derivatives(huge):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 3, dtype=DOUBLE, generator=draw, requires_grad=True)
    matrix = torch.randn(3, 2, dtype=DOUBLE, generator=draw, requires_grad=True)
    found = ops.matmul(rows.reshape(1, 5, 3), torch.nn.Parameter(matrix.detach()))
    torch.testing.assert_close(found, (rows @ matrix)[None], rtol=1e-14, atol=1e-14)
    assert huge == [(5, 2)]
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda u, w: ops.matmul(u, w).tanh(), (rows, matrix))


def test_large_products_under_what_changes_them(huge):
    rows, matrix = torch.randn(4, 5, 3), torch.randn(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.matmul(rows[0], matrix).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda u: ops.matmul(u, matrix))(rows)
    moved = torch.func.jvp(lambda w: ops.matmul(rows, w), (matrix,), (torch.ones(3, 2),))[1]
    compiled = torch.compile(ops.matmul, fullgraph=True, backend="eager")(rows, matrix)
    with FlopCounterMode(display=False) as counter:
        ops.matmul(rows, matrix)
    assert counter.get_total_flops() == 2 * 20 * 3 * 2
    assert not huge
    torch.testing.assert_close(mapped, rows @ matrix)
    torch.testing.assert_close(compiled, rows @ matrix)
    torch.testing.assert_close(moved, rows.sum(-1, keepdim=True).expand(4, 5, 2))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux's huge pages")
def test_large_products_are_in_huge_pages():
    rows, matrix = torch.randn(40_000, 3), torch.randn(3, 64)  # 10 MB
    found = ops.matmul(rows, matrix)
    torch.testing.assert_close(found, rows @ matrix, rtol=0, atol=1e-5)
    middle, here = found.data_ptr() + found.numel() * 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif here and line.startswith("VmFlags:"):
            assert "hg" in line.split()
            return
    raise AssertionError("no such memory")


def test_a_new_cell_compiles_once_for_every_length():
    """Below and above where products are large; nothing that is computed once has been before."""

    class New(parnl.Cell):
        parameters = {"W": matrix("input", "hidden"), "a": vector("hidden")}

        def features(self, p, u):
            return {"x": ops.matmul(u, p.W)}

        def step(self, p, x, f):
            return ops.tanh(0.8126437 * p.a * x + f.x)

    cell = New(3, 64)
    params = cell.init(0, "torch")
    torch._dynamo.reset()
    counter = CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(u):
        return parnl.solve(cell, params, u, chunks=3).outputs

    for steps in (1000, 20_000, 2000, 30_000):
        run(torch.randn(1, steps, 3))
    assert counter.frame_count == 1

    @torch.compile(fullgraph=True, backend="eager")
    def automatic(u):
        return parnl.solve(cell, params, u).outputs

    u = torch.randn(1, 5000, 3)
    torch.testing.assert_close(automatic(u), parnl.solve(cell, params, u).outputs)


@pytest.mark.parametrize("steps", [3, 700, 2000])
def test_input_sum_by_any_number_of_terms_at_once(steps):
    """All seven, five and two, one by one: against the sum over one large array."""

    def term(u, m, n):
        return torch.tanh(m * u), (n - u) ** 2

    def direct(u, m, n):
        return [x.sum(-2) for x in term(u[..., None], m, n)]

    generator = torch.Generator().manual_seed(0)
    shapes = ((2, steps, 7), (7, 9), (7, 9))
    given = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    given = [x.requires_grad_() for x in given]
    results = {}
    for name in ("direct", "ours"):
        u, *rows = given
        found = direct(u, *rows) if name == "direct" else ops.input_sum(term, u, rows)
        results[name] = [*found, *torch.autograd.grad((found[0] * found[1]).sum(), given)]
    for found, expected in zip(results["ours"], results["direct"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)


# -- the module -----------------------------------------------------------------------------------


def pair(name, **how):
    """Make torch.nn's module with diagonal hidden weights, and parnl's with the same parameters."""
    torch.manual_seed(0)
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name]
    theirs = oracles.make_diagonal(kind(3, 5, dtype=DOUBLE, **how))
    ours = RNN(name, 3, 5, **how).double()
    tensors = dict(theirs.named_parameters())
    directions = ("", "_reverse") if how.get("bidirectional") else ("",)
    suffixes = [f"l{i}{d}" for i in range(how.get("num_layers", 1)) for d in directions]
    layers = [oracles.from_torch(name, tensors, suffix) for suffix in suffixes]
    copied = 0
    for key in layers[0]:
        # in the order in which they were registered: layer by layer, forward before reverse
        mine = [v for k, v in ours.named_parameters() if key in k.replace("_l", ".").split(".")]
        assert len(mine) == len(layers), f"{key} not in {[k for k, _ in ours.named_parameters()]}"
        for parameter, layer in zip(mine, layers, strict=True):
            assert parameter.shape == layer[key].shape
            parameter.data.copy_(layer[key])
            copied += 1
    assert copied == len(list(ours.parameters()))
    return theirs, ours


def assert_states(actual, expected, tolerance=1e-12):
    if not isinstance(expected, tuple):
        actual, expected = (actual,), (expected,)
    assert isinstance(actual, tuple)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, tolerance, "final state")


def starts(name, *shape):
    h = torch.randn(*shape, dtype=DOUBLE)
    return h if name == "gru" else (h, torch.randn(*shape, dtype=DOUBLE))


LAYOUTS = [
    {},
    {"batch_first": True},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("how", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_module_equals_torch_nn(name, how):
    theirs, ours = pair(name, **how)
    shape = (2, 9, 3) if how.get("batch_first") else (9, 2, 3)
    u = torch.randn(*shape, dtype=DOUBLE, requires_grad=True)
    rows = how.get("num_layers", 1) * (2 if how.get("bidirectional") else 1)
    for start in ((), (starts(name, rows, 2, 5),)):
        expected, expected_state = theirs(u, *start)
        found, found_state = ours(u, *start)
        assert_close(found, expected, 1e-12)
        assert_states(found_state, expected_state)
        weights = torch.randn_like(expected)
        (e,) = torch.autograd.grad((expected * weights).sum(), u)
        (a,) = torch.autograd.grad((found * weights).sum(), u)
        assert_close(a, e, 1e-11)


@pytest.mark.parametrize("how", LAYOUTS[:1] + LAYOUTS[-1:], ids=str)
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_module_without_a_batch(name, how):
    theirs, ours = pair(name, **how)
    u = torch.randn(9, 3, dtype=DOUBLE)
    rows = how.get("num_layers", 1) * (2 if how.get("bidirectional") else 1)
    for start in ((), (starts(name, rows, 5),)):
        expected, expected_state = theirs(u, *start)
        found, found_state = ours(u, *start)
        assert_close(found, expected, 1e-12)
        assert_states(found_state, expected_state)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("how", [LAYOUTS[0], LAYOUTS[2], LAYOUTS[4]], ids=str)
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_module_on_packed_sequences(name, how, enforce_sorted):
    theirs, ours = pair(name, **how)
    lengths = torch.tensor([9, 6, 1] if enforce_sorted else [1, 9, 6])
    u = torch.randn(3, 9, 3, dtype=DOUBLE)
    packed = pack_padded_sequence(u, lengths, batch_first=True, enforce_sorted=enforce_sorted)
    rows = how.get("num_layers", 1) * (2 if how.get("bidirectional") else 1)
    for start in ((), (starts(name, rows, 3, 5),)):
        expected, expected_state = theirs(packed, *start)
        found, found_state = ours(packed, *start)
        assert isinstance(found, PackedSequence)
        assert_bits(found.batch_sizes, expected.batch_sizes)
        assert_close(found.data, expected.data, 1e-12)
        padded, padded_lengths = pad_packed_sequence(found, batch_first=True)
        assert_close(padded, pad_packed_sequence(expected, batch_first=True)[0], 1e-12)
        assert_bits(padded_lengths, lengths)
        assert_states(found_state, expected_state)


def test_module_of_every_cell_and_a_class():
    u = torch.randn(7, 2, 3)
    for name in CELLS:
        rnn = RNN(name, 3, 4)
        outputs, state = rnn(u)
        assert outputs.shape == (7, 2, 4)
        states = state if isinstance(state, tuple) else (state,)
        assert [tuple(s.shape) for s in states] == [(1, 2, 4)] * oracles.STATES[name]
        outputs.sum().backward()
        for k, v in rnn.named_parameters():
            assert v.grad is not None, k
            assert torch.isfinite(v.grad).all(), k
        by_class = RNN(type(parnl.get_cell(name, input_size=3, hidden_size=4)), 3, 4)
        by_class.load_state_dict(rnn.state_dict())
        assert_bits(by_class(u)[0], outputs)


def test_module_options_reach_the_cell():
    torch.manual_seed(0)
    slow = RNN("lrc", 3, 4, dt=0.01)
    usual = RNN("lrc", 3, 4)
    usual.load_state_dict(slow.state_dict())
    u, start = torch.randn(7, 2, 3), torch.ones(1, 2, 4)
    assert (slow(u, start)[0] - 1).abs().max() < 0.1 < (usual(u, start)[0] - 1).abs().max()


def test_module_state_continues_a_sequence():
    _, ours = pair("lstm", num_layers=2)
    u = torch.randn(9, 2, 3, dtype=DOUBLE)
    whole, end = ours(u)
    first, state = ours(u[:4])
    second, state = ours(u[4:], state)
    assert_close(torch.cat([first, second]), whole, 1e-12)
    assert_states(state, end)


def test_module_dropout_acts_between_layers_in_training_only():
    torch.manual_seed(0)
    rnn = RNN("gru", 3, 8, num_layers=2, dropout=0.5)
    one = RNN("gru", 3, 8, num_layers=1, dropout=0.0)
    u = torch.randn(9, 2, 3)
    assert (rnn(u)[0] - rnn(u)[0]).abs().max() > 1e-4
    rnn.eval()
    assert_bits(rnn(u)[0], rnn(u)[0])
    plain = RNN("gru", 3, 8, num_layers=2)
    plain.load_state_dict(rnn.state_dict())
    assert_bits(plain(u)[0], rnn(u)[0])
    assert_bits(one(u)[0], one(u)[0])  # nothing after the last layer is dropped


def test_module_follows_torch_seeds_and_saves():
    def make():
        torch.manual_seed(5)
        return RNN("lstm", 3, 4, num_layers=2, bidirectional=True)

    a, b, c = make(), make(), RNN("lstm", 3, 4, num_layers=2, bidirectional=True)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))
    c.load_state_dict(a.state_dict())
    u = torch.randn(5, 2, 3)
    assert_bits(a(u)[0], c(u)[0])
    layers = [p for k, p in a.named_parameters() if "W_i" in k]
    assert len({tuple(p.flatten().tolist()) for p in layers}) == 4  # no two start the same


def test_module_in_half_precision():
    rnn = RNN("gru", 3, 4).to(torch.bfloat16)
    outputs, state = rnn(torch.randn(7, 2, 3, dtype=torch.bfloat16))
    assert (outputs.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_module_learns():
    """A few steps of Adam lower the loss of a task that needs memory."""
    torch.manual_seed(0)
    rnn, head = RNN("gru", 1, 16), torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=0.02)
    u = torch.randn(20, 32, 1)
    target = u[-3:].sum(0)
    losses = []
    for _ in range(120):
        loss = (head(rnn(u)[0][-1]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_many_cotangents_at_once(monkeypatch, name, kernels):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    cell = parnl.get_cell(name, 2, 3)
    params = cell.init(0, "torch", "float64")

    def outputs(u):
        return parnl.solve(cell, params, u, chunks=3).outputs

    u = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)
    found = torch.func.jacrev(outputs)(u).reshape(-1, *u.shape)
    out = outputs(u)
    basis = torch.eye(out.numel(), dtype=torch.float64).reshape(-1, *out.shape)
    for row, cotangent in zip(found, basis, strict=True):
        alone = torch.autograd.grad(out, u, cotangent, retain_graph=True)[0]
        torch.testing.assert_close(row, alone, rtol=1e-12, atol=1e-12)
    with pytest.raises(NotImplementedError, match=r"use torch\.func\.vmap"):
        torch.autograd.grad(out, u, basis, is_grads_batched=True)


# -- imports --------------------------------------------------------------------------------------


IMPORTS = {
    "parnl": ("import parnl", {"torch", "jax"}),
    "get_cell and init": (
        "import parnl; parnl.get_cell('gru', input_size=1, hidden_size=1).init(backend='numpy')",
        {"torch", "jax"},
    ),
    "solve on numpy": (
        "import numpy as np, parnl; c = parnl.get_cell('lstm', input_size=1, hidden_size=1);"
        "parnl.solve(c, c.init(backend='numpy'), np.zeros((3, 1), 'float32'))",
        {"torch", "jax"},
    ),
    "solve on torch": (
        "import torch, parnl; c = parnl.get_cell('lstm', input_size=1, hidden_size=1);"
        "parnl.solve(c, c.init(backend='torch'), torch.zeros(3, 1))",
        {"jax"},
    ),
    "solve on jax": (
        "import jax.numpy as np, parnl; c = parnl.get_cell('gru', input_size=1, hidden_size=1);"
        "parnl.solve(c, c.init(backend='jax'), np.zeros((3, 1), 'float32'))",
        {"torch"},
    ),
}


@pytest.mark.parametrize("case", IMPORTS)
def test_a_framework_is_imported_only_when_used(case):
    code, absent = IMPORTS[case]
    code += f"; import sys; print(sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
