"""Undamped independent controlled oscillatory recurrent network."""

from __future__ import annotations

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, uniform, vector
from parnl.registry import register


@register("unicornn")
class UnICORNN(Cell):
    """Undamped independent controlled oscillators (Rusch and Mishra, 2021, arXiv 2103.05487).

    One symplectic Euler step of y'' = -(tanh(a y + u W + b) + alpha y) in a learned time step.

        t = dt s(c)
        z' = z - t (tanh(u W + b + a y) + alpha y)
        y' = y + t z'

    Options: dt=0.1 and alpha=1.0; the authors tune both for each task. Time-aware. Starts as in
    their code: a ~ U(0, 1), c ~ U(-0.1, 0.1), b = 0, W Kaiming-uniform of slope 8. The step
    preserves phase-space volume, so overall it neither contracts nor expands.
    """

    states = ("z", "y")
    options = {"dt": 0.1, "alpha": 1.0}

    @property
    def parameters(self) -> dict[str, Parameter]:
        bound = (6.0 / (1.0 + 8.0**2) / self.input_size) ** 0.5
        return {
            "W": matrix("input", "hidden", uniform(-bound, bound)),
            "b": vector("hidden", "zeros"),
            "a": vector("hidden", uniform(0.0, 1.0)),
            "c": vector("hidden", uniform(-0.1, 0.1)),
        }

    def features(self, p, u):
        return {"x": ops.matmul(u, p.W), "t": ops.sigmoid(p.c)[None, :]}

    def step(self, p, z, y, f, dt):
        t = dt * f.t
        z = z - t * (ops.tanh(f.x + p.b + p.a * y) + self.alpha * y)
        return z, y + t * z
