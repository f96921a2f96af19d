"""sLSTM, the scalar-memory cell of xLSTM, with diagonal recurrent weights."""

from __future__ import annotations

import numpy as np

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, normal, vector
from parnl.registry import register


def _power_law(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 5.0 - 12.0 * np.linspace(0.0, 1.0, shape[0]) ** 0.3


@register("slstm")
class SLSTM(Cell):
    """Diagonal sLSTM with exponential input gate (Beck et al., 2024, arXiv 2405.04517).

    The state of a channel is (c, n, m, h): cell, normaliser, stabiliser, output. m is the logarithm
    by which c and n are scaled down; it keeps the exponentials at most 1 and leaves c / n as it is.

        i, f, z, o = u W + b + a h              m' = max(log s(f) + m, i)
        c' = exp(log s(f) + m - m') c + exp(i - m') tanh(z)
        n' = exp(log s(f) + m - m') n + exp(i - m')
        h' = s(o) c' / n'

    With n = 0, at the start, there is nothing to keep, and m' = i; later n >= 1. The paper lets the
    forget gate be s(f) or exp(f); this is s(f), as in the authors' code. The start is theirs too:
    W ~ N(0, 2 / (5 input)), a = 0, b_f falling from 5 to -7 over the channels by a power law, all
    other b = 0.
    """

    states = ("c", "n", "m", "h")

    @property
    def parameters(self) -> dict[str, Parameter]:
        specs = {}
        for gate in "ifzo":
            specs[f"W_{gate}"] = matrix("input", "hidden", normal((0.4 / self.input_size) ** 0.5))
            specs[f"b_{gate}"] = vector("hidden", _power_law if gate == "f" else "zeros")
            specs[f"a_{gate}"] = vector("hidden", "zeros")
        return specs

    def features(self, p, u):
        return {g: ops.matmul(u, getattr(p, f"W_{g}")) for g in "ifzo"}

    def step(self, p, c, n, m, h, f):
        log_enter = f.i + p.b_i + p.a_i * h
        log_keep = ops.logsigmoid(f.f + p.b_f + p.a_f * h) + m
        new_m = ops.where(n == 0.0, log_enter, ops.maximum(log_keep, log_enter))
        # the exponent is above 0 only if n = 0; an overflow would then make inf * 0
        keep, enter = ops.exp(ops.minimum(log_keep - new_m, 80.0)), ops.exp(log_enter - new_m)
        new_c = keep * c + enter * ops.tanh(f.z + p.b_z + p.a_z * h)
        new_n = keep * n + enter
        return new_c, new_n, new_m, ops.sigmoid(f.o + p.b_o + p.a_o * h) * new_c / new_n
