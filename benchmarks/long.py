"""Long sequences, all steps at once or in stretches: time for each number, and memory.

    python benchmarks/long.py [--exponents 14 16 18 20] [--repeat 5] [--out results/long.json]

One sequence, float32, 64 channels, 4 inputs, two threads; outputs, and the gradients of the
parameters of their sum. Each row is a process of its own. Memory is by how much the process grows,
in arrays of (T, 64), the outputs being one. Outputs in stretches are compared with those of the
whole before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from measure import close, in_process, peak_memory, timed

INPUTS, CHANNELS, THREADS = 4, 64, 2
# Peak memory says little where a process grows by less than this many bytes: it had some to spare.
_TELLING = 1 << 27


def problem(backend: str, name: str, steps: int, stretch: int | None) -> tuple[Any, Any]:
    """Return two functions, for the outputs and the gradients, which end when all is computed."""
    import numpy as np

    import parnl

    cell = parnl.get_cell(name, input_size=INPUTS, hidden_size=CHANNELS)
    params = cell.init(0, backend)
    drawn = np.random.default_rng(0).standard_normal((1, steps, INPUTS), dtype=np.float32)

    def outputs(params: Any, inputs: Any) -> Any:
        return parnl.solve(cell, params, inputs, stretch=stretch).outputs

    if backend == "jax":
        import jax

        inputs = jax.device_put(drawn)
        # compiled before memory is looked at
        forward = jax.jit(outputs).lower(params, inputs).compile()
        gradient = jax.grad(lambda p, u: outputs(p, u).sum())
        backward = jax.jit(gradient).lower(params, inputs).compile()
        return (
            lambda: jax.block_until_ready(forward(params, inputs)),
            lambda: jax.block_until_ready(backward(params, inputs)),
        )
    import torch

    torch.set_num_threads(THREADS)
    given = torch.from_numpy(drawn)
    leaves = [p.requires_grad_() for p in params.values()]

    def values() -> Any:
        with torch.no_grad():
            return outputs(params, given)

    return values, lambda: torch.autograd.grad(outputs(params, given).sum(), leaves)


def measure(backend: str, name: str, steps: int, whole: bool, repeat: int) -> dict[str, Any]:
    """Return times in ns for each number and memory in arrays, of this process."""
    numbers, stretch = steps * CHANNELS, steps if whole else None
    if not whole:
        some = min(steps, 1 << 12)
        found, exact = (problem(backend, name, some, s)[0]() for s in (some // 8, some))
        close(found, exact, name)
    forward, gradient = problem(backend, name, steps, stretch)
    row: dict[str, Any] = {"backend": backend, "cell": name, "steps": steps, "whole": whole}
    grown = {n: peak_memory(f) for n, f in (("forward", forward), ("gradient", gradient))}
    times = timed({"forward": forward, "gradient": gradient}, repeat)
    row["ns"] = {n: round(1e6 * t / numbers, 2) for n, t in times.items()}
    row["arrays"] = {
        n: round(size / (4 * numbers), 1) if size > _TELLING else None for n, size in grown.items()
    }
    return row


def table(rows: list[dict[str, Any]]) -> None:
    print("| | T | | forward, ns | gradient, ns | forward, arrays | gradient, arrays |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for r in rows:
        kind = "whole" if r["whole"] else "auto"
        cells = [*r["ns"].values(), *("" if a is None else a for a in r["arrays"].values())]
        print(
            f"| {r['backend']} {r['cell']} | {r['steps']} | {kind} |", *cells, sep=" | ", end=" |\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exponents", type=int, nargs="+", default=[14, 16, 18, 20])
    parser.add_argument("--cells", nargs="+", default=["gru", "lrc", "lstm"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        backend, name, exponent, whole = args.one
        row = measure(backend, name, 1 << int(exponent), whole == "whole", args.repeat)
        print(json.dumps(row))
        return
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    rows = []
    for backend in ("torch", "jax"):
        for name in args.cells:
            for exponent in args.exponents:
                for kind in ("whole", "auto"):
                    one = ("--one", backend, name, str(exponent), kind)
                    rows.append(in_process(__file__, "--repeat", str(args.repeat), *one))
                    print(f"  {' '.join(one[1:])} done", file=sys.stderr)
    table(rows)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
