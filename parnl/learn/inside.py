"""What happens inside a trained model: the inputs of each block, and how stable its cell is there.

Computed with NumPy from the arrays of the model, whose names and shapes are the same in every
framework. So one file serves the models of all of them, and nothing has to be compiled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from parnl.learn.config import Config
from parnl.learn.trained import Trained
from parnl.learn.training import model_of
from parnl.registry import get_cell
from parnl.solve import solve
from parnl.stability.certificates import Certificate
from parnl.stability.reports import diagnose

BUDGET = 200
"""Boxes that the proof for a channel may take: a few seconds for a model of usual size."""
_erf = np.vectorize(math.erf, otypes=[np.float64])


class BlockStability(NamedTuple):
    """How stable one block is, on some inputs.

    certificate: for the ranges that its features and states have there. largest: the largest
    Lyapunov exponent of a channel. measured: the largest norm of a step's Jacobian. problem: why
    these are missing, else "".
    """

    certificate: Certificate | None
    largest: float
    measured: float
    problem: str


def stability(model: Trained, inputs: np.ndarray) -> list[BlockStability]:
    """One entry for each block; none where the cell is attention, which has no step.

    inputs: (N, T, channels), or tokens (N, T), as the model reads them, all steps real.
    """
    config = model.config
    if config.cell == "attention":
        return []
    arrays, found = model_of(model.trainer.export_state()), []
    try:
        for block, read in enumerate(block_inputs(arrays, config, inputs)):
            with np.errstate(all="ignore"):
                told = diagnose(
                    _cell(config), recurrence(arrays, block), read, chunks=(), budget=BUDGET
                )
            measured = float(np.max(told.measured))
            found.append(BlockStability(told.certificate, told.lyapunov.largest, measured, ""))
    except (TypeError, ValueError) as error:  # features that are not finite, options that are none
        left = config.blocks - len(found)
        found += [BlockStability(None, math.nan, math.nan, str(error)[:300])] * left
    return found


def block_inputs(
    arrays: Mapping[str, np.ndarray], config: Config, inputs: np.ndarray
) -> list[np.ndarray]:
    """What the cell of each block reads, (N, T, width); with loops, (loops * N, T, width).

    arrays: `model.*` of a trainer's `export_state`. inputs: (N, T, channels), or tokens (N, T).
    """
    cell = _cell(config)
    read: list[list[np.ndarray]] = [[] for _ in range(config.blocks)]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        if f"model.{name}.weight" not in arrays:  # of a block's width already
            return x
        return x @ arrays[f"model.{name}.weight"].T + arrays[f"model.{name}.bias"]

    with np.errstate(all="ignore"):
        table = arrays["model.lift.weight"]
        lifted = table[inputs] if inputs.ndim == 2 else linear("lift", inputs)
        x = linear("encoder", _gelu(lifted))
        for block in [*range(config.blocks)] * config.loops:
            own = _normed(x)
            read[block].append(own)
            mixed = solve(cell, recurrence(arrays, block), own).outputs
            x = x + linear(f"blocks.{block}.back", mixed)
            hidden = _gelu(linear(f"blocks.{block}.expand", _normed(x)))
            x = x + linear(f"blocks.{block}.contract", hidden)
    return [np.concatenate(every) for every in read]


def recurrence(arrays: Mapping[str, np.ndarray], block: int) -> dict[str, np.ndarray]:
    """The parameters of a block's cell."""
    prefix = f"model.blocks.{block}.recurrence."
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _cell(config: Config) -> Any:
    return get_cell(
        config.cell, input_size=config.width, hidden_size=config.state, **config.options
    )


def _normed(x: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 over the features: the blocks' LayerNorm."""
    away = x - x.mean(axis=-1, keepdims=True)
    return away / np.sqrt(np.mean(away**2, axis=-1, keepdims=True) + 1e-5)


def _gelu(x: np.ndarray) -> np.ndarray:
    return (x * (0.5 + 0.5 * _erf(x / math.sqrt(2)))).astype(np.float32)
