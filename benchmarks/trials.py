"""Trials of the contenders on one task: what is trained, kept, measured in turns and shown.

A task has these methods; a batch is what it likes:

    batches(rng)         the training batches of an epoch, in an order drawn from rng
    loss(model, batch)   the mean loss, which training makes smaller
    error(model)         on the validation part; the smallest is the best
    test(model)          figures on the test part, by name
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.contenders import REFERENCE, Sizes, build, count, matched_state

Record = dict[str, Any]


class Results:
    """The lines of one JSON file: each a run, or what an epoch of a model takes.

    `settings` names what the grid chooses; a run has a value of each.
    """

    def __init__(self, name: str, settings: Sequence[str]) -> None:
        self.path = Path(__file__).parent / "results" / f"{name}.jsonl"
        self.settings = settings

    def add(self, **record: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as table:
            table.write(json.dumps(record) + "\n")

    def records(self) -> list[Record]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines]

    def runs(self, **values: Any) -> list[Record]:
        """All runs that have these values."""
        runs = (r for r in self.records() if r["kind"] == "run")
        return [r for r in runs if all(r[key] == value for key, value in values.items())]

    def best(self, model: str, seed: int) -> Record:
        """The settings of the model whose validation was best with this seed."""
        best = min(self.runs(model=model, seed=seed), key=lambda r: r["validation"])
        return {key: best[key] for key in self.settings}

    def chosen(self, model: str, seed: int) -> list[Record]:
        """One run of each seed, with the settings that were best with this one."""
        if not self.runs(model=model, seed=seed):
            return []
        return self.runs(model=model, **self.best(model, seed))


# Data


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
    """Which sequences validate, (N,): this share of every class."""
    rng = np.random.default_rng(0)  # all models and seeds see the same ones
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        those = rng.permutation(np.flatnonzero(labels == label))
        held[those[: round(share * len(those))]] = True
    return held


def alike(
    lengths: np.ndarray, size: int, rng: np.random.Generator | None = None
) -> list[np.ndarray]:
    """Indices of sequences of similar length, the shortest first; by rng, in random order."""
    order = np.argsort(lengths if rng is None else lengths * rng.uniform(0.9, 1.1, len(lengths)))
    groups = np.split(order, range(size, len(order), size))
    return groups if rng is None else [groups[i] for i in rng.permutation(len(groups))]


# One run


def adam(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate, fused=True)


def improve(model: nn.Module, optimizer: torch.optim.Optimizer, task: Any, batch: Any) -> None:
    loss = task.loss(model, batch)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def fit(
    model: nn.Module, task: Any, rate: float, seed: int, epochs: int, patience: int
) -> dict[str, Any]:
    """Train, and leave the model with the weights whose validation was best."""
    optimizer = adam(model, rate)
    rng = np.random.default_rng(seed)
    best, best_epoch, weights, epoch = float("inf"), 0, model.state_dict(), 0
    for epoch in range(1, epochs + 1):
        # the rate falls to 0
        optimizer.param_groups[0]["lr"] = rate * (1.0 - (epoch - 1) / epochs)
        for batch in task.batches(rng):
            improve(model, optimizer, task, batch)
        found = task.error(model)
        if os.environ.get("VERBOSE"):
            print(f"{type(model).__name__} {rate:g} {seed}: {epoch} {found:.4f}", flush=True)
        if found < best:
            best, best_epoch, weights = found, epoch, copy.deepcopy(model.state_dict())
        if epoch - best_epoch >= patience or not np.isfinite(found):
            break
    model.load_state_dict(weights)
    return dict(epochs=epoch, best_epoch=best_epoch, validation=best)


class Trials:
    """Runs on one task, which `task(**settings)` makes; the rate is not the task's.

    `build` and `matched_state` make models other than those of `contenders`.
    """

    def __init__(
        self,
        results: Results,
        sizes: Sizes,
        task: Callable[..., Any],
        epochs: int,
        patience: int,
        build: Callable[[str, int, Sizes, int], nn.Module] = build,
        matched_state: Callable[[str, Sizes], int] = matched_state,
    ) -> None:
        self.results, self.sizes, self.task = results, sizes, task
        self.epochs, self.patience = epochs, patience
        self.build, self.matched_state = build, matched_state

    def execute(self, model: str, seed: int, rate: float, **settings: Any) -> None:
        """Train, test and add the result to the table, unless it is there."""
        key = dict(model=model, rate=rate, **settings, seed=seed)
        if self.results.runs(**key):
            return
        began = time.process_time()
        task = self.task(**settings)
        state = self.matched_state(model, self.sizes)
        network = self.build(model, state, self.sizes, seed)
        found = dict(state=state, parameters=count(network))
        found |= fit(network, task, rate, seed, self.epochs, self.patience)
        found |= task.test(network)
        seconds = round(time.process_time() - began, 1)
        self.results.add(kind="run", **key, **found, seconds=seconds)

    def search(
        self,
        model: str,
        choices: dict[str, Sequence[Any]],
        seeds: Sequence[int],
        turns: Sequence[Sequence[str]],
    ) -> None:
        """Choose the settings with the first seed, turn by turn; then the other seeds.

        It begins with the first choice of each setting. A turn tries all combinations of the
        settings it names; the others stay as they are by then.
        """
        first, *others = seeds
        now = {key: values[0] for key, values in choices.items()}

        def validation(settings: dict[str, Any]) -> float:
            return self.results.runs(model=model, seed=first, **settings)[0]["validation"]

        for keys in turns:
            combined = itertools.product(*(choices[key] for key in keys))
            tried = [now | dict(zip(keys, values, strict=True)) for values in combined]
            for settings in tried:
                self.execute(model, first, **settings)
            now = min(tried, key=validation)
        for seed in others:
            self.execute(model, seed, **now)
        print(f"{model}: done", flush=True)

    def measure(
        self, models: Sequence[str], rate: float, rounds: int, turn: int, slow: str = ""
    ) -> None:
        """Time training steps of all models in turns; one line of results for each model.

        The batches of an epoch are dealt out to the turns. A turn takes `turn` batches at most, and
        one of the slow model. Seconds are those of the core, not of the clock: other programs may
        have it in between.
        """
        task = self.task()
        batches = list(task.batches(np.random.default_rng(0)))
        ready = []
        for name in models:
            model = self.build(name, self.matched_state(name, self.sizes), self.sizes, 0)
            ready.append((name, model, adam(model, rate)))
        times: dict[str, list[float]] = {name: [] for name in models}
        for number in range(rounds + 1):  # the first compiles, and does not count
            chosen = batches[number % rounds :: rounds][:turn]
            for name, model, optimizer in ready:
                mine = chosen[:1] if name == slow else chosen
                began = time.process_time()
                for batch in mine:
                    improve(model, optimizer, task, batch)
                taken = (time.process_time() - began) / len(mine)
                if number:
                    times[name].append(taken * len(batches))
        for name, taken in times.items():
            epoch = round(statistics.median(taken), 3)
            self.results.add(kind="time", model=name, epoch=epoch, turns=rounds)


# Table


def table(
    results: Results,
    shown: dict[str, str],
    seed: int,
    scores: dict[str, str],
    digits: int,
    published: dict[str, str] | None = None,
) -> Iterator[str]:
    """A row for each model that has results; `scores` are figures of a run, by their heading.

    `published` are figures of others, of the first score, by the heading of their row.
    """
    timed = [r for r in results.records() if r["kind"] == "time"]
    epochs = {r["model"]: r["epoch"] for r in timed}  # the last counts
    columns = ["seeds", *results.settings, "state", "parameters", "epochs"]
    head = ["model", *scores, *columns]
    head += ["seconds an epoch", "times ncps CfC's"] if timed else []
    head += ["minutes a run"]
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for name, title in shown.items():
        runs = results.chosen(name, seed)
        if not runs and name not in epochs:
            continue
        row = dict.fromkeys(head, "")
        row["model"] = title
        if runs:
            for heading, score in scores.items():
                if score in runs[0]:
                    row[heading] = spread([r[score] for r in runs], digits)
            row["seeds"] = str(len(runs))
            for key in (*results.settings, "state", "parameters"):
                row[key] = said(runs[0][key])
            if runs[0]["epochs"]:
                row["epochs"] = str(round(statistics.mean(r["epochs"] for r in runs)))
            row["minutes a run"] = f"{statistics.mean(r['seconds'] for r in runs) / 60:.1f}"
        if name in epochs:
            row["seconds an epoch"] = f"{epochs[name]:.2f}"
            if REFERENCE in epochs:
                row["times ncps CfC's"] = f"{epochs[name] / epochs[REFERENCE]:.2f}"
        yield f"| {' | '.join(row.values())} |"
    for title, figure in (published or {}).items():
        yield f"| {' | '.join([title, figure, *[''] * (len(head) - 2)])} |"
    if results.runs():
        hours = sum(r["seconds"] for r in results.runs()) / 3600
        runs = f"{len(results.runs())} runs, those of the grid too,"
        yield from ("", f"{runs} took {hours:.2f} hours of one core.")


def spread(figures: list[float], digits: int) -> str:
    """Mean and standard deviation, which one figure alone does not have."""
    mean = f"{statistics.mean(figures):.{digits}f}"
    return f"{mean} ± {statistics.stdev(figures):.{digits}f}" if len(figures) > 1 else mean


def said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# Commands


def command_line(
    about: str,
    file: str,
    trained: Sequence[str],
    measured: Sequence[str] = (),
    named: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> argparse.Namespace:
    """`run`, `time` if models are measured, and `show`, for models and tasks.

    `named` are models that are trained only where they are named.
    """
    parser = argparse.ArgumentParser(description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, models, helped in (
        ("run", trained, "train what has no result yet"),
        ("time", measured, "measure training steps in turns"),
    ):
        if not models:
            continue
        own = commands.add_parser(command, help=helped)
        own.add_argument("--data", type=Path, required=True, help=f"the folder of {file}")
        known = list(dict.fromkeys((*trained, *measured, *named)))
        own.add_argument("--models", nargs="+", default=list(models), choices=known)
        if tasks:
            own.add_argument("--tasks", nargs="+", default=list(tasks), choices=list(tasks))
    commands.add_parser("show", help="the table of all results")
    return parser.parse_args()
