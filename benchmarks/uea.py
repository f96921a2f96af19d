"""The classification experiments of the LrcSSM paper (arXiv 2505.21717) on UEA time series.

    python benchmarks/uea.py run --data FOLDER [--tasks ...] [--models ...] [--patch 8] [--jobs 2]
    python benchmarks/uea.py show

`run` trains what has no result yet: for each task and model a small grid on the first split, then
the other splits with the options whose validation was best; at most `--jobs` runs at a time, one
thread each. A run that was stopped goes on from its last epoch. Each finished run is one line of
its task's table, `results/uea/TASK.jsonl`, and `show` makes every table and figure of those lines.
A run also leaves checkpoints and the validation accuracy of every epoch, under `runs/uea`, which
git ignores; the same command makes them anew. `--patch` joins so many steps of a series into one
(arXiv 2605.16048): memory has to reach less far, and an epoch takes less time. `--budget` gives a
run more epochs, or fewer, than its task has by default.

Tasks are names that aeon knows, pooled and split anew for each seed, or `.npz` files in FOLDER (see
`parnl.data`), which bring the splits of the paper. Models are cells, or variants of them, in the
same classifier, of about as many parameters as LrcSSM: the state size is chosen for that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
from uea_figure import draw

import parnl
from parnl.learn import data, judging, training
from parnl.memory import keep_memory

RESULTS, RUNS = Path(__file__).parent / "results" / "uea", Path("runs", "uea")
# Of the dense LRC: until nothing changes, and how many the gradient goes back through (the adjoint
# of a sweep is a sweep of the adjoint, and converges as fast: by about 10 a sweep at the start).
SWEEPS, GRADIENT_SWEEPS = 40, 4
SEEDS = (2345, 3456, 4567, 5678, 6789)  # of the paper's splits
WIDTH = STATE = 64
# Epochs at most, and how many without progress; the paper has up to 3000 and 1000.
BUDGET = (200, 60)
BUDGETS = {"EthanolConcentration": (400, 200)}  # learned slowly
RATES = (1e-3, 1e-4)
BLOCKS = (2, 4, 6)
# The paper's own run of this task reads two of the three channels.
CHANNELS = {"EthanolConcentration": [1, 2]}
# It reads values, 0 to 65535, as they are, and drops nothing out. Standardised, no model here came
# far above chance.
AS_PUBLISHED = {"EthanolConcentration": {"standardise": False, "dropout": 0.0}}

# Every model is a change of the LrcSSM configuration; those with "grid" also choose their depth.
MODELS: dict[str, dict[str, Any]] = {
    "lrc": {},
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm"},
    "mgu": {"cell": "mgu"},
    "stc": {"cell": "stc"},
    "ltc": {"cell": "ltc"},
    "lru": {"cell": "lru"},
    "s5": {"cell": "s5"},
    "linoss im": {"cell": "linoss"},
    "linoss imex": {"cell": "linoss", "options": {"scheme": "imex"}},
    "s6": {"cell": "s6"},
    "transformer": {"cell": "attention"},
    # ablations of the paper, and its follow-up's looped blocks (2605.16048)
    "lrc A(u) b(x,u)": {"options": {"leak_of_state": False}},
    "lrc A(u) b(u)": {"options": {"leak_of_state": False, "drive_of_state": False}},
    "lrc complex": {"cell": "lrc_complex"},
    "lrc dense": {},
    "lrc looped twice": {"loops": 2},
}
BASELINES = list(MODELS)[1:12]

# Test accuracy, mean and deviation, as published: Table 1 (LRU, S5, LinOSS, S6, Transformer and
# LrcSSM with tuned options; deviations there are called standard errors), Tables 2, 8, 10 and 11
# (all others: 6 blocks, width and state 64, learning rate 1e-4).
TASKS = ("EthanolConcentration", "SelfRegulationSCP1", "SelfRegulationSCP2")
PUBLISHED = {
    "lrc": ("36.9 ± 5.3", "85.2 ± 2.1", "53.9 ± 7.2"),
    "gru": ("34.5 ± 1.9", "80.2 ± 4.2", "52.5 ± 3.3"),
    "lstm": ("32.6 ± 5.6", "78.8 ± 3.1", "51.1 ± 9.5"),
    "mgu": ("31.1 ± 4.2", "78.3 ± 6.6", "49.6 ± 9.9"),
    "stc": ("36.8 ± 4.0", "78.8 ± 4.3", "50.4 ± 6.9"),
    "lru": ("23.8 ± 2.8", "84.5 ± 4.6", "47.4 ± 4.0"),
    "s5": ("25.6 ± 3.5", "87.1 ± 2.1", "55.1 ± 3.3"),
    "linoss im": ("29.9 ± 0.6", "87.8 ± 2.6", "58.2 ± 6.9"),
    "linoss imex": ("29.9 ± 1.0", "87.5 ± 4.0", "58.9 ± 8.1"),
    "s6": ("26.4 ± 6.4", "82.8 ± 2.7", "49.9 ± 9.4"),
    "transformer": ("40.5 ± 6.3", "84.3 ± 6.3", "49.1 ± 2.5"),
    "lrc A(u) b(x,u)": ("37.6 ± 3.9", "85.0 ± 2.9", "49.6 ± 5.5"),
    "lrc A(u) b(u)": ("34.2 ± 2.9", "83.1 ± 1.4", "51.4 ± 2.9"),
    "lrc dense": ("33.9 ± 1.5", "83.6 ± 1.9", "49.6 ± 5.0"),
    "lrc complex": ("42.1 ± 3.6", "84.8 ± 2.2", "58.6 ± 3.5"),
}


# Epochs at most, and without progress; task, model, steps joined, budget.
Budget = tuple[int, int]
Key = tuple[str, str, int, Budget]


# One run


def config_of(
    task: str,
    model: str,
    seed: int,
    folder: Path | None,
    patch: int,
    budget: Budget | None = None,
    **grid: Any,
) -> training.Config:
    """The run of a model on a task; `grid` holds the options that are chosen by validation."""
    file = folder / f"{task}.npz" if folder else None
    known = file is not None and file.is_file()
    epochs, patience = budget or BUDGETS.get(task, BUDGET)
    config = training.Config(
        data=str(file) if known else task,
        pooled=not known,
        channels=CHANNELS.get(task),
        patch=patch,
        width=WIDTH,
        state=STATE,
        epochs=epochs,
        patience=patience,
        batch=4,
        seed=seed,
        **{"dropout": 0.2} | AS_PUBLISHED.get(task, {}),
        **grid,
    )
    return replace(config, **MODELS[model])


def with_matched_state(config: training.Config, channels: int, classes: int) -> training.Config:
    """The same run with the state size at which the model has as many parameters as LrcSSM."""
    same = replace(config, cell="lrc", options={}, state=STATE, loops=1)
    wanted = size_of(same, channels, classes)
    if config.cell == "attention":  # it has no state
        return config
    sizes = {s: size_of(replace(config, state=s), channels, classes) for s in range(16, 513, 16)}
    return replace(config, state=min(sizes, key=lambda s: (abs(sizes[s] - wanted), s)))


def size_of(config: training.Config, channels: int, classes: int) -> int:
    """The number of trained parameters."""
    return count(training.build(config, channels, classes))


def count(trainer: Any) -> int:
    return sum(p.numel() for p in trainer.parameters.values())


def name_of(task: str, model: str, config: training.Config) -> str:
    model = "".join(c if c.isalnum() else "-" for c in model)
    options = f"p{config.patch}_b{config.blocks}_lr{config.learning_rate:g}"
    if (config.epochs, config.patience) != BUDGETS.get(task, BUDGET):
        options += f"_e{config.epochs}-{config.patience}"
    return f"{task}_{model}_{options}_{config.seed}"


def dense_block() -> type:
    """The classifier's block with the dense LRC: every channel's y = s(sigma (x - mu)) goes to all.

    Solved by sweeps of the diagonal cell, to which the other channels' states of the sweep before
    are inputs (see `dense.py`), and differentiated through the last sweeps.
    """
    import torch

    from parnl.learn.torch_model import Block

    class DenseBlock(Block):
        def __init__(self, cell: Any, width: int, **options: Any) -> None:
            both = parnl.get_cell("lrc", width + cell.hidden_size, cell.hidden_size)
            super().__init__(both, width, **options)

        def mix(self, x: Any, lengths: Any, **solver: Any) -> tuple[Any, Any]:
            before = x.new_zeros(*x.shape[:2], self.cell.hidden_size)
            with torch.no_grad():
                for _ in range(SWEEPS):
                    last, (states, _) = before, self._sweep(x, before, lengths, **solver)
                    before = states.roll(1, dims=1)
                    before[:, 0] = 0
                    if (before - last).abs().max() <= 1e-5:
                        break
            for _ in range(GRADIENT_SWEEPS):
                states, info = self._sweep(x, before, lengths, **solver)
                before = torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1]
            return states, info

        def _sweep(self, x: Any, before: Any, lengths: Any, **solver: Any) -> tuple[Any, Any]:
            return super().mix(torch.cat([x, before], -1), lengths, **solver)

    return DenseBlock


def execute(task: str, model_name: str, config: training.Config) -> str:
    """Train, test, add the result to the table, unless it is there, and return its name."""
    name = name_of(task, model_name, config)
    if any(record["name"] == name for record in records()):
        return name
    dataset = training.dataset_of(config)
    shape = dataset.train.inputs.shape[-1], len(dataset.classes)
    config = with_matched_state(config, *shape)
    folder = RUNS / name
    resume = (folder / training.CHECKPOINT).is_file()
    model = {"block": dense_block()} if model_name == "lrc dense" else {}
    before = iterations(training.build(config, *shape, **model), dataset.test)
    trainer = training.build(config, *shape, **model)
    result = training.fit(config, dataset, folder, resume=resume, trainer=trainer)
    logits, _ = judging.evaluate(result.trainer, dataset.test, 16)
    record = dict(
        name=name,
        task=task,
        model=model_name,
        config=asdict(replace(config, data=Path(config.data).name)),
        parameters=count(trainer),
        series={p: len(getattr(dataset, p).labels) for p in ("train", "validation", "test")},
        test=float(np.mean(logits.argmax(axis=1) == dataset.test.labels)),
        best=result.best,
        epochs=len(result.history),
        seconds=sum(epoch["seconds"] for epoch in result.history),
        iterations=dict(before=before, after=iterations(result.trainer, dataset.test)),
    )
    validation = [epoch["validation_accuracy"] for epoch in result.history]
    (folder / "validation.json").write_text(json.dumps(validation) + "\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    with table_of(task).open("a") as table:  # one write: other runs add theirs
        table.write(json.dumps(record) + "\n")
    return name


def table_of(task: str) -> Path:
    return RESULTS / f"{task}.jsonl"


def iterations(trainer: Any, split: data.Split, count: int = 8) -> dict[str, list[int]]:
    """Newton iterations until convergence of each block, the most over `count` series.

    In T chunks of one step, in 64, and in as many as method="newton" takes by itself, 8 at least.
    """
    inputs, steps = split.inputs[:count], split.inputs.shape[1]
    lengths = None if split.lengths is None else split.lengths[:count]
    found = {}
    for name, chunks in (("T", steps), ("64", min(64, steps)), ("auto", None)):
        how = dict(method="newton", chunks=chunks, max_iterations=steps)  # no giving up
        _, found[name] = trainer.predict(inputs, lengths, **how)
    return found


# All runs


def plan(
    task: str,
    model: str,
    folder: Path | None,
    patch: int,
    blocks: list[int],
    budget: Budget | None = None,
) -> Iterator[list[training.Config]]:
    """Stages of runs; the next is asked for when the results of the one before are there."""
    first, *others = SEEDS
    how = folder, patch, budget
    budget = budget_of(asdict(config_of(task, model, first, *how)))
    # the depth is chosen for LrcSSM, and all others take it
    if model != "lrc":
        blocks = [best_of(task, "lrc", patch, budget).get("blocks", blocks[0])]
    grid = [dict(blocks=b, learning_rate=r) for b in blocks for r in RATES]
    yield [config_of(task, model, first, *how, **point) for point in grid]
    chosen = best_of(task, model, patch, budget)
    yield [config_of(task, model, seed, *how, **chosen) for seed in others]


def best_of(task: str, model: str, patch: int, budget: Budget) -> dict[str, Any]:
    """The options with the best validation on the first split, among the results so far.

    Of equal accuracies, that of the fewest blocks, then that of the lowest loss.
    """
    runs = [r for r in records() if key_of(r) == (task, model, patch, budget)]
    runs = [r for r in runs if r["config"]["seed"] == SEEDS[0]]
    if not runs:
        return {}

    def score(run: dict[str, Any]) -> tuple[float, int, float]:
        best = run["best"]
        return best["validation_accuracy"], -run["config"]["blocks"], -best["validation_loss"]

    config = max(runs, key=score)["config"]
    return {name: config[name] for name in ("blocks", "learning_rate")}


def key_of(record: dict[str, Any]) -> Key:
    config = record["config"]
    return record["task"], record["model"], config["patch"], budget_of(config)


def budget_of(config: dict[str, Any]) -> Budget:
    return config["epochs"], config["patience"]


def records() -> list[dict[str, Any]]:
    tables = sorted(RESULTS.glob("*.jsonl"))
    found = [json.loads(line) for path in tables for line in path.read_text().splitlines()]
    return sorted(found, key=lambda record: record["name"])


def run(work: list[tuple[str, str, Path | None, int, list[int], Any]], jobs: int) -> None:
    """All runs that have no result yet; `work` holds the arguments of `plan`."""
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=keep_memory) as pool:
        stages = {(task, model): plan(task, model, *rest) for task, model, *rest in work}
        running: dict[Any, tuple[str, str]] = {}
        waiting = dict.fromkeys(stages, 0)

        def advance(key: tuple[str, str]) -> None:
            for config in next(stages[key], []):
                running[pool.submit(execute, *key, config)] = key
                waiting[key] += 1

        for key in stages:
            advance(key)
        while running:
            future = next(as_completed(running))
            key = running.pop(future)
            try:
                print(future.result(), flush=True)
            except FloatingPointError as error:  # a learning rate too high is a result, too
                print(f"{key}: {error}", file=sys.stderr, flush=True)
            waiting[key] -= 1
            if not waiting[key]:
                advance(key)


# Tables and figures


def show() -> None:
    """Print the tables; write them and the figure beside the results."""
    everything = records()
    if not everything:
        return
    lines = ["Test accuracy, %, mean and standard deviation over the splits; budget: epochs at"]
    lines += ["most, and how many of them without progress:", ""]
    lines += accuracy_table(everything)
    lines += ["", "Newton iterations of each block, first split, the most over 8 series:", ""]
    lines += iteration_table(everything)
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / "tables.md").write_text(text)
    draw(grouped(everything), SEEDS[0], RESULTS / "figure.png")


def grouped(everything: list[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    """One run of each split, with the options chosen on the first."""
    order = list(MODELS)
    keys = sorted({key_of(r) for r in everything}, key=lambda k: (k[0], order.index(k[1]), *k[2:]))
    groups = {}
    for key in keys:
        best = best_of(*key)
        runs = [r for r in everything if key_of(r) == key]
        groups[key] = [r for r in runs if all(r["config"][n] == v for n, v in best.items())]
    return {key: runs for key, runs in groups.items() if runs}


def spread(values: list[float]) -> str:
    deviation = f"{100 * statistics.stdev(values):.1f}" if len(values) > 1 else "?"
    return f"{100 * statistics.mean(values):.1f} ± {deviation}"


def accuracy_table(everything: list[dict[str, Any]]) -> Iterator[str]:
    head = "task, steps joined, model, here, published, splits, blocks, rate, state, parameters"
    head = [*head.split(", "), "epochs", "budget", "minutes"]
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for (task, model, patch, budget), runs in grouped(everything).items():
        config, published = runs[0]["config"], PUBLISHED.get(model)
        row = [task, patch, model, spread([r["test"] for r in runs])]
        row += [published[TASKS.index(task)] if published and task in TASKS else "", len(runs)]
        row += [config["blocks"], f"{config['learning_rate']:g}", config["state"]]
        row += [runs[0]["parameters"], round(statistics.mean(r["epochs"] for r in runs))]
        row += ["{}, {}".format(*budget), f"{statistics.mean(r['seconds'] for r in runs) / 60:.1f}"]
        yield f"| {' | '.join(map(str, row))} |"


def iteration_table(everything: list[dict[str, Any]]) -> Iterator[str]:
    yield "| task | steps joined | model | budget | chunks | before training | after |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for (task, model, patch, budget), runs in grouped(everything).items():
        for counts in (r["iterations"] for r in runs if r["config"]["seed"] == SEEDS[0]):
            for chunks in counts["before"]:
                found = [" ".join(map(str, counts[when][chunks])) for when in ("before", "after")]
                if found[0]:  # attention has none
                    row = (task, patch, model, "{}, {}".format(*budget), chunks, *found)
                    yield f"| {' | '.join(map(str, row))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train what has no result yet")
    running.add_argument("--data", type=Path, help="folder of .npz files; without it, aeon's")
    running.add_argument("--tasks", nargs="+", default=list(TASKS))
    running.add_argument("--models", nargs="+", default=["lrc"], choices=list(MODELS))
    running.add_argument("--patch", type=int, default=1, help="steps joined into one")
    running.add_argument("--blocks", type=int, nargs="+", default=list(BLOCKS), help="LrcSSM's")
    running.add_argument("--budget", type=int, nargs=2, metavar=("EPOCHS", "PATIENCE"))
    running.add_argument("--jobs", type=int, default=os.cpu_count())
    commands.add_parser("show", help="tables and figures of all results")
    given = parser.parse_args()
    if given.command == "run":
        work = [(task, model, given.data, given.patch, given.blocks, given.budget)
                for task in given.tasks for model in given.models]  # fmt: skip
        run(work, given.jobs)
    show()


if __name__ == "__main__":
    main()
