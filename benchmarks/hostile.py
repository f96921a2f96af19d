"""Cells that are hard for Newton's method: what a solve costs next to the plain loop.

    python benchmarks/hostile.py [--repeat 5] [--steps 1048576] [--composed 16384]

One row for each cell and backend, in float32, one sequence of one channel, where chunks pay most:
the time of method="sequential", of chunks="auto" and of 64 chunks, how many updates were made and
whether the loop took over. Nothing is timed before it is found to be right: each state is one step
from the state before it, and where the loop took over, the bits are those of the loop.

By the model of `parnl.solver.cost`, chunks cost at most 2.5 times the loop. This checks the model
against the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import parnl
from parnl import ops
from parnl.params import matrix, vector

RESULTS = Path(__file__).parent / "results" / "hostile.json"


class Logistic(parnl.Cell):
    """x' = a x (1 - x), chaotic at a = 4."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return p.a * x * (1.0 - x) + 0.0 * f.f


class Steep(parnl.Cell):
    """Jacobians of 1e4, in a state that stays in [-1, 1]."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return ops.sin(1e4 * x + f.f)


class Switch(parnl.Cell):
    """Contracts everywhere but at a jump that the state keeps crossing."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return 0.999 * ops.where(x > f.f, x - 1.0, x + 0.7)


# Saturated gates, drawn at random: Lyapunov exponents of 0.14 and 0.035 a step.
GRU = {
    "W_r": -1.6, "b_r": 1.0, "a_r": -0.6, "W_z": 1.5, "b_z": -1.4, "a_z": -5.3,
    "W_n": 0.8, "b_n": -1.2, "a_n": -2.9, "c_n": 1.7,
}  # fmt: skip
LSTM = {
    "W_i": -7.0, "b_i": -1.3, "a_i": -18.0, "W_f": 0.9, "b_f": 2.4, "a_f": 8.5,
    "W_o": 3.6, "b_o": 5.1, "a_o": 12.8, "W_g": 3.2, "b_g": 0.7, "a_g": -2.2,
}  # fmt: skip
CELLS: dict[str, tuple[parnl.Cell, dict[str, float]]] = {
    "logistic map, r = 4": (Logistic(1, 1), {"W": 1.0, "a": 4.0}),
    "GRU beyond stability": (parnl.get_cell("gru", 1, 1), GRU),
    "Jacobian 1e4": (Steep(1, 1), {"W": 1.0}),
    "where with a jump": (Switch(1, 1), {"W": 1.0}),
    "saturated LSTM": (parnl.get_cell("lstm", 1, 1), LSTM),
    "GRU as it starts": (parnl.get_cell("gru", 1, 1), {}),
}


def problem(backend: str, cell: parnl.Cell, values: dict[str, float], steps: int) -> tuple:
    """Return (params, inputs, initial state)."""
    drawn = cell.init(0, "numpy")
    params = {k: np.full(v.shape, values[k], "float32") if values else v for k, v in drawn.items()}
    inputs = np.random.default_rng(1).normal(size=(steps, 1)).astype("float32")
    state = tuple(np.full(1, 0.2, "float32") for _ in cell.states)
    if backend == "torch":
        import torch

        torch.set_num_threads(1)
        made: Callable = torch.from_numpy
    elif backend == "jax":
        import jax

        made = jax.numpy.asarray
    else:
        made = np.asarray
    return {k: made(v) for k, v in params.items()}, made(inputs), tuple(made(s) for s in state)


def solver(backend: str, cell: parnl.Cell, **how: Any) -> Callable:
    """Return the solve as a function of its arrays, jitted in JAX, that waits for its result."""

    def run(*arrays: Any) -> Any:
        return parnl.solve(cell, *arrays, **how)

    if backend != "jax":
        return run
    import jax

    jitted = jax.jit(run)
    return lambda *arrays: jax.block_until_ready(jitted(*arrays))


def measure(backend: str, name: str, steps: int, repeat: int) -> dict[str, Any]:
    """Return one row."""
    cell, values = CELLS[name]
    arrays = problem(backend, cell, values, steps)
    ways = {"sequential": {"method": "sequential"}, "auto": {}, "64": {"chunks": 64}}
    runs = {way: solver(backend, cell, **how) for way, how in ways.items()}
    row: dict[str, Any] = {"cell": name, "backend": backend, "steps": steps}
    expected = np.asarray(runs["sequential"](*arrays).outputs)
    for way, how in ways.items():
        parnl.solve(cell, *arrays, check=True, **how)
        out = runs[way](*arrays)
        info, outputs = out.info, np.asarray(out.outputs)
        same = int((outputs == expected).sum())
        row[way] = {
            "chunks": int(info.chunks),
            "updates": int(info.iterations),
            "loop took over": bool(int(info.sequential)) and info.chunks > 1,
            "equal to the loop": same / outputs.size,
        }
        tame = name in ("where with a jump", "GRU as it starts")
        if tame and np.abs(outputs - expected).max() > 1e-4:
            raise AssertionError(f"{name}, {backend}, {way}: not the answer of the loop")
        # XLA may round differently in each program
        if row[way]["loop took over"] and not tame and backend != "jax" and same < outputs.size:
            raise AssertionError(f"{name}, {backend}, {way}: not the bits of the loop")
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(repeat):  # side by side, so that both meet the same load
        for way, run in runs.items():
            start = time.perf_counter()
            run(*arrays)
            times[way].append(1e3 * (time.perf_counter() - start))
    for way in runs:
        row[way]["ms"] = float(np.median(times[way]))
        pairs = zip(times[way], times["sequential"], strict=True)
        row[way]["ratio"] = float(np.median([a / b for a, b in pairs]))
    return row


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    parts = [f"{row['cell']:22}{row['kernels'] + ' ' + row['backend']:16}"]
    parts.append(f"{row['sequential']['ms']:9.1f}")
    for way in ("auto", "64"):
        r = row[way]
        took = "loop" if r["loop took over"] else ""
        parts.append(
            f"{r['chunks']:7}{r['updates']:5}{took:>6}{r['ms']:9.1f}{r['ratio']:7.2f}"
            f"{100 * r['equal to the loop']:7.1f}%"
        )
    return "".join(parts)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1 << 20, help="with compiled kernels")
    parser.add_argument("--composed", type=int, default=1 << 14, help="steps without")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    columns = f"{'chunks':>7}{'upd.':>5}{'':6}{'ms':>9}{'ratio':>7}{'equal':>8}"
    print(f"{'':38}{'loop ms':>9}{columns}{columns}   (auto, then 64 chunks)")
    rows = []
    for kernels, steps in (("c", args.steps), ("off", args.composed)):
        os.environ["PARNL_KERNELS"] = kernels
        for backend in ("numpy", "torch", "jax"):
            for name in CELLS:
                row = measure(backend, name, steps, args.repeat) | {"kernels": kernels}
                rows.append(row)
                print(line(row), flush=True)
    machine = {"machine": platform.processor() or platform.machine(), "threads": 1}
    RESULTS.write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=1, default=float) + "\n"
    )


if __name__ == "__main__":
    main()
