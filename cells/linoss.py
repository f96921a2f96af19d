"""Linear oscillatory state-space model."""

from __future__ import annotations

from typing import Any

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, normal, uniform, vector
from parnl.registry import register

_SCHEMES = ("im", "imex")


@register("linoss")
class LinOSS(Cell):
    """Forced oscillators y'' = -a y + u B, each with a frequency and a time step of its own.

    LinOSS (Rusch and Rus, 2025, arXiv 2410.03943): linear, so solved by one scan of 2 x 2 blocks.

        a  = relu(A)    t = s(dt_raw)
        z' = S (z + t (u B - a y))        scheme="im", implicit: S = 1 / (1 + t^2 a)
        y' = y + t z'                     scheme="imex": S = 1
        outputs  y' C + u D

    hidden is both the number of oscillators and that of outputs; D is a matrix (the paper's is
    diagonal), so that the input may have another size. "im" loses energy at each step, where a > 0:
    its eigenvalues have the size sqrt(S). "imex" keeps energy: they are on the unit circle while
    t^2 a <= 4, as at the start. In the authors' code B and C are complex: one oscillator there is
    two of these, with the same a and t. Starts as there: A and dt_raw ~ U(0, 1), B and C
    uniform within 1/sqrt(input) and 1/sqrt(hidden), D normal.
    """

    states = ("z", "y")
    options = {"scheme": "im"}

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        scheme = options.get("scheme", "im")
        if scheme not in _SCHEMES:
            raise ValueError(f"scheme: expected one of {', '.join(_SCHEMES)}, got {scheme!r}")
        super().__init__(input_size, hidden_size, **options)

    @property
    def parameters(self) -> dict[str, Parameter]:
        into, out = self.input_size**-0.5, self.hidden_size**-0.5
        return {
            "A": vector("hidden", uniform(0.0, 1.0)),
            "dt_raw": vector("hidden", uniform(0.0, 1.0)),
            "B": matrix("input", "hidden", uniform(-into, into)),
            "C": matrix("hidden", "hidden", uniform(-out, out)),
            "D": matrix("input", "hidden", normal(into)),
        }

    def features(self, p, u):
        a, t = ops.relu(p.A), ops.sigmoid(p.dt_raw)
        found = {"a": a[None, :], "t": t[None, :]}
        if self.scheme == "im":
            found["s"] = 1.0 / (1.0 + found["t"] ** 2 * found["a"])
        return {**found, "v": ops.matmul(u, p.B), "skip": ops.matmul(u, p.D)}

    def step(self, p, z, y, f):
        z = z + f.t * (f.v - f.a * y)
        if self.scheme == "im":
            z = f.s * z
        return z, y + f.t * z

    def output(self, p: Any, z: Any, y: Any, f: Any) -> Any:
        """Return the outputs (..., T, hidden) of the states."""
        return ops.matmul(y, p.C) + f.skip
