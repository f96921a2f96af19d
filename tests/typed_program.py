"""A user's program with types. `make typecheck` reads it with mypy --strict; a test runs it."""

from collections.abc import Mapping
from typing import Any, assert_type

import jax
import numpy as np
import torch

import parnl
from parnl import ops
from parnl.params import Values, matrix, vector
from parnl.testing import check_cell
from parnl.torch import RNN


class Leaky(parnl.Cell):
    """A leaky integrator with a learned leak, and how much it has leaked so far."""

    states = ("x", "lost")
    options = {"gain": 1.0}
    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p: Values, u: Any) -> Mapping[str, Any]:
        return dict(v=ops.tanh(u @ p.W))

    def step(self, p: Values, x: Any, lost: Any, f: Values) -> tuple[Any, Any]:
        leak = ops.sigmoid(p.a) * x
        return x - leak + self.gain * f.v, 0.9 * lost + leak

    def output(self, p: Values, x: Any, lost: Any, f: Values) -> Any:
        return x


def in_torch(cell: parnl.Cell) -> torch.Tensor:
    params = assert_type(cell.init(0, backend="torch"), dict[str, torch.Tensor])
    out = parnl.solve(cell, params, torch.ones(2, 5, 3), chunks=2, check=True)
    assert_type(out.outputs, torch.Tensor)
    output, state = parnl.step(cell, params, torch.ones(2, 3), out.final_state, dt=None)
    assert_type(state, tuple[torch.Tensor, ...])
    return out.outputs.sum() + output.sum()


def in_jax(cell: parnl.Cell) -> jax.Array:
    params = assert_type(cell.init(0, backend="jax"), dict[str, jax.Array])

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return (parnl.solve(cell, params, jax.numpy.ones((2, 5, 3))).outputs ** 2).mean()

    jax.grad(loss)(params)
    assert_type(parnl.affine_scan(params["W"], params["W"]), jax.Array)
    return loss(params)


def in_numpy(cell: parnl.Cell) -> float:
    params = assert_type(cell.init(), dict[str, np.ndarray])
    inputs = np.ones((2, 5, 3), np.float32)
    out = parnl.solve(cell, params, inputs, method="newton", states=True)
    assert out.states is not None
    proof = parnl.certify(cell, params, inputs=inputs)
    exponents = parnl.lyapunov(cell, params, inputs)
    print(parnl.diagnose(cell, params, inputs, budget=50), proof.stable, exponents.largest)
    return float(out.outputs.sum())


def layers() -> torch.Tensor:
    rnn = RNN("lstm", 3, 4, num_layers=2, batch_first=True)
    _, state = rnn(torch.ones(2, 5, 3))
    output_t, _ = rnn.step(torch.ones(2, 3), state)
    return torch.as_tensor(output_t)


def main() -> None:
    cell = Leaky(3, 4, gain=0.5)
    print(in_torch(cell), in_jax(cell), in_numpy(cell), layers().shape)
    print(in_torch(parnl.get_cell("gru", input_size=3, hidden_size=4)))
    check_cell(Leaky, backends=["numpy"], examples=2)


if __name__ == "__main__":
    main()
