"""Modules of torch whose channels do not mix, and whether a cell is the same map."""

from __future__ import annotations

from collections.abc import Mapping

from optional import torch
from oracles import assert_close

GATES = {"gru": "rzn", "lstm": "ifgo"}


@torch.no_grad()
def make_diagonal(module: torch.nn.RNNBase) -> torch.nn.RNNBase:
    """Zero what lies off the diagonals of each hidden-to-hidden block, in place."""
    for key, weight in module.named_parameters():
        if key.startswith("weight_hh"):
            for block in weight.split(module.hidden_size):
                block.mul_(torch.eye(module.hidden_size))
    return module


def from_torch(
    name: str, tensors: Mapping[str, torch.Tensor], suffix: str = "l0", *, gradients: bool = False
) -> dict[str, torch.Tensor]:
    """Map the tensors of one nn.GRU or nn.LSTM layer to the parameters of the diagonal cell.

    With `gradients`, `tensors` are gradients: one of each pair of added biases is taken, not their
    sum.
    """
    gates = GATES[name]

    def blocks(key):
        return dict(zip(gates, tensors[f"{key}_{suffix}"].chunk(len(gates)), strict=True))

    w_in, w_hh = blocks("weight_ih"), blocks("weight_hh")
    b_in, b_hh = blocks("bias_ih"), blocks("bias_hh")
    params = {}
    for g in gates:
        params["W_" + g] = w_in[g].T
        params["a_" + g] = w_hh[g].diagonal()
        params["b_" + g] = b_in[g] if gradients else b_in[g] + b_hh[g]
    if name == "gru":  # PyTorch keeps this bias inside r * (...)
        params["b_n"] = b_in["n"]
        params["c_n"] = b_hh["n"]
    return {k: v.detach().clone() for k, v in params.items()}


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def assert_same_map(
    module: torch.nn.Module, u: torch.Tensor, expected: torch.Tensor, found: torch.Tensor
) -> None:
    """Outputs, and the gradients of the inputs and of the module's parameters.

    The mapping of its parameters to a cell's is differentiable. Parameters off a diagonal were set
    to zero and are not the cell's.
    """
    tolerance = 1e-12 if u.dtype == torch.float64 else 2e-5
    assert_close(found, expected, tolerance, "outputs")
    weights = torch.randn(expected.shape, dtype=u.dtype)
    named = {n: p for n, p in module.named_parameters() if p.requires_grad} | {"inputs": u}
    theirs, ours = (
        torch.autograd.grad((y * weights).sum(), list(named.values()), materialize_grads=True)
        for y in (expected, found)
    )
    for (name, p), e, f in zip(named.items(), theirs, ours, strict=True):
        e = e if name == "inputs" else torch.where(p == 0, 0.0, e)
        if p.is_complex():
            e, f = torch.view_as_real(e.resolve_conj()), torch.view_as_real(f.resolve_conj())
        assert_close(f, e, tolerance, name)
