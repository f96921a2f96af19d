"""Pictures of the gallery: what a cell remembers, and how Newton's method solves it.

python docs/gallery_plots.py lrc > lrc.svg
"""

import io
import sys
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import parnl

STEPS, START = 120, 20


def responses(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what an impulse changes, and the outputs for a step of the input, each (T, 16)."""
    cell = parnl.get_cell(name, input_size=1, hidden_size=16)
    inputs = np.zeros((3, STEPS, 1))
    inputs[1, START], inputs[2, START:] = 1.0, 1.0
    nothing, impulse, step = parnl.solve(cell, cell.init(seed=0, dtype="float64"), inputs).outputs
    return impulse - nothing, step


def errors(name: str, chunks: int, most: int = 10) -> list[float]:
    """Return the largest error of a state after 1, 2, ... updates, against the plain loop."""
    cell = parnl.get_cell(name, input_size=4, hidden_size=16)
    params = cell.init(seed=0, dtype="float64")
    inputs = np.random.default_rng(0).normal(size=(256, 4))
    truth = parnl.solve(cell, params, inputs, method="sequential", states=True).states
    found: list[float] = []
    while len(found) < most and (not found or found[-1] > 1e-14):
        how: dict[str, Any] = {"chunks": chunks, "max_iterations": len(found) + 1}
        states = parnl.solve(cell, params, inputs, states=True, **how).states
        pairs = zip(states, truth, strict=True)
        found.append(max(float(np.max(np.abs(x - y))) for x, y in pairs))
    return found


@cache
def draw(name: str) -> str:
    """Return the picture of a cell, as svg."""
    look = mpl.rc_params_from_file(
        Path(__file__).with_name("matplotlibrc"), use_default_template=False
    )
    with mpl.rc_context(look):
        figure = Figure(figsize=(9, 2.8))
        figure.subplots_adjust(0.06, 0.18, 0.99, 0.9)
        impulse, step, newton = figure.subplots(1, 3)
        for axes, values in zip((impulse, step), responses(name), strict=True):
            axes.plot(np.arange(STEPS) - START, values[:, :6], linewidth=1)
            axes.set_xlabel("steps since the input changed")
        impulse.set_title("after an impulse", fontsize=10)
        step.set_title("after a step", fontsize=10)
        for chunks, mark in ((256, "o-"), (16, "s--")):
            found = np.maximum(errors(name, chunks), 1e-17)
            newton.semilogy(np.arange(1, len(found) + 1), found, mark, label=f"{chunks} chunks")
        newton.set(xlabel="Newton updates", xlim=(0.5, 10.5), ylim=(1e-18, 100))
        newton.set_title("error against the loop", fontsize=10)
        newton.legend()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


if __name__ == "__main__":
    sys.stdout.write(draw(sys.argv[1]))
