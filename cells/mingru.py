"""Minimal gated recurrent unit whose gates read the input alone."""

from __future__ import annotations

from typing import Any

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, vector
from parnl.registry import register


def positive(x: Any) -> Any:
    """Return the papers' g(x) > 0: x + 1/2 for x >= 0, s(x) below."""
    return ops.where(x >= 0.0, x + 0.5, ops.sigmoid(x))


@register("mingru")
class MinGRU(Cell):
    """minGRU (Feng et al., 2024, arXiv 2410.01201): linear, solved by one scan.

        z = s(u W_z + b_z)      n = u W_n + b_n         h' = (1 - z) h + z n

    Options: positive=True keeps the state positive, n = g(u W_n + b_n) with g(x) = x + 1/2 for
    x >= 0 and s(x) below. The paper's log-space form needs this; parnl does not.
    """

    states = ("h",)
    options = {"positive": False}
    gates = "zn"

    @property
    def parameters(self) -> dict[str, Parameter]:
        specs = {f"W_{g}": matrix("input", "hidden") for g in self.gates}
        return specs | {f"b_{g}": vector("hidden") for g in self.gates}

    def features(self, p, u):
        return {g: ops.matmul(u, getattr(p, f"W_{g}")) for g in self.gates}

    def step(self, p, h, f):
        return h + ops.sigmoid(f.z + p.b_z) * (self.candidate(p, f) - h)

    def candidate(self, p, f):
        """Return n."""
        n = f.n + p.b_n
        return positive(n) if self.positive else n
