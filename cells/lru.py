"""Linear recurrent unit."""

from __future__ import annotations

from typing import Any

import numpy as np

from parnl import ops
from parnl.cell import Cell
from parnl.params import Draw, Parameter, matrix, normal, vector
from parnl.registry import register


class ComplexDiagonal(Cell):
    """x' = lambda x + v for complex numbers, each held as (re, im); outputs scale Re(x C) + u D.

    The state-space layers share this. A subclass draws the parameters, and gives the features
    a_re, a_im (lambda; (1, hidden)), v_re, v_im (..., T, hidden) and skip (u D).
    """

    states = ("re", "im")
    scale = 1.0

    @property
    def matrices(self) -> dict[str, Parameter]:
        """B, C and D, with the normal distributions of the LRU paper."""
        into, out = normal((2 * self.input_size) ** -0.5), normal(self.hidden_size**-0.5)
        return {
            "B_re": matrix("input", "hidden", into),
            "B_im": matrix("input", "hidden", into),
            "C_re": matrix("hidden", "hidden", out),
            "C_im": matrix("hidden", "hidden", out),
            "D": matrix("input", "hidden", normal(self.input_size**-0.5)),
        }

    def step(self, p, re, im, f):
        return f.a_re * re - f.a_im * im + f.v_re, f.a_re * im + f.a_im * re + f.v_im

    def output(self, p: Any, re: Any, im: Any, f: Any) -> Any:
        """Return the outputs (..., T, hidden) of the states."""
        return self.scale * (ops.matmul(re, p.C_re) - ops.matmul(im, p.C_im)) + f.skip


def _log_decay(r_min: float, r_max: float) -> Draw:
    """Draw log nu with exp(-nu) uniform, by area, in the ring between r_min and r_max."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        squared = rng.uniform(r_min**2, r_max**2, shape)
        return np.log(-0.5 * np.log(squared))

    return draw


@register("lru")
class LRU(ComplexDiagonal):
    """Linear recurrent unit (Orvieto et al., 2023, arXiv 2303.06349): solved by one scan.

        lambda = exp(-exp(nu_log) + i exp(theta_log))           |lambda| < 1 whatever nu_log
        x' = lambda x + exp(gamma_log) (u (B_re + i B_im))      x complex: the states re, im
        y  = Re(x (C_re + i C_im)) + u D

    hidden is both the number of complex states and that of outputs; D is a matrix (the paper's is
    diagonal), so that the input may have another size. Options, of the start only: r_min=0.0,
    r_max=1.0, max_phase=6.28; lambda starts uniform in the ring r_min <= |lambda| <= r_max with
    phases up to max_phase, gamma as sqrt(1 - |lambda|^2), which makes inputs and states equally
    large.
    """

    options = {"r_min": 0.0, "r_max": 1.0, "max_phase": 6.28}

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        chosen = {**self.options, **options}
        if not 0.0 <= chosen["r_min"] < chosen["r_max"] <= 1.0:
            given = f"{chosen['r_min']!r} and {chosen['r_max']!r}"
            raise ValueError(f"r_min, r_max: expected 0 <= r_min < r_max <= 1, got {given}")
        super().__init__(input_size, hidden_size, **options)

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {
            "nu_log": vector("hidden", _log_decay(self.r_min, self.r_max)),
            "theta_log": vector(
                "hidden", lambda rng, shape: np.log(self.max_phase * (1.0 - rng.random(shape)))
            ),
            "gamma_log": vector("hidden", "zeros"),  # set by draw()
            **self.matrices,
        }

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the parameters; gamma follows from lambda."""
        drawn = super().draw(rng)
        drawn["gamma_log"] = 0.5 * np.log(-np.expm1(-2.0 * np.exp(drawn["nu_log"])))
        return drawn

    def features(self, p, u):
        # beyond 10 the result is 0 in float64, and its slope 0 too, not 0 times an overflow
        size = ops.exp(-ops.exp(ops.minimum(p.nu_log, 10.0)))
        phase = ops.exp(p.theta_log)
        gamma = ops.exp(p.gamma_log)
        return {
            "a_re": (size * ops.cos(phase))[None, :],
            "a_im": (size * ops.sin(phase))[None, :],
            "v_re": ops.matmul(u, p.B_re * gamma),
            "v_im": ops.matmul(u, p.B_im * gamma),
            "skip": ops.matmul(u, p.D),
        }
