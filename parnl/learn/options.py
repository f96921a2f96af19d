"""Checks of the options that shape a run's optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from parnl.learn.class_weights import CLASS_WEIGHTS
from parnl.learn.schedules import SCHEDULES

PRECISIONS = ("float32", "bfloat16")


def check_options(config: Any) -> None:
    """Raise ValueError that names the first option that is wrong, what came and what may come."""
    _one_of("schedule", config.schedule, SCHEDULES)
    _one_of("precision", config.precision, PRECISIONS)
    if not 0 <= config.warmup < config.epochs:
        raise ValueError(
            f"warmup: got {config.warmup}, expected at least 0 and less than epochs, "
            f"{config.epochs}"
        )
    if not 0 <= config.weight_decay < inf:
        raise ValueError(
            f"weight_decay: got {config.weight_decay}, expected a finite number, at least 0"
        )
    if not isinstance(config.tensorboard, bool):
        raise ValueError(f"tensorboard: got {config.tensorboard!r}, expected True or False")
    if config.class_weights is not None:
        _one_of("class_weights", config.class_weights, CLASS_WEIGHTS)
        if config.task != "classify":
            raise ValueError(
                f"class_weights: got {config.class_weights!r} with the task {config.task!r}, "
                "expected the task 'classify'"
            )


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, expected {' or '.join(map(repr, known))}")
