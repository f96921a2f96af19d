"""How far the number of chunks that "auto" takes is from the best one, over a grid of shapes.

    python benchmarks/auto.py [--backend torch] [--gradient] [--threads 2] [--repeat 14] [--quick]
                              [--out results/auto.json]

It times the recurrence alone, float32, in PyTorch or JAX (jitted), forward or with all gradients.
Up to 64 lanes (B * D) are channels of one sequence, more are several sequences. Fixed numbers of
chunks and "auto" take turns, medians count. Each answer is compared with the plain loop's before it
is timed. The ratio is auto's time over that of the best fixed number, and over that of the plain
loop. Every other turn chooses the best number, and the rest measure it: the least of five noisy
medians would be too low. PARNL_KERNELS=off times the composed path.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

CELLS = ("gru", "lstm", "lrc", "lru")
LANES = (1, 2, 8, 32, 256)
EXPONENTS = (10, 13, 16)
FIXED = (1, 4, 16, 64, 256)


def problem(backend: Any, name: str, lanes: int, steps: int) -> tuple[Any, list[Any], list[Any]]:
    """Return (cell, operands, initial states): what is left of a solve when features are there."""
    import numpy as np

    import parnl
    from parnl.inputs import feature_operands, time_step
    from parnl.params import Values

    channels = min(lanes, 64)
    batch = lanes // channels
    cell = parnl.get_cell(name, 4, channels)
    u = np.random.default_rng(0).standard_normal((batch, steps, 4))
    u = backend.asarray(u, "float32")
    p = Values("parameter", cell.init(0, backend.name))
    features = Values("feature", cell.features(p, u))
    dt = time_step(backend, cell, None, u, u.dtype)
    operands = feature_operands(backend, cell, p, features, dt, u)
    return (
        cell,
        operands,
        [backend.asarray(np.zeros((batch, channels)), "float32") for _ in cell.states],
    )


def runs(backend: Any, program: Any, operands: list[Any], x0: list[Any], gradient: bool) -> Any:
    """Return plan -> (() -> states, statistics), which ends when everything is computed."""
    if backend.name == "torch":
        import torch

        leaves = [a.detach().requires_grad_(gradient) for a in operands]

        def of(plan: Any) -> Any:
            def run() -> Any:
                states, stats = backend.solve(program, plan, leaves, x0)
                if gradient:
                    torch.autograd.grad(states[-1], leaves, torch.ones_like(states[-1]))
                return states, stats

            return run

        return of
    import jax
    import jax.numpy as jnp

    def solve(plan: Any, operands: list[Any]) -> Any:
        def states(operands: list[Any]) -> Any:
            return backend.solve(program, plan, operands, x0)

        if not gradient:
            return (*states(operands), None)
        found, pull, stats = jax.vjp(states, operands, has_aux=True)
        return found, stats, pull([jnp.ones_like(x) for x in found])

    def of(plan: Any) -> Any:
        jitted = jax.jit(partial(solve, plan))
        return lambda: jax.block_until_ready(jitted(operands))[:2]

    return of


def measure(
    which: str, name: str, lanes: int, steps: int, repeat: int, gradient: bool
) -> dict[str, Any]:
    """Return the median time of each number of chunks in milliseconds, and what auto takes."""
    import numpy as np

    from parnl.frameworks import get_backend
    from parnl.solver.cost import auto_chunks
    from parnl.solver.newton import Plan

    backend, epsilon = get_backend(which), float(np.finfo(np.float32).eps)
    cell, operands, x0 = problem(backend, name, lanes, steps)
    chosen = auto_chunks(cell.program, backend.device(x0[0]), lanes, steps)
    # what auto takes is timed once, even where it is one of the fixed numbers
    chunks = sorted({*FIXED, chosen})
    of = runs(backend, cell.program, operands, x0, gradient)
    ways = {str(c): of(Plan.make(steps, c, epsilon)) for c in chunks}

    exact = [backend.to_numpy(x) for x in ways["1"]()[0]]
    iterations = {}
    for key, run in ways.items():
        states, stats = run()
        for found, expected in zip(map(backend.to_numpy, states), exact, strict=True):
            error = float(abs(found - expected).max() / abs(expected).max())
            assert error < 2e-5, f"{name}, {lanes} lanes, T = {steps}, {key} chunks: error {error}"
        iterations[key] = int(stats.iterations)
    times: dict[str, list[float]] = {key: [] for key in ways}
    for _ in range(repeat):
        for key, run in ways.items():
            run()  # not timed: meanwhile idle threads of the one before go to sleep
            start = time.perf_counter()
            run()
            times[key].append(1e3 * (time.perf_counter() - start))
    choosing, medians = (
        {key: statistics.median(t[half::2]) for key, t in times.items()} for half in (0, 1)
    )
    best = min(FIXED, key=lambda c: choosing[str(c)])
    return {
        "cell": name,
        "lanes": lanes,
        "steps": steps,
        "ms": medians,
        "iterations": iterations,
        "auto": chosen,
        "best": best,
        "of the best": medians[str(chosen)] / medians[str(best)],
        "of the loop": medians[str(chosen)] / medians["1"],
    }


def table(rows: list[dict[str, Any]]) -> None:
    print(
        "cell  B*D      T   auto  best  of best  of loop   ms: " + "".join(f"{c:>9}" for c in FIXED)
    )
    for row in rows:
        each = "".join(f"{row['ms'][str(c)]:9.3f}" for c in FIXED)
        print(
            f"{row['cell']:4} {row['lanes']:4} {row['steps']:6} {row['auto']:6} {row['best']:5} "
            f"{row['of the best']:8.2f} {row['of the loop']:8.2f}       {each}"
        )
    ratios = [row["of the best"] for row in rows]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    print(f"of the best: geometric mean {mean:.2f}, largest {max(ratios):.2f}, {len(rows)} shapes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--gradient", action="store_true", help="the gradients too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=14, help="turns, an even number")
    parser.add_argument("--quick", action="store_true", help="two cells, T to 2^13, few lanes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.backend == "torch":
        import torch

        torch.set_num_threads(args.threads)
    cells, lanes, exponents, repeat = CELLS, LANES, EXPONENTS, args.repeat
    if args.quick:
        cells, lanes, exponents, repeat = ("gru", "lru"), (1, 8, 256), (10, 13), 4
    rows = []
    for name in cells:
        for count in lanes:
            for exponent in exponents:
                steps = 1 << exponent
                row = measure(args.backend, name, count, steps, repeat, args.gradient)
                rows.append(row)
                print(f"  {name}, {count} lanes, T = 2^{exponent} done", file=sys.stderr)
    table(rows)
    if args.out:
        how = {"backend": args.backend, "gradient": args.gradient, "threads": args.threads}
        args.out.write_text(json.dumps({**how, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
