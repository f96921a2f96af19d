"""Coupled oscillatory recurrent network with diagonal recurrent weights."""

from __future__ import annotations

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, uniform, vector
from parnl.registry import register


@register("cornn")
class CoRNN(Cell):
    """Diagonal coupled oscillatory network (Rusch and Mishra, 2021, arXiv 2010.00951).

    One step of forced and damped oscillators y'' = tanh(...) - gamma y - epsilon y', each coupled
    to itself only, since the recurrent weights are diagonal.

        z' = z + dt (tanh(u W + b + a_y y + a_z z) - gamma y - epsilon z)
        y' = y + dt z'

    Options: dt=0.042, gamma=2.7, epsilon=4.7, the authors' values for sequential MNIST. Time-aware.
    Every parameter starts U(-1/sqrt(k), 1/sqrt(k)), k = input + 2 hidden, as in their code.
    """

    states = ("z", "y")
    options = {"dt": 0.042, "gamma": 2.7, "epsilon": 4.7}

    @property
    def parameters(self) -> dict[str, Parameter]:
        bound = (self.input_size + 2 * self.hidden_size) ** -0.5
        start = uniform(-bound, bound)
        return {
            "W": matrix("input", "hidden", start),
            "b": vector("hidden", start),
            "a_y": vector("hidden", start),
            "a_z": vector("hidden", start),
        }

    def features(self, p, u):
        return {"x": ops.matmul(u, p.W)}

    def step(self, p, z, y, f, dt):
        force = ops.tanh(f.x + p.b + p.a_y * y + p.a_z * z)
        z = z + dt * (force - self.gamma * y - self.epsilon * z)
        return z, y + dt * z
