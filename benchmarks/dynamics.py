"""Dynamics: chaotic systems learned from observations, then left to run freely.

    python -m benchmarks.dynamics run [--systems lorenz63 ...] [--models gru lru ...]
    python -m benchmarks.dynamics time
    python -m benchmarks.dynamics show

A model reads the observation of a step and predicts the next one. In training it reads the true
observations (teacher forcing), so all steps of a sequence are solved at once. In the test it reads
a few, and then its own answers. What it makes is compared with true trajectories: where they stay
(an occupancy), at which frequencies they move (a spectrum), and for how long a forecast is good.

`run` trains what has no result yet: a small grid of learning rates with the first seed, then the
other seeds with the rate whose validation was best. `time` measures a training step in turns, by
`parnl.solve` and by plain loops of the same cells. Each finished run, and each model that was
measured, is one line of `results/dynamics/`, and `show` makes the tables.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

import parnl
from benchmarks.contenders import Sizes, count, nearest
from benchmarks.state_tracking import DenseGRU
from benchmarks.trials import Record, Results, Trials, table
from parnl.learn.torch_model import Block, Classifier

SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2)
STATE = 24  # that of a GRU decides how many parameters all models have
WIDTH, BLOCKS = 32, 1
NOISE = 0.02  # of an observation; standard deviations of the system are 1
TRAINED, STEPS, BATCH = 100, 100, 16  # trajectories, the steps of a sequence, sequences
EPOCHS = 5
READ, SKIPPED = 50, 200  # steps that are observed, and steps that D_stsp and D_H leave out
VALIDATED, TESTED = (100, READ + 500), (50, READ + 1200)  # trajectories, and their steps
BINS, SMALL, SMOOTHING = 20, 1e-5, 2.0  # bins an axis, a count of each, width in frequencies
ORDER = 8  # of the linear autoregression
FAR = 10.0  # where a trajectory has left the attractor
TOLERANCE = 0.4  # of a good forecast; the error of the mean is 1
TIMED = ("gru", "lrc")
LENGTHS, ROUNDS, TURN = (100, 1000, 10000), 3, 1000  # steps of a sequence; turns, and their steps


# Systems


class System(NamedTuple):
    """d/dt of states (..., size), and what is seen of them: the first `seen` numbers."""

    slope: Callable[[np.ndarray], np.ndarray]
    size: int
    seen: int
    exponent: float  # the largest Lyapunov exponent, per unit of time
    updates: int  # of an epoch


def lorenz63(s: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(s, -1, 0)
    return np.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z], axis=-1)


def lorenz96(s: np.ndarray) -> np.ndarray:
    after, before, second = (np.roll(s, shift, axis=-1) for shift in (-1, 1, 2))
    return (after - second) * before - s + 8.0


SYSTEMS = {
    "lorenz63": System(lorenz63, 3, 3, 0.906, 60),
    "lorenz63-x": System(lorenz63, 3, 1, 0.906, 200),
    "lorenz96": System(lorenz96, 10, 10, 1.2, 60),
}
INTERVAL, INNER = 0.04, 4  # time between two observations, and Runge-Kutta steps in it
SETTLE = 1000  # observations until a trajectory is on the attractor
LAG = 4  # steps between the three values that stand for a state of which one number is seen


def advance(system: System, s: np.ndarray, dt: float) -> np.ndarray:
    """One Runge-Kutta step of the fourth order."""
    a = system.slope(s)
    b = system.slope(s + dt / 2 * a)
    c = system.slope(s + dt / 2 * b)
    d = system.slope(s + dt * c)
    return s + dt / 6 * (a + 2 * b + 2 * c + d)


def simulate(system: System, n: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Trajectories (n, steps, size) on the attractor, from random starts."""
    s, kept = rng.normal(size=(n, system.size)), []
    for _ in range(SETTLE + steps):
        for _ in range(INNER):
            s = advance(system, s, INTERVAL / INNER)
        kept.append(s)
    return np.stack(kept[SETTLE:], axis=1)


# Measures; trajectories are (N, T, seen)


def points(x: np.ndarray) -> Iterator[np.ndarray]:
    """States as points of three numbers, (n, 3): of a ring of many, each with its neighbours."""
    if x.shape[-1] == 1:
        x = np.concatenate([x[:, 2 * LAG :], x[:, LAG:-LAG], x[:, : -2 * LAG]], axis=-1)
    flat = x.reshape(-1, x.shape[-1])
    for i in range(flat.shape[1] if flat.shape[1] > 3 else 1):
        yield flat[:, np.arange(i, i + 3) % flat.shape[1]]


def divergence(truth: np.ndarray, found: np.ndarray) -> float:
    """Kullback-Leibler divergence of points (n, 3), binned; what lies outside is in no bin."""
    edges = [np.linspace(a.min(), a.max(), BINS + 1) for a in truth.T]
    p, q = ((np.histogramdd(x, edges)[0] + SMALL) / (len(x) + SMALL * BINS**3)
            for x in (truth, found))  # fmt: skip
    return float((p * np.log(p / q)).sum())


def state_space(truth: np.ndarray, found: np.ndarray) -> float:
    """D_stsp: the mean over all kinds of points."""
    pairs = zip(points(truth), points(found), strict=True)
    return float(np.mean([divergence(*pair) for pair in pairs]))


def stays(x: np.ndarray) -> np.ndarray:
    """Of each trajectory (N,), whether it is finite and near the attractor."""
    return (np.abs(x) < FAR).all(axis=(1, 2))


def spectra(x: np.ndarray) -> np.ndarray:
    """The power at each frequency but 0, (frequencies, seen), smoothed, with sum 1."""
    waves = np.fft.rfft(x - x[:, :1], axis=1)
    power = gaussian_filter1d((np.abs(waves) ** 2).mean(axis=0)[1:], SMOOTHING, axis=0)
    return power / np.maximum(power.sum(axis=0), np.finfo(power.dtype).tiny)


def hellinger(truth: np.ndarray, found: np.ndarray) -> float:
    """D_H: the distance of the spectra, mean over what is seen; 1 if nothing moves.

    A trajectory that goes away is left out, and its share of the power is missing.
    """
    near = stays(found)
    if not near.any():
        return 1.0
    common = np.sqrt(spectra(truth) * spectra(found[near]) * near.mean()).sum(axis=0)
    return float(np.sqrt(np.clip(1.0 - common, 0.0, 1.0)).mean())


def good_steps(truth: np.ndarray, found: np.ndarray) -> float:
    """The steps until a forecast's error is above the tolerance, mean over trajectories."""
    good = np.sqrt(((found - truth) ** 2).mean(axis=-1)) < TOLERANCE  # not if it is NaN
    return float(np.where(good.all(axis=1), good.shape[1], good.argmin(axis=1)).mean())


# Models


class Looped(Block):
    """A block whose cell runs step by step, from Python."""

    def mix(self, x: Tensor, lengths: Any, **solver: Any) -> tuple[Tensor, Any]:
        state, found, weights = None, [], dict(self.recurrence)
        for x_t in x.unbind(1):
            y, state = parnl.step(self.cell, weights, x_t, state)
            found.append(y)
        return torch.stack(found, dim=1), None


class Sequential(Block):
    """A block whose cell runs step by step, in compiled code."""

    def mix(self, x: Tensor, lengths: Any, **solver: Any) -> tuple[Tensor, Any]:
        return super().mix(x, lengths, method="sequential")


class NoRecurrence(Block):
    """A block that sees one step alone: a layer of units in the place of the recurrence."""

    def __init__(self, cell: Any, width: int, **options: Any) -> None:
        super().__init__(cell, width, **options)
        del self.recurrence
        self.units = nn.Linear(width, cell.hidden_size)

    def mix(self, x: Tensor, lengths: Any, **solver: Any) -> tuple[Tensor, Any]:
        return self.units(x).tanh(), None

    def mix_step(self, x: Tensor, state: Any, **time: Any) -> tuple[Tensor, Any]:
        return self.mix(x, None)


# Each is a change of the classifier's keywords.
MODELS: dict[str, dict[str, Any]] = {
    "gru": {},
    "lstm": {},
    "lrc": {},
    "lem": {},
    "mingru": {},
    "lru": {},
    "s6": {},
    "nn.GRU": {"cell": "gru", "block": DenseGRU},
    "none": {"cell": "gru", "block": NoRecurrence},
}
SHOWN = {
    "gru": "gru", "lstm": "lstm", "lrc": "lrc", "lem": "lem",
    "mingru": "mingru (linear)", "lru": "lru (linear)", "s6": "s6 (linear)",
    "nn.GRU": "nn.GRU, dense", "none": "no recurrence",
    "linear": "linear autoregression", "last": "the last value stays",
    "truth": "other true trajectories",
}  # fmt: skip
# What `time` sets against `parnl.solve`, which decides by itself how parallel it is: plain loops.
LOOPS: dict[str, type[Block]] = {"compiled loop": Sequential, "Python loop": Looped}


def sizes_of(seen: int) -> Sizes:
    return Sizes(seen, seen, units=STATE, block_width=WIDTH, blocks=BLOCKS)


def build(name: str, state: int, sizes: Sizes, seed: int) -> Classifier:
    cell, _, loop = name.partition(", ")
    keywords: dict[str, Any] = {"cell": cell, "block": LOOPS.get(loop, Block)} | MODELS[cell]
    inner: dict[str, Any] = dict(
        width=sizes.block_width, state=state, blocks=sizes.blocks, seed=seed
    )
    return Classifier(sizes.channels, sizes.outputs, readout="each", **inner, **keywords)


def matched_state(name: str, sizes: Sizes) -> int:
    """The state size at which the model has about as many parameters as the GRU."""
    goal = count(build("gru", sizes.units, sizes, 0))
    step = 16 if name == "s6" else 1  # of states to a channel
    return nearest(lambda state: count(build(name, state, sizes, 0)), goal, step)


class Autoregression:
    """The next observation as a linear function of the last ones, by least squares."""

    def __init__(self, x: Tensor, order: int) -> None:
        """x: (N, T, seen)."""
        self.order = order
        past = torch.stack([x[:, k : k - order] for k in range(order)], dim=2).flatten(2)
        past, change = past.flatten(0, 1), (x[:, order:] - x[:, order - 1 : -1]).flatten(0, 1)
        ones = torch.ones(len(past), 1)
        self.weights = torch.linalg.lstsq(torch.cat([past, ones], dim=1), change).solution

    def step(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The change of x (N, seen), and the observations up to it (N, order, seen)."""
        state = x[:, None].expand(-1, self.order, -1) if state is None else state
        state = torch.cat([state[:, 1:], x[:, None]], dim=1)
        return state.flatten(1) @ self.weights[:-1] + self.weights[-1], state


@torch.no_grad()
def generate(model: Any, seen: Tensor, steps: int, scale: float = 1.0) -> np.ndarray:
    """What the model makes (N, steps, seen) of its own answers after (N, T, seen)."""
    state, found = None, []
    for x in seen.unbind(1):
        change, state = model.step(x, state)
    for _ in range(steps):
        x = x + scale * change
        found.append(x)
        change, state = model.step(x, state)
    return torch.stack(found, dim=1).numpy()


# The task


class Dynamics:
    """The task of `trials`; the smallest D_stsp of the validation's observations is the best."""

    def __init__(self, name: str) -> None:
        # data of their own: all models and seeds see the same trajectories
        rng = np.random.default_rng(0)
        self.system = system = SYSTEMS[name]
        shapes = (TRAINED, 2 * STEPS), VALIDATED, TESTED, TESTED
        whole = [simulate(system, *shape, rng)[..., : system.seen] for shape in shapes]
        mean, deviation = (f(whole[0], axis=(0, 1)) for f in (np.mean, np.std))
        truth = [((x - mean) / deviation).astype(np.float32) for x in whole]
        noisy = [x + NOISE * rng.standard_normal(x.shape, np.float32) for x in truth]
        self.train, self.validation, self.observed = map(torch.from_numpy, noisy[:3])
        *_, self.truth, self.other = truth
        self.scale = float((self.train[:, 1:] - self.train[:, :-1]).std())

    def batches(self, rng: np.random.Generator) -> Iterator[Tensor]:
        span = np.arange(STEPS + 1)
        for _ in range(self.system.updates):
            rows = rng.integers(len(self.train), size=(BATCH, 1))
            starts = rng.integers(self.train.shape[1] - STEPS, size=(BATCH, 1))
            yield self.train[rows, starts + span]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        change = (batch[:, 1:] - batch[:, :-1]) / self.scale
        return (model(batch[:, :-1])[0] - change).square().mean()

    def error(self, model: nn.Module) -> float:
        found = self.made(model, self.validation)[:, SKIPPED:]
        return state_space(self.validation[:, READ + SKIPPED :].numpy(), found)

    def test(self, model: nn.Module) -> dict[str, float]:
        return self.measures(self.made(model, self.observed))

    def made(self, model: nn.Module, observed: Tensor) -> np.ndarray:
        """What the model makes in the place of the steps after the first READ."""
        model.eval()
        found = generate(model, observed[:, :READ], observed.shape[1] - READ, self.scale)
        model.train()
        return found

    def measures(self, found: np.ndarray) -> dict[str, float]:
        """Of what was made (N, T, seen) after the steps of the test that are read."""
        truth = self.truth[:, READ:]
        late = truth[:, SKIPPED:], found[:, SKIPPED:]
        times = good_steps(truth, found) * INTERVAL * self.system.exponent
        gone = int((~stays(found)).sum())
        return dict(stsp=state_space(*late), spectrum=hellinger(*late), times=times, gone=gone)

    def bounds(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """What needs no training: name, parameters, and what it makes."""
        seen, steps = self.observed[:, :READ], self.observed.shape[1] - READ
        linear = Autoregression(self.train, ORDER)
        yield "linear", linear.weights.numel(), generate(linear, seen, steps)
        yield "last", 0, seen[:, -1:].expand(-1, steps, -1).numpy()
        yield "truth", 0, self.other[:, READ:]


class Lengths:
    """The task of `trials` for `time`: one long sequence a batch."""

    def __init__(self, steps: int) -> None:
        x = simulate(SYSTEMS["lorenz63"], 1, steps + 1, np.random.default_rng(0)) / 10.0
        self.inputs = torch.from_numpy(x.astype(np.float32))

    def batches(self, rng: np.random.Generator) -> Iterator[Tensor]:
        yield from [self.inputs] * 100

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch[:, :-1])[0] - batch[:, 1:]).square().mean()


def results_of(name: str) -> Results:
    return Results(f"dynamics/{name}", settings=["rate"])


# Commands


def run(name: str, models: list[str]) -> None:
    results, seen = results_of(name), SYSTEMS[name].seen
    task = functools.cache(lambda: Dynamics(name))
    trials = Trials(results, sizes_of(seen), task, EPOCHS, EPOCHS, build, matched_state)
    for model in models:
        trials.search(model, dict(rate=RATES), SEEDS, [["rate"]])
    if not results.runs(model="truth"):
        began = time.process_time()
        for model, parameters, found in task().bounds():
            key: Record = dict(model=model, rate=None, seed=SEEDS[0], state=None)
            key |= dict(parameters=parameters, epochs=0, validation=0.0)
            key |= task().measures(found)
            if model == "truth":
                key.pop("times")  # they start elsewhere
            results.add(kind="run", **key, seconds=round(time.process_time() - began, 1))


def measure() -> None:
    names = ["nn.GRU", *(n for cell in TIMED for n in (cell, *(f"{cell}, {k}" for k in LOOPS)))]
    for steps in LENGTHS:
        task = functools.partial(Lengths, steps)
        results, sizes = results_of(f"time-{steps}"), sizes_of(SYSTEMS["lorenz63"].seen)
        trials = Trials(results, sizes, task, 1, 1, build, matched_state)
        trials.measure(names, RATES[0], ROUNDS, max(1, TURN // steps))


def ratios() -> Iterator[str]:
    """How many times as long a training step takes as with `parnl.solve`."""
    yield f"| steps | cell | {' | '.join(LOOPS)} | nn.GRU, dense |"
    yield "| --- " * (3 + len(LOOPS)) + "|"
    for steps in LENGTHS:
        taken = {r["model"]: r["epoch"] for r in results_of(f"time-{steps}").records()}
        for cell in TIMED:
            others = [taken.get(f"{cell}, {loop}") for loop in LOOPS] + [taken.get("nn.GRU")]
            if cell in taken:
                row = ["" if t is None else f"{t / taken[cell]:.1f}" for t in others]
                yield f"| {steps} | {cell} | {' | '.join(row)} |"


def show() -> None:
    scores = {"D_stsp": "stsp", "D_H": "spectrum", "Lyapunov times": "times"}
    for name in SYSTEMS:
        print(f"{name}:", "", *table(results_of(name), SHOWN, SEEDS[0], scores, 3), "", sep="\n")
    print(*ratios(), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train what has no result yet")
    running.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    running.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    commands.add_parser("time", help="measure training steps in turns")
    commands.add_parser("show", help="the tables of all results")
    given = parser.parse_args()
    if given.command == "run":
        for name in given.systems:
            run(name, given.models)
    elif given.command == "time":
        measure()
    show()


if __name__ == "__main__":
    main()
