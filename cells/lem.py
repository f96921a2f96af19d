"""Long expressive memory with diagonal recurrent weights."""

from __future__ import annotations

from parnl import ops
from parnl.cell import Cell
from parnl.params import matrix, vector
from parnl.registry import register


@register("lem")
class LEM(Cell):
    """Diagonal long expressive memory (Rusch et al., 2022, arXiv 2110.04744).

    One implicit-explicit step of a two-scale ODE whose time steps are learned.

        t1 = dt s(u W_1 + b_1 + a_1 y)          t2 = dt s(u W_2 + b_2 + a_2 y)
        z' = (1 - t1) z + t1 tanh(u W_z + b_z + a_z y)
        y' = (1 - t2) y + t2 tanh(u W_y + b_y + a_y z')

    Options: dt=1.0. Time-aware. Every parameter starts U(-1/sqrt(hidden), 1/sqrt(hidden)). For
    0 <= dt <= 1 the states stay within max(1, |x_0|).
    """

    states = ("z", "y")
    options = {"dt": 1.0}
    parameters = {
        f"{kind}_{part}": matrix("input", "hidden") if kind == "W" else vector("hidden")
        for part in "12zy"
        for kind in ("W", "b", "a")
    }

    def features(self, p, u):
        parts = {"t1": p.W_1, "t2": p.W_2, "z": p.W_z, "y": p.W_y}
        return {name: ops.matmul(u, weight) for name, weight in parts.items()}

    def step(self, p, z, y, f, dt):
        first = dt * ops.sigmoid(f.t1 + p.b_1 + p.a_1 * y)
        second = dt * ops.sigmoid(f.t2 + p.b_2 + p.a_2 * y)
        z = z + first * (ops.tanh(f.z + p.b_z + p.a_z * y) - z)
        return z, y + second * (ops.tanh(f.y + p.b_y + p.a_y * z) - y)
