"""The charts of a run's report, each a picture in the text of its address: `data:image/svg+xml`.

Text from a run's files is never drawn: matplotlib would read formulas in it. The page says it.
Lines differ by dashes and markers as well as by colour, for readers who see few colours.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

# Okabe and Ito's colours, which colour-blind readers tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"


def curves(
    epochs: Sequence[int], training: Sequence[float], validation: Sequence[float], best: int
) -> str:
    """A number over the epochs, for both parts; `best` is the epoch that is marked."""
    figure, axis = _axes()
    for values, label, i in ((training, "training", 0), (validation, "validation", 1)):
        axis.plot(
            epochs, values, DASHES[i], color=COLOURS[i], label=label, marker=MARKERS[i],
            markersize=4, markevery=max(1, len(epochs) // 20),
        )  # fmt: skip
    axis.axvline(best, color="#666666", linewidth=1, linestyle=":")
    axis.plot(
        [best], [validation[list(epochs).index(best)]], "*", color="#000000", markersize=13,
        label=f"best epoch, {best}", zorder=3,
    )  # fmt: skip
    every = [*training, *validation]
    if min(every) > 0 and max(every) > 10 * min(every):
        axis.set_yscale("log")
    return _over_epochs(figure, axis)


def iterations(
    epochs: Sequence[int], solves: Sequence[Sequence[int]], labels: Sequence[str], best: int
) -> str:
    """Newton iterations of each solve over the epochs; the first eight are named."""
    from matplotlib.ticker import MaxNLocator

    figure, axis = _axes()
    for i, counts in enumerate(solves):
        # Blocks often take equally many: markers of different sizes keep them all in sight.
        axis.plot(
            epochs, counts, DASHES[i % len(DASHES)], color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)], markersize=3 + 2 * min(len(solves) - i, 6),
            markevery=max(1, len(epochs) // 20), label=labels[i] if i < 8 else None,
        )  # fmt: skip
    axis.axvline(best, color="#666666", linewidth=1, linestyle=":", label=f"best epoch, {best}")
    axis.set_ylim(0, 1.15 * max(1, *(n for counts in solves for n in counts)))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _over_epochs(figure, axis)


def against(truth: np.ndarray, answers: np.ndarray) -> str:
    """Answers (n,) against the truth (n,), with the line of perfect answers."""
    figure, axis = _axes()
    ends = [min(truth.min(), answers.min()), max(truth.max(), answers.max())]
    axis.plot(ends, ends, "--", color=COLOURS[1], label="answer = truth")
    _points(axis, truth, answers)
    axis.set(xlabel="truth", ylabel="answer")
    axis.legend()
    return _picture(figure)


def residuals(truth: np.ndarray, answers: np.ndarray) -> str:
    """Answer minus truth (n,), against the truth."""
    figure, axis = _axes()
    axis.axhline(0, color=COLOURS[1], linestyle="--", label="no error")
    _points(axis, truth, answers - truth)
    axis.set(xlabel="truth", ylabel="answer - truth")
    axis.legend()
    return _picture(figure)


def lines(drawn: Sequence[tuple[np.ndarray, np.ndarray, str]], x: str, y: str) -> str:
    """Lines over steps: x (n,), y (n,) and a name of each; x, y name the axes."""
    figure, axis = _axes()
    for i, (steps, values, name) in enumerate(drawn):
        axis.plot(
            steps, values, DASHES[i % len(DASHES)], color=COLOURS[i % len(COLOURS)], label=name,
            marker=MARKERS[i % len(MARKERS)], markersize=3, markevery=max(1, len(steps) // 12),
        )  # fmt: skip
    axis.set(xlabel=x, ylabel=y)
    axis.legend()
    return _picture(figure)


def _points(axis: Any, x: np.ndarray, y: np.ndarray) -> None:
    # thousands of points are smaller as pixels than as shapes
    axis.plot(x, y, "o", color=COLOURS[0], markersize=4, alpha=0.6, rasterized=len(x) > 500)


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.6), layout="constrained", dpi=150)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#dddddd", linewidth=0.6)
    return figure, axis


def _over_epochs(figure: Any, axis: Any) -> str:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    return _picture(figure)


def _picture(figure: Any) -> str:
    """The figure as an address; the same figure makes the same text."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "parnl"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
