"""The part of a report's page that is a task's own: a function for each task in `SECTIONS`.

It takes what a run kept, and returns HTML, all text in it escaped by `parnl.learn.markup`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parnl.learn import charts
from parnl.learn.judging import evenly
from parnl.learn.kept import SAMPLE, Record
from parnl.learn.markup import figure, h2, p, table, text
from parnl.learn.progress import things
from parnl.learn.readers.collection import counted, shown

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
    every = counted(run.total, things(run.model.ahead))
    if len(run.targets) == run.total:
        return f"All {every} of the test part."
    return (
        f"{len(run.targets):,} of the {every} of the test part, chosen evenly: a run does not keep "
        "more answers."
    )


def forecasted(run: Record) -> str:
    """The error by step ahead and by column, and some forecasts beside the truth."""
    own: Any = run.model.ahead
    shape = len(run.answers), own.horizon, len(own.targets)
    found, truth = run.answers.reshape(shape), run.targets.reshape(shape).astype(np.float64)
    square, stays = (found - truth) ** 2, truth**2
    steps = np.arange(1, own.horizon + 1)
    with np.errstate(invalid="ignore"):
        by_step = [np.nanmean(error, axis=(0, 2)) for error in (square, stays)]
    rows = [
        (int(steps[i]), *(f"{error[i]:.4g}" for error in by_step))
        for i in np.unique(np.linspace(0, own.horizon - 1, 12).astype(int))
    ]
    lines = list(zip(by_step, ("the model", "the last value stays"), strict=True))
    pictures = [figure(charts.lines([(steps, *line) for line in lines], "steps ahead", "mean "
                       "squared error"), "Error by step ahead")]  # fmt: skip
    first, place = own.targets[0], run.model.prepared_by().places(own.targets)[0]
    for k, row in enumerate(evenly(len(found), SAMPLE)[:DRAWN]):
        past = run.inputs[k][:, place] if run.model.config.patch == 1 else np.zeros(1)
        drawn = [(np.arange(1 - len(past), 1), past, "read")]
        drawn += [(steps, truth[row, :, 0], "truth"), (steps, found[row, :, 0], "forecast")]
        picture = charts.lines(drawn, "steps from the last one read", "change, in deviations")
        pictures.append(figure(picture, f"{first}: window {k + 1} of {SAMPLE}"))
    heads = ("steps ahead", "mean squared error", "if the last value stays")
    by_step_ahead = table(heads, rows)
    return _with_charts(run, "Forecasts", pictures) + by_step_ahead + _by_column(run, found, truth)


def stepped(run: Record) -> str:
    """Of "next": the error of each column, or the bits of tokens, and some windows."""
    own: Any = run.model.ahead
    if own.tokens:
        return _told_tokens(run)
    truth, pictures = run.targets.astype(np.float64), []
    steps = np.arange(1, truth.shape[1] + 1)
    for row in evenly(len(truth), 3):
        drawn = [(steps, truth[row, :, 0], "truth"), (steps, run.answers[row, :, 0], "answer")]
        picture = charts.lines(drawn, "step", "value, in deviations")
        pictures.append(figure(picture, f"{own.targets[0]}: each step from those before it"))
    return _with_charts(run, "Next steps", pictures) + _by_column(run, run.answers, truth)


def _with_charts(run: Record, title: str, pictures: Sequence[str]) -> str:
    return (
        h2(title)
        + p(f"{_of_all(run)} Errors are of standardised values: 1 is the variance of a column.")
        + f'<div class="charts">{"".join(pictures)}</div>'
    )


def _told_tokens(run: Record) -> str:
    own: Any = run.model.ahead
    bits, likeliest = run.answers[..., 0], run.answers[..., 1]
    known = ~np.isnan(bits)
    counts = known.sum(axis=0)
    mean = np.nansum(bits, axis=0)[counts > 0] / counts[counts > 0]
    picture = charts.lines([(np.arange(1, len(mean) + 1), mean, "mean")], "step", "bits")
    tokens = run.targets[known]
    times = np.bincount(tokens, minlength=own.tokens)
    spent = np.bincount(tokens, bits[known], minlength=own.tokens)
    hits = np.bincount(tokens, likeliest[known] == tokens, minlength=own.tokens)
    rows = [
        (shown(chr(t)) if own.bytes_ and t < 128 else str(t), int(times[t]),
         f"{spent[t] / times[t]:.3f}", f"{hits[t] / times[t]:.1%}")
        for t in np.argsort(-spent, kind="stable")[:20] if times[t]
    ]  # fmt: skip
    unit = "bits per byte" if own.bytes_ else "bits per token"
    return (
        h2("Next tokens")
        + p(f"{_of_all(run)} In all {bits[known].mean():.4g} {unit}: what it takes to write the "
            "text down with the model's help. It takes fewer the more of a text was read.")
        + figure(picture, f"{unit.capitalize()} by the step of a window")
        + p("Tokens that took the most bits in all:")
        + table(("token", "times", "bits each", "found likeliest"), rows)
    )  # fmt: skip


def _by_column(run: Record, found: np.ndarray, truth: np.ndarray) -> str:
    """A table of the errors of each column, (..., columns)."""
    own: Any = run.model.ahead
    rows, deviations = [], run.model.prepared_by().scale(own.targets).deviation
    for i, (name, deviation) in enumerate(zip(own.targets, deviations, strict=True)):
        gap = (found - truth)[..., i]
        gap = gap[~np.isnan(gap)]
        root = math.sqrt(np.mean(gap**2)) if len(gap) else math.nan
        errors = np.mean(gap**2), np.mean(np.abs(gap)), root * deviation
        rows.append((name, *(f"{e:.4g}" if len(gap) else "not known" for e in errors)))
    heads = ("column", "mean squared error", "mean |error|", "root mean square, in its unit")
    return table(heads, rows)


SECTIONS: dict[str, Callable[[Record], str]] = {
    "classify": classified,
    "regress": numbered,
    "forecast": forecasted,
    "next": stepped,
}
