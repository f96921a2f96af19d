"""torch.nn.GRU and torch.nn.LSTM whose channels do not mix."""

from __future__ import annotations

from collections.abc import Mapping

from optional import torch

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
