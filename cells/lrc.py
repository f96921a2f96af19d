"""Liquid-resistance liquid-capacitance network, the recurrence of LrcSSM."""

from __future__ import annotations

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, vector
from parnl.registry import register


@register("lrc")
class LRC(Cell):
    """Diagonal liquid-resistance liquid-capacitance cell (Farsang et al., 2025, arXiv 2505.21717).

    One Euler step of a biological neuron model whose leak F, input Z and elastance e (the inverse
    of its capacitance) all depend on the state.

        v = s(sigma_in (u - mu_in))         y = s(sigma (x - mu))
        F = s(g_leak + v W_f + w_f y)       Z = tanh(g_leak + v W_g + w_g y)
        e = dt s(e_w x + e_b)
        x' = x + e (-F x + v_leak Z)

    Options: dt=1.0; symmetric=True makes the elastance a bump,
    e = dt (s(e_w x + e_b + e_shift) - s(e_w x + e_b - e_shift)); input_elastance=True lets the
    input shift it too, e_w x + e_b + v W_e (Farsang et al., 2024, arXiv 2403.08791);
    leak_of_state=False and drive_of_state=False take the state out of F and Z (w_f = 0, w_g = 0),
    which makes them the A(u) and b(u) of the paper's ablation. Time-aware.
    For 0 < dt <= 1 and e_w = w_f = w_g = 0 the step contracts with the factor 1 - e F (the paper's
    Lemma 1).
    """

    options = {
        "dt": 1.0,
        "symmetric": False,
        "input_elastance": False,
        "leak_of_state": True,
        "drive_of_state": True,
    }

    @property
    def parameters(self) -> dict[str, Parameter]:
        specs = {"W_f": matrix("input", "hidden"), "W_g": matrix("input", "hidden")}
        # the two of size input share the bound of all others, 1 / sqrt(hidden)
        specs |= {"sigma_in": vector("input"), "mu_in": vector("input")}
        names = ["sigma", "mu", "g_leak", "w_f", "w_g", "e_w", "e_b", "v_leak"]
        if self.symmetric:
            names.append("e_shift")
        unused = set() if self.leak_of_state else {"w_f"}
        unused |= set() if self.drive_of_state else {"w_g"}
        if len(unused) == 2:
            unused |= {"sigma", "mu"}
        specs |= {name: vector("hidden") for name in names if name not in unused}
        if self.input_elastance:
            specs["W_e"] = matrix("input", "hidden")
        return specs

    def features(self, p, u):
        v = ops.sigmoid(p.sigma_in * (u - p.mu_in))
        found = {"a": ops.matmul(v, p.W_f), "g": ops.matmul(v, p.W_g)}
        return found | {"e": ops.matmul(v, p.W_e)} if self.input_elastance else found

    def current(self, p, x, f):
        """Return what flows in through the synapses minus what leaks out: v_leak Z - F x."""
        leak, drive = p.g_leak + f.a, p.g_leak + f.g
        if self.leak_of_state or self.drive_of_state:
            y = ops.sigmoid(p.sigma * (x - p.mu))
            leak = leak + p.w_f * y if self.leak_of_state else leak
            drive = drive + p.w_g * y if self.drive_of_state else drive
        return p.v_leak * ops.tanh(drive) - ops.sigmoid(leak) * x

    def step(self, p, x, f, dt):
        level = p.e_b + p.e_w * x
        if self.input_elastance:
            level = f.e + level
        if self.symmetric:
            elastance = ops.sigmoid(level + p.e_shift) - ops.sigmoid(level - p.e_shift)
        else:
            elastance = ops.sigmoid(level)
        return x + dt * elastance * self.current(p, x, f)
