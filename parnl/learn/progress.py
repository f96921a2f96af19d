"""What a run of training prints and draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parnl.learn.readers.collection import counted


def describe(dataset: Any) -> str:
    """A line on the data."""
    inputs, _, lengths = dataset.train[:3]
    steps = f"{inputs.shape[1]} steps"
    if lengths is not None:
        steps = f"{lengths.min()} to {inputs.shape[1]} steps"
    learned = f", {len(dataset.classes)} classes"
    if dataset.ahead is not None:
        learned = ""
    elif not dataset.classes:
        learned = f", {counted(dataset.train.labels.shape[1], 'number')} to learn"
    channels = counted(inputs.shape[2], "channel") if inputs.ndim == 3 else "a text"
    return (
        f"{dataset.name}: {counted(len(inputs), things(dataset.ahead))} to train on, "
        f"{len(dataset.validation.labels)} to validate, {len(dataset.test.labels)} to test; "
        f"{channels}, {steps}{learned}" + "".join(f"\n  {note}" for note in dataset.notes)
    )


def things(ahead: Any) -> str:
    """The word for what a model reads at a time, for `counted`. ahead: of its data or the model."""
    return "series" if ahead is None else "window"


def shown(metric: str, metrics: dict[str, float]) -> str:
    """A share as a percentage, another number as it is."""
    return f"{metrics[metric]:.1%}" if metric.endswith("accuracy") else f"{metrics[metric]:.4g}"


def further(best: str, metrics: dict[str, float]) -> str:
    """The other metrics, on one line."""
    return ", ".join(f"{name} {shown(name, metrics)}" for name in metrics if name != best)


def heading(metric: str) -> str:
    """The two lines above the rows of epochs."""
    return (
        "          train             validation         Newton      \n"
        f"epoch     loss  {metric:>8}     loss  {metric:>8}  iterations  seconds"
    )


def row(record: dict[str, Any], metric: str) -> str:
    """A line of the table under `heading`; a star marks the best epoch so far."""
    return (
        f"{record['epoch']:5} {record['loss']:8.4f}  {shown(metric, record):>8} "
        f"{record['validation_loss']:8.4f}  {shown(f'validation_{metric}', record):>8}  "
        f"{' '.join(map(str, record['iterations'])):>10} {record['seconds']:8.2f}"
        f"{' *' if record['best'] else ''}"
    )


def plot(history: list[dict[str, Any]], metric: str, path: Path) -> None:
    """Loss, a metric and Newton iterations over the epochs, as an image."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    loss, judged, iterations = figure.subplots(1, 3)
    for axis, name in ((loss, "loss"), (judged, metric)):
        axis.plot(epochs, [record[name] for record in history], label="training")
        axis.plot(epochs, [record[f"validation_{name}"] for record in history], label="validation")
        axis.set(title=name, xlabel="epoch")
        axis.legend()
    loss.set_yscale("log")
    for block, counts in enumerate(zip(*(record["iterations"] for record in history), strict=True)):
        # Blocks often take equally many: markers of different sizes keep them all in sight.
        size = 4 + 3 * (len(history[0]["iterations"]) - block)
        iterations.plot(epochs, counts, ".", markersize=size, label=f"block {block + 1}")
    iterations.set(title="Newton iterations (validation)", xlabel="epoch")
    iterations.set_ylim(bottom=0)
    iterations.legend()
    for axis in (loss, judged, iterations):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    iterations.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=120)
