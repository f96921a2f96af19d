"""Real-gated linear recurrent unit, the recurrence of Griffin."""

from __future__ import annotations

import numpy as np

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, normal, vector
from parnl.registry import register


def _logit_decay(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw Lambda so that s(Lambda)^8 is uniform in [0.9, 0.999]."""
    a = rng.uniform(0.9, 0.999, shape) ** 0.125
    return np.log(a) - np.log1p(-a)


@register("rglru")
class RGLRU(Cell):
    """Real-gated linear recurrent unit (De et al., 2024, arXiv 2402.19427): solved by one scan.

        x = u W_x + b_x         r = s(x W_r + b_r)          i = s(x W_i + b_i)
        a = s(Lambda)^(8 r)
        h' = a h + sqrt(1 - a^2) (i x)

    The projection to x is that of Griffin's recurrent block, without its convolution and gate.
    Weights start N(0, 1 / fan-in), biases 0, and s(Lambda)^8 uniform in [0.9, 0.999]. 0 < a < 1
    whatever the parameters.
    """

    states = ("h",)

    @property
    def parameters(self) -> dict[str, Parameter]:
        inner = normal(self.hidden_size**-0.5)
        return {
            "W_x": matrix("input", "hidden", normal(self.input_size**-0.5)),
            "b_x": vector("hidden", "zeros"),
            "W_r": matrix("hidden", "hidden", inner),
            "b_r": vector("hidden", "zeros"),
            "W_i": matrix("hidden", "hidden", inner),
            "b_i": vector("hidden", "zeros"),
            "Lambda": vector("hidden", _logit_decay),
        }

    def features(self, p, u):
        x = ops.matmul(u, p.W_x) + p.b_x
        return {
            "x": x,
            "r": ops.matmul(x, p.W_r),
            "i": ops.matmul(x, p.W_i),
            "slope": 8.0 * ops.logsigmoid(p.Lambda)[None, :],
        }

    def step(self, p, h, f):
        log_a = f.slope * ops.sigmoid(f.r + p.b_r)
        # 1 - a^2 without cancellation; at least so large that the root has a derivative
        room = ops.maximum(-ops.expm1(2.0 * log_a), 1e-30)
        return ops.exp(log_a) * h + ops.sqrt(room) * (ops.sigmoid(f.i + p.b_i) * f.x)
