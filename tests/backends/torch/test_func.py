"""torch.func: vmap, grad, ensembles, gradients of single samples."""

import oracles
import pytest
import torch
from oracles import CELLS, assert_close
from torch_tasks import DOUBLE, small

import parnl


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
