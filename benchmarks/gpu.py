"""One CUDA machine: every cell checked against float64, then parnl timed against its peers.

    python benchmarks/gpu.py [--minutes 5] [--out results/gpu.json]
    python benchmarks/gpu.py --framework jax [--minutes 3] [--out results/gpu-jax.json]

Results go to JSON after every size, so that a run that is cut short keeps what it has.
pararnn-torch is left out where it is not installed. `--device cpu --quick` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cpu
import measure
import numpy as np
import torch
from measure import Run

import parnl
from parnl.params import Values

Row = dict[str, dict[str, float]]

# Built before anything is measured: a size that does not suit a cell is told at once.
CELLS = {name: parnl.get_cell(name, 3, 48) for name in parnl.list_cells()}

# Largest error against float64 that is rounding: single precision, sums over time in gradients.
_STATES, _GRADIENTS = 2e-5, 2e-4


def reference(cell: parnl.Cell, arrays: dict[str, Any]) -> list[np.ndarray]:
    """Return outputs and gradients in float64 on the CPU, by the plain loop."""
    return solved(cell, {n: a.double().cpu() for n, a in arrays.items()}, method="sequential")


def solved(cell: parnl.Cell, arrays: dict[str, torch.Tensor], **how: Any) -> list[np.ndarray]:
    """Return outputs and the gradients of their weighted sum."""
    leaves = {n: a.detach().clone().requires_grad_() for n, a in arrays.items()}
    params = {n: a for n, a in leaves.items() if n != "inputs"}
    out = parnl.solve(cell, params, leaves["inputs"], **how).outputs
    weights = torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype, device=out.device)
    gradients = torch.autograd.grad((out * weights).mean(), list(leaves.values()))
    return [x.detach().double().cpu().numpy() for x in (out, *gradients)]


def solved_in_jax(cell: parnl.Cell, arrays: dict[str, Any], **how: Any) -> list[np.ndarray]:
    """Return the same, by JAX on its default device."""
    import jax
    import jax.numpy as jnp

    def loss(given: dict[str, Any]) -> Any:
        params = {n: a for n, a in given.items() if n != "inputs"}
        out = parnl.solve(cell, params, given["inputs"], **how).outputs
        return (out * jnp.linspace(-1, 1, out.shape[-1])).mean(), out

    given = {n: jnp.asarray(a.numpy()) for n, a in arrays.items()}
    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)
    return [np.asarray(x, np.float64) for x in (out, *(gradients[n] for n in arrays))]


def check(
    solve: Callable[..., list[np.ndarray]], counts: Sequence[int | str], steps: int
) -> dict[str, dict[str, float]]:
    """Return the largest error of outputs and gradients of each cell, over numbers of chunks."""
    table = {}
    for name, cell in CELLS.items():
        u = torch.tensor(np.random.default_rng(0).normal(size=(2, steps, 3)), dtype=torch.float32)
        arrays = cell.init(0, "torch") | {"inputs": u}
        expected = reference(cell, arrays)
        sizes = [float(np.abs(e).max()) for e in expected]
        # some gradients are zero: what scales sLSTM's cell state scales its normaliser, too
        scales = [sizes[0], *(max(size, 1e-2 * max(sizes[1:])) for size in sizes[1:])]
        worst = {"outputs": 0.0, "gradients": 0.0}
        for chunks in counts:
            found = solve(cell, arrays, chunks=chunks)
            errors = [
                float(np.abs(f - e).max() / scale)
                for f, e, scale in zip(found, expected, scales, strict=True)
            ]
            worst["outputs"] = max(worst["outputs"], errors[0])
            worst["gradients"] = max(worst["gradients"], *errors[1:])
        table[name] = worst
        right = worst["outputs"] < _STATES and worst["gradients"] < _GRADIENTS
        print(f"  {name:14} {worst['outputs']:.1e} {worst['gradients']:.1e}", flush=True)
        if not right:
            print(f"  {name}: NOT within rounding of float64", flush=True)
            table[name]["wrong"] = 1.0
    return table


def timed(run: Run, device: str, repeat: int = 7) -> float:
    """Return the median milliseconds of a call, by events on a GPU."""
    run()
    times = []
    for _ in range(repeat):
        if device == "cpu":
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def bandwidth(device: str, size: int) -> float:
    """Return GB/s read and written by a copy, PyTorch's."""
    a = torch.ones(size, device=device)
    b = torch.empty_like(a)
    return 8e-6 * size / timed(lambda: b.copy_(a), device)


def contenders(name: str, batch: int, hidden: int, steps: int, device: str) -> dict[str, Run]:
    """Return the recurrences of one size, projection included, each a function of no arguments."""
    inputs = 16
    u = torch.randn(batch, steps, inputs, device=device)
    cell = parnl.get_cell(name, inputs, hidden)
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch", device=device).items()}
    features = cell.features(Values("parameter", params), u)
    features = {n: a.detach().requires_grad_() for n, a in features.items()}

    class Given(type(cell)):  # type: ignore[misc]
        def features(self, p: Any, u: Any) -> Any:
            return features

    given = Given(inputs, hidden)
    dense = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name](inputs, hidden, batch_first=True)
    dense = dense.to(device)
    runs: dict[str, Run] = {
        "parnl": lambda: parnl.solve(cell, params, u).outputs,
        "parnl, recurrence alone": lambda: parnl.solve(given, params, u).outputs,
        "parnl, one chunk": lambda: parnl.solve(cell, params, u, chunks=1).outputs,
        "torch.nn, dense": lambda: dense(u)[0],
    }
    for chunks in (16, 64, 256):
        if chunks * 16 <= steps:
            runs[f"parnl, chunks={chunks}"] = lambda c=chunks: (
                parnl.solve(cell, params, u, chunks=c).outputs
            )
    try:
        import pararnn
    except ImportError:
        return runs
    kind = {"gru": "ParaGRU", "lstm": "ParaLSTM"}[name]
    other = getattr(pararnn, kind)(inputs, hidden).to(device)
    runs["pararnn-torch, Newton"] = lambda: _first(pararnn.newton_apply(other, u))
    if steps <= 4096:
        runs["pararnn-torch, loop"] = lambda: _first(pararnn.sequential_apply(other, u))
    return runs


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def _both(run: Run) -> None:
    run().square().mean().backward()


def times_in_torch(name: str, batch: int, hidden: int, steps: int, device: str, repeat: int) -> Row:
    """Return the milliseconds of each contender, forward, and forward + backward."""
    row: Row = {}
    for what, run in contenders(name, batch, hidden, steps, device).items():
        try:
            with torch.no_grad():
                forward = timed(run, device, repeat)
            both = timed(lambda r=run: _both(r), device, repeat)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        row[what] = {"forward ms": forward, "forward + backward ms": both}
    return row


def times_in_jax(name: str, batch: int, hidden: int, steps: int, device: str, repeat: int) -> Row:
    """Return the same of JAX's contenders: the scans take long, and are left out of long series."""
    maps, params = cpu.jax_maps(steps, 16, name, batch, hidden)
    if steps > 4096:
        maps = {n: f for n, f in maps.items() if n.startswith("parnl")}
    forward = measure.timed(cpu.jax_runs(maps, params), repeat)
    maps.pop("DEER, associative_scan", None)  # a while loop has no gradient in reverse
    both = measure.timed(cpu.jax_runs(maps, params, gradient=True), repeat)
    row = {n: {"forward ms": ms} for n, ms in forward.items()}
    for what, ms in both.items():
        row[what]["forward + backward ms"] = ms
    return row


def sizes(framework: str, quick: bool) -> list[tuple[str, int, int, int]]:
    """Return (cell, B, D, T), the sizes that tell most first."""
    names = ("gru", "lstm") if framework == "torch" else ("gru", "lrc")
    if quick:
        return [(name, 2, 16, 512) for name in names]
    shapes = [(8, 64), (32, 128), (64, 256), (128, 256), (256, 512)]
    grid = [(b, d, t) for b, d in shapes for t in (4096, 512, 32768, 131072)]
    grid = [(b, d, t) for b, d, t in grid if b * d * t <= 1 << 29]  # 2 GiB an array
    return [(name, *shape) for shape in grid for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--framework", choices=("torch", "jax"), default="torch")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    device, repeat = args.device, 3 if args.quick else 7
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    copy = bandwidth(device, 1 << (22 if args.quick else 28))
    result: dict[str, Any] = {
        "device": name,
        args.framework: __import__(args.framework).__version__,
        "kernels": os.environ.get("PARNL_KERNELS", ""),
        "copy GB/s": copy,
    }
    print(f"{name}, copying {copy:.0f} GB/s\nlargest error: outputs, gradients")

    def solved_there(cell: parnl.Cell, arrays: dict[str, Any], **how: Any) -> list[np.ndarray]:
        return solved(cell, {n: a.to(device) for n, a in arrays.items()}, **how)

    in_torch = args.framework == "torch"
    # XLA takes seconds for each number of chunks
    solve, counts = (solved_there, (1, 7, 64, "auto")) if in_torch else (solved_in_jax, (7, "auto"))
    result["errors"] = check(solve, counts, 64 if args.quick else 1000)
    result["times"] = {}
    for cell, batch, hidden, steps in sizes(args.framework, args.quick):
        if time.monotonic() > deadline:
            print("out of time: the sizes that are left were not run")
            break
        measured = times_in_torch if in_torch else times_in_jax
        row = measured(cell, batch, hidden, steps, device, repeat)
        label = f"{cell} B={batch} D={hidden} T={steps}"
        result["times"][label] = row
        print(f"\n{label}")
        alone = row.get("parnl, recurrence alone")
        if alone:  # features read once and states written once
            moved = 4e-6 * {"gru": 4, "lstm": 6}[cell] * batch * hidden * steps
            speed = moved / alone["forward ms"]
            alone["share of copy"] = speed / copy
            print(f"  recurrence alone: {speed:.0f} GB/s, {speed / copy:.0%} of a copy")
        for what, times in row.items():
            both = times.get("forward + backward ms", float("nan"))
            print(f"  {what:32} {times['forward ms']:10.3f} {both:10.3f}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
