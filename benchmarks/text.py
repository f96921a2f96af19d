"""Text: the next byte of the Penn Treebank, by models of equal size.

    python -m benchmarks.text run --data FOLDER [--models gru s6 ...]
    python -m benchmarks.text time --data FOLDER [--models gru s6 ...]
    python -m benchmarks.text show

FOLDER holds `PennTreebank.npz`: bytes to train on, to validate and to test, as `train`, `valid` and
`test`. All models read as many bytes, in windows that know nothing of one another. Only the second
half of a window is scored, so that half a window or more comes before each byte.

`run` trains what has no result yet. At the smallest size, a small grid of learning rates with the
first seed, then the other seeds with the rate whose validation was best. Then two models grow, and
read less and as much, for the loss over the compute. `time` measures the models in turns on the
same batches. Each finished run, and each model that was measured, is one line of
`results/text/SIZE.jsonl`; `show` makes the tables and the figure.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.contenders import Sizes, count, nearest
from benchmarks.state_tracking import DenseLSTM
from benchmarks.trials import Record, Results, Trials, command_line, said, spread
from parnl.learn.torch_model import HEADS, Classifier

SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2)
BYTES = 2**20  # that a model reads
SHARES = (1.0, 0.25)  # of them, for the loss over the compute
WINDOW, BATCH = 256, 4
EPOCHS = 8  # parts of the training, with a validation after each
VALIDATED, TESTED = 256, 1024  # windows, spread over the part
ROUNDS, TURN = 7, 6  # turns of each model in `time`, and the batches of a turn
ORDERS = range(3, 8)  # of the table of counts: how many bytes it looks back

# `units` are the states of the GRU, which decide how many parameters all models have.
SIZES = {
    "0.1M": Sizes(256, 256, units=96, block_width=64, blocks=2),
    "0.3M": Sizes(256, 256, units=192, block_width=128, blocks=2),
    "1M": Sizes(256, 256, units=288, block_width=192, blocks=3),
}
SMALLEST = next(iter(SIZES))
RESULTS = {size: Results(f"text/{size}", settings=["rate", "read"]) for size in SIZES}
FIGURE = Path(__file__).parent / "results" / "text" / "figure.png"

# Each is a change of the classifier's keywords. The S6 cell has an output for each state. With 16
# states a channel, as in Mamba, most parameters would lie behind the recurrence.
MODELS: dict[str, dict[str, Any]] = {
    "gru": {},
    "lstm": {},
    "slstm": {},
    "lrc": {},
    "mingru": {},
    "s6": {"state_size": 4},
    "nn.LSTM": {"cell": "lstm", "block": DenseLSTM},
    "attention": {},
}
STEPS = {"s6": 4, "attention": HEADS}  # what the state is a multiple of
LINEAR = ("mingru", "s6")
GROWN = ("gru", "mingru")
COUNTS = "counts"
SHOWN = {name: name for name in MODELS} | {
    "mingru": "mingru (linear)", "s6": "s6 (linear)", "nn.LSTM": "`nn.LSTM`, dense",
    "attention": "attention (a Transformer)", COUNTS: "counts of bytes, no network",
}  # fmt: skip


# Models


def build(name: str, state: int, sizes: Sizes, seed: int) -> Classifier:
    """Of attention, which has no state, `state` is the width."""
    keywords = {"cell": name} | MODELS[name]
    width = state if name == "attention" else sizes.block_width
    inner = dict(width=width, state=state, blocks=sizes.blocks, seed=seed, **keywords)
    return Classifier(sizes.channels, sizes.outputs, tokens=True, readout="each", **inner)


def matched_state(name: str, sizes: Sizes) -> int:
    """The state size at which the model has about as many parameters as the GRU."""
    wanted = count(build("gru", sizes.units, sizes, 0))
    step = STEPS.get(name, 1)
    return nearest(lambda state: count(build(name, state, sizes, 0)), wanted, step)


def operations(model: Classifier) -> int:
    """Of the training, for each byte: two for a weight forward, four backward.

    The embedding is only looked up. A cell's own steps do not count. Attention compares all steps
    of a window, the masked ones too.
    """
    weights = count(model) - model.lift.weight.numel()
    attends = model.blocks[0].cell is None
    compared = 2 * WINDOW * model.encoder.out_features * len(model.blocks) if attends else 0
    return 6 * (weights + compared)


# Data


def windows(text: np.ndarray, starts: np.ndarray) -> Tensor:
    """The bytes from each start on, (N, WINDOW + 1); the model reads all but the last."""
    return torch.from_numpy(text[starts[:, None] + np.arange(WINDOW + 1)].astype(np.int64))


def overlapping(text: np.ndarray, most: int) -> Tensor:
    """Windows half a window apart, so that second halves join; `most` of them, spread evenly."""
    starts = np.arange(0, len(text) - WINDOW, WINDOW // 2)
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
    return windows(text, starts)


@torch.no_grad()
def bits(model: nn.Module, rows: Tensor) -> float:
    """Bits per byte of the second halves of windows."""
    half, total = WINDOW // 2, 0.0
    for batch in rows.split(32):
        logits, told = model(batch[:, :-1])[0][:, half:], batch[:, 1 + half :]
        total += cross_entropy(logits.flatten(0, 1), told.flatten(), reduction="sum").item()
    return total / (len(rows) * (WINDOW - half)) / math.log(2)


class Text:
    """The task of `trials`; `read` is how many bytes a model reads in all epochs together."""

    def __init__(self, folder: Path, read: int = BYTES) -> None:
        with np.load(folder / "PennTreebank.npz") as file:
            self.train = file["train"]
            self.validation = overlapping(file["valid"], VALIDATED)
            self.held_out = overlapping(file["test"], TESTED)
        self.steps = read // (EPOCHS * BATCH * WINDOW)
        self.curve: list[float] = []

    def batches(self, rng: np.random.Generator) -> Iterator[Tensor]:
        for _ in range(self.steps):
            yield windows(self.train, rng.integers(len(self.train) - WINDOW, size=BATCH))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return cross_entropy(model(batch[:, :-1])[0].flatten(0, 1), batch[:, 1:].flatten())

    def error(self, model: nn.Module) -> float:
        self.curve.append(round(bits(model, self.validation), 4))
        return self.curve[-1]

    def test(self, model: Classifier) -> dict[str, Any]:
        held_out = round(bits(model, self.held_out), 4)
        return dict(test=held_out, curve=self.curve, operations=operations(model))


# Counts, as a bound


class Counts:
    """How often each byte came after those before it, up to `longest` (Witten and Bell, 1991).

    A context is mixed with the next shorter one. It weighs more if it was seen often, and if few
    different bytes came after it.
    """

    def __init__(self, rows: list[bytes], longest: int) -> None:
        lengths = range(1, longest + 2)
        found = (row[i : i + n] for row in rows for n in lengths for i in range(len(row) - n + 1))
        self.grams = Counter(found)
        self.seen: Counter[bytes] = Counter()
        self.kinds: Counter[bytes] = Counter()
        for gram, times in self.grams.items():
            self.seen[gram[:-1]] += times
            self.kinds[gram[:-1]] += 1

    def chance(self, before: bytes, byte: bytes) -> float:
        shorter = self.chance(before[1:], byte) if before else 1 / 256
        seen, kinds = self.seen[before], self.kinds[before]
        return (self.grams[before + byte] + kinds * shorter) / (seen + kinds) if seen else shorter

    def bits(self, rows: Tensor, longest: int) -> float:
        """What the function `bits` is for a model."""
        total, half = 0.0, WINDOW // 2
        for row in map(bytes, rows.tolist()):
            for i in range(1 + half, len(row)):
                total -= math.log2(self.chance(row[i - longest : i], row[i : i + 1]))
        return total / (len(rows) * (WINDOW - half))


def count_bytes(task: Text, results: Results) -> None:
    """Add the result of counts, of the windows that the first seed's models read."""
    if results.runs(model=COUNTS):
        return
    began, rng = time.process_time(), np.random.default_rng(SEEDS[0])
    rows = [bytes(r) for _ in range(EPOCHS) for batch in task.batches(rng) for r in batch.tolist()]
    counts = Counts(rows, max(ORDERS))
    validation = {n: round(counts.bits(task.validation, n), 4) for n in ORDERS}
    order = min(ORDERS, key=lambda n: validation[n])
    held_out = round(counts.bits(task.held_out, order), 4)
    parameters = sum(len(gram) <= order + 1 for gram in counts.grams)
    results.add(
        kind="run", model=COUNTS, rate=None, read=BYTES, seed=SEEDS[0], state=order,
        parameters=parameters, validation=validation[order], test=held_out,
        seconds=round(time.process_time() - began, 1),
    )  # fmt: skip


# All runs


def trials(size: str, folder: Path) -> Trials:
    def task(read: int = BYTES) -> Text:
        return Text(folder, read)

    own = (RESULTS[size], SIZES[size], task)
    return Trials(*own, EPOCHS, patience=EPOCHS, build=build, matched_state=matched_state)


def run(folder: Path, models: list[str]) -> None:
    count_bytes(Text(folder, BYTES), RESULTS[SMALLEST])
    for name in models:
        choices: dict[str, Any] = dict(rate=RATES, read=(BYTES,))
        trials(SMALLEST, folder).search(name, choices, SEEDS, [["rate"]])
    for name, size, share in itertools.product(GROWN, SIZES, SHARES):
        if name in models:
            rate = RESULTS[SMALLEST].best(name, SEEDS[0])["rate"]
            # the wider, the slower: each output is a sum of more weights, and all of them move
            rate *= SIZES[SMALLEST].block_width / SIZES[size].block_width
            trials(size, folder).execute(name, SEEDS[0], rate, read=round(share * BYTES))
            print(f"{name} {size} {share}: done", flush=True)


# Tables and figure


def epochs(size: str) -> dict[str, float]:
    """Seconds of each model that was measured; the last time counts."""
    return {r["model"]: r["epoch"] for r in RESULTS[size].records() if r["kind"] == "time"}


def table() -> Iterator[str]:
    """All models of the smallest size."""
    head = ["model", "bits per byte", "seeds", "state", "parameters", "rate", "core seconds"]
    head += ["times the GRU's", "minutes a run"]
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    taken = epochs(SMALLEST)
    for name, title in SHOWN.items():
        runs = RESULTS[SMALLEST].chosen(name, SEEDS[0])
        if not runs:
            continue
        first = runs[0]
        row = [title, spread([r["test"] for r in runs], 3), str(len(runs))]
        row += [said(first["state"]), f"{first['parameters']:,}", said(first["rate"])]
        row += [f"{EPOCHS * taken[name]:.0f}" if name in taken else ""]
        row += [f"{taken[name] / taken['gru']:.2f}" if {name, "gru"} <= taken.keys() else ""]
        row += [f"{statistics.mean(r['seconds'] for r in runs) / 60:.1f}"]
        yield f"| {' | '.join(row)} |"


def grown(name: str) -> list[Record]:
    """The runs of a model that grows: one for each size and number of bytes."""
    found = []
    for size, share in itertools.product(SIZES, sorted(SHARES)):
        own = RESULTS[size].runs(model=name, seed=SEEDS[0], read=round(share * BYTES))
        if own:
            found.append(min(own, key=lambda r: r["validation"]) | {"size": size})
    return found


def frontier(runs: list[Record]) -> list[tuple[float, float]]:
    """Compute and bits, in the validation, of the runs that none of less compute equals."""
    best: list[tuple[float, float]] = []
    for point in sorted((float(r["operations"]) * r["read"], r["validation"]) for r in runs):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def power(points: list[tuple[float, float]], floor: float = 0.0) -> tuple[float, float]:
    """a and b of bits = floor + exp(a) compute^-b, by least squares of the logarithms."""
    compute, above = np.log([c for c, _ in points]), np.log([b - floor for _, b in points])
    slope, start = np.polyfit(compute, above, 1)
    return float(start), -float(slope)


def growth() -> Iterator[str]:
    """The models that grow: a row for each size, then the exponents."""
    reads = [round(share * BYTES) for share in sorted(SHARES)]
    head = ["model", "size", "parameters", "operations a byte"]
    head += [f"{read / 1e6:.2f} million bytes" for read in reads]
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for name, size in itertools.product(GROWN, SIZES):
        own = {r["read"]: r for r in grown(name) if r["size"] == size}
        for first in list(own.values())[:1]:
            row = [SHOWN[name], size, f"{first['parameters']:,}"]
            row += [f"{first['operations'] / 1e6:.2f} million"]
            row += [f"{own[read]['test']:.3f}" if read in own else "" for read in reads]
            yield f"| {' | '.join(row)} |"
    yield from ("", "| model | runs | on the frontier | exponent | above 1 bit |")
    yield "| --- " * 5 + "|"
    for name in GROWN:
        best = frontier(grown(name))
        if len(best) > 2:
            fits = " | ".join(f"{power(best, floor)[1]:.3f}" for floor in (0.0, 1.0))
            yield f"| {SHOWN[name]} | {len(grown(name))} | {len(best)} | {fits} |"


def draw(path: Path) -> None:
    """Bits over seconds at the smallest size, and over compute for the models that grow."""
    from matplotlib.figure import Figure

    image = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = image.subplots(1, 2)
    styles = dict.fromkeys(LINEAR, "--") | dict.fromkeys(("nn.LSTM", "attention"), ":")
    taken = epochs(SMALLEST)
    for order, name in enumerate(MODELS):
        look = dict(color=f"C{order}", linestyle=styles.get(name, "-"))
        runs = RESULTS[SMALLEST].chosen(name, SEEDS[0])
        if runs and name in taken:
            curve = np.mean([r["curve"] for r in runs], axis=0)
            seconds = taken[name] * np.arange(1, len(curve) + 1)
            left.plot(seconds, curve, label=SHOWN[name], **look)
        best = frontier(grown(name)) if name in GROWN else []
        if len(best) > 2:
            for r in grown(name):
                right.plot(r["operations"] * r["read"], r["validation"], "o", color=f"C{order}")
            start, exponent = power(best)
            fitted = np.geomspace(best[0][0], best[-1][0], 50)
            label = f"{SHOWN[name]}: exponent {exponent:.3f}"
            right.plot(fitted, np.exp(start) * fitted**-exponent, label=label, **look)
    left.set(title=SMALLEST, xlabel="core seconds", ylabel="bits per byte, validation")
    right.set(title=", ".join(SIZES), xlabel="operations of the training", xscale="log")
    right.xaxis.set_minor_formatter("")  # its labels would cover one another
    for axes in (left, right):
        if axes.lines:
            axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.savefig(path, dpi=110)


def show() -> None:
    print("\n".join([*table(), "", *growth()]))
    runs = [r for results in RESULTS.values() for r in results.runs()]
    if runs:
        minutes = sum(r["seconds"] for r in runs) / 60
        print(f"\n{len(runs)} runs, those of the grid too, took {minutes:.0f} minutes of one core.")
        draw(FIGURE)


def main() -> None:
    known = list(MODELS)
    given = command_line(__doc__.partition("\n")[0], "PennTreebank.npz", known, known)
    if given.command == "run":
        run(given.data, given.models)
    elif given.command == "time":
        trials(SMALLEST, given.data).measure(given.models, RATES[0], ROUNDS, TURN)
    show()


if __name__ == "__main__":
    main()
