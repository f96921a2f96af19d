"""Liquid-resistance liquid-capacitance network with a complex state."""

from __future__ import annotations

from typing import Any

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, normal, vector
from parnl.registry import register


def _tanh(re: Any, im: Any) -> tuple[Any, Any]:
    """Return the complex tanh, by the addition theorem; large |re| overflows nothing."""
    t, c, s = ops.tanh(re), ops.cos(im), ops.sin(im)
    size = c * c + (t * s) * (t * s)
    return t / size, (1.0 - t * t) * s * c / size


def _sigmoid(re: Any, im: Any) -> tuple[Any, Any]:
    re, im = _tanh(0.5 * re, 0.5 * im)
    return 0.5 + 0.5 * re, 0.5 * im


@register("lrc_complex")
class ComplexLRC(Cell):
    """The `lrc` cell with a complex state (Farsang et al., 2025, arXiv 2505.21717, ablation).

    x, sigma, mu, w_f and w_g are complex, stored as *_re and *_im; s and tanh are those of complex
    analysis.

        v = s(sigma_in (u - mu_in))         y = s(sigma (x - mu))
        F = s(g_leak + v W_f + w_f y)       Z = tanh(g_leak + v W_g + w_g y)
        x' = x + dt s(e_w x + e_b) (-F x + v_leak Z)            x complex: the states re, im
        outputs: Re(x (C_re + i C_im))

    Options: dt=1.0. Time-aware. C starts N(0, 1 / hidden), every other parameter
    U(-1/sqrt(hidden), 1/sqrt(hidden)). The complex s and tanh have poles, so the step has no
    bound, unlike `lrc`.
    """

    states = ("re", "im")
    options = {"dt": 1.0}

    @property
    def parameters(self) -> dict[str, Parameter]:
        specs = {"W_f": matrix("input", "hidden"), "W_g": matrix("input", "hidden")}
        specs |= {"sigma_in": vector("input"), "mu_in": vector("input")}
        for name in ("sigma", "mu", "w_f", "w_g"):
            specs |= {f"{name}_re": vector("hidden"), f"{name}_im": vector("hidden")}
        specs |= {name: vector("hidden") for name in ("g_leak", "e_w", "e_b", "v_leak")}
        start = normal(self.hidden_size**-0.5)
        return specs | {name: matrix("hidden", "hidden", start) for name in ("C_re", "C_im")}

    def features(self, p, u):
        v = ops.sigmoid(p.sigma_in * (u - p.mu_in))
        return {"a": ops.matmul(v, p.W_f), "g": ops.matmul(v, p.W_g)}

    def step(self, p, re, im, f, dt):
        off_re, off_im = re - p.mu_re, im - p.mu_im
        y_re, y_im = _sigmoid(
            p.sigma_re * off_re - p.sigma_im * off_im, p.sigma_re * off_im + p.sigma_im * off_re
        )
        leak_re, leak_im = _sigmoid(
            p.g_leak + f.a + p.w_f_re * y_re - p.w_f_im * y_im, p.w_f_re * y_im + p.w_f_im * y_re
        )
        drive_re, drive_im = _tanh(
            p.g_leak + f.g + p.w_g_re * y_re - p.w_g_im * y_im, p.w_g_re * y_im + p.w_g_im * y_re
        )
        e_re, e_im = _sigmoid(p.e_w * re + p.e_b, p.e_w * im)
        flow_re = p.v_leak * drive_re - (leak_re * re - leak_im * im)
        flow_im = p.v_leak * drive_im - (leak_re * im + leak_im * re)
        return (
            re + dt * (e_re * flow_re - e_im * flow_im),
            im + dt * (e_re * flow_im + e_im * flow_re),
        )

    def output(self, p: Any, re: Any, im: Any, f: Any) -> Any:
        """Return the outputs (..., T, hidden) of the states."""
        return ops.matmul(re, p.C_re) - ops.matmul(im, p.C_im)
