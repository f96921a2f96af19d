"""A web page on a run of training: one file that needs no network, no scripts and no data.

    write(Path("runs/JapaneseVowels-lrc-torch"))            # runs/.../report.html

The run may come from anybody: all its text is escaped, and the page forbids scripts and addresses.
A task's own part of the page is in `report_tasks`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from parnl.learn import charts
from parnl.learn.config import Config
from parnl.learn.data import channels_of
from parnl.learn.inside import BUDGET, BlockStability, stability
from parnl.learn.kept import PARTS, Record, read
from parnl.learn.markup import STYLE, figure, h2, p, table, text
from parnl.learn.progress import shown, things
from parnl.learn.readers.collection import counted
from parnl.learn.report_tasks import SECTIONS, names_of_numbers
from parnl.learn.training import model_of
from parnl.stability.certificates import Certificate

# What the command line calls an option of Config, if not by its own name.
NAMES = {"learning_rate": "--lr"}
NO_OPTIONS = ("options", "pooled", "channels", "clip")
MISSING = {
    "interpolate": "Missing values, if any, are filled in between the values around them.",
    "previous": "Missing values, if any, become the value before them.",
    "mean": "Missing values, if any, become the mean of their channel.",
    "mask": "Missing values, if any, become the mean; a further channel marks them.",
}


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the page of the run in `folder` to `out`, by default its `report.html`.

    Raises FileNotFoundError where the run lacks a file, ValueError that names a file which is not
    what a run writes.
    """
    out = out or folder / "report.html"
    text = page(read(folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, "utf-8")
    return out


def page(run: Record) -> str:
    """The whole page."""
    config = run.model.config
    title = f"{config.task}: {run.name}, {config.cell} in {config.backend}"
    return "\n".join((
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # a second lock: even text that was not escaped could do nothing
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f"<h1>{text(title)}</h1>",
        results(run),
        command(config),
        learning(run),
        SECTIONS[config.task](run),
        exactness(run),
        steadiness(run, stability(run.model, run.inputs)),
        data(run),
        model(run),
        "</body>\n</html>\n",
    ))  # fmt: skip


def results(run: Record) -> str:
    """The metrics of the test part."""
    of = f"{counted(run.parts['test'].series, things(run.model.ahead))} of the test part"
    return p(f"On the {of}, with the weights of epoch {run.best['epoch']}:") + table(
        ("metric", "test"), [(name, shown(name, run.metrics)) for name in run.metrics]
    )


def option(name: str) -> str:
    """What the command line calls an option of Config; its own name, if it has none there."""
    return name if name in NO_OPTIONS else NAMES.get(name, f"--{name.replace('_', '-')}")


def command_line(config: Config) -> tuple[str, list[str]]:
    """The command that makes this run anew, and options of the run that no command sets.

    Raises ValueError if an option holds characters that cannot be shown: pasted into a terminal,
    they could do anything.
    """
    words, lacking = ["parnl", "train"], []
    standard = Config()
    for field in fields(Config):
        value = getattr(config, field.name)
        if value == getattr(standard, field.name) and field.name != "data":
            continue
        if field.name in NO_OPTIONS:
            lacking.append(f"{field.name} = {value!r}")
        elif field.name == "standardise":
            words.append("--standardise" if value else "--raw")
        elif isinstance(value, bool):
            words.append(option(field.name))  # that is given only to say yes
        else:
            if isinstance(value, float) and value == int(value):
                value = int(value)  # a number of steps
            several = isinstance(value, list | tuple)
            words.append(option(field.name))
            words.append(",".join(map(str, value)) if several else str(value))
    for word in words:
        if not word.isprintable():
            raise ValueError(f"command: got {word!r}, expected characters that can be shown")
    return shlex.join(words), lacking


def command(config: Config) -> str:
    """The command that made the run."""
    try:
        line, lacking = command_line(config)
    except ValueError as error:
        return h2("Command") + p(f"The command cannot be shown. {error}")
    made = h2("Command") + p("This command makes such a run:") + f"<pre>{text(line)}</pre>"
    if lacking:
        names = "; ".join(lacking)
        made += p(f"The command line has no option for these. Set them in Python: {names}")
    return made


def learning(run: Record) -> str:
    """Loss, metric and Newton iterations over the epochs."""
    epochs, best = [record["epoch"] for record in run.history], run.best["epoch"]
    figures = []
    for name in dict.fromkeys(("loss", run.metric)):
        trained = [record[name] for record in run.history]
        validated = [record[f"validation_{name}"] for record in run.history]
        picture = charts.curves(epochs, trained, validated, best)
        figures.append(figure(picture, f"{name} by epoch, training and validation"))
    solves = list(zip(*(record["iterations"] for record in run.history), strict=True))
    if solves:
        blocks, loops = run.model.config.blocks, run.model.config.loops
        labels = [f"block {i % blocks + 1}" for i in range(len(solves))]
        if loops > 1:
            labels = [f"{label}, loop {i // blocks + 1}" for i, label in enumerate(labels)]
        picture = charts.iterations(epochs, solves, labels, best)
        figures.append(figure(picture, "Newton iterations of each block by epoch, validation"))
    last, value = run.history[-1], f"validation_{run.metric}"
    return (
        h2("Training")
        + p(
            f"Epoch {best} of {last['epoch']} is the best by {run.metric}: "
            f"{shown(value, run.best)} in validation. This page is about the weights of this epoch."
        )
        + f'<div class="charts">{"".join(figures)}</div>'
    )


def exactness(run: Record) -> str:
    """The parallel solve beside the sequential one."""
    share = f", {run.gap / run.scale:.1e} of the largest answer" if run.scale > 0 else ""
    blocks = ", ".join(map(str, run.iterations)) or "none"
    return (
        h2("How exact the parallel solve is")
        + p("The test part was solved twice: in parallel over time, and step by step. "
            "The gap is the largest difference of two answers, as the model gives them.")
        + table(("", "test"), [
            ("gap", f"{run.gap:.1e}{share}"),
            ("largest answer", f"{run.scale:.4g}"),
            ("chunks", run.chunks),
            ("Newton iterations of each block, at most", blocks),
        ])
    )  # fmt: skip


def steadiness(run: Record, blocks: Sequence[BlockStability]) -> str:
    """What is proved and measured of each block's cell."""
    head = h2("Stability")
    if not blocks:
        return head + p("The model has no recurrent cell: there is nothing to prove.")
    rows, proved, (count, steps) = [], [], run.inputs.shape[:2]
    seen = f"{counted(count, things(run.model.ahead))} of the test part"
    for i, block in enumerate(blocks, start=1):
        bound = block.certificate
        if bound is None:
            proved.append(f"Block {i}: nothing can be proved: {block.problem}")
            continue
        fade = f"halves in {math.log(2) / -block.largest:.3g} steps"
        rows.append((
            f"block {i}",
            f"{bound.bound:.4g}" if math.isfinite(bound.bound) else "none found",
            f"{block.measured:.4g}",
            f"{block.largest:.4g}: a change {fade if block.largest < 0 else 'does not fade'}",
            f"{np.min(bound.low):.3g} to {np.max(bound.high):.3g}",
        ))  # fmt: skip
        proved.append(f"Block {i}: {_verdict(bound)}")
    several = len(blocks[0].certificate.weights) > 1 if blocks[0].certificate else False
    return (
        head
        + "".join(map(p, proved))
        + p("The bound says how many times larger one step of the cell can make a small change of "
            "its state. Where it is proved to be below 1, for states that stay in their "
            "range, the channel is stable. Gradients then shrink by the bound with each step back "
            "in time (Theorem 1 of arXiv 2505.21717) and cannot explode, and the parallel solve "
            "usually needs few iterations. A channel without a proof may still be stable. What was "
            "measured shows how the cell behaved on these series.")
        + p("The proof holds for all inputs whose features lie in the ranges that "
            f"{seen} reach in {counted(steps, 'step')} each, and for the states in the table. "
            "It says nothing about inputs beyond these ranges.")
        + (p("The cell has several states. A change is measured by its largest part; the proof "
             "chose a weight for each state.") if several else "")
        + (table(("", "proved bound", "measured", "Lyapunov exponent a step", "states"), rows)
           if rows else "")
    )  # fmt: skip


def _verdict(bound: Certificate) -> str:
    count, proved = len(bound.rho), int(np.sum((bound.rho < 1) & bound.invariant))
    if bound.stable:
        return f"stable. This is proved for {counted(count, 'channel')}: every one of the cell's."
    beyond, loose = int(np.sum(bound.attained >= 1)), int(np.sum(~bound.invariant))
    words = (
        f"stable in {proved} of {counted(count, 'channel')}, by proof; not proved in the others."
    )
    if beyond:
        words += f" In {beyond}, changes do not shrink everywhere in the ranges."
    if loose:
        words += f" For {loose}, no range was found in which the states stay."
    if count - proved > beyond + loose:
        words += f" The proof may take {BUDGET} boxes a channel, and some would need more."
    return words


def data(run: Record) -> str:
    """The parts, classes and channels of the data, and what was done to it."""
    made, classes = run.model.preparation, run.model.classes
    rows: list[tuple[Any, ...]] = []
    for name in PARTS:
        (least, most), series = run.parts[name].steps, run.parts[name].series
        rows.append((name, series, str(most) if least == most else f"{least} to {most}"))
    heads = ("part", "series" if run.model.ahead is None else "windows", "steps")
    found = [h2("Data"), table(heads, rows)]
    if run.model.config.patch > 1:
        found.append(p(f"A step is {run.model.config.patch} steps of the data, joined."))
    if made is not None:
        found.append(p(MISSING[made.missing]))
    found += [p(note) for note in run.notes]
    if classes:
        counts = zip(*(run.parts[name].classes for name in PARTS), strict=True)
        rows = [(name, *own) for name, own in zip(classes, counts, strict=True)]
        found.append(table(("class", *PARTS), rows))
    elif run.model.ahead is None:
        pairs = zip(names_of_numbers(run), *run.model.scale.listed(), strict=True)
        rows = [(name, f"{mean:.6g}", f"{size:.6g}") for name, mean, size in pairs]
        found.append(table(("number to learn", "mean", "deviation"), rows))
    if made is None and run.model.ahead is not None:  # a text: nothing is done to it
        return "".join(found)
    if made is None:
        return "".join(found) + p("The run did not keep how its data was prepared.")
    rows = []
    for name, mean, size in zip(made.channels, made.mean, made.deviation, strict=True):
        text_of = made.categories.get(name)
        names = "" if text_of is None else "text: " + ", ".join(text_of)
        rows.append((name, names or f"{mean:.6g}", "" if names else f"{size:.6g}"))
    way = "brought to mean 0 and deviation 1" if made.standardise else "taken as they are"
    inputs = channels_of(made)
    found.append(p(f"Channels are {way}. Means and deviations are those of the training series."))
    found.append(table(("channel", "mean", "deviation"), rows))
    if tuple(inputs) != made.channels:
        found.append(p(f"The model reads {counted(len(inputs), 'input')}: {', '.join(inputs)}."))
    return "".join(found)


def model(run: Record) -> str:
    """Every option, sizes, times and versions."""
    config = run.model.config
    arrays = model_of(run.model.trainer.export_state())
    seconds = sum(record["seconds"] for record in run.history)
    rows = [
        ("parameters", f"{sum(array.size for array in arrays.values()):,}"),
        ("training", f"{seconds:.1f} s, {counted(len(run.history), 'epoch')}"),
        *((name, version) for name, version in run.versions.items()),
    ]
    options = [(option(field.name), _said(getattr(config, field.name))) for field in fields(Config)]
    return (
        h2("Model")
        + table(("", "value"), rows)
        + "<h3>Options</h3>"
        + table(("option", "value"), options)
    )


def _said(value: Any) -> str:
    return value if isinstance(value, str) else "not given" if value is None else repr(value)
