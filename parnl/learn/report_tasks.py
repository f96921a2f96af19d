"""The part of a report's page that is a task's own: a function for each task in `SECTIONS`.

It takes what a run kept, and returns HTML, all text in it escaped by `parnl.learn.markup`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from parnl.learn import charts
from parnl.learn.kept import MOST, Record
from parnl.learn.markup import figure, h2, p, table, text
from parnl.learn.readers.collection import counted

MATRIX = 60
"""A confusion matrix of more classes is a list of what is mixed up most."""
DRAWN = 6
"""Of several numbers to learn, those that get charts."""


def classified(run: Record) -> str:
    """Confusion matrix and a table of the classes."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes, found = run.model.classes, run.answers.argmax(axis=1)
    every = np.arange(len(classes))
    counts = confusion_matrix(run.targets, found, labels=every)
    judged = precision_recall_fscore_support(run.targets, found, labels=every, zero_division=0)
    rows = [
        (name, *(f"{value:.1%}" for value in (precision, recall, f1)), int(series))
        for name, precision, recall, f1, series in zip(classes, *judged, strict=True)
    ]
    return (
        h2("Classes")
        + p(f"{_of_all(run)} A row is the true class, a column the class that the model answers.")
        + _matrix(classes, counts)
        + p("Precision: of the series that got this answer, the share that is of the class. "
            "Recall: of the series of the class, the share that got this answer. "
            "F1 is the harmonic mean of the two. Each is 0 where there is nothing to divide by.")
        + table(("class", "precision", "recall", "F1", "series"), rows)
    )  # fmt: skip


def _matrix(classes: Sequence[str], counts: np.ndarray) -> str:
    if len(classes) > MATRIX:
        wrong = counts - np.diag(np.diag(counts))
        worst = [divmod(int(i), len(classes)) for i in np.argsort(-wrong, axis=None)[:MATRIX]]
        rows = [(classes[i], classes[j], int(wrong[i, j])) for i, j in worst if wrong[i, j]]
        much = p(f"There are {len(classes)} classes. These are mixed up most:")
        return much + table(("truth", "answer", "series"), rows)
    heads = "".join(f'<th scope="col" class="n">{text(name)}</th>' for name in classes)
    lines = [f'<tr><th scope="col">truth \\ answer</th>{heads}</tr>']
    for name, row in zip(classes, counts, strict=True):
        most = max(1, int(row.sum()))
        cells = "".join(
            f'<td class="n" style="background:rgba(0,114,178,{0.45 * n / most:.3f})">{n}</td>'
            for n in map(int, row)
        )
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    return f'<div class="scroll"><table class="confusion">{"".join(lines)}</table></div>'


def numbered(run: Record) -> str:
    """Answers against the truth, residuals, and a table of the numbers."""
    k = run.targets.shape[1]
    rows, figures = [], []
    for i, name in enumerate(names_of_numbers(run)):
        truth, found = run.targets[:, i].astype(np.float64), run.answers[:, i]
        gap, spread = found - truth, float(np.var(truth))
        share = f"{1 - np.mean(gap**2) / spread:.4g}" if spread > 0 else "the truth does not vary"
        sizes = (np.mean(gap), np.mean(np.abs(gap)), math.sqrt(np.mean(gap**2)), np.abs(gap).max())
        rows.append((name, *(f"{size:.4g}" for size in sizes), share))
        if i < DRAWN:
            figures.append(figure(charts.against(truth, found), f"{name}: answer by truth"))
            figures.append(figure(charts.residuals(truth, found), f"{name}: residual by truth"))
    heads = ("number", "mean error", "mean |error|", "root mean square", "largest", "R2")
    few = f" The first {DRAWN} of {k} numbers are drawn." if k > DRAWN else ""
    return (
        h2("Numbers")
        + p(f"{_of_all(run)} An error, or residual, is the answer minus the truth.{few}")
        + f'<div class="charts">{"".join(figures)}</div>'
        + table(heads, rows)
    )


def names_of_numbers(run: Record) -> list[str]:
    """The names of the numbers that were learned: those of their columns, where they are known."""
    k = len(run.model.scale.mean)
    label = None if run.model.reading is None else run.model.reading.label
    names = [label] if isinstance(label, str) else label
    if isinstance(names, list | tuple) and len(names) == k:
        return [str(name) for name in names]
    return ["value"] if k == 1 else [f"value {i}" for i in range(k)]


def _of_all(run: Record) -> str:
    if len(run.targets) == run.total:
        return f"All {counted(run.total, 'series')} of the test part."
    return (
        f"{len(run.targets):,} of the {run.total:,} series of the test part, chosen evenly: a run "
        f"keeps at most {MOST:,} answers."
    )


SECTIONS: dict[str, Callable[[Record], str]] = {"classify": classified, "regress": numbered}
