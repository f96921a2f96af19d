"""Autograd to second order and forward mode, against the loop and finite differences."""

from typing import Any

import oracles
import pytest
import torch
from oracles import CELLS, VARIANTS, assert_close
from torch_tasks import DOUBLE, checkpoints_forward, flat_solve, small

import parnl


@pytest.mark.parametrize("how", [{"chunks": 3}, {"method": "sequential"}], ids=str)
@pytest.mark.parametrize("variant", ["lrc-symmetric", "gru", "lstm-peephole", "ltc-unfolds"])
def test_gradcheck(variant, how):
    name, options = VARIANTS[variant]
    cell, params, inputs, state = small(name, **options)
    f = flat_solve(cell, list(params), len(state), **how)
    forward = name != "ltc" or checkpoints_forward()
    given = (inputs, *state, *params.values())
    assert torch.autograd.gradcheck(f, given, check_forward_ad=forward)


@pytest.mark.long
@pytest.mark.parametrize("how", [{"chunks": 2}, {"method": "sequential"}], ids=str)
@pytest.mark.parametrize("variant", ["lrc-symmetric", "gru", "lstm-peephole", "ltc-unfolds"])
def test_gradgradcheck(variant, how):
    name, options = VARIANTS[variant]
    cell, params, inputs, state = small(name, steps=4, batch=(), **options)
    f = flat_solve(cell, list(params), len(state), **how)
    assert torch.autograd.gradgradcheck(f, (inputs, *state, *params.values()))


@pytest.mark.long
@pytest.mark.parametrize("name", ["lrc", "ltc"])
def test_gradcheck_in_dt_with_lengths_and_reverse(name):
    cell, params, inputs, state = small(name, steps=4)
    dt = torch.tensor([[0.3, 0.9, 0.4, 0.6], [0.2, 0.5, 0.7, 0.8]], dtype=DOUBLE)

    def f(dt, inputs):
        how: dict[str, Any] = {"lengths": torch.tensor([4, 2]), "reverse": True, "chunks": 2}
        out = parnl.solve(cell, params, inputs, state, dt=dt, **how)
        return out.outputs, *out.final_state

    forward = name != "ltc" or checkpoints_forward()
    assert torch.autograd.gradcheck(f, (dt.requires_grad_(), inputs), check_forward_ad=forward)
    assert torch.autograd.gradgradcheck(f, (dt, inputs), check_fwd_over_rev=forward)


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
