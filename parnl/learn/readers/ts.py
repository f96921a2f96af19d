"""The .ts files of the UEA and UCR archives: a header, then a series a line.

    @classLabel true walk run
    @data
    1.0,2.0,?:0.5,0.4,0.3:walk          two channels of three steps, of the class "walk"

With `@timeStamps true` a step is (time,value). aeon's reader is not used: it names no line, and it
loses the sign, the exponent and integers of series with time stamps.
"""

import re
from pathlib import Path

import numpy as np

from parnl.learn.readers.collection import (
    NAMELESS,
    Collection,
    counted,
    listed,
    number,
    shown,
    wrong,
)
from parnl.learn.readers.lines import lines_of

_PAIR = re.compile(r"\(([^(),]*),([^(),]*)\)")


def read_ts(path: Path) -> Collection:
    """The series and labels of a .ts file."""
    lines = lines_of(path)
    header: dict[str, str] = {}
    classes: list[str] = []
    target = False
    for line, text in lines:
        words = text.split()
        if text.startswith(("#", "%")):
            continue
        if not text.startswith("@"):
            raise wrong(
                path, f"line {line}", shown(text), "a line of the header, which begins with @"
            )
        key, rest = words[0][1:].lower(), words[1:]
        if key == "data":
            break
        if key in ("classlabel", "targetlabel"):
            if not rest or rest[0].lower() not in ("true", "false"):
                raise wrong(path, f"line {line}", shown(text), f"@{key} true or @{key} false")
            target = target or rest[0].lower() == "true"
            classes = rest[1:] or classes
        header[key] = " ".join(rest).lower()
    else:
        raise ValueError(f"data: {path} has no line @data, and so no series")
    timed = header.get("timestamps") == "true"
    series: list[np.ndarray] = []
    labels: list[str] = []
    times: list[np.ndarray] = []
    places: list[int] = []
    for line, text in lines:
        if text.startswith("#"):
            continue
        parts = re.split(r"(?<=\))\s*:" if timed else ":", text)
        if target:
            labels.append(_label(path, line, parts, classes))
        if series:
            check_width(path, line, len(parts), series[0].shape[1], places[0])
        if timed:
            values, own = _timed(path, line, parts)
            times.append(own)
        else:
            values = _plain(path, line, parts)
        series.append(values)
        places.append(line)
    if not series:
        raise ValueError(f"data: {path} has no series after the line @data")
    return Collection(
        str(path),
        tuple(map(str, range(series[0].shape[1]))),
        series,
        labels=np.array(labels) if target else None,
        times=times if timed else None,
        label_place=lambda i: f"line {places[i]}",
        notes=("each step has its time, a number",) if timed else (),
    )


def _label(path: Path, line: int, parts: list[str], classes: list[str]) -> str:
    """The last part of a line, taken off it."""
    if len(parts) < 2:
        raise wrong(
            path, f"line {line}", shown(parts[0]), "channels and a label after the last ':'"
        )
    label = parts.pop().strip()
    if classes and label.lower() not in (name.lower() for name in classes):
        raise wrong(
            path, f"line {line}", shown(label), f"a class that @classLabel names: {listed(classes)}"
        )
    if label.lower() in NAMELESS:
        raise wrong(path, f"line {line}", shown(label), "a label")
    return label


def _plain(path: Path, line: int, parts: list[str]) -> np.ndarray:
    """Channels as (steps, channels)."""
    channels: list[np.ndarray] = []
    for c, part in enumerate(parts, start=1):
        cells = part.split(",") if part.strip() else []
        if not cells:
            raise wrong(path, f"line {line}, channel {c}", "no values", "at least one step")
        if channels and len(cells) != len(channels[0]):
            got, expected = counted(len(cells), "value"), f"{len(channels[0])}, as in channel 1"
            raise wrong(path, f"line {line}, channel {c}", got, expected)
        channels.append(values_of(cells, path, f"line {line}, channel {c}"))
    return np.stack(channels, axis=1)


def check_width(path: Path, line: int, found: int, expected: int, first: int) -> None:
    """Refuse a line unless it has as many channels as the first one."""
    if found != expected:
        got = counted(found, "channel")
        raise wrong(path, f"line {line}", got, f"{expected}, as in line {first}")


def values_of(cells: list[str], path: Path, place: str) -> np.ndarray:
    """Text as float64, NaN where a value is missing."""
    return np.array(
        [number(cell, path, f"{place}, value {i}") for i, cell in enumerate(cells, start=1)]
    )


def _timed(path: Path, line: int, parts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Channels of pairs (time,value) as (steps, channels), and the times (steps,)."""
    channels: list[np.ndarray] = []
    times = np.zeros(0)
    for c, part in enumerate(parts, start=1):
        place = f"line {line}, channel {c}"
        pairs = _PAIR.findall(part)
        if not pairs or _PAIR.sub("", part).strip(" ,\t"):
            raise wrong(path, place, shown(part), "pairs (time,value) with numbers for times")
        own = values_of([time for time, _ in pairs], path, place)
        if np.isnan(own).any():
            raise wrong(path, place, "a missing time", "a number")
        if (np.diff(own) < 0).any():
            i = int((np.diff(own) < 0).argmax()) + 1
            raise wrong(path, f"{place}, value {i + 1}", own[i], f"a time not before {own[i - 1]}")
        if channels and not np.array_equal(own, times):
            raise wrong(path, place, "other times", "those of channel 1")
        times = own
        channels.append(values_of([value for _, value in pairs], path, place))
    return np.stack(channels, axis=1), times
