"""State tracking: what a layer can follow step by step, at lengths beyond those of training.

    python -m benchmarks.state_tracking run [--tasks parity ...] [--cells gru s6 ...]
    python -m benchmarks.state_tracking show

Every task is an automaton. The inputs are random tokens, and the target at each step is the state
after it: the parity of the bits so far, their sum modulo 5, or the product of the permutations so
far. A model is trained on sequences of 1 to 40 steps and tested on sequences of 320. A step's
answer depends on the steps before it alone, so the first 40, 80 and 160 steps of these are the
tests at those lengths.

`run` trains what has no result yet, one run after another: a small grid of learning rates with the
first seed, then the other seeds with the rate whose validation was best. Each finished run is one
line of its task's table, `results/state_tracking/TASK.jsonl`, and `show` makes the tables and the
figure of those lines. Nothing else is kept: a run takes less than a minute, and its seed makes it
anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from parnl.learn.torch_model import Block, Classifier

RESULTS = Path(__file__).parent / "results" / "state_tracking"
SEEDS = (0, 1, 2)
RATES = {"parity": (3e-3, 1e-2, 3e-2)}  # of the other tasks, which take longer, the first two
WIDTH, BLOCKS, BATCH = 32, 1, 32
# The state of a GRU decides how many parameters all models have.
STATE = 48
TRAINED = 40  # the longest sequence of the training
TESTED = (40, 80, 160, 320)
FAR = 160  # four times as long
SERIES = 500  # of validation and test
# Steps at most, and how many more once the validation has no error: the states saturate.
STEPS = {"parity": 1000, "addition": 3000, "s3": 3000, "a5": 3000}
EXTRA = 300
EVERY = 100  # steps between two validations
BIN = 10  # steps whose accuracy is kept as one number

MODULUS = 5


# Tasks


def permutations(n: int, even: bool = False) -> list[tuple[int, ...]]:
    """The elements of the symmetric group of n, or of the alternating group; identity first."""
    found = itertools.permutations(range(n))
    return [p for p in found if not even or sign(p) == 1]


def sign(p: tuple[int, ...]) -> int:
    inversions = sum(p[i] > p[j] for i, j in itertools.combinations(range(len(p)), 2))
    return -1 if inversions % 2 else 1


def group(elements: list[tuple[int, ...]]) -> np.ndarray:
    """table[state, token]: the state g after the token h is h after g, h[g[i]]."""
    index = {p: i for i, p in enumerate(elements)}
    return np.array([[index[tuple(h[i] for i in g)] for h in elements] for g in elements])


def cyclic(m: int) -> np.ndarray:
    return (np.arange(m)[:, None] + np.arange(m)) % m


# table[state, token] is the next state; every automaton starts in state 0.
TASKS = {
    "parity": cyclic(2),
    "addition": cyclic(MODULUS),
    "s3": group(permutations(3)),
    "a5": group(permutations(5, even=True)),
}


def sample(
    task: str, series: int, steps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens (series, steps) and the state after each of them (series, steps)."""
    table = TASKS[task]
    tokens = rng.integers(table.shape[1], size=(series, steps))
    targets = np.empty_like(tokens)
    state = np.zeros(series, tokens.dtype)
    for t in range(steps):
        state = targets[:, t] = table[state, tokens[:, t]]
    return tokens, targets


# Models


class PositiveBlock(Block):
    """A block whose LRU keeps the eigenvalues it starts with on the positive real axis."""

    def __init__(self, cell: Any, width: int, **options: Any) -> None:
        super().__init__(cell, width, **options)
        self.recurrence["theta_log"].requires_grad_(False)


class DenseBlock(Block):
    """A block with `nn.GRU` or `nn.LSTM`, whose channels see one another, for reference."""

    layer: type[torch.nn.RNNBase]

    def __init__(self, cell: Any, width: int, **options: Any) -> None:
        super().__init__(cell, width, **options)
        del self.recurrence
        self.dense = self.layer(width, cell.hidden_size, batch_first=True)

    def mix(self, x: Any, lengths: Any, **solver: Any) -> tuple[Any, Any]:
        return self.dense(x)[0], None

    def mix_step(self, x: Any, state: Any, **time: Any) -> tuple[Any, Any]:
        y, state = self.dense(x[:, None], state)
        return y[:, 0], state


class DenseGRU(DenseBlock):
    layer = torch.nn.GRU


class DenseLSTM(DenseBlock):
    layer = torch.nn.LSTM


# Each is a change of the classifier's keywords.
MODELS: dict[str, dict[str, Any]] = {
    "gru": {},
    "lstm": {},
    "mgu": {},
    "lem": {},
    "cfc": {},
    "ltc": {},
    "lrc": {},
    "lrc symmetric": {"cell": "lrc", "symmetric": True},
    "lrc input elastance": {"cell": "lrc", "input_elastance": True},
    "indrnn": {"activation": "tanh"},
    "mingru": {},
    "lru": {},
    "lru positive": {"cell": "lru", "max_phase": 1e-12, "block": PositiveBlock},
    "s5": {},
    "s6": {},
    "nn.GRU": {"cell": "gru", "block": DenseGRU},
    "nn.LSTM": {"cell": "lstm", "block": DenseLSTM},
}
# Weights that start so many times as large as `init` makes them. It gives 1 / sqrt(hidden), as for
# dense weights: right for a sum over all channels, small for the one state a channel has here. LRC
# sees its inputs between 0 and 1, and has a scale of its own for its state.
LARGER = 10.0
ENLARGED = dict.fromkeys(("gru", "lstm", "mgu", "lem", "cfc"), ("a_",))
ENLARGED["lrc"] = ("sigma", "w_f", "w_g", "e_w", "v_leak", "W_")
LINEAR = ("mingru", "lru", "lru positive", "s5", "s6")


def build(task: str, model: str, state: int, seed: int) -> Classifier:
    classes, tokens = TASKS[task].shape
    keywords = {"cell": model} | MODELS[model]
    sizes = dict(width=WIDTH, state=state, blocks=BLOCKS, seed=seed)
    built = Classifier(tokens, classes, tokens=True, readout="each", **sizes, **keywords)
    if keywords["cell"] in ENLARGED and "block" not in keywords:
        with torch.no_grad():
            for block in built.blocks:
                for name, value in block.recurrence.items():
                    if name.startswith(ENLARGED[keywords["cell"]]):
                        value.mul_(LARGER)
    return built


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def matched_state(task: str, model: str) -> int:
    """The state size at which the model has about as many parameters as the GRU."""
    wanted = count(build(task, "gru", STATE, 0))
    step = 16 if model == "s6" else 1  # of states to a channel
    low, high = 1, 64  # the count grows with the state
    while count(build(task, model, high * step, 0)) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        below = count(build(task, model, middle * step, 0)) < wanted
        low, high = (middle, high) if below else (low, middle)
    sizes = {s: count(build(task, model, s, 0)) for s in (low * step, high * step)}
    return min(sizes, key=lambda s: abs(sizes[s] - wanted))


# One run


def name_of(task: str, model: str, rate: float, seed: int) -> str:
    return f"{task} {model} {rate:g} {seed}"


@torch.no_grad()
def accuracy(model: Classifier, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of each step (steps,), the mean over the sequences."""
    parts = zip(np.array_split(tokens, 10), np.array_split(targets, 10), strict=True)
    right = [model(torch.from_numpy(x))[0].argmax(-1).numpy() == y for x, y in parts]
    return np.concatenate(right).mean(axis=0)


def execute(task: str, model_name: str, rate: float, seed: int) -> str:
    """Train, test, add the result to the table, unless it is there, and return its name."""
    name = name_of(task, model_name, rate, seed)
    if any(record["name"] == name for record in records()):
        return name
    began = time.process_time()
    # data of their own: validation and test are the same for all models and rates of a seed
    train, validate, test = (np.random.default_rng([seed, part]) for part in range(3))
    known = sample(task, SERIES, TRAINED, validate)
    state = matched_state(task, model_name)
    model = build(task, model_name, state, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    best, reached, step = 0.0, None, 0
    steps = STEPS[task]
    for step in range(1, steps + 1):
        # the rate falls in the second half, to 0
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2.0 - 2.0 * (step - 1) / steps)
        # the longest of a batch grows over the first third: long ones teach nothing at first
        longest = min(TRAINED, 4 + round(TRAINED * 3 * step / steps))
        tokens, targets = map(torch.from_numpy, sample(task, BATCH, longest, train))
        lengths = torch.from_numpy(train.integers(1, longest + 1, size=BATCH))
        real = torch.arange(longest) < lengths[:, None]
        logits, _ = model(tokens, lengths)
        loss = cross_entropy(logits[real], targets[real])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % EVERY == 0:
            found = accuracy(model, *known).mean()
            best = max(best, found)
            if os.environ.get("VERBOSE"):
                print(f"{name}: {step} {longest} {loss.item():.3f} {found:.3f}", flush=True)
            if reached is None and found == 1.0:
                reached = step
            if reached is not None and step >= reached + EXTRA:
                break
    seconds = time.process_time() - began
    at_step = accuracy(model, *sample(task, SERIES, max(TESTED), test))
    record = dict(
        name=name,
        task=task,
        model=model_name,
        rate=rate,
        seed=seed,
        state=state,
        parameters=count(model),
        reference=count(build(task, "gru", STATE, 0)),
        steps=step,
        reached=reached,
        validation=float(found),
        test={str(n): float(at_step[:n].mean()) for n in TESTED},
        at_step=[round(float(a), 4) for a in at_step.reshape(-1, BIN).mean(axis=1)],
        seconds=round(seconds, 1),
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    with table_of(task).open("a") as table:
        table.write(json.dumps(record) + "\n")
    return name


def table_of(task: str) -> Path:
    return RESULTS / f"{task}.jsonl"


def records() -> list[dict[str, Any]]:
    tables = sorted(RESULTS.glob("*.jsonl"))
    return [json.loads(line) for path in tables for line in path.read_text().splitlines()]


# All runs


def run(tasks: list[str], models: list[str]) -> None:
    first, *others = SEEDS
    for task, model in itertools.product(tasks, models):
        for rate in RATES.get(task, RATES["parity"][:2]):
            print(execute(task, model, rate, first), flush=True)
        for seed in others:
            print(execute(task, model, best_rate(task, model), seed), flush=True)


def best_rate(task: str, model: str) -> float:
    """Of the best validation with the first seed; of equal ones that which was there first."""
    mine = [r for r in records() if (r["task"], r["model"]) == (task, model)]
    mine = [r for r in mine if r["seed"] == SEEDS[0]]
    return max(mine, key=lambda r: (r["validation"], -r["steps"]))["rate"]


# Tables and figure


def show() -> None:
    """Print the tables; write them and the figure beside the results."""
    everything = records()
    if not everything:
        return
    lines = [f"Accuracy of a step, %, mean of the seeds, at T = {TRAINED} and T = {FAR}:", ""]
    lines += [*summary(everything), ""]
    for task in TASKS:
        mine = [r for r in everything if r["task"] == task]
        if mine:
            lines += [*table(task, mine), ""]
    text = "\n".join(lines)
    print(text)
    (RESULTS / "tables.md").write_text(text)
    draw(everything, RESULTS / "figure.png")


def chosen(mine: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Of a task's runs: for each model one of each seed, with its chosen rate."""
    groups = {}
    for model in MODELS:
        runs = [r for r in mine if r["model"] == model]
        if any(r["seed"] == SEEDS[0] for r in runs):
            rate = best_rate(runs[0]["task"], model)
            groups[model] = [r for r in runs if r["rate"] == rate]
    return groups


def summary(everything: list[dict[str, Any]]) -> Iterator[str]:
    groups = {t: chosen([r for r in everything if r["task"] == t]) for t in TASKS}
    groups = {task: models for task, models in groups.items() if models}
    yield f"| cell | {' | '.join(groups)} |"
    yield "| --- " * (1 + len(groups)) + "|"
    for model in MODELS:
        row = [shown(model)]
        for models in groups.values():
            means = [statistics.mean(r["test"][str(n)] for r in models[model])
                     for n in (TRAINED, FAR) if model in models]  # fmt: skip
            row.append(", ".join(map(percent, means)))
        if any(row[1:]):
            yield f"| {' | '.join(row)} |"


def table(task: str, mine: list[dict[str, Any]]) -> Iterator[str]:
    chance, hours = 100 / len(TASKS[task]), sum(r["seconds"] for r in mine) / 3600
    yield f"{task}: chance is {chance:.1f} %; {len(mine)} runs, those of the grid too, in"
    yield f"{hours:.2f} hours of one core."
    yield ""
    head = ["cell", *(f"T = {n}" for n in TESTED), f"T = {FAR}, worst seed"]
    head += [f"steps {TRAINED + 1} to {FAR}", f"99 % at T = {FAR}"]
    head += ["rate", "state", "parameters", "steps", "minutes a run"]
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for model, runs in chosen(mine).items():
        row = [shown(model)]
        row += [percent(statistics.mean(r["test"][str(n)] for r in runs)) for n in TESTED]
        row += [percent(min(r["test"][str(FAR)] for r in runs))]
        beyond = [a for r in runs for a in r["at_step"][TRAINED // BIN : FAR // BIN]]
        there = sum(r["test"][str(FAR)] >= 0.99 for r in runs)
        row += [percent(statistics.mean(beyond)), f"{there} of {len(runs)} seeds"]
        row += [f"{runs[0]['rate']:g}", str(runs[0]["state"]), str(runs[0]["parameters"])]
        row += [str(round(statistics.mean(r["steps"] for r in runs)))]
        row += [f"{statistics.mean(r['seconds'] for r in runs) / 60:.1f}"]
        yield f"| {' | '.join(row)} |"


def shown(model: str) -> str:
    return f"{model} (linear)" if model in LINEAR else model


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def draw(everything: list[dict[str, Any]], path: Path) -> None:
    """The accuracy over the steps, the mean of the seeds, as one image."""
    from matplotlib.figure import Figure

    tasks = [task for task in TASKS if any(r["task"] == task for r in everything)]
    image = Figure(figsize=(5 * len(tasks), 4.5), layout="constrained")
    for task, axes in zip(tasks, image.subplots(1, len(tasks), squeeze=False)[0], strict=True):
        groups = chosen([r for r in everything if r["task"] == task])
        for model, runs in groups.items():
            order = list(MODELS).index(model)
            values = 100 * np.mean([r["at_step"] for r in runs], axis=0)
            style = "--" if model in LINEAR else ":" if model.startswith("nn.") else "-"
            steps = BIN * (np.arange(len(values)) + 1)
            axes.plot(steps, values, style, color=f"C{order % 10}", label=model)
        axes.axvline(TRAINED, color="0.7")
        axes.set(title=task, xlabel="step (grey: end of the training's)", ylim=(0, 102))
        axes.set_ylabel("accuracy, %")
        axes.legend(fontsize=7, ncols=2)
    image.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train what has no result yet")
    running.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    running.add_argument("--cells", nargs="+", default=list(MODELS), choices=list(MODELS))
    commands.add_parser("show", help="tables and figure of all results")
    given = parser.parse_args()
    if given.command == "run":
        run(given.tasks, given.cells)
    show()


if __name__ == "__main__":
    main()
