"""Minimal gated unit with diagonal recurrent weights."""

from __future__ import annotations

from parnl import ops
from parnl.cell import Cell
from parnl.params import matrix, vector
from parnl.registry import register


@register("mgu")
class MGU(Cell):
    """Diagonal minimal gated unit (Zhou et al., 2016, arXiv 1603.09420).

    A gated recurrent unit whose reset and update gates are one, f.

        f = s(u W_f + b_f + a_f h)      n = tanh(u W_n + b_n + a_n (f h))
        h' = (1 - f) h + f n
    """

    states = ("h",)
    parameters = {
        "W_f": matrix("input", "hidden"),
        "b_f": vector("hidden", "zeros"),
        "a_f": vector("hidden"),
        "W_n": matrix("input", "hidden"),
        "b_n": vector("hidden", "zeros"),
        "a_n": vector("hidden"),
    }

    def features(self, p, u):
        return {"f": ops.matmul(u, p.W_f), "n": ops.matmul(u, p.W_n)}

    def step(self, p, h, f):
        gate = ops.sigmoid(f.f + p.b_f + p.a_f * h)
        return h + gate * (ops.tanh(f.n + p.b_n + p.a_n * (gate * h)) - h)
