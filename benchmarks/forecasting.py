"""Forecasting: the electricity transformers' data (ETTh1), next to a linear model.

    python -m benchmarks.forecasting run --data ETTh1.csv [--horizons 96 ...] [--models gru ...]
    python -m benchmarks.forecasting show

The usual protocol: 8640 hours train, 2880 validate, 2880 test, all seven columns standardised by
the training part, errors over all windows, steps and columns. The models read each column as a
series of its own, with the same weights for all (as DLinear and PatchTST do), PATCH hours joined
into one step. The linear model is DLinear (Zeng et al., AAAI 2023) on the same windows.

`run` trains what has no result yet: two learning rates with the first seed, then the other seeds
with the rate whose validation was better. Each finished run is a line of
`results/forecasting.jsonl`, of which `show` makes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from parnl.learn import judging, tasks, training
from parnl.learn.data import Dataset

RESULTS = Path(__file__).parent / "results" / "forecasting.jsonl"
TRAIN, HELD = 8640, 2880
CONTEXT, PATCH = 336, 12
RATES, SEEDS = (1e-3, 3e-4), (0, 1, 2)
# The state of each cell, so that all models have about as many parameters: 17,000 to 18,700 at a
# horizon of 96.
MODELS = {
    "lrc": 40, "gru": 36, "lstm": 32, "slstm": 32, "lem": 32, "mingru": 40, "lru": 24, "s5": 24,
    "s6": 96, "attention": 32, "dlinear": 1,
}  # fmt: skip
# Mean squared and absolute errors that papers print: Zeng et al. (2023), Nie et al. (ICLR 2023).
PUBLISHED = {
    "DLinear, published": {96: (0.375, 0.399), 192: (0.405, 0.416), 336: (0.439, 0.443),
                           720: (0.472, 0.490)},
    "PatchTST/64, published": {96: (0.370, 0.400), 192: (0.413, 0.429), 336: (0.422, 0.440),
                               720: (0.447, 0.468)},
}  # fmt: skip
TASK = tasks.TASKS["forecast"]


class DLinear(nn.Module):
    """A linear map of the trend, a moving average, and one of what is left of it."""

    def __init__(self, context: int, horizon: int, seed: int, window: int = 25) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trend, self.rest = nn.Linear(context, horizon), nn.Linear(context, horizon)
        self.window = window

    def forward(self, inputs: Tensor, lengths: None = None, **_: Any) -> tuple[Tensor, list[Any]]:
        """Answers (N, horizon) to inputs (N, steps, values), values one after the other."""
        x = inputs.flatten(1)
        half = (self.window - 1) // 2
        padded = torch.cat([x[:, :1].expand(-1, half), x, x[:, -1:].expand(-1, half)], dim=1)
        trend = padded.unfold(1, self.window, 1).mean(dim=-1)
        return self.trend(trend) + self.rest(x - trend), [None]


def columns_as_series(source: Path, folder: Path) -> Path:
    """A table of one series for each column, standardised by the training part."""
    table = pd.read_csv(source).iloc[: TRAIN + 2 * HELD]
    parts = []
    for name in table.columns[1:]:
        own = table[name]
        value = (own - own[:TRAIN].mean()) / own[:TRAIN].std(ddof=0)
        parts.append(pd.DataFrame({"id": name, "value": value}))
    path = folder / "columns.csv"
    pd.concat(parts).to_csv(path, index=False)
    return path


def config_of(data: Path, model: str, horizon: int, rate: float, seed: int) -> training.Config:
    """The options of a run."""
    return training.Config(
        task="forecast", data=str(data), id="id", standardise=False, context=CONTEXT, patch=PATCH,
        horizon=horizon, validation=HELD, test=HELD, cell="gru" if model == "dlinear" else model,
        width=32, state=MODELS[model], batch=256, epochs=10, patience=2, learning_rate=rate,
        seed=seed,
    )  # fmt: skip


def execute(dataset: Dataset, config: training.Config, model: str) -> dict[str, Any]:
    """Train and test; return the run's line."""
    trainer = None
    if model == "dlinear":
        from parnl.learn.torch_trainer import Trainer

        sizes = dict(context=CONTEXT, horizon=config.horizon)
        trainer = Trainer(
            sizes, loss="squared_error", learning_rate=config.learning_rate, clip=config.clip,
            seed=config.seed, make=DLinear,
        )  # fmt: skip
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = training.fit(config, dataset, Path(folder), trainer=trainer)
    seconds = time.perf_counter() - begin
    tally = tasks.Tally(TASK, tasks.PLAIN)
    judging.judge(result.trainer, dataset.test, tally, 512)
    arrays = training.model_of(result.trainer.export_state())
    return dict(
        model=model, horizon=config.horizon, rate=config.learning_rate, seed=config.seed,
        validation=result.best["validation_mse"], test=tally.metrics(),
        parameters=sum(array.size for array in arrays.values()), epochs=len(result.history),
        seconds=round(seconds, 1),
    )  # fmt: skip


def records() -> list[dict[str, Any]]:
    """The lines of all finished runs."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def run(source: Path, horizons: list[int], models: list[str], seeds: list[int]) -> None:
    """Train what has no line yet."""
    with tempfile.TemporaryDirectory() as folder:
        data = columns_as_series(source, Path(folder))
        for horizon in horizons:
            dataset = training.dataset_of(config_of(data, "gru", horizon, RATES[0], 0))
            for model in models:
                for seed in seeds:
                    rates = RATES if seed == SEEDS[0] else (best_rate(model, horizon),)
                    for rate in rates:
                        key = (model, horizon, rate, seed)
                        if key in {tuple(r[n] for n in KEY) for r in records()}:
                            continue
                        config = config_of(data, model, horizon, rate, seed)
                        line = execute(dataset, config, model)
                        RESULTS.parent.mkdir(exist_ok=True)
                        with RESULTS.open("a") as file:
                            file.write(json.dumps(line) + "\n")
                        print(line, flush=True)


KEY = ("model", "horizon", "rate", "seed")


def best_rate(model: str, horizon: int) -> float:
    """The learning rate with the least validation error of the first seed."""
    own = [r for r in records() if (r["model"], r["horizon"], r["seed"]) == (model, horizon, 0)]
    return min(own, key=lambda r: r["validation"])["rate"]


def table() -> Iterator[str]:
    """A row for each horizon and model, the papers' below."""
    yield "| horizon | model | MSE | MAE | parameters | seeds | epochs | minutes a run |"
    yield "| --- " * 8 + "|"
    everything = records()
    for horizon in sorted({r["horizon"] for r in everything}):
        rows = []
        for model in MODELS:
            own = [r for r in everything if (r["model"], r["horizon"]) == (model, horizon)]
            if not own:
                continue
            rate = best_rate(model, horizon)
            own = [r for r in own if r["rate"] == rate]
            errors = [[r["test"][name] for r in own] for name in ("mse", "mae")]
            told = [f"{np.mean(e):.3f}" for e in errors]
            if len(own) > 1:
                told = [f"{t} ± {np.std(e, ddof=1):.3f}" for t, e in zip(told, errors, strict=True)]
            minutes = statistics.mean(r["seconds"] for r in own) / 60
            epochs = round(statistics.mean(r["epochs"] for r in own))
            rows.append((np.mean(errors[0]), [model, *told, f"{own[0]['parameters']:,}", len(own),
                                              epochs, f"{minutes:.1f}"]))  # fmt: skip
        for _, row in sorted(rows, key=lambda row: row[0]):
            yield f"| {horizon} | {' | '.join(map(str, row))} |"
        stays = next(r for r in everything if r["horizon"] == horizon)["test"]["persistence"]
        yield f"| {horizon} | the last value stays | {stays:.3f} | | | | | |"
        for name, errors in PUBLISHED.items():
            if horizon in errors:
                mse, mae = errors[horizon]
                yield f"| {horizon} | {name} | {mse:.3f} | {mae:.3f} | | | | |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train what has no result yet")
    running.add_argument("--data", type=Path, required=True, help="ETTh1.csv")
    running.add_argument("--horizons", type=int, nargs="+", default=[96, 192, 336, 720])
    running.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    running.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    commands.add_parser("show", help="the table of all results")
    given = parser.parse_args()
    if given.command == "run":
        run(given.data, given.horizons, given.models, given.seeds)
    print("\n".join(table()))


if __name__ == "__main__":
    main()
