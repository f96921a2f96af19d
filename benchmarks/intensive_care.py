"""Irregular time, and values that are mostly missing: who dies in hospital after intensive care.

    python -m benchmarks.intensive_care run --data FOLDER [--models cfc gru ...]
    python -m benchmarks.intensive_care time --data FOLDER [--models cfc gru ...]
    python -m benchmarks.intensive_care show

FOLDER holds `PhysioNet2012.npz`: what was measured in the first 48 hours of 8000 stays, and
whether the patient died in hospital. Set a trains, a fifth of it validates, set b tests. Each time
at which something was measured is a step. A model sees the values of 37 variables, masks of which
of them are new, what is known of the patient, and dt, the hours until the next step.

`run` trains what has no result yet: it chooses the settings of each model by validation with the
first seed, turn by turn, and then runs the other seeds. `time` measures the models in turns on the
same batches. Each finished run, and each model that was measured, is one line of
`results/intensive_care.jsonl`, and `show` makes the table. ncps's models need
`pip install ncps==1.0.1`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence

from benchmarks.contenders import MODELS, SHOWN, Sizes
from benchmarks.trials import Results, Trials, alike, command_line, held_out, table
from parnl.learn.torch_model import last_step, mean_over_time

# The search begins with the first of each.
CHOICES: dict[str, tuple[Any, ...]] = dict(
    rate=(3e-3, 1e-3, 1e-2),
    carried=(True, False),  # a missing value is the last one known, or 0, the mean
    readout=("mean", "last"),
    weighted=(False, True),  # both outcomes weigh the same in the loss
)
# what the last step sees depends on what is carried; the best rate depends on all
TURNS = (["rate"], ["carried", "readout"], ["weighted"], ["rate"])
RESULTS = Results("intensive_care", settings=list(CHOICES))
SEEDS = (0, 1, 2)
# ncps's LTC divides by dt, which is 0 in padding and for what was measured at hour 48
TRIED = [name for name in MODELS if name != "ncps ltc"]
LOGISTIC = "logistic regression"
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the logistic regression: C of scikit-learn
STATIC = ("Age", "Gender", "Height", "ICUType")
UNKNOWN = (*STATIC, "Weight")  # variables in which -1 stands for unknown
UNITS_OF_CARE = 4  # kinds of intensive care units
VARIABLES = 37  # that are measured again and again
CONSTANTS = len(STATIC) - 1 + UNITS_OF_CARE  # the kind of unit is one channel a kind
CHANNELS = 2 * VARIABLES + CONSTANTS + 1  # values, masks, constants, dt
OUTLIERS = (0.5, 99.5)  # percentiles that values are clipped to
HOURS = 48.0
SIZES = Sizes(CHANNELS, 1)
HELD = 0.2  # of set a, for validation
BATCH, EPOCHS, PATIENCE = 64, 10, 3
ROUNDS, TURN = 7, 1000  # turns of each model in `time`, which together are an epoch


# Data


class Events(NamedTuple):
    """A set: values (S, 41) at the steps of all stays, NaN where nothing was measured; hours (S,).

    lengths (N,) is how many of the steps are each stay's, died (N,) its outcome.
    """

    values: np.ndarray
    hours: np.ndarray
    lengths: np.ndarray
    died: np.ndarray


class Stays(NamedTuple):
    """Inputs of each stay, (its steps, CHANNELS), values carried forward; outcomes (N,)."""

    inputs: list[Tensor]
    died: Tensor


class Batch(NamedTuple):
    """inputs (N, T, CHANNELS), zeros beyond lengths (N,); died (N,); which stays, (N,)."""

    inputs: Tensor
    lengths: Tensor
    died: Tensor
    chosen: Tensor


def read(folder: Path, letter: str) -> tuple[Events, list[str]]:
    """Set a or b, and the names of the columns of its values."""
    with np.load(folder / "PhysioNet2012.npz") as file:
        names, outcomes = file["varnames"].tolist(), file["outcome_cols"].tolist()
        columns = ("t_min", "var", "val", "n", "outcomes")
        minutes, variables, values, counts, known = (file[f"{c}_{letter}"] for c in columns)
    stays = np.repeat(np.arange(len(counts)), counts)
    real = (values != -1) | ~np.isin(variables, [names.index(n) for n in UNKNOWN if n in names])
    steps = steps_of(stays, minutes, variables, np.where(real, values, np.nan), len(names))
    return Events(*steps, known[:, outcomes.index("In-hospital_death")]), names


def steps_of(
    stays: np.ndarray, minutes: np.ndarray, variables: np.ndarray, values: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of events, a step for each distinct time of a stay: values (S, width), hours, lengths.

    Values of one variable at one time are averaged. NaN values are steps without a value.
    """
    day = int(minutes.max()) + 1
    times, step = np.unique(stays * day + minutes, return_inverse=True)
    size, real = len(times) * width, ~np.isnan(values)
    cell = (step * width + variables)[real]
    sums = np.bincount(cell, weights=values[real], minlength=size)
    counts = np.bincount(cell, minlength=size)
    means = np.where(counts, sums / np.maximum(counts, 1), np.nan).astype(np.float32)
    lengths = np.bincount(times // day, minlength=int(stays.max()) + 1)
    return means.reshape(-1, width), (times % day / 60.0).astype(np.float32), lengths


def scaling(known: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of values (S, k) with NaN: lower and upper limits, mean and deviation within them, (k,)."""
    low, high = np.nanpercentile(known, OUTLIERS, axis=0)
    inside = np.clip(known, low, high)
    deviation = np.nanstd(inside, axis=0)
    return low, high, np.nanmean(inside, axis=0), np.where(deviation > 0, deviation, 1.0)


def carry(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Values (S, k) with NaN replaced by the last number of the stay, 0 where there is none."""
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)[:, None]
    rows = np.where(np.isnan(values), -1, np.arange(len(values))[:, None])
    last = np.maximum.accumulate(rows, axis=0)
    carried = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last >= first, carried, 0.0)


def inputs_of(events: Events, names: list[str], scale: tuple[np.ndarray, ...]) -> list[Tensor]:
    """Each stay's channels: values carried forward, masks, constants, dt."""
    values, hours, lengths, _ = events
    low, high, mean, deviation = scale
    scaled = (np.clip(values, low, high) - mean) / deviation
    static = [names.index(name) for name in STATIC]
    measured = scaled[:, [i for i in range(len(names)) if i not in static]]
    begins = np.cumsum(lengths) - lengths
    ends = begins + lengths - 1
    # each is known at the first step or nowhere
    units = values[begins, static[-1]][:, None] == np.arange(1, UNITS_OF_CARE + 1)
    constants = np.concatenate([np.nan_to_num(scaled[begins][:, static[:-1]]), units], axis=1)
    dt = np.append(hours[1:], 0.0) - hours
    dt[ends] = np.maximum(HOURS - hours[ends], 0.0)  # the record ends then
    channels = [carry(measured, lengths), ~np.isnan(measured)]
    channels += [np.repeat(constants, lengths, axis=0), dt[:, None]]
    joined = np.concatenate(channels, axis=1).astype(np.float32)
    return list(torch.from_numpy(joined).split(lengths.tolist()))


def load(folder: Path) -> tuple[Stays, Stays, Stays]:
    """Training, validation and test part; values standardised by the training's."""
    a, names = read(folder, "a")
    b, _ = read(folder, "b")
    held = held_out(a.died, HELD)
    scale = scaling(a.values[~np.repeat(held, a.lengths)])
    inputs, died = inputs_of(a, names, scale), torch.from_numpy(a.died).float()

    def part(chosen: np.ndarray) -> Stays:
        index = np.flatnonzero(chosen)
        return Stays([inputs[i] for i in index], died[index])

    test = Stays(inputs_of(b, names, scale), torch.from_numpy(b.died).float())
    return part(~held), part(held), test


def batches(stays: Stays, carried: bool, rng: np.random.Generator | None = None) -> Iterator[Batch]:
    """Stays of similar length together, the shortest first; by rng, in random order."""
    lengths = np.array([len(steps) for steps in stays.inputs])
    for group in alike(lengths, BATCH, rng):
        inputs = pad_sequence([stays.inputs[i] for i in group], batch_first=True)
        if not carried:
            inputs[..., :VARIABLES] *= inputs[..., VARIABLES : 2 * VARIABLES]
        chosen = torch.from_numpy(group)
        yield Batch(inputs, torch.from_numpy(lengths[group]), stays.died[chosen], chosen)


# The task


def judged(died: Any, scores: Any) -> dict[str, float]:
    """The areas under the ROC curve and under the curve of precision over recall."""
    return dict(
        auroc=float(roc_auc_score(died, scores)),
        auprc=float(average_precision_score(died, scores)),
    )


class Care:
    """The task of `trials`: the outcome, read out at the last step or as the mean of all."""

    def __init__(
        self,
        parts: tuple[Stays, Stays, Stays],
        carried: bool = CHOICES["carried"][0],
        readout: str = CHOICES["readout"][0],
        weighted: bool = CHOICES["weighted"][0],
    ) -> None:
        self.train, self.validation, self.held_out = parts
        self.carried = carried
        self.read_out = {"mean": mean_over_time, "last": last_step}[readout]
        died = self.train.died
        self.weight = (1 - died).sum() / died.sum() if weighted else None

    def batches(self, rng: np.random.Generator | None) -> Iterator[Batch]:
        return batches(self.train, self.carried, rng)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.read_out(model(batch.inputs, batch.lengths), batch.lengths)[:, 0]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = self.logits(model, batch)
        return binary_cross_entropy_with_logits(logits, batch.died, pos_weight=self.weight)

    @torch.no_grad()
    def judge(self, model: nn.Module, stays: Stays) -> dict[str, float]:
        scores = torch.empty(len(stays.died))
        for batch in batches(stays, self.carried):
            scores[batch.chosen] = self.logits(model, batch)
        if not scores.isfinite().all():
            return dict(auroc=float("nan"), auprc=float("nan"))
        return judged(stays.died, scores)

    def error(self, model: nn.Module) -> float:
        return 1.0 - self.judge(model, self.validation)["auroc"]

    def test(self, model: nn.Module) -> dict[str, float]:
        return self.judge(model, self.held_out)


# The floor


def summary(steps: Tensor) -> Tensor:
    """Of a stay: of each variable the mean, least, greatest and last value, and how many there are.

    A variable that was never measured has zeros. The constants are added.
    """
    values, masks, constants, _ = steps.split([VARIABLES, VARIABLES, CONSTANTS, 1], dim=-1)
    known, n = masks.bool(), masks.sum(dim=0)
    least = values.where(known, torch.inf).amin(dim=0).where(n > 0, 0.0)
    most = values.where(known, -torch.inf).amax(dim=0).where(n > 0, 0.0)
    mean = (values * masks).sum(dim=0) / n.clamp(min=1)
    return torch.cat([mean, least, most, values[-1], n.log1p(), constants[0]])


def logistic(parts: tuple[Stays, Stays, Stays]) -> None:
    """Fit it, and add the result to the table, unless it is there."""
    if RESULTS.runs(model=LOGISTIC):
        return
    began = time.process_time()
    train, validation, test = (torch.stack([summary(s) for s in p.inputs]).numpy() for p in parts)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation[deviation == 0] = 1.0
    train, validation, test = ((x - mean) / deviation for x in (train, validation, test))
    found = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000).fit(train, parts[0].died)
        error = 1.0 - judged(parts[1].died, model.decision_function(validation))["auroc"]
        found.append((error, strength, model))
    error, strength, model = min(found, key=lambda f: f[0])
    RESULTS.add(
        kind="run",
        model=LOGISTIC,
        **dict.fromkeys(CHOICES),
        seed=SEEDS[0],
        state=None,
        parameters=train.shape[1] + 1,
        epochs=None,
        strength=strength,
        validation=error,
        **judged(parts[2].died, model.decision_function(test)),
        seconds=round(time.process_time() - began, 1),
    )


# Commands


def choices(name: str) -> dict[str, tuple[Any, ...]]:
    """What is tried of a model. LTC, which is slow, has what CfC has chosen."""
    if name != "ltc" or not RESULTS.runs(model="cfc", seed=SEEDS[0]):
        return CHOICES
    return {key: (value,) for key, value in RESULTS.best("cfc", SEEDS[0]).items()}


def show() -> None:
    shown = SHOWN | {LOGISTIC: "logistic regression of summaries"}
    print("\n".join(table(RESULTS, shown, SEEDS[0], dict(AUROC="auroc", AUPRC="auprc"), 3)))


def main() -> None:
    given = command_line(__doc__.partition("\n")[0], "PhysioNet2012.npz", TRIED, TRIED)
    if given.command != "show":
        parts = load(given.data)
        # of a readout at the last step, gradients fade into numbers that take three times as long
        torch.set_flush_denormal(True)
        trials = Trials(RESULTS, SIZES, partial(Care, parts), EPOCHS, PATIENCE)
        if given.command == "time":
            trials.measure(given.models, CHOICES["rate"][0], ROUNDS, TURN)
        else:
            logistic(parts)
            for name in given.models:
                trials.search(name, choices(name), SEEDS, TURNS)
    show()


if __name__ == "__main__":
    main()
