"""Long raw sequences: which class a recording, a spoken digit or a row of pixels belongs to.

    python -m benchmarks.raw_sequences run --data FOLDER [--tasks Worms ...] [--models gru ...]
    python -m benchmarks.raw_sequences show

FOLDER holds `EOGVerticalSignal.npz` and `Worms.npz` (UCR archive, with its own parts),
`SpokenDigits.npz` (speech as it was sampled; takes 0 to 4 test) and `MNIST.npz`, which is read
pixel by pixel: in order, and in an order drawn once. Nothing is computed from the signal first: no
spectrum, no window. A few samples are joined into one step, as many for every model (`TASKS`).

All models are the classifier of `parnl train`, each around another recurrence, and of about as many
parameters as with attention. `run` trains what has no result yet: two or three learning rates with
the first seed, then the other seeds with the rate whose validation was best. Each finished run is
one line of `results/raw_sequences/TASK.jsonl`, and `show` makes the tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.contenders import Sizes, count, nearest
from benchmarks.trials import Results, Trials, alike, command_line, held_out, table
from parnl.learn.data import Split, joined
from parnl.learn.torch_model import Classifier

SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2)
HELD = 0.2  # of every class of the training part, for validation
SHOWN = {
    "lrc": "lrc", "gru": "gru", "lstm": "lstm", "cfc": "cfc", "lem": "lem", "ltc": "ltc",
    "mingru": "mingru (linear)", "lru": "lru (linear)", "s5": "s5 (linear)", "s6": "s6 (linear)",
    "attention": "attention",
}  # fmt: skip
DEAR = ("ltc",)  # a run takes as long as six of the others: trained only where it is named
SCORES = {"test accuracy, %": "accuracy", "training accuracy, %": "learned"}


# Data


class Raw(NamedTuple):
    """Series (N, T), zeros after each one's length (N,), which is None if all have T samples."""

    series: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray | None = None


def recordings(folder: Path, name: str) -> tuple[Raw, Raw]:
    """A data set of the UCR archive."""
    with np.load(folder / f"{name}.npz") as file:
        parts = [Raw(file[f"X_{p}"], file[f"y_{p}"]) for p in ("train", "test")]
    train, test = (part._replace(series=standardised(part.series)) for part in parts)
    return train, test


def digits(folder: Path, name: str) -> tuple[Raw, Raw]:
    """Speech: clips of unequal length."""
    with np.load(folder / f"{name}.npz") as file:
        everything, lengths = file["X"].astype(np.float32), file["lengths"].astype(np.int64)
        labels, test = file["y"], file["take"] < 5
    series = np.zeros((len(lengths), lengths.max()), np.float32)
    for row, clip in zip(series, np.split(everything, np.cumsum(lengths)[:-1]), strict=True):
        row[: len(clip)] = standardised(clip)
    parts = [Raw(series[own], labels[own], lengths[own]) for own in (~test, test)]
    return parts[0], parts[1]


def pixels(folder: Path, name: str) -> tuple[Raw, Raw]:
    """Images, row after row, values 0 to 1; in an order that is drawn once if it says so."""
    with np.load(folder / "MNIST.npz") as file:
        series, labels = file["X"].reshape(len(file["y"]), -1), file["y"]
    if name.endswith("permuted"):
        series = series[:, np.random.default_rng(0).permutation(series.shape[1])]
    train, test = slice(0, MNIST), slice(MNIST, None)
    series = series.astype(np.float32) / 255
    return Raw(series[train], labels[train]), Raw(series[test], labels[test])


MNIST = 60000  # images that train; those after them test


def standardised(series: np.ndarray) -> np.ndarray:
    """Each of the series (..., T) with mean 0 and deviation 1, as is usual in the UCR archive."""
    centred = series - series.mean(axis=-1, keepdims=True)
    return (centred / (centred.std(axis=-1, keepdims=True) + 1e-8)).astype(np.float32)


class Setting(NamedTuple):
    """How a task is read and trained: `patch` samples are joined into one step."""

    read: Callable[[Path, str], tuple[Raw, Raw]]
    patch: int
    batch: int
    epochs: int


TASKS = {
    "EOGVerticalSignal": Setting(recordings, 8, 8, 30),
    "Worms": Setting(recordings, 8, 8, 60),
    "SpokenDigits": Setting(digits, 8, 16, 10),
    "MNIST": Setting(pixels, 1, 64, 10),
    "MNIST permuted": Setting(pixels, 1, 64, 10),
}
RESULTS = {task: Results(f"raw_sequences/{task.replace(' ', '_')}", ["rate"]) for task in TASKS}
# Test accuracies that others publish for the UCR archive's parts, %: results_ucr.csv of
# github.com/angus924/rocket, mean and deviation of ten runs; results-InceptionTime-128.csv of
# github.com/hfawaz/InceptionTime, an ensemble of five networks.
PUBLISHED = {
    "EOGVerticalSignal": {"ROCKET, published": "54.1 ± 0.5", "InceptionTime, published": "47.5"},
    "Worms": {"ROCKET, published": "74.0 ± 1.4", "InceptionTime, published": "77.9"},
}


def load(folder: Path, task: str) -> tuple[Split, Split, Split]:
    """Training, validation and test part, samples joined; labels count from 0."""
    known, test = TASKS[task].read(folder, task)
    held = held_out(known.labels, HELD)
    classes = np.unique(known.labels)

    def part(raw: Raw, own: np.ndarray | slice) -> Split:
        labels = np.searchsorted(classes, raw.labels[own])
        lengths = None if raw.lengths is None else raw.lengths[own]
        return joined(Split(raw.series[own][..., None], labels, lengths), TASKS[task].patch)

    return part(known, ~held), part(known, held), part(test, slice(None))


# The task


class Batch(NamedTuple):
    """inputs (N, T, patch), labels (N,), lengths (N,) in steps or None."""

    inputs: Tensor
    labels: Tensor
    lengths: Tensor | None


class Classes:
    """The task of `trials`: cross-entropy, and the share of sequences that are classed wrongly."""

    def __init__(self, parts: tuple[Split, Split, Split], batch: int) -> None:
        self.train, self.validation, self.held_out = parts
        self.batch = batch

    def batches(
        self, rng: np.random.Generator | None, part: Split | None = None
    ) -> Iterator[Batch]:
        """Of the training part, or another, sequences of similar length together."""
        inputs, labels, lengths, _ = self.train if part is None else part
        steps = np.full(len(labels), inputs.shape[1]) if lengths is None else lengths
        for own in alike(steps, self.batch, rng):
            ends = None if lengths is None else torch.from_numpy(lengths[own])
            cut = torch.from_numpy(inputs[own, : steps[own].max()])
            yield Batch(cut, torch.from_numpy(labels[own]), ends)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model(batch.inputs, batch.lengths)[0], batch.labels)

    @torch.no_grad()
    def judge(self, model: nn.Module, part: Split) -> tuple[float, float]:
        """The share that is classed right, %, and the mean loss."""
        right, loss = 0, 0.0
        for batch in self.batches(None, part):
            logits, _ = model(batch.inputs, batch.lengths)
            right += int((logits.argmax(dim=1) == batch.labels).sum())
            loss += float(cross_entropy(logits, batch.labels, reduction="sum"))
        return 100.0 * right / len(part.labels), loss / len(part.labels)

    def error(self, model: nn.Module) -> float:
        """The share that is classed wrongly, %; of equal ones, the lower loss is better."""
        right, loss = self.judge(model, self.validation)
        return 100.0 - right + 1e-4 * loss

    def test(self, model: nn.Module) -> dict[str, float]:
        return dict(
            accuracy=self.judge(model, self.held_out)[0], learned=self.judge(model, self.train)[0]
        )


# Models


def built(name: str, state: int, sizes: Sizes, seed: int) -> nn.Module:
    inner: dict[str, Any] = dict(width=sizes.block_width, blocks=sizes.blocks, state=state)
    return Classifier(sizes.channels, sizes.outputs, cell=name, seed=seed, **inner)


def matched(name: str, sizes: Sizes) -> int:
    """The state at which the model has about as many parameters as with attention."""
    if name == "attention":
        return sizes.block_width
    goal = count(built("attention", 1, sizes, 0))
    step = 16 if name == "s6" else 1  # of states to a channel
    return nearest(lambda state: count(built(name, state, sizes, 0)), goal, step)


# Commands


def run(folder: Path, task: str, models: list[str]) -> None:
    setting, parts = TASKS[task], load(folder, task)
    sizes = Sizes(setting.patch, int(parts[0].labels.max()) + 1)
    data = Classes(parts, setting.batch)
    # the rate falls to 0 over all epochs, so none is left out
    how = sizes, lambda: data, setting.epochs, setting.epochs
    trials = Trials(RESULTS[task], *how, build=built, matched_state=matched)
    for name in models:
        print(task, end=" ")
        trials.search(name, dict(rate=RATES), SEEDS, [["rate"]])


def tables() -> Iterator[str]:
    for task, results in RESULTS.items():
        if not results.runs():
            yield from (f"{task}: not run yet.", "")
            continue
        yield from (f"{task}, {TASKS[task].patch} samples a step:", "")
        yield from table(results, SHOWN, SEEDS[0], SCORES, 1, PUBLISHED.get(task))
        yield ""


def show() -> None:
    """Print the tables, and write them beside the results."""
    text = "\n".join(tables())
    print(text)
    folder = RESULTS["Worms"].path.parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.md").write_text(text)


def main() -> None:
    usual = [name for name in SHOWN if name not in DEAR]
    given = command_line(
        __doc__.partition("\n")[0], "the .npz files", usual, named=DEAR, tasks=list(TASKS)
    )
    if given.command == "run":
        for task in given.tasks:
            run(given.data, task, given.models)
    show()


if __name__ == "__main__":
    main()
