"""Minimal long short-term memory whose gates read the input alone."""

from __future__ import annotations

from parnl import ops
from parnl.cells.mingru import MinGRU
from parnl.registry import register


@register("minlstm")
class MinLSTM(MinGRU):
    """minLSTM (Feng et al., 2024, arXiv 2410.01201): linear, solved by one scan.

        i, f = s(u W + b)       n = u W_n + b_n         h' = f / (f + i) h + i / (f + i) n

    Options: positive, as in `mingru`.
    """

    gates = "ifn"

    def step(self, p, h, f):
        # i / (f + i) as a sigmoid: both gates may underflow, their ratio does not
        enter = ops.sigmoid(ops.softplus(-(f.f + p.b_f)) - ops.softplus(-(f.i + p.b_i)))
        return h + enter * (self.candidate(p, f) - h)
