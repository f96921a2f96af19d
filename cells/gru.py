"""Gated recurrent unit with diagonal recurrent weights."""

from __future__ import annotations

from parnl import ops
from parnl.cell import Cell
from parnl.params import matrix, vector
from parnl.registry import register


@register("gru")
class GRU(Cell):
    """Diagonal gated recurrent unit (Cho et al., 2014, arXiv 1406.1078).

    In PyTorch's form: an `nn.GRU` whose blocks of `weight_hh` are diagonal is the same map, with
    b_r = b_ir + b_hr, b_z = b_iz + b_hz, b_n = b_in, c_n = b_hn.

        r = s(u W_r + b_r + a_r h)      z = s(u W_z + b_z + a_z h)
        n = tanh(u W_n + b_n + r (a_n h + c_n))         h' = (1 - z) n + z h
    """

    states = ("h",)
    parameters = {
        f"{kind}_{gate}": matrix("input", "hidden") if kind == "W" else vector("hidden")
        for gate in "rzn"
        for kind in ("W", "b", "a")
    } | {"c_n": vector("hidden")}

    @property
    def biases(self):
        return (*super().biases, "c_n")

    def features(self, p, u):
        return {"r": ops.matmul(u, p.W_r), "z": ops.matmul(u, p.W_z), "n": ops.matmul(u, p.W_n)}

    def step(self, p, h, f):
        # biases are added here, where they cost nothing: in `features`, a pass over memory each
        r = ops.sigmoid(f.r + p.b_r + p.a_r * h)
        z = ops.sigmoid(f.z + p.b_z + p.a_z * h)
        n = ops.tanh(f.n + p.b_n + r * (p.c_n + p.a_n * h))
        return n + z * (h - n)
