"""What the classifiers in Equinox and Flax do alike; their layers are those of each library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from parnl.cell import Cell
from parnl.inputs import check_series
from parnl.solve import solve

Layer = Callable[[Array], Array]  # (N, T, k) to (N, T, l)


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
    channels: int,
    layers: Sequence[Layer],
    blocks: Iterable[Callable[[Array], tuple[Array, Any]]],
) -> tuple[Array, list[Any]]:
    """Return logits (N, classes) and the info of each block; layers: lift, encoder and head."""
    check_series(inputs, channels)
    lift, encoder, head = layers
    x, infos = encoder(_gelu(lift(inputs))), []
    for block in blocks:
        x, info = block(x)
        infos.append(info)
    return mean_over_time(head(x), lengths), infos


def mean_over_time(x: Array, lengths: Array | None) -> Array:
    """The mean of x (N, T, k) over each row's first `lengths` (N,) steps, as (N, k)."""
    if lengths is None:
        return x.mean(axis=1)
    real = jnp.arange(x.shape[1]) < lengths[:, None]
    total = jnp.where(real[..., None], x, 0).sum(axis=1)
    return total / jnp.maximum(lengths, 1)[:, None]


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)
