"""How far the number of chunks that "auto" takes is from the best one, over a grid of shapes.

    python benchmarks/auto.py [--threads 2] [--repeat 7] [--quick] [--out results/auto.json]

The recurrence alone, forward, float32, in PyTorch: B * D lanes as one sequence of as many channels
up to 64, and as several beyond; fixed numbers of chunks and "auto" take turns, medians count. Each
answer is compared with the plain loop's before it is timed. The ratio is auto's time over that of
the best fixed number, and over that of the plain loop. PARNL_KERNELS=off times the composed path.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

CELLS = ("gru", "lstm", "lrc", "lru")
LANES = (1, 2, 8, 32, 256)
EXPONENTS = (10, 13, 16)
FIXED = (1, 4, 16, 64, 256)


def problem(name: str, lanes: int, steps: int) -> tuple[Any, list[Any], list[Any]]:
    """Return (cell, operands, initial states): what is left of a solve when features are there."""
    import torch

    import parnl
    from parnl.frameworks import get_backend
    from parnl.inputs import feature_operands, time_step
    from parnl.params import Values

    channels = min(lanes, 64)
    batch, backend = lanes // channels, get_backend("torch")
    cell = parnl.get_cell(name, 4, channels)
    u = torch.randn(batch, steps, 4, generator=torch.Generator().manual_seed(0))
    p = Values("parameter", cell.init(0, "torch"))
    features = Values("feature", cell.features(p, u))
    dt = time_step(backend, cell, None, u)
    operands = feature_operands(backend, cell, p, features, dt, u)
    return cell, operands, [torch.zeros(batch, channels) for _ in cell.states]


def measure(name: str, lanes: int, steps: int, repeat: int) -> dict[str, Any]:
    """Return the median time of each number of chunks in milliseconds, and what auto takes."""
    import torch

    from parnl.frameworks import get_backend
    from parnl.solver.cost import auto_chunks
    from parnl.solver.newton import Plan

    cell, operands, x0 = problem(name, lanes, steps)
    backend, epsilon = get_backend("torch"), float(torch.finfo(torch.float32).eps)
    chosen = auto_chunks(cell.program, backend.device(x0[0]), lanes, steps)
    # what auto takes is timed once, even where it is one of the fixed numbers
    plans = {str(c): Plan.make(steps, c, epsilon) for c in sorted({*FIXED, chosen})}

    def run(plan: Any) -> tuple[Any, Any]:
        return backend.solve(cell.program, plan, operands, x0)

    exact, _ = run(plans["1"])
    iterations = {}
    for key, plan in plans.items():
        states, stats = run(plan)
        for found, expected in zip(states, exact, strict=True):
            error = float((found - expected).abs().max() / expected.abs().max())
            assert error < 2e-5, f"{name}, {lanes} lanes, T = {steps}, {key} chunks: error {error}"
        iterations[key] = int(stats.iterations)
    times: dict[str, list[float]] = {key: [] for key in plans}
    for _ in range(repeat):
        for key, plan in plans.items():
            run(plan)  # not timed: meanwhile idle threads of the one before go to sleep
            start = time.perf_counter()
            run(plan)
            times[key].append(1e3 * (time.perf_counter() - start))
    medians = {key: statistics.median(t) for key, t in times.items()}
    best = min(FIXED, key=lambda c: medians[str(c)])
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two cells, T to 2^13, few lanes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    cells, lanes, exponents, repeat = CELLS, LANES, EXPONENTS, args.repeat
    if args.quick:
        cells, lanes, exponents, repeat = ("gru", "lru"), (1, 8, 256), (10, 13), 3
    rows = []
    with torch.no_grad():
        for name in cells:
            for count in lanes:
                for exponent in exponents:
                    rows.append(measure(name, count, 1 << exponent, repeat))
                    print(f"  {name}, {count} lanes, T = 2^{exponent} done", file=sys.stderr)
    table(rows)
    if args.out:
        args.out.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
