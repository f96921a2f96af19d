"""The time of one step: `parnl.step` and `RNN.step` beside PyTorch's own cells, in one run.

    python benchmarks/step.py [--repeat 400] [--turn 10] [--cells gru lstm lrc] [--out step.json]

One thread, 64 inputs and channels, float32, no gradient; medians in microseconds. Contenders take
turns. A turn is one call that does not count, then `--turn` calls in a row that do. With `--turn 0`
it is one call that counts: a call after other work. Each step of parnl is compared with the loop
before it is timed. A busy machine slows all of them, and long code more than short: only ratios of
one run count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Run, close, processor

import parnl
from parnl.testing import loop
from parnl.torch import RNN

SIZE = 64


def runs(name: str, batch: int) -> dict[str, Run]:
    """Return a step of the cell, in each framework."""
    cell = parnl.get_cell(name, SIZE, SIZE)
    found: dict[str, Run] = {}
    for framework in ("torch", "numpy"):
        params = cell.init(0, framework)
        u, *state = torch.randn(1 + len(cell.states), batch, SIZE)
        given: list[Any] = [x if framework == "torch" else x.numpy() for x in (u, *state)]
        run = partial(parnl.step, cell, params, given[0], tuple(given[1:]))
        expected, _ = loop(cell, params, given[0][:, None], given[1:])
        for _ in range(2):  # the first, and one that is remembered
            close(run()[0], expected[:, 0], f"{name} in {framework}")
        found[f"{name}, {framework}"] = run
    return found


def layers(count: int, batch: int) -> dict[str, Run]:
    """Return a step of several layers: parnl's, and `nn.GRU` on a sequence of one step."""
    ours, theirs = RNN("gru", SIZE, SIZE, count), torch.nn.GRU(SIZE, SIZE, count)
    u, state = torch.randn(batch, SIZE), ours.initial_state((batch,))
    for _ in range(2):
        close(ours.step(u, state)[0], ours(u[None], state)[0][0], "RNN.step")
    return {
        f"nn.GRU, {count} layers, T = 1": partial(theirs, u[None], state),
        f"RNN.step, {count} layers": partial(ours.step, u, state),
    }


def timed(contenders: dict[str, Run], repeat: int, turn: int) -> dict[str, float]:
    """Return the median time of each in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    calls = max(1, turn)
    for _ in range(-(-repeat // calls)):
        for name, run in contenders.items():
            if turn:
                run()
            for _ in range(calls):
                start = time.perf_counter()
                run()
                times[name].append(1e6 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    """Measure, print a table, save it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=400)
    parser.add_argument("--turn", type=int, default=10, help="calls in a row, 0 for one alone")
    parser.add_argument("--cells", nargs="+", default=["gru", "lstm", "lrc"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tables: dict[str, dict[str, float]] = {}
    gru, lstm = torch.nn.GRUCell(SIZE, SIZE), torch.nn.LSTMCell(SIZE, SIZE)
    with torch.no_grad():
        for batch in (1, 4):
            u, h, c = torch.randn(3, batch, SIZE)
            ways: dict[str, Run] = {
                "nn.GRUCell": partial(gru, u, h), "nn.LSTMCell": partial(lstm, u, (h, c))
            }  # fmt: skip
            for name in options.cells:
                ways |= runs(name, batch)
            for count in (1, 2):
                ways |= layers(count, batch)
            tables[f"B = {batch}"] = timed(ways, options.repeat, options.turn)
    print(f"{processor()}, us a step, and over nn.GRUCell\n")
    print(f"| | {' | '.join(tables)} |\n| --- |{' --- |' * len(tables)}")
    for name in tables["B = 1"]:
        cells = [f"{t[name]:.0f} ({t[name] / t['nn.GRUCell']:.1f})" for t in tables.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": processor(), "us": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
