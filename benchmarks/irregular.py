"""Irregular time: the next step of a walk, of which steps are left out at random.

    python -m benchmarks.irregular run --data FOLDER [--models cfc ltc ...]
    python -m benchmarks.irregular time --data FOLDER [--models cfc ltc ...]
    python -m benchmarks.irregular show

FOLDER holds `Walker2d.npz`: 400 simulated walks, 17 numbers a step. A tenth of the steps is left
out. A model sees a step, and dt, the time until the next one that is kept, and predicts that one.

`run` trains what has no result yet: a small grid of learning rates with the first seed, then the
other seeds with the rate whose validation was best. `time` measures the models in turns on the same
batches. Each finished run, and each model that was measured, is one line of
`results/irregular.jsonl`, and `show` makes the table. ncps's need `pip install ncps==1.0.1`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import torch
from torch import Tensor, nn

import parnl
from parnl.learn.torch_model import Classifier

RESULTS = Path(__file__).parent / "results" / "irregular.jsonl"
SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2, 3e-2)
FEWER = {"ltc": RATES[:2]}  # a run of it takes as long as six of the others
KEPT = 0.9  # of all steps
STEPS = 64  # of a sequence
SPLIT = (0.8, 0.1, 0.1)  # of the walks: training, validation, test
BATCH, EPOCHS, PATIENCE = 64, 10, 4
JOINTS = 17
CHANNELS = JOINTS + 1  # the last is dt
UNITS = 64  # of ncps's models, and of CfC's backbone
WIDTH = 64  # of the linear encoder
BLOCK_WIDTH, BLOCKS = 32, 2  # of the LrcSSM architecture
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


# Models


class Plain(nn.Module):
    """A linear encoder, the recurrence of one of parnl's cells, a linear readout."""

    def __init__(self, cell: str, state: int, seed: int) -> None:
        super().__init__()
        self.cell = parnl.get_cell(cell, WIDTH, state)
        self.encoder = nn.Linear(CHANNELS, WIDTH)
        start = self.cell.init(seed=seed, backend="torch")
        self.recurrence = nn.ParameterDict({n: nn.Parameter(v) for n, v in start.items()})
        self.head = nn.Linear(state, JOINTS)

    def forward(self, inputs: Tensor) -> Tensor:
        encoded, dt = self.encoder(inputs), inputs[..., -1]
        return self.head(parnl.solve(self.cell, dict(self.recurrence), encoded, dt=dt).outputs)


class Blocks(nn.Module):
    """The LrcSSM architecture; a cell that takes no dt has it as a channel alone."""

    def __init__(self, cell: str, state: int, seed: int) -> None:
        super().__init__()
        sizes = dict(width=BLOCK_WIDTH, state=state, blocks=BLOCKS, seed=seed)
        clock = cell in ("cfc", "ltc")
        self.model = Classifier(CHANNELS, JOINTS, cell=cell, readout="each", clock=clock, **sizes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)[0]


class Dense(nn.Module):
    """`nn.GRU`, and a linear readout."""

    def __init__(self, cell: str, state: int, seed: int) -> None:
        super().__init__()
        self.recurrence = nn.GRU(CHANNELS, state, batch_first=True)
        self.head = nn.Linear(state, JOINTS)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.recurrence(inputs)[0])


class Ncps(nn.Module):
    """A layer of ncps, fully connected, and a linear readout."""

    def __init__(self, cell: str, state: int, seed: int) -> None:
        super().__init__()
        layers = ncps_layers()
        if cell == "cfc":
            self.recurrence = layers.CfC(CHANNELS, state, backbone_units=UNITS)
        else:
            self.recurrence = layers.LTC(CHANNELS, state)
        self.head = nn.Linear(state, JOINTS)

    def forward(self, inputs: Tensor) -> Tensor:
        # One dt for every unit: of (N, T) ncps makes (N,) at each step, which stands for the units.
        spans = inputs[..., -1:].expand(*inputs.shape[:2], self.recurrence.state_size)
        return self.head(self.recurrence(inputs, timespans=spans)[0])


def ncps_layers() -> Any:
    try:
        import ncps.torch
    except ImportError:
        raise SystemExit("The models of ncps need it: pip install ncps==1.0.1") from None
    return ncps.torch


# Each with the class that builds it and the cell.
MODELS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "ncps cfc": (Ncps, "cfc"),
    "ncps ltc": (Ncps, "ltc"),
    "cfc": (Blocks, "cfc"),
    "cfc plain": (Plain, "cfc"),
    "gru": (Blocks, "gru"),
    "nn.GRU": (Dense, "gru"),
    "ltc": (Blocks, "ltc"),
}
REFERENCE = "ncps cfc"
SLOW = "ncps ltc"  # measured, but not trained unless it is named
SHOWN = {
    "ncps cfc": "ncps CfC, dense",
    "ncps ltc": "ncps LTC, dense",
    "cfc": "cfc, blocks",
    "ltc": "ltc, blocks",
    "gru": "gru, blocks, dt as a channel",
    "cfc plain": "cfc, one layer",
    "nn.GRU": "`nn.GRU`, dense, dt as a channel",
}


def wanted() -> int:
    """The parameters of ncps's CfC with `UNITS` units, without ncps: all models have as many."""
    backbone = (CHANNELS + UNITS + 1) * UNITS
    return backbone + 4 * (UNITS + 1) * UNITS + (UNITS + 1) * JOINTS


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def build(name: str, state: int, seed: int) -> nn.Module:
    kind, cell = MODELS[name]
    # the seed decides every layer, those of the libraries too
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  ncps draws its signs by it
        return kind(cell, state, seed)


def matched_state(name: str) -> int:
    """The state size at which the model has about as many parameters as ncps's CfC."""
    if MODELS[name][0] is Ncps:
        return UNITS
    low, high = 1, 512  # the count grows with the state
    while high - low > 1:
        middle = (low + high) // 2
        below = count(build(name, middle, 0)) < wanted()
        low, high = (middle, high) if below else (low, middle)
    return min(low, high, key=lambda s: abs(count(build(name, s, 0)) - wanted()))


# One run


def squared(model: nn.Module, part: Part) -> tuple[Tensor, int]:
    """The sum of the squared errors over all real steps, and of how many numbers it is."""
    real = torch.arange(part.inputs.shape[1]) < part.lengths[:, None]
    errors = (model(part.inputs) - part.targets)[real]
    return errors.square().sum(), errors.numel()


def batches(part: Part, rng: np.random.Generator | None = None) -> Iterator[Part]:
    """Of the sequences in random order, or as they come."""
    n = len(part.lengths)
    order = np.arange(n) if rng is None else rng.permutation(n)
    for chosen in np.split(order, range(BATCH, n, BATCH)):
        index = torch.from_numpy(chosen)
        yield Part(*(array[index] for array in part))


@torch.no_grad()
def error(model: nn.Module, part: Part) -> float:
    """The mean squared error of a step's joint."""
    sums, counts = zip(*(squared(model, batch) for batch in batches(part)), strict=True)
    return float(sum(sums)) / sum(counts)


def improve(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Part) -> None:
    total, n = squared(model, batch)
    optimizer.zero_grad()
    (total / n).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def adam(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate, fused=True)


def execute(name: str, rate: float, seed: int, data: tuple[Part, Part, Part]) -> None:
    """Train, test and add the result to the table, unless it is there."""
    if any((r["model"], r["rate"], r["seed"]) == (name, rate, seed) for r in trained()):
        return
    began = time.process_time()
    train, validate, test = data
    state = matched_state(name)
    model = build(name, state, seed)
    optimizer = adam(model, rate)
    rng = np.random.default_rng(seed)
    best, best_epoch, weights, epoch = float("inf"), 0, model.state_dict(), 0
    for epoch in range(1, EPOCHS + 1):
        # the rate falls to 0
        optimizer.param_groups[0]["lr"] = rate * (1.0 - (epoch - 1) / EPOCHS)
        for batch in batches(train, rng):
            improve(model, optimizer, batch)
        found = error(model, validate)
        if os.environ.get("VERBOSE"):
            print(f"{name} {rate:g} {seed}: {epoch} {found:.4f}", flush=True)
        if found < best:
            best, best_epoch, weights = found, epoch, copy.deepcopy(model.state_dict())
        if epoch - best_epoch >= PATIENCE or not np.isfinite(found):
            break
    model.load_state_dict(weights)
    add(
        kind="run",
        model=name,
        rate=rate,
        seed=seed,
        state=state,
        parameters=count(model),
        epochs=epoch,
        best_epoch=best_epoch,
        validation=best,
        test=error(model, test),
        repeated=error(Repeat(), test),
        seconds=round(time.process_time() - began, 1),
    )


class Repeat(nn.Module):
    """The last step as it was, as a bound that is easy to beat."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[..., :JOINTS]


def add(**record: Any) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as table:
        table.write(json.dumps(record) + "\n")


def records() -> list[dict[str, Any]]:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def trained() -> list[dict[str, Any]]:
    return [r for r in records() if r["kind"] == "run"]


# All runs


def run(models: list[str], data: tuple[Part, Part, Part]) -> None:
    first, *others = SEEDS
    for name in models:
        for rate in FEWER.get(name, RATES):
            execute(name, rate, first, data)
        for seed in others:
            execute(name, best_rate(name), seed, data)
        print(f"{name}: done", flush=True)


def best_rate(name: str) -> float:
    """Of the best validation with the first seed."""
    mine = [r for r in trained() if r["model"] == name and r["seed"] == SEEDS[0]]
    return min(mine, key=lambda r: r["validation"])["rate"]


def measure(models: list[str], train: Part) -> None:
    """Time training steps of all models in turns; one line of results for each model.

    Seconds are those of the core, not of the clock: other programs may have it in between.
    """
    steps = len(list(batches(train)))
    rng = np.random.default_rng(0)
    ready = []
    for name in models:
        model = build(name, matched_state(name), 0)
        ready.append((name, model, adam(model, RATES[0])))
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(ROUNDS + 1):  # the first compiles, and does not count
        chosen = [batch for batch, _ in zip(batches(train, rng), range(TURN), strict=False)]
        for name, model, optimizer in ready:
            mine = chosen[:1] if name == SLOW else chosen
            began = time.process_time()
            for batch in mine:
                improve(model, optimizer, batch)
            taken = (time.process_time() - began) / len(mine)
            if turn:
                times[name].append(taken * steps)
    for name, taken in times.items():
        add(kind="time", model=name, epoch=round(statistics.median(taken), 3), turns=ROUNDS)


# Table


def chosen_runs() -> dict[str, list[dict[str, Any]]]:
    """For each model one run of each seed, with its chosen rate."""
    groups = {}
    for name in MODELS:
        mine = [r for r in trained() if r["model"] == name]
        if any(r["seed"] == SEEDS[0] for r in mine):
            rate = best_rate(name)
            groups[name] = [r for r in mine if r["rate"] == rate]
    return groups


def table() -> Iterator[str]:
    groups = chosen_runs()
    epochs = {r["model"]: r["epoch"] for r in records() if r["kind"] == "time"}  # the last counts
    head = ["model", "test error", "seeds", "rate", "state", "parameters", "epochs"]
    head += ["seconds an epoch", "times ncps CfC's", "minutes a run"]
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for name in MODELS:
        runs = groups.get(name, [])
        if not runs and name not in epochs:
            continue
        row = [SHOWN[name], *[""] * (len(head) - 1)]
        if runs:
            errors = [r["test"] for r in runs]
            spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
            row[1:4] = f"{statistics.mean(errors):.4f} ± {spread:.4f}", str(len(runs)), ""
            row[3:6] = f"{runs[0]['rate']:g}", str(runs[0]["state"]), str(runs[0]["parameters"])
            row[6] = str(round(statistics.mean(r["epochs"] for r in runs)))
            row[9] = f"{statistics.mean(r['seconds'] for r in runs) / 60:.1f}"
        if name in epochs:
            row[7] = f"{epochs[name]:.2f}"
            if REFERENCE in epochs:
                row[8] = f"{epochs[name] / epochs[REFERENCE]:.2f}"
        yield f"| {' | '.join(row)} |"
    if groups:
        yield ""
        repeated, hours = trained()[0]["repeated"], sum(r["seconds"] for r in trained()) / 3600
        yield f"The last step repeated has {repeated:.4f}. {len(trained())} runs, those of the grid"
        yield f"too, took {hours:.2f} hours of one core."


def show() -> None:
    print("\n".join(table()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trains = [name for name in MODELS if name != SLOW]
    for command, models, about in (
        ("run", trains, "train what has no result yet"),
        ("time", list(MODELS), "measure training steps in turns"),
    ):
        own = commands.add_parser(command, help=about)
        own.add_argument("--data", type=Path, required=True, help="the folder of Walker2d.npz")
        own.add_argument("--models", nargs="+", default=models, choices=list(MODELS))
    commands.add_parser("show", help="the table of all results")
    given = parser.parse_args()
    if given.command == "run":
        run(given.models, load(given.data))
    elif given.command == "time":
        measure(given.models, load(given.data)[0])
    show()


if __name__ == "__main__":
    main()
