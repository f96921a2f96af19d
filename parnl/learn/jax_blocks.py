"""What the classifiers in Equinox and Flax do alike; their layers are those of each library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parnl.cell import Cell
from parnl.learn.model_checks import check_clock, check_readout, check_series
from parnl.solve import solve
from parnl.step import step

Layer = Callable[[Array], Array]  # (N, T, k) to (N, T, l)


class Kind(NamedTuple):
    """What a model reads and which steps its answer is of: see `parnl.torch.Classifier`."""

    channels: int
    readout: str
    tokens: bool
    clock: bool

    @classmethod
    def checked(cls, cell: Cell, channels: int, readout: str, tokens: bool, clock: bool) -> Kind:
        """Raise ValueError for an unknown readout, and a clock that the cell does not take."""
        check_readout(readout)
        check_clock(clock, cell, tokens)
        return cls(channels, readout, tokens, clock)

    def time(self, inputs: Array) -> dict[str, Array]:
        """Keywords of solve and step: dt, the last channel of the inputs, if it is a clock."""
        return {"dt": inputs[..., -1]} if self.clock and inputs.ndim else {}


def run_block(
    cell: Cell,
    recurrence: Mapping[str, Array],
    x: Array,
    lengths: Array | None,
    layers: Sequence[Layer],
    dropout: Layer,
    solver: Mapping[str, Any],
) -> tuple[Array, Any]:
    """Return a block's output (N, T, width) and the solve's info.

    layers: norm, back, expand and contract.
    """
    norm, back, expand, contract = layers
    out = solve(cell, recurrence, norm(x), lengths=lengths, **solver)
    x = x + back(out.outputs)
    hidden = _gelu(expand(norm(x)))
    # A hidden unit is dropped at all steps or at none (Gal and Ghahramani, 2016).
    kept = dropout(jnp.ones_like(hidden[:, :1]))
    return x + contract(hidden * kept), out.info


def run_classifier(
    inputs: Array,
    lengths: Array | None,
    kind: Kind,
    layers: Sequence[Layer],
    blocks: Iterable[Callable[..., tuple[Array, Any]]],
) -> tuple[Array, list[Any]]:
    """Return logits (N, classes) and the info of each block; layers: lift, encoder and head."""
    check_series(inputs, kind.channels, kind.tokens)
    lift, encoder, head = layers
    x, infos = encoder(_gelu(lift(inputs))), []
    for block in blocks:
        x, info = block(x, **kind.time(inputs))
        infos.append(info)
    if kind.readout == "last":
        return head(last_step(x, lengths))[:, 0], infos
    logits = head(x)
    return logits if kind.readout == "each" else mean_over_time(logits, lengths), infos


class State(NamedTuple):
    """What a model knows of the steps so far.

    blocks: the state of each block's cell, in each of the loops; steps: how many, (); total: the
    sum of what the head made of them, (..., classes).
    """

    blocks: tuple[Any, ...]
    steps: Array
    total: Array


def step_block(
    cell: Cell, recurrence: Mapping[str, Array], x: Array, state: Any, layers: Sequence[Layer],
    time: Mapping[str, Array],
) -> tuple[Array, Any]:  # fmt: skip
    """One time step of a block, without dropout: x (..., width) and the cell's state, both anew.

    time: dt (...,), of a cell that takes it.
    """
    norm, back, expand, contract = layers
    mixed, state = step(cell, recurrence, norm(x), state, **time)
    x = x + back(mixed)
    return x + contract(_gelu(expand(norm(x)))), state


def step_classifier(
    input_t: Array,
    state: State | None,
    kind: Kind,
    layers: Sequence[Layer],
    blocks: Sequence[Callable[..., tuple[Array, Any]]],
) -> tuple[Array, State]:
    """Return logits (..., classes) of the sequence up to now, and the state for the next step."""
    lift, encoder, head = layers
    x, after = encoder(_gelu(lift(input_t))), []
    before = (None,) * len(blocks) if state is None else state.blocks
    for block, known in zip(blocks, before, strict=True):
        x, new = block(x, known, **kind.time(input_t))
        after.append(new)
    logits = head(x)
    steps = jnp.ones((), logits.dtype) if state is None else state.steps + 1
    total = logits if state is None else state.total + logits
    answer = total / steps if kind.readout == "mean" else logits
    return answer, State(tuple(after), steps, total)


def in_torch(model: Any, weights: Mapping[str, Array]) -> Any:
    """Return PyTorch's classifier with the weights of `model`, given by their names there."""
    import torch

    from parnl.learn.torch_model import Block, Classifier

    (width, _), kind, cell = weights["encoder.weight"].shape, model.kind, model.blocks[0].cell

    def block(_: Any, width: int, **how: Any) -> Block:  # the model's cell, registered or not
        return Block(cell, width, **how)

    kinds: Any = Classifier
    made = kinds(
        kind.channels, len(weights["head.bias"]), width=width, blocks=len(model.blocks),
        loops=model.loops, readout=kind.readout, tokens=kind.tokens, clock=kind.clock, block=block,
    )  # fmt: skip
    found = {name: torch.tensor(np.asarray(w, np.float32)) for name, w in weights.items()}
    made.load_state_dict(found)
    return made.eval()


def last_step(x: Array, lengths: Array | None) -> Array:
    """The last of each row's first `lengths` (N,) steps of x (N, T, k), as (N, 1, k)."""
    if lengths is None:
        return x[:, -1:]
    return jnp.take_along_axis(x, (jnp.maximum(lengths, 1) - 1)[:, None, None], axis=1)


def mean_over_time(x: Array, lengths: Array | None) -> Array:
    """The mean of x (N, T, k) over each row's first `lengths` (N,) steps, as (N, k)."""
    if lengths is None:
        return x.mean(axis=1)
    real = jnp.arange(x.shape[1]) < lengths[:, None]
    total = jnp.where(real[..., None], x, 0).sum(axis=1)
    return total / jnp.maximum(lengths, 1)[:, None]


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)
