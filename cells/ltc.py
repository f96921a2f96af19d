"""Liquid time-constant network with a diagonal recurrence."""

from __future__ import annotations

from typing import Any

import numpy as np

from parnl import ops
from parnl.cell import Cell
from parnl.params import Draw, Parameter, matrix, softplus_inverse, uniform, vector
from parnl.registry import register


def _synapse(u_j: Any, w: Any, e: Any, sigma: Any, mu: Any) -> tuple[Any, Any]:
    d = w * ops.sigmoid(sigma * (u_j - mu))
    return d * e, d


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice([-1.0, 1.0], shape)


TINY = 1e-30  # above what float32 takes for 0, below what it can add to anything else


@register("ltc")
class LTC(Cell):
    """Diagonal liquid time-constant cell (Hasani et al., 2021, arXiv 2006.04439).

    One step of the ODE of a leaky neuron with sigmoidal synapses, by the fused semi-implicit
    solver: `unfolds` substeps of length h = dt / unfolds.

        n = sum_j w_in[j] e_in[j] s(sigma_in[j] (u_j - mu_in[j]))      d = the same without e_in
        y = w s(sigma (x - mu))
        x <- (c_m / h x + g_leak v_leak + y e + n) / (c_m / h + g_leak + y + d + 1e-8)

    Options: dt=1.0; unfolds=6; positive="softplus" keeps w, w_in, c_m and g_leak positive as the
    softplus of the stored parameter, positive="clip" as max(stored, 0). Time-aware: with dt = 0 the
    state stays as it is; for dt < 0 the formula has a pole where its denominator is 0. The
    effective parameters start in the ranges the authors published.
    """

    options = {"dt": 1.0, "unfolds": 6, "positive": "softplus"}

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        chosen = {**self.options, **options}
        if chosen["positive"] not in ("softplus", "clip"):
            raise ValueError(f"positive: expected softplus or clip, got {chosen['positive']!r}")
        if not isinstance(chosen["unfolds"], int) or chosen["unfolds"] < 1:
            raise ValueError(f"unfolds: expected a positive integer, got {chosen['unfolds']!r}")
        super().__init__(input_size, hidden_size, **options)

    @property
    def parameters(self) -> dict[str, Parameter]:
        def positive(low: float, high: float) -> Draw:
            draw = uniform(low, high)
            return softplus_inverse(draw) if self.positive == "softplus" else draw

        return {
            "w": vector("hidden", positive(0.001, 1.0)),
            "sigma": vector("hidden", uniform(3.0, 8.0)),
            "mu": vector("hidden", uniform(0.3, 0.8)),
            "e": vector("hidden", _signs),
            "w_in": matrix("input", "hidden", positive(0.001, 1.0)),
            "sigma_in": matrix("input", "hidden", uniform(3.0, 8.0)),
            "mu_in": matrix("input", "hidden", uniform(0.3, 0.8)),
            "e_in": matrix("input", "hidden", _signs),
            "c_m": vector("hidden", positive(0.4, 0.6)),
            "g_leak": vector("hidden", positive(0.001, 1.0)),
            "v_leak": vector("hidden", uniform(-0.2, 0.2)),
        }

    def _positive(self, stored: Any) -> Any:
        return ops.softplus(stored) if self.positive == "softplus" else ops.relu(stored)

    def features(self, p, u):
        w_in = self._positive(p.w_in)
        n, d = ops.input_sum(_synapse, u, [w_in, p.e_in, p.sigma_in, p.mu_in])
        return {"n": n, "d": d}

    def step(self, p, x, f, dt):
        # c_m / h and 1 of the equation, both divided by c_m / h + 1: no division by a dt of 0, and
        # nothing overflows where it is large. TINY: where c_m is 0 as well, the state stays
        c, h = self._positive(p.c_m) + TINY, dt * (1.0 / self.unfolds)
        whole = c + ops.abs(h)
        keep, move = c / whole, h / whole
        leak, w = self._positive(p.g_leak), move * self._positive(p.w)
        drive = move * (f.n + leak * p.v_leak)
        drag = keep + move * (f.d + (leak + 1e-8))
        for _ in range(self.unfolds):
            y = w * ops.sigmoid(p.sigma * (x - p.mu))
            x = (drive + keep * x + y * p.e) / (drag + y)
        return x
