"""Selective state-space layer, S6, the recurrence of Mamba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from parnl import ops
from parnl.cell import Cell
from parnl.frameworks import backend_of
from parnl.params import Draw, Parameter, matrix, softplus_inverse, uniform, vector
from parnl.registry import register


def _log_uniform(low: float, high: float) -> Draw:
    draw = uniform(math.log(low), math.log(high))
    return lambda rng, shape: np.exp(draw(rng, shape))


def _fan_in(rows: int) -> Draw:
    return uniform(-(rows**-0.5), rows**-0.5)


@register("s6")
class S6(Cell):
    """S6, Mamba's selective state-space layer (Gu and Dao, 2023, arXiv 2312.00752): one scan.

    E channels with N states each; step d, input matrix B and output matrix C depend on the input.

        v = u W_v                       (..., T, E), the projection into the layer
        d = softplus(v W_r W_d + b_d)   (..., T, E)         B = v W_B       C = v W_C   (..., T, N)
        x'[e, n] = exp(-d[e] exp(A_log[e, n])) x[e, n] + d[e] B[n] v[e]
        y[e] = sum_n C[n] x'[e, n] + D[e] v[e]              outputs: y W_out

    The E N states are independent recurrences, and all of them are hidden channels, channel
    e N + n: hidden = E N, and the Jacobian stays diagonal. The projections W_v (input, E) and
    W_out (E, hidden) are those of Mamba's block, without its convolution and gate. Options:
    state_size=16 is N, which must divide hidden, or is hidden if that is smaller; rank=None is the
    rank of W_r W_d, None for ceil(E / 16). A starts as -1, ..., -N, softplus(b_d) log-uniform
    between 0.001 and 0.1.
    """

    options = {"state_size": 16, "rank": None}

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        chosen = {**self.options, **options}
        for name in ("state_size", "rank"):
            value = chosen[name]
            if (name, value) != ("rank", None) and not (isinstance(value, int) and value > 0):
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if hidden_size > chosen["state_size"] and hidden_size % chosen["state_size"]:
            raise ValueError(
                f"state_size: expected a divisor of hidden_size = {hidden_size}, "
                f"got {chosen['state_size']}"
            )
        super().__init__(input_size, hidden_size, **options)

    @property
    def groups(self) -> tuple[int, int]:
        """(E, N): channels of the layer, and states of each."""
        n = min(self.state_size, self.hidden_size)
        return self.hidden_size // n, n

    @property
    def parameters(self) -> dict[str, Parameter]:
        e, n = self.groups
        rank = self.rank or -(-e // 16)
        return {
            "W_v": matrix("input", e, _fan_in(self.input_size)),
            "W_B": matrix(e, n, _fan_in(e)),
            "W_C": matrix(e, n, _fan_in(e)),
            "W_r": matrix(e, rank, _fan_in(e)),
            "W_d": matrix(rank, e, _fan_in(rank)),
            "b_d": vector(e, softplus_inverse(_log_uniform(0.001, 0.1))),
            "A_log": vector("hidden", lambda rng, shape: np.log(np.tile(np.arange(1.0, n + 1), e))),
            "D": vector(e, "ones"),
            "W_out": matrix(e, "hidden", _fan_in(e)),
        }

    def features(self, p, u):
        v = ops.matmul(u, p.W_v)
        d = ops.softplus(ops.matmul(ops.matmul(v, p.W_r), p.W_d) + p.b_d)
        # limited, lest in the gradient an overflow meet a decay that is 0 long before
        xp = backend_of([("inputs", u)]).xp
        rates = xp.reshape(ops.exp(ops.minimum(p.A_log, 80.0)), self.groups)
        whole = (*u.shape[:-1], self.hidden_size)
        return {
            "decay": xp.reshape(d[..., None] * rates, whole),
            "drive": xp.reshape((d * v)[..., None] * ops.matmul(v, p.W_B)[..., None, :], whole),
            "v": v,
            "C": ops.matmul(v, p.W_C),
        }

    def step(self, p, x, f):
        return ops.exp(-f.decay) * x + f.drive

    def output(self, p: Any, x: Any, f: Any) -> Any:
        """Return the outputs (..., T, hidden) of the states."""
        xp = backend_of([("states", x)]).xp
        x = xp.reshape(x, (*x.shape[:-1], *self.groups))
        read = xp.sum(x * f.C[..., None, :], axis=-1)
        return ops.matmul(read + p.D * f.v, p.W_out)
