"""Independently recurrent neural network."""

from __future__ import annotations

from typing import Any

from parnl import ops
from parnl.cell import Cell
from parnl.params import matrix, uniform, vector
from parnl.registry import register


@register("indrnn")
class IndRNN(Cell):
    """Independently recurrent neural network (Li et al., 2018, arXiv 1803.04831).

        h' = phi(u W + a h + b)

    Options: phi is activation="relu" or "tanh". An `nn.RNN` whose `weight_hh` is diagonal is the
    same map, with b = b_ih + b_hh. Recurrent weights start U(0, 1). The gradient over T steps grows
    by at most max |a|^T, so the authors keep |a| <= 2^(1/T).
    """

    states = ("h",)
    options = {"activation": "relu"}
    parameters = {
        "W": matrix("input", "hidden"),
        "a": vector("hidden", uniform(0.0, 1.0)),
        "b": vector("hidden", "zeros"),
    }

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        chosen = options.get("activation", "relu")
        if chosen not in ("relu", "tanh"):
            raise ValueError(f"activation: expected relu or tanh, got {chosen!r}")
        super().__init__(input_size, hidden_size, **options)

    def features(self, p, u):
        return {"x": ops.matmul(u, p.W)}

    def step(self, p, h, f):
        phi = ops.relu if self.activation == "relu" else ops.tanh
        return phi(f.x + p.b + p.a * h)
