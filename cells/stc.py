"""Saturated liquid time-constant network with a diagonal recurrence."""

from __future__ import annotations

from parnl.cells.lrc import LRC
from parnl.params import Parameter
from parnl.registry import register


@register("stc")
class STC(LRC):
    """Diagonal saturated liquid time-constant cell (Farsang et al., 2024, arXiv 2403.08791).

    The `lrc` cell before it got its elastance: leak and input are saturated, the capacitance is 1.

        v = s(sigma_in (u - mu_in))         y = s(sigma (x - mu))
        F = s(g_leak + v W_f + w_f y)       Z = tanh(g_leak + v W_g + w_g y)
        x' = x + dt (-F x + v_leak Z)

    Options: dt=1.0. Time-aware. For 0 < dt <= 1 the state stays within the larger of |x_0| and
    |v_leak| / min F; with w_f = w_g = 0 the step contracts with the factor 1 - dt F.
    """

    options = {"dt": 1.0}
    symmetric = input_elastance = False
    leak_of_state = drive_of_state = True

    @property
    def parameters(self) -> dict[str, Parameter]:
        specs = super().parameters
        return {n: s for n, s in specs.items() if n not in ("e_w", "e_b")}

    def step(self, p, x, f, dt):
        return x + dt * self.current(p, x, f)
