"""A model of series around any cell: the LrcSSM architecture in JAX, of Equinox layers."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from parnl.dtypes import is_half
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


class Block(eqx.Module):
    """Norm, recurrence, residual; norm, MLP, residual. Maps (N, T, width) to (N, T, width)."""

    cell: Any = eqx.field(static=True)
    norm: eqx.nn.LayerNorm
    recurrence: dict[str, Array]
    back: eqx.nn.Identity | eqx.nn.Linear
    expand: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    contract: eqx.nn.Linear

    def __init__(self, cell: Any, width: int, *, dropout: float, seed: int, key: Array) -> None:
        back, expand, contract = jax.random.split(key, 3)
        self.cell = cell
        self.norm = eqx.nn.LayerNorm(width, use_weight=False, use_bias=False)
        self.recurrence = cell.init(seed=seed, backend="jax")
        same = cell.hidden_size == width
        self.back = eqx.nn.Identity() if same else _linear(cell.hidden_size, width, back)
        self.expand = _linear(width, width, expand)
        self.dropout = eqx.nn.Dropout(dropout)
        self.contract = _linear(width, width, contract)

    def __call__(
        self, x: Array, lengths: Array | None, key: Array | None, **solver: Any
    ) -> tuple[Array, Any]:
        """The block's output and the solve's info. Without a key nothing is dropped."""
        parts = self.norm, self.back, self.expand, self.contract
        layers = [at_every_step(layer) for layer in parts]
        dropout = partial(self.dropout, key=key, inference=key is None)
        return run_block(self.cell, self.recurrence, x, lengths, layers, dropout, solver)

    def step(self, x: Array, state: Any = None, **time: Array) -> tuple[Array, Any]:
        """One time step, without dropout: x (..., width) and the cell's state, both anew.

        time: dt (...,), of a cell that takes it.
        """
        parts = self.norm, self.back, self.expand, self.contract
        layers = [_over(layer, x.ndim - 1) for layer in parts]
        return step_block(self.cell, self.recurrence, x, state, layers, time)


class Classifier(eqx.Module):
    """`parnl.torch.Classifier` in Equinox, with the same arguments.

        model = Classifier(channels=12, classes=9, cell="lrc", width=64, state=64)
        logits, infos = model(inputs, lengths)

    There is no cell "attention" here, and no `block`. Names and shapes of the arrays are
    those of `parnl.torch.Classifier`.
    """

    kind: Kind = eqx.field(static=True)
    loops: int = eqx.field(static=True)
    lift: eqx.nn.Linear | eqx.nn.Embedding
    encoder: eqx.nn.Linear
    blocks: list[Block]
    head: eqx.nn.Linear

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
        seed: int = 0,
        readout: str = "mean",
        tokens: bool = False,
        clock: bool = False,
        **options: Any,
    ) -> None:
        recurrence = get_cell(cell, input_size=width, hidden_size=state, **options)
        self.kind = Kind.checked(recurrence, channels, readout, tokens, clock)
        self.loops = loops
        lift, encoder, head, *keys = jax.random.split(jax.random.key(seed), blocks + 3)
        self.lift = (_embedding if tokens else _linear)(channels, width, lift)
        self.encoder = _linear(width, width, encoder)
        self.blocks = [
            Block(recurrence, width, dropout=dropout, seed=seed + index, key=key)
            for index, key in enumerate(keys)
        ]
        self.head = _linear(width, classes, head)

    def __call__(
        self,
        inputs: Array,
        lengths: Array | None = None,
        *,
        key: Array | None = None,
        **solver: Any,
    ) -> tuple[Array, list[Any]]:
        """Logits (N, classes) of inputs (N, T, channels), and the solver's info of each solve.

        With a `key` dropout is on. Other keywords (`method`, `chunks`, ...) go to `parnl.solve`.
        """
        blocks = []
        for index, block in enumerate(self.blocks * self.loops):
            own = None if key is None else jax.random.fold_in(key, index)
            blocks.append(partial(block, lengths=lengths, key=own, **solver))
        layers = [at_every_step(layer) for layer in (self.lift, self.encoder, self.head)]
        return run_classifier(inputs, lengths, self.kind, layers, blocks)

    def step(self, input_t: Array, state: State | None = None) -> tuple[Array, State]:
        """Logits (..., classes) of the sequence up to now, and the state for the next step.

        input_t: (..., channels), or tokens (...,). Nothing is dropped.
        """
        axes = input_t.ndim if self.kind.tokens else input_t.ndim - 1
        layers = [_over(layer, axes) for layer in (self.lift, self.encoder, self.head)]
        blocks = [block.step for block in self.blocks] * self.loops
        return step_classifier(input_t, state, self.kind, layers, blocks)

    def to_torch(self) -> Any:
        """Return `parnl.torch.Classifier` with the same weights, in float32 and in eval mode."""
        leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(self, eqx.is_array))
        return in_torch(
            self, {jax.tree_util.keystr(p, simple=True, separator="."): v for p, v in leaves}
        )


def _linear(size: int, out: int, key: Array) -> eqx.nn.Linear:
    # Equinox would make float64 of it under jax_enable_x64; the cells' parameters are float32.
    return eqx.nn.Linear(size, out, dtype=jnp.float32, key=key)


def _embedding(size: int, out: int, key: Array) -> eqx.nn.Embedding:
    return eqx.nn.Embedding(weight=jax.random.normal(key, (size, out), jnp.float32))


def at_every_step(layer: Any) -> Any:
    """The layer, made for one vector (k,), applied to (N, T, k), in half precision if it is."""
    every, weight = _over(layer, 2), getattr(layer, "weight", None)
    if weight is None or not is_half(weight.dtype) or isinstance(layer, eqx.nn.Embedding):
        return every
    return lambda x: every(x.astype(weight.dtype))  # or JAX would make a float32 product of it


def _over(layer: Any, axes: int) -> Any:
    """The layer, made for one vector (k,), applied along so many axes before it."""
    return _over(jax.vmap(layer), axes - 1) if axes else layer
