"""How the learning rate goes over a run, and which batches share an optimizer step.

Both frameworks take their rates from here, so a run in either has the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, cos, pi
from typing import Any

import numpy as np

SCHEDULES = ("constant", "cosine", "linear")


def factor(schedule: str, step: int, warm: int, total: int) -> float:
    """What the learning rate is multiplied by at optimizer step `step`, 0 to total - 1.

    It rises linearly over the first `warm` steps and is 1 at the last of these. Then it stays 1,
    or falls as a half cosine or a line that would be 0 at step `total`.
    """
    if step < warm:
        return (step + 1) / warm
    past = (step - warm) / (total - warm)
    if schedule == "cosine":
        return (1 + cos(pi * past)) / 2
    return 1 - past if schedule == "linear" else 1.0


def scheduled(config: Any) -> bool:
    """Whether the learning rate of a run changes."""
    return config.schedule != "constant" or config.warmup > 0


def plan(config: Any, epoch: int, weights: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Further keywords of `Trainer.step` for each batch of an epoch, counted from 0.

    weights: of the rows of each batch. rate: the learning rate, left out where it is constant.
    share, last: the batch's part of an optimizer step's weights, and whether the step is taken
    after it; left out where each batch makes a step.
    """
    size, total = config.accumulate, 0.0
    groups = ceil(len(weights) / size)
    found: list[dict[str, Any]] = []
    for index, own in enumerate(weights):
        group, place = divmod(index, size)
        how: dict[str, Any] = {}
        if scheduled(config):
            step = epoch * groups + group
            part = factor(config.schedule, step, config.warmup * groups, config.epochs * groups)
            how["rate"] = config.learning_rate * part
        if size > 1:
            if place == 0:
                total = float(sum(w.sum() for w in weights[index : index + size]))
            how["share"] = float(own.sum()) / total
            how["last"] = place == size - 1 or index == len(weights) - 1
        found.append(how)
    return found
