"""A model of series around any cell: the LrcSSM architecture in JAX, of Flax layers (`nnx`)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from parnl.learn.jax_blocks import (
    Kind,
    State,
    in_torch,
    run_block,
    run_classifier,
    step_block,
    step_classifier,
)
from parnl.registry import get_cell


class Linear(nnx.Module):
    """x @ weight.T + bias, by PyTorch's names and shapes: weight (out, in), bias (out,)."""

    def __init__(self, size: int, out: int, *, rngs: nnx.Rngs) -> None:
        def drawn(*shape: int) -> nnx.Param:
            bound = size**-0.5
            value = jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
            return nnx.Param(value)

        self.weight, self.bias = drawn(out, size), drawn(out)

    def __call__(self, x: Array) -> Array:
        """Map (..., in) to (..., out)."""
        return x @ self.weight[...].T + self.bias[...]


class Embedding(nnx.Module):
    """A vector for each token: weight (size, out)."""

    def __init__(self, size: int, out: int, *, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (size, out), jnp.float32))

    def __call__(self, x: Array) -> Array:
        """Map integers (...,) to (..., out)."""
        return self.weight[...][x]


class Block(nnx.Module):
    """Norm, recurrence, residual; norm, MLP, residual. Maps (N, T, width) to (N, T, width)."""

    def __init__(self, cell: Any, width: int, *, dropout: float, rngs: nnx.Rngs) -> None:
        self.cell = cell
        self.norm = nnx.LayerNorm(
            width, epsilon=1e-5, use_bias=False, use_scale=False, use_fast_variance=False, rngs=rngs
        )
        start = cell.init(rngs.params(), backend="jax")
        self.recurrence = nnx.Dict({n: nnx.Param(v) for n, v in start.items()})
        same = cell.hidden_size == width
        self.back = _same if same else Linear(cell.hidden_size, width, rngs=rngs)
        self.expand = Linear(width, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.contract = Linear(width, width, rngs=rngs)

    def __call__(self, x: Array, lengths: Array | None, **solver: Any) -> tuple[Array, Any]:
        """The block's output and the solve's info."""
        recurrence = {n: v[...] for n, v in self.recurrence.items()}
        layers = self.norm, self.back, self.expand, self.contract
        return run_block(self.cell, recurrence, x, lengths, layers, self.dropout, solver)

    def step(self, x: Array, state: Any = None, **time: Array) -> tuple[Array, Any]:
        """One time step, without dropout: x (..., width) and the cell's state, both anew.

        time: dt (...,), of a cell that takes it.
        """
        recurrence = {n: v[...] for n, v in self.recurrence.items()}
        layers = self.norm, self.back, self.expand, self.contract
        return step_block(self.cell, recurrence, x, state, layers, time)


class Classifier(nnx.Module):
    """`parnl.torch.Classifier` in Flax: the same arguments, but for `rngs` in place of `seed`.

        model = Classifier(channels=12, classes=9, cell="lrc", width=64, state=64, rngs=nnx.Rngs(0))
        logits, infos = model(inputs, lengths)

    There is no cell "attention" here, and no `block`. The stream "params" of `rngs` draws
    parameters, and "dropout" is for dropout, which `train()` and `eval()` turn on and off.

    Paths and shapes of the parameters are those of `parnl.torch.Classifier`, so its weights are
    carried over by their names:

        known = nnx.to_flat_state(nnx.state(model, nnx.Param))
        found = [(path, nnx.Param(weights[".".join(map(str, path))])) for path, _ in known]
        nnx.update(model, nnx.from_flat_state(found))
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        cell: str = "lrc",
        width: int = 64,
        state: int = 64,
        blocks: int = 2,
        loops: int = 1,
        dropout: float = 0.0,
        readout: str = "mean",
        tokens: bool = False,
        clock: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        recurrence = get_cell(cell, input_size=width, hidden_size=state, **options)
        self.kind = Kind.checked(recurrence, channels, readout, tokens, clock)
        self.loops = loops
        self.lift = (Embedding if tokens else Linear)(channels, width, rngs=rngs)
        self.encoder = Linear(width, width, rngs=rngs)
        self.blocks = nnx.List(
            Block(recurrence, width, dropout=dropout, rngs=rngs) for _ in range(blocks)
        )
        self.head = Linear(width, classes, rngs=rngs)

    def __call__(
        self, inputs: Array, lengths: Array | None = None, **solver: Any
    ) -> tuple[Array, list[Any]]:
        """Logits (N, classes) of inputs (N, T, channels), and the solver's info of each solve.

        Keywords (`method`, `chunks`, `tolerance`, ...) go to `parnl.solve`.
        """
        blocks = [partial(b, lengths=lengths, **solver) for b in [*self.blocks] * self.loops]
        layers = self.lift, self.encoder, self.head
        return run_classifier(inputs, lengths, self.kind, layers, blocks)

    def step(self, input_t: Array, state: State | None = None) -> tuple[Array, State]:
        """Logits (..., classes) of the sequence up to now, and the state for the next step.

        input_t: (..., channels), or tokens (...,). Nothing is dropped.
        """
        layers = self.lift, self.encoder, self.head
        blocks = [block.step for block in self.blocks] * self.loops
        return step_classifier(input_t, state, self.kind, layers, blocks)

    def to_torch(self) -> Any:
        """Return `parnl.torch.Classifier` with the same weights, in float32 and in eval mode."""
        flat = nnx.to_flat_state(nnx.state(self, nnx.Param))
        return in_torch(self, {".".join(map(str, path)): value[...] for path, value in flat})


def _same(x: Array) -> Array:
    return x
