"""What LrcSSM costs: a training step, and one block over the length T and the state size D.

    python benchmarks/block.py [--threads 2] [--repeat 9] [--quick] [--out results/block.json]

The training step is that of the paper's model on its longest task here: 6 blocks, width and state
64, batch 4, T = 1751, 2 channels, Adam. The same classifier whose recurrence is `jax.lax.scan`
stands beside it; each in a process of its own, and once more in one that keeps its memory
(`parnl.memory.keep_memory`, as in `parnl train`). Scaling is that of forward and backward in
PyTorch, B = 4: of a whole block, whose matrix products cost O(T D^2), and of its recurrence alone,
O(T D). Exponents are fitted by least squares to the logarithms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from measure import Run, close, in_process, peak_memory, processor, timed

import parnl
from parnl.learn import training
from parnl.memory import keep_memory
from parnl.params import Values

B = 4


CONTENDERS = ("parnl, PyTorch", "parnl, JAX", "JAX, jax.lax.scan in the same model")


def training_step(name: str, repeat: int) -> dict[str, float]:
    """The time of one optimizer step, and the loss that it finds."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(B, 1751, 2)).astype(np.float32)
    batch = inputs, None, rng.integers(0, 4, size=B), np.ones(B, np.float32)
    backend = "torch" if "PyTorch" in name else "jax"
    trainer = training.build(training.Config(backend=backend, blocks=6, batch=B), 2, 4)
    solve = scanned if "scan" in name else parnl.solve
    with patch.object(parnl, "solve", solve):  # looked up when JAX traces, here
        loss = trainer.step(*batch)[0]
    return {"loss": loss, "ms": timed({"": partial(trainer.step, *batch)}, repeat)[""]}


def scanned(cell: parnl.Cell, params: Any, inputs: Any, **solver: Any) -> Any:
    """What `parnl.solve` returns, by `jax.lax.scan`, and differentiated by JAX."""
    import jax

    p = Values("parameter", params)
    over_time = {n: a.swapaxes(0, 1) for n, a in cell.features(p, inputs).items()}

    def run(x: Any, f: Any) -> tuple[Any, Any]:
        return (cell.step(p, x, Values("feature", f), cell.dt),) * 2

    start = jax.numpy.zeros((B, cell.hidden_size))
    last, outputs = jax.lax.scan(run, start, over_time)
    info = parnl.Info(0, 1, 0.0, 0.0, True, last.size)
    return parnl.Solution(outputs.swapaxes(0, 1), (last,), info)


def training_steps(repeat: int, threads: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each contender, in a process of its own, as it is and with memory kept."""
    call = [__file__, "--threads", str(threads), "--repeat", str(repeat), "--step"]
    table: dict[str, dict[str, float]] = {}
    for what, how in (("as it is", []), ("memory kept", ["--keep"])):
        found = {name: in_process(*call, name, *how) for name in CONTENDERS}
        close(*(found[name]["loss"] for name in CONTENDERS[1:]), "the loss")
        table[what] = {name: f["ms"] for name, f in found.items()}
    return table


def block(steps: int, size: int) -> Run:
    """Forward and backward of one block of the classifier, (B, T, D) to (B, T, D)."""
    import torch

    from parnl.learn.torch_model import Block

    torch.manual_seed(0)
    cell = parnl.get_cell("lrc", input_size=size, hidden_size=size)
    module = Block(cell, size, dropout=0.0, seed=0)
    x = torch.randn(B, steps, size, requires_grad=True)
    return lambda: module(x, None)[0].sum().backward()


def recurrence(steps: int, size: int) -> Run:
    """The same of the recurrence alone, its features given."""
    import torch

    class Given(type(parnl.get_cell("lrc", 1, 1))):  # type: ignore[misc]
        def features(self, p: Any, u: Any) -> dict[str, Any]:
            return features

    torch.manual_seed(0)
    cell = Given(1, size)
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch").items()}
    features = {n: torch.randn(B, steps, size, requires_grad=True) for n in ("a", "g")}
    u = torch.zeros(B, steps, 1)
    return lambda: parnl.solve(cell, params, u).outputs.sum().backward()


PARTS = {"block": block, "recurrence": recurrence}


def scaling(repeat: int, threads: int, grid: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Time and peak memory at each (T, D)."""
    rows = []
    for steps, size in grid:
        row: dict[str, Any] = dict(T=steps, D=size)
        row |= {
            f"{n}, ms": t
            for n, t in timed({n: f(steps, size) for n, f in PARTS.items()}, repeat).items()
        }
        for name in PARTS:
            call = [sys.executable, __file__, "--memory", name, str(steps), str(size)]
            found = subprocess.check_output([*call, "--threads", str(threads)])
            row[f"{name}, MB"] = int(found) / 1e6
        rows.append(row)
        print("  ".join(f"{name} {value:.5g}" for name, value in row.items()), flush=True)
    return rows


def exponents(rows: list[dict[str, Any]], over: str) -> dict[str, float]:
    """The slope of each quantity over T or D, in logarithms."""
    x = np.log([row[over] for row in rows])
    names = [n for n in rows[0] if n not in "TD"]
    return {n: float(np.polyfit(x, np.log([row[n] for row in rows]), 1)[0]) for n in names}


def plot(tables: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, over in zip(figure.subplots(2, 2).T, ("T", "D"), strict=True):
        rows, slopes = tables[f"over {over}"], tables[f"exponents over {over}"]
        fixed = {"T": "D = 64", "D": "T = 4096"}[over]
        for axis, unit in zip(axes, ("ms", "MB"), strict=True):
            for name in PARTS:
                key = f"{name}, {unit}"
                label = f"{name}: {over}^{slopes[key]:.2f}"
                axis.loglog([r[over] for r in rows], [r[key] for r in rows], "o-", label=label)
            axis.set_xscale("log", base=2)
            axis.set(xlabel=f"{over} ({fixed}, B = {B})", ylabel=unit)
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="T to 2^14, D to 128")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)  # in a fresh process
    parser.add_argument("--step", help=argparse.SUPPRESS)  # likewise
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.keep:
        assert keep_memory(), "memory can be kept with glibc only"
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import torch

    torch.set_num_threads(given.threads)
    if given.memory:
        name, steps, size = given.memory
        PARTS[name](256, int(size))()  # compiles, and starts the threads
        print(peak_memory(PARTS[name](int(steps), int(size))))
        return
    if given.step:
        print(json.dumps(training_step(given.step, given.repeat)))
        return
    tables: dict[str, Any] = {"machine": {"processor": processor(), "threads": given.threads}}
    tables["training step, ms"] = training_steps(given.repeat, given.threads)
    print(tables["training step, ms"], flush=True)
    lengths = [(1 << e, 64) for e in range(10, 15 if given.quick else 19)]
    sizes = [(4096, 16 << e) for e in range(4 if given.quick else 6)]
    for over, grid in (("T", lengths), ("D", sizes)):
        tables[f"over {over}"] = rows = scaling(given.repeat, given.threads, grid)
        tables[f"exponents over {over}"] = slopes = exponents(rows, over)
        print(f"exponents over {over}: {slopes}", flush=True)
    if given.out:
        given.out.write_text(json.dumps(tables, indent=1) + "\n")
        plot(tables, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
