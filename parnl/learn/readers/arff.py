"""The .arff files of Weka and the UEA and UCR archives: attributes, then a series a line.

A series of one channel has an attribute for each step. One of several channels is a relational
attribute: a quoted text with a channel on each of its lines, which stand apart by \\n. The last
attribute holds the label.
"""

from pathlib import Path

import numpy as np

from parnl.learn.readers.collection import NAMELESS, Collection, counted, listed, shown, wrong
from parnl.learn.readers.lines import lines_of
from parnl.learn.readers.ts import check_width, values_of


def read_arff(path: Path) -> Collection:
    """The series and labels of an .arff file."""
    lines = lines_of(path)
    kinds: list[str] = []
    inside = relational = False
    for line, text in lines:
        key = text.split()[0].lower()
        if text.startswith("%") or key == "@relation":
            continue
        if key == "@data":
            break
        if key == "@end":
            inside = False
        elif key != "@attribute":
            raise wrong(path, f"line {line}", shown(text), "@attribute, @data or a comment after %")
        elif not inside:
            if len(text.split()) < 3:
                raise wrong(path, f"line {line}", shown(text), "@attribute, a name and a kind")
            kinds.append(text)
            inside = text.split()[-1].lower() == "relational"
            relational = relational or inside
    else:
        raise ValueError(f"data: {path} has no line @data, and so no series")
    classes = _classes(kinds[-1]) if kinds else None
    if relational and len(kinds) != 2:
        raise ValueError(f"data: {path}: expected one relational attribute and one of labels")
    series: list[np.ndarray] = []
    labels: list[str] = []
    places: list[int] = []
    for line, text in lines:
        if text.startswith("%"):
            continue
        if text.startswith("{"):
            raise wrong(path, f"line {line}", shown(text), "all values of a row, no sparse row")
        cells = _quoted(path, line, text) if relational else text.split(",")
        if len(cells) != len(kinds):
            got, expected = counted(len(cells), "field"), f"{len(kinds)}, one for each attribute"
            raise wrong(path, f"line {line}", got, expected)
        if relational:
            own = [row for row in cells[0].replace("\\n", "\n").split("\n") if row.strip()]
            channels = [
                values_of(row.split(","), path, f"line {line}, channel {c}")
                for c, row in enumerate(own, start=1)
            ]
        else:
            values = cells[: len(kinds) - (classes is not None)]
            channels = [values_of(values, path, f"line {line}")]
        if not channels or {len(one) for one in channels} != {len(channels[0])}:
            raise wrong(path, f"line {line}", "channels of several lengths or none", "one length")
        if series:
            check_width(path, line, len(channels), series[0].shape[1], places[0])
        if classes is not None:
            labels.append(_label(path, line, cells[-1].strip().strip("'\""), classes))
        series.append(_shortened(path, line, np.stack(channels, axis=1)))
        places.append(line)
    if not series:
        raise ValueError(f"data: {path} has no series after the line @data")
    return Collection(
        str(path),
        tuple(map(str, range(series[0].shape[1]))),
        series,
        labels=np.array(labels) if classes is not None else None,
        label_place=lambda i: f"line {places[i]}",
    )


def _quoted(path: Path, line: int, text: str) -> list[str]:
    """The quoted series and the label of a row."""
    if text[0] not in "'\"" or text.count(text[0]) < 2:
        raise wrong(path, f"line {line}", shown(text), "a series in quotes and a label")
    series, _, label = text[1:].partition(text[0])
    return [series, label.strip(" ,")]


def _classes(attribute: str) -> list[str] | None:
    """The names in braces of the last attribute; None if it is a number, a step as the others.

    An attribute called target is a label all the same: a number.
    """
    _, brace, rest = attribute.partition("{")
    if brace:
        inside = rest.rpartition("}")[0]
        return [name.strip().strip("'\"") for name in inside.split(",")]
    name = attribute.split()[1].strip("'\"").lower()
    return [] if name in ("target", "class", "label") else None


def _label(path: Path, line: int, label: str, classes: list[str]) -> str:
    if label.lower() in NAMELESS:
        raise wrong(path, f"line {line}", shown(label), "a label")
    if classes and label not in classes:
        raise wrong(
            path,
            f"line {line}",
            shown(label),
            f"a class that the attribute names: {listed(classes)}",
        )
    return label


def _shortened(path: Path, line: int, values: np.ndarray) -> np.ndarray:
    """Without steps at the end that are missing in all channels: they fill up shorter series."""
    real = np.flatnonzero(~np.isnan(values).all(axis=1))
    if not len(real):
        raise wrong(path, f"line {line}", "no values", "a series of numbers")
    return values[: real[-1] + 1]
