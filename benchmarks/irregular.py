"""Irregular time: the next step of a walk, of which steps are left out at random.

    python -m benchmarks.irregular run --data FOLDER [--models cfc ltc ...]
    python -m benchmarks.irregular time --data FOLDER [--models cfc ltc ...]
    python -m benchmarks.irregular show

FOLDER holds `Walker2d.npz`: 400 simulated walks, 17 numbers a step. A tenth of the steps is left
out. A model sees a step, and dt, the time until the next one that is kept, and predicts that one.

`run` trains what has no result yet: a small grid of learning rates with the first seed, then the
other seeds with the rate whose validation was best. `time` measures the models in turns on the same
batches. Each finished run, and each model that was measured, is one line of
`results/irregular.jsonl`, and `show` makes the table. ncps's models need `pip install ncps==1.0.1`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contenders import MODELS, SHOWN, Sizes
from benchmarks.trials import Results, Trials, command_line, table

RESULTS = Results("irregular", settings=["rate"])
SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2, 3e-2)
FEWER = {"ltc": RATES[:2]}  # a run of it takes as long as six of the others
SLOW = "ncps ltc"  # measured, but not trained unless it is named
KEPT = 0.9  # of all steps
STEPS = 64  # of a sequence
SPLIT = (0.8, 0.1, 0.1)  # of the walks: training, validation, test
BATCH, EPOCHS, PATIENCE = 64, 10, 4
JOINTS = 17
CHANNELS = JOINTS + 1  # the last is dt
SIZES = Sizes(CHANNELS, JOINTS)
ROUNDS, TURN = 7, 4  # turns of each model in `time`, and the batches of a turn


# Data


class Part(NamedTuple):
    """Sequences: inputs (N, T, 18), their last channel dt; targets (N, T, 17); lengths (N,)."""

    inputs: Tensor
    targets: Tensor
    lengths: Tensor


def dropped(walk: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a walk (steps, 17) and which steps are kept (steps,): inputs, dt and targets.

    dt of a step is the time until the next kept one, which is its target.
    """
    at = np.flatnonzero(kept)
    return walk[at[:-1]], np.diff(at).astype(np.float32), walk[at[1:]]


def cut(walks: list[np.ndarray], rng: np.random.Generator) -> Part:
    """Leave steps out, and cut what is left into sequences of `STEPS`.

    The last of a walk is padded with steps of zeros and dt = 1.
    """
    inputs, targets, lengths = [], [], []
    for walk in walks:
        x, dt, y = dropped(walk, rng.random(len(walk)) < KEPT)
        joined = np.concatenate([x, dt[:, None]], axis=1)
        for start in range(0, len(x), STEPS):
            end = min(start + STEPS, len(x))
            padded = np.zeros((STEPS, CHANNELS), np.float32)
            padded[:, -1] = 1.0
            padded[: end - start] = joined[start:end]
            target = np.zeros((STEPS, JOINTS), np.float32)
            target[: end - start] = y[start:end]
            inputs.append(padded)
            targets.append(target)
            lengths.append(end - start)
    return Part(*(torch.from_numpy(np.array(a)) for a in (inputs, targets, lengths)))


def load(folder: Path) -> tuple[Part, Part, Part]:
    """Training, validation and test part, by walk; joints standardised by the training's."""
    with np.load(folder / "Walker2d.npz") as file:
        everything, lengths = file["X"].astype(np.float32), file["lengths"]
    walks = np.split(everything, np.cumsum(lengths)[:-1])
    # data of their own: all models and seeds see the same walks and steps
    rng = np.random.default_rng(0)
    order = rng.permutation(len(walks))
    first, second = (round(len(walks) * share) for share in (SPLIT[0], SPLIT[0] + SPLIT[1]))
    groups = [[walks[i] for i in chosen] for chosen in np.split(order, [first, second])]
    known = np.concatenate(groups[0])
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    train, validate, test = ([(w - mean) / deviation for w in group] for group in groups)
    return cut(train, rng), cut(validate, rng), cut(test, rng)


# The task


def batches(part: Part, rng: np.random.Generator | None = None) -> Iterator[Part]:
    """Of the sequences in random order, or as they come."""
    n = len(part.lengths)
    order = np.arange(n) if rng is None else rng.permutation(n)
    for chosen in np.split(order, range(BATCH, n, BATCH)):
        index = torch.from_numpy(chosen)
        yield Part(*(array[index] for array in part))


def squared(model: nn.Module, part: Part) -> tuple[Tensor, int]:
    """The sum of the squared errors over all real steps, and of how many numbers it is."""
    real = torch.arange(part.inputs.shape[1]) < part.lengths[:, None]
    errors = (model(part.inputs) - part.targets)[real]
    return errors.square().sum(), errors.numel()


@torch.no_grad()
def error(model: nn.Module, part: Part) -> float:
    """The mean squared error of a step's joint."""
    sums, counts = zip(*(squared(model, batch) for batch in batches(part)), strict=True)
    return float(sum(sums)) / sum(counts)


class Repeat(nn.Module):
    """The last step as it was, as a bound that is easy to beat."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[..., :JOINTS]


class Walks:
    """The task of `trials`: the mean squared error of the next kept step."""

    def __init__(self, data: tuple[Part, Part, Part]) -> None:
        self.train, self.validation, self.held_out = data

    def batches(self, rng: np.random.Generator) -> Iterator[Part]:
        return batches(self.train, rng)

    def loss(self, model: nn.Module, batch: Part) -> Tensor:
        total, n = squared(model, batch)
        return total / n

    def error(self, model: nn.Module) -> float:
        return error(model, self.validation)

    def test(self, model: nn.Module) -> dict[str, float]:
        held_out = self.held_out
        return dict(test=error(model, held_out), repeated=error(Repeat(), held_out))


def trials(folder: Path) -> Trials:
    walks = Walks(load(folder))
    return Trials(RESULTS, SIZES, lambda: walks, EPOCHS, PATIENCE)


# Commands


def show() -> None:
    print("\n".join(table(RESULTS, SHOWN, SEEDS[0], {"test error": "test"}, 4)))
    if RESULTS.runs():
        print(f"The last step repeated has {RESULTS.runs()[0]['repeated']:.4f}.")


def main() -> None:
    trained = [name for name in MODELS if name != SLOW]
    given = command_line(__doc__.partition("\n")[0], "Walker2d.npz", trained, list(MODELS))
    if given.command == "run":
        ready = trials(given.data)
        for name in given.models:
            ready.search(name, dict(rate=FEWER.get(name, RATES)), SEEDS, [["rate"]])
    elif given.command == "time":
        trials(given.data).measure(given.models, RATES[0], ROUNDS, TURN, slow=SLOW)
    show()


if __name__ == "__main__":
    main()
