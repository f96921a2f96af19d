"""Closed-form continuous-time network with diagonal recurrent weights."""

from __future__ import annotations

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, uniform, vector
from parnl.registry import register


@register("cfc")
class CfC(Cell):
    """Diagonal closed-form continuous-time cell (Hasani et al., 2022, arXiv 2106.13898).

    The approximate solution of a liquid time-constant ODE after a time dt, without a solver: a
    gate that closes with time, s(-f t), passes from one network of input and state to another.

        g = tanh(u W_g + b_g + a_g x)       h = tanh(u W_h + b_h + a_h x)
        f = u W_f + b_f + a_f x             l = u W_l + b_l + a_l x
        x' = s(-(f dt + l)) g + (1 - s(-(f dt + l))) h

    The four networks are single layers, without a backbone that would mix the channels. The offset
    l is from the authors' code (`ncps`, mode "default"). Options: dt=1.0. Time-aware. Unlike an ODE
    the closed form does not keep its state at dt = 0: it is s(-l) g + (1 - s(-l)) h. Weights start
    Xavier-uniform, biases U(-1/sqrt(input + hidden), 1/sqrt(input + hidden)), as there.
    """

    options = {"dt": 1.0}

    @property
    def parameters(self) -> dict[str, Parameter]:
        fan_in, fan_out = self.input_size + self.hidden_size, self.hidden_size
        xavier, bias = (6.0 / (fan_in + fan_out)) ** 0.5, fan_in**-0.5
        specs = {}
        for net in "ghfl":
            specs[f"W_{net}"] = matrix("input", "hidden", uniform(-xavier, xavier))
            specs[f"b_{net}"] = vector("hidden", uniform(-bias, bias))
            specs[f"a_{net}"] = vector("hidden", uniform(-xavier, xavier))
        return specs

    def features(self, p, u):
        return {n: ops.matmul(u, getattr(p, f"W_{n}")) for n in "ghfl"}

    def step(self, p, x, f, dt):
        first = ops.tanh(f.g + p.b_g + p.a_g * x)
        second = ops.tanh(f.h + p.b_h + p.a_h * x)
        closing = ops.sigmoid((f.f + p.b_f + p.a_f * x) * dt + (f.l + p.b_l + p.a_l * x))
        return first + closing * (second - first)
