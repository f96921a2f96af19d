"""What the benchmarks share: timing in turns, peak memory, comparison before timing."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], Any]


def timed(runs: dict[str, Run], repeat: int) -> dict[str, float]:
    """Return the median time of each in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            # not timed: meanwhile threads of the one before, OpenMP's, stop spinning
            settled = time.perf_counter() + 0.02
            run()
            while time.perf_counter() < settled:
                run()
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def close(found: Any, exact: Any, what: str) -> None:
    """Raise unless the two agree to float32 rounding."""
    found, exact = np.asarray(found), np.asarray(exact)
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert error < 2e-5, f"{what} differs from the sequential result by {error}"


def in_process(*call: str) -> Any:
    """Return what a Python script, in a process of its own, prints as JSON."""
    return json.loads(subprocess.check_output([sys.executable, *call]))


def peak_memory(run: Run) -> int:
    """Return by how many bytes the process grows while `run` runs; ask in a fresh process."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def processor() -> str:
    """The machine's name, for a result's header."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return platform.processor()


def plot_lengths(tables: dict[str, dict[str, float]], path: Path, what: str) -> None:
    """Draw the time for each step over T, one line a contender, one panel a cell."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 6), sharey=True, layout="constrained")
    for name in next(iter(tables.values())):
        found = [(1 << int(t.split("^")[1]), row[name]) for t, row in tables.items() if name in row]
        style = "-" if "parnl" in name else "--"
        axes = panels[1 if name.startswith("LRC") else 0]
        axes.loglog(*zip(*found, strict=True), style, marker="o", markersize=3, label=name)
    for axes in panels:
        axes.set(xlabel="steps T")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    panels[0].set_ylabel(what)
    figure.savefig(path)
