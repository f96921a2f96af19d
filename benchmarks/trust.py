"""How far each cell can be trusted: proved and measured growth, and where a trained model stands.

    python benchmarks/trust.py [--quick] [--redraw] [--out benchmarks/results/trust.json]

cells    every registered cell as it starts (input 8, hidden 16, standard normal inputs, T = 1024):
         the proved bound rho on |df/dx| over the ranges on the trajectory, what some point of them
         attains, what the trajectory meets, the Lyapunov exponent, and Newton iterations.
region   the LRC cell, fresh and of a model trained on JapaneseVowels by `parnl train`'s defaults:
         for which factors of the recurrent weights (e_w, w_f, w_g) and of the range of its features
         the step is proved to contract. (1, 1) is the model itself over the features that occur.

Prints tables, and saves JSON and a plot beside it; --redraw prints and draws what is saved.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import parnl

INPUT, HIDDEN, STEPS = 8, 16, 1024
RECURRENT = ("e_w", "w_f", "w_g")
Params = dict[str, np.ndarray]
Ranges = dict[str, tuple[np.ndarray, np.ndarray]]


# -- cells ----------------------------------------------------------------------------------------


def cell_row(name: str, budget: int) -> dict[str, Any]:
    cell = parnl.get_cell(name, INPUT, HIDDEN)
    u = np.random.default_rng(0).normal(size=(STEPS, INPUT)).astype(np.float32)
    params = cell.init(0)
    report = parnl.diagnose(cell, params, u, chunks=[32, STEPS], budget=budget)
    automatic = parnl.solve(cell, params, u).info
    return {
        "certified": report.certificate.bound,
        "attained": float(np.max(report.certificate.attained)),
        "measured": float(np.max(report.measured)),
        "stable": report.certificate.stable,
        "channels": int(np.sum((report.certificate.rho < 1) & report.certificate.invariant)),
        "lyapunov": report.lyapunov.largest,
        "linear": cell.linear,
        "iterations": {str(run.chunks): run.iterations for run in report.runs},
        "automatic": [automatic.chunks, int(automatic.iterations)],
    }


# -- the region of LRC ----------------------------------------------------------------------------


def scaled(params: Params, ranges: Ranges, weights: float, width: float) -> tuple[Params, Ranges]:
    """Multiply the recurrent weights, and the width of each feature's range about its middle."""
    params = {n: p * weights if n in RECURRENT else p for n, p in params.items()}
    wider = {}
    for name, (low, high) in ranges.items():
        middle, half = (low + high) / 2, (high - low) / 2
        wider[name] = middle - width * half, middle + width * half
    return params, wider


def proof(cell: Any, params: Params, ranges: Ranges, budget: int, *at: float) -> Any:
    params, ranges = scaled(params, ranges, *at)
    return parnl.certify(cell, params, feature_ranges=ranges, budget=budget)


def edge(cell: Any, params: Params, ranges: Ranges, budget: int) -> float:
    """Return the largest factor of the recurrent weights, up to 64, at which all is proved."""
    low, high = 0.0, 64.0
    if proof(cell, params, ranges, budget, high, 1.0).stable:
        return high
    low = 1 / 64
    if not proof(cell, params, ranges, budget, low, 1.0).stable:
        return 0.0
    for _ in range(10):
        middle = math.sqrt(low * high)
        if proof(cell, params, ranges, budget, middle, 1.0).stable:
            low = middle
        else:
            high = middle
    return low


def region(
    cell: Any,
    params: Params,
    ranges: Ranges,
    weights: list[float],
    widths: list[float],
    budget: int,
) -> dict[str, Any]:
    rows = [[proof(cell, params, ranges, budget, w, r) for w in weights] for r in widths]
    here = proof(cell, params, ranges, 4 * budget, 1.0, 1.0)
    return {
        "weights": weights,
        "widths": widths,
        "certified": [[c.bound for c in row] for row in rows],
        "attained": [[float(np.max(c.attained)) for c in row] for row in rows],
        "here": {
            "certified": here.bound,
            "attained": float(np.max(here.attained)),
            "stable": here.stable,
            "channels": int(np.sum((here.rho < 1) & here.invariant)),
            "of": cell.hidden_size,
        },
        "edge": edge(cell, params, ranges, budget),
    }


def feature_ranges(cell: Any, params: Params, u: np.ndarray) -> Ranges:
    """Return the range of each feature over the steps u (n, input)."""
    from parnl.params import Values

    found = cell.features(Values("parameter", params), u.astype(np.float64))
    return {n: (np.min(f, axis=0), np.max(f, axis=0)) for n, f in found.items()}


def as_float64(params: dict[str, Any]) -> Params:
    return {n: np.asarray(p, np.float64) for n, p in params.items()}


def trained(epochs: int | None) -> tuple[list[tuple[Any, Params, list[np.ndarray]]], dict]:
    """Train by the defaults; return each block's cell, parameters and inputs, and a record."""
    import torch

    from parnl.learn import data, judging, training

    torch.set_num_threads(1)
    config = training.Config() if epochs is None else training.Config(epochs=epochs)
    dataset = data.load(config.data, seed=config.seed)
    with tempfile.TemporaryDirectory() as folder:
        result = training.fit(config, dataset, Path(folder))
    model = result.trainer.model.eval()
    accuracy = judging.compare(result.trainer, dataset.test, config.batch).metrics["accuracy"]
    blocks: list[tuple[Any, Params, list[np.ndarray]]] = []
    split = dataset.test
    lengths = torch.from_numpy(split.lengths)
    with torch.no_grad():
        x = model.encoder(model.activation(model.lift(torch.from_numpy(split.inputs))))
        for block in model.blocks:
            u = block.norm(x).numpy()
            series = [row[:n] for row, n in zip(u, split.lengths, strict=True)]
            params = {n: p.numpy() for n, p in block.recurrence.items()}
            blocks.append((block.cell, as_float64(params), series))
            x, _ = block(x, lengths)
    record = {"epoch": result.best["epoch"], "test accuracy": accuracy, "series": len(split.labels)}
    return blocks, record


def regions(quick: bool) -> dict[str, Any]:
    budget = 50 if quick else 200
    weights = [2.0**e for e in (range(-2, 7, 2) if quick else np.arange(-2, 6.5, 0.75))]
    widths = [0.0, 1.0, 2.0] if quick else [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
    blocks, record = trained(2 if quick else None)
    found: dict[str, Any] = {"training": record}
    cell = parnl.get_cell("lrc", 64, 64)
    u = np.random.default_rng(0).normal(size=(STEPS, 64))
    params = as_float64(cell.init(0))
    found["as it starts"] = region(
        cell, params, feature_ranges(cell, params, u), weights, widths, budget
    )
    for number, (cell, params, series) in enumerate(blocks, start=1):
        ranges = feature_ranges(cell, params, np.concatenate(series))
        part = region(cell, params, ranges, weights, widths, budget)
        along = [parnl.lyapunov(cell, params, u.astype(np.float64)) for u in series[:64]]
        part["here"]["measured"] = max(float(np.max(a.rho)) for a in along)
        part["here"]["lyapunov"] = max(a.largest for a in along)
        found[f"block {number}, trained"] = part
    return found


# -- report ---------------------------------------------------------------------------------------


def number(x: float) -> str:
    return "none" if not math.isfinite(x) else f"{x:.3g}"


def show(results: dict[str, Any]) -> None:
    print("| cell | proved | attained | met | exponent | C = T | C = 32 | auto |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, row in results["cells"].items():
        chunks, iterations = row["automatic"]
        each = f"{row['iterations'][str(STEPS)]} | {row['iterations']['32']}"
        bound = number(row["certified"]) + ("" if row["stable"] else " *")
        print(
            f"| `{name}` | {bound} | {number(row['attained'])} | {number(row['measured'])} | "
            f"{row['lyapunov']:.2g} | {each} | {iterations}, {chunks} |"
        )
    print("\n*: no proof of rho < 1 in every channel over a range that is not left\n")
    for name, part in results["lrc"].items():
        if name == "training":
            print("training:", ", ".join(f"{n} {v:.4g}" for n, v in part.items()))
            continue
        here = part["here"]
        print(
            f"{name}: proved {number(here['certified'])}, attained {number(here['attained'])}, "
            f"{here['channels']} of {here['of']} channels contract by proof; all do at "
            f"{part['edge']:.3g} times the recurrent weights"
            + (f"; met {here['measured']:.3g}" if "measured" in here else "")
        )


def draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    parts = {n: p for n, p in results["lrc"].items() if n != "training"}
    figure = Figure(figsize=(4.2 * len(parts) + 1, 4), layout="constrained")
    axes = figure.subplots(1, len(parts), sharey=True)
    for axis, (name, part) in zip(axes, parts.items(), strict=True):
        bound, attained = (np.array(part[k], float) for k in ("certified", "attained"))
        shown = np.where(np.isfinite(bound), np.clip(bound, 0.5, 1.5), 1.5)
        grid = part["weights"], part["widths"]
        image = axis.contourf(*grid, shown, np.linspace(0.5, 1.5, 21), cmap="RdBu_r")
        for values, style in ((bound, "-"), (attained, "--")):
            finite = np.where(np.isfinite(values), values, 1e3)
            if finite.min() < 1 < finite.max():
                axis.contour(*grid, finite, [1.0], colors="black", linestyles=style)
        axis.plot(1, 1, "*", color="gold", markeredgecolor="black", markersize=14)
        axis.set(title=f"LRC, {name}", xlabel="factor of e_w, w_f, w_g", xscale="log")
    axes[0].set_ylabel("factor of the features' range")
    label = "proved rho; contours of 1: proved -, attained --"
    figure.colorbar(image, ax=axes, label=label)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few boxes, 2 epochs, a coarse grid")
    parser.add_argument("--redraw", action="store_true", help="from the JSON, computing nothing")
    default = Path(__file__).parent / "results" / "trust.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    if args.redraw:
        results = json.loads(args.out.read_text())
    else:
        budget = 50 if args.quick else 1000
        cells = {name: cell_row(name, budget) for name in parnl.list_cells()}
        results = {"cells": cells, "lrc": regions(args.quick)}
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    draw(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
