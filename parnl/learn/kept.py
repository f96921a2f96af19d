"""What a run keeps for its report beside its model, so that nobody has to read the data again.

    keep(folder, config, dataset, history, test, scale)     # at the end of a training
    record = read(folder)                                   # for the report; checked

`report.json` holds numbers and text, `test.safetensors` the answers to the test part. A run's
folder may come from anybody: `read` refuses what it does not expect, and names the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from parnl.learn.ahead import Ahead
from parnl.learn.checkpoints import HEADER, read_checkpoint, write_checkpoint
from parnl.learn.config import Config
from parnl.learn.data import Dataset, Split
from parnl.learn.judging import MOST_ANSWERS, Comparison, evenly
from parnl.learn.readers.collection import LARGEST, shown
from parnl.learn.tasks import Scale, cross_entropy
from parnl.learn.trained import Trained, load_run
from parnl.learn.training import MODEL

REPORT, TEST = "report.json", "test.safetensors"
SAMPLE, STEPS = 8, 1024
"""Test series whose inputs are kept, the longest ones, and the most of their steps."""
PARTS = ("train", "validation", "test")
T = TypeVar("T")


class Part(NamedTuple):
    """One part of the data. steps: the fewest and the most; classes: series of each class."""

    series: int
    steps: tuple[int, int]
    classes: tuple[int, ...]


class Record(NamedTuple):
    """What `read` found in a run's folder.

    history: of each epoch; best: the record of the epoch whose weights were kept. metric: the one
    that decided. metrics to chunks: of the test part, see `judging.Comparison`. name, notes,
    parts: of the data. versions: of packages. answers: (n, k) logits, or numbers on their own
    scale, of n of `total` test series; targets: (n,) classes or (n, k) numbers. inputs: (m, T,
    channels), what the model read of a few test series.

    For later steps, answers and targets are (n, horizon * columns), or (n, T, columns), on the
    model's scale, NaN where they are not known. For tokens (n, T), answers (n, T, 2) are how many
    bits each took and which was likeliest, NaN after the end of a text. Inputs are those of some
    windows, evenly chosen from the n.
    """

    model: Trained
    history: list[dict[str, Any]]
    best: dict[str, Any]
    metric: str
    metrics: dict[str, float]
    gap: float
    scale: float
    iterations: list[int]
    chunks: int
    name: str
    notes: list[str]
    parts: dict[str, Part]
    versions: dict[str, str]
    answers: np.ndarray
    targets: np.ndarray
    inputs: np.ndarray
    total: int


def keep(
    folder: Path,
    config: Config,
    dataset: Dataset,
    history: list[dict[str, Any]],
    test: Comparison,
    scale: Scale,
) -> None:
    """Write `report.json` and `test.safetensors` into the folder of a finished run.

    scale: of the numbers that were learned. The files name the model that they tell of.
    """
    model = digest(folder / MODEL)
    answers, targets = scale.told(test.answers), np.asarray(dataset.test.labels[test.rows])
    later = dataset.ahead
    if later is not None and answers.ndim == 3:
        answers, targets = _of_steps(answers, targets, dataset.test, test.rows)
    arrays = dict(
        answers=answers.astype(np.float64),
        targets=targets,
        inputs=_sample(dataset.test, None if later is None else test.rows),
    )
    write_checkpoint(folder / TEST, arrays, model=model, total=len(dataset.test.labels))
    measured = test._asdict()
    del measured["answers"], measured["rows"]
    parts = {name: _part(getattr(dataset, name), len(dataset.classes))._asdict() for name in PARTS}
    report = dict(
        config=asdict(config),
        history=history,
        test=measured,
        data=dict(name=dataset.name, notes=list(dataset.notes), parts=parts),
        versions=_versions(config.backend),
        model=model,
    )
    (folder / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False))


def digest(path: Path) -> str:
    """A short text that differs for files that differ."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _of_steps(answers: Any, targets: Any, split: Split, rows: np.ndarray) -> tuple[Any, Any]:
    """What is kept of answers (n, T, k) to each step, and of the steps."""
    if targets.ndim == 2:
        likeliest = answers.argmax(axis=2)
        answers = np.stack([cross_entropy(answers, targets) / np.log(2), likeliest], axis=2)
    if split.lengths is not None:
        ended = np.arange(answers.shape[1]) >= split.lengths[rows][:, None]
        answers = np.where(ended[..., None], np.nan, answers)
        if targets.ndim == 3:
            targets = np.where(ended[..., None], np.float32(np.nan), targets)
    return answers, targets


def _sample(split: Split, rows: np.ndarray | None) -> np.ndarray:
    """Some of these test series, or the longest, all cut to one length: without padding."""
    if rows is not None:
        few = rows[evenly(len(rows), SAMPLE)]
        inputs = split.inputs[few]
        cut = inputs.shape[1] if split.lengths is None else int(split.lengths[few].min())
        return inputs[:, : min(cut, STEPS)]
    count, steps = split.inputs.shape[:2]
    lengths = np.full(count, steps) if split.lengths is None else np.asarray(split.lengths)
    rows = np.argsort(-lengths, kind="stable")[:SAMPLE]
    shortest = min(int(lengths[rows].min()), STEPS)
    return np.asarray(split.inputs[rows][:, :shortest], np.float32)


def _part(split: Split, classes: int) -> Part:
    steps = split.inputs.shape[1]
    lengths = [steps] if split.lengths is None else split.lengths
    counts = np.bincount(split.labels, minlength=classes) if classes else np.zeros(0, np.int64)
    ends = int(np.min(lengths)), int(np.max(lengths))
    return Part(len(split.labels), ends, tuple(counts.tolist()))


def _versions(backend: str) -> dict[str, str]:
    packages = ("parnl", "numpy", backend)
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def read(folder: Path) -> Record:
    """What a run kept. Its folder need not be trusted.

    Raises FileNotFoundError where a file is missing, ValueError that names a file which is not
    what a run writes, or which is of an older run.
    """
    path = folder / REPORT
    if not path.is_file():
        raise FileNotFoundError(f"report: there is no file {path}; expected the folder of a run")
    held = _json(path)
    if not isinstance(held, dict):
        raise ValueError(f"report: {path} holds {_kind(held)}, expected an object")
    missing = [key for key in ("data", "versions", "model") if key not in held]
    if missing or not (folder / TEST).is_file():
        lacks = f"{path} lacks {', '.join(missing)}" if missing else f"there is no {folder / TEST}"
        raise ValueError(
            f"report: {lacks}: the run is of an older parnl, or is not finished. This adds what is "
            f"missing, without training anew: parnl train --resume --out {folder}"
        )
    model = load_run(folder)
    arrays, header = read_checkpoint(folder / TEST)
    if not held["model"] == header.get("model") == digest(folder / MODEL):
        raise ValueError(
            f"report: {path}, {TEST} and {MODEL} are of different runs; this writes them anew: "
            f"parnl train --resume --out {folder}"
        )
    return _checked(folder / TEST, lambda: _record(path, model, held, arrays, header))


def _record(path: Path, model: Trained, held: Any, arrays: Any, header: Any) -> Record:
    """The record, each entry checked."""
    about = _checked(path, lambda: _told(model, held))
    count, later = whole("total", header.get("total")), model.ahead
    answers, targets = (_array(n, arrays, later is not None) for n in ("answers", "targets"))
    inputs = _array("inputs", arrays)
    n, k = len(answers), len(model.classes) or len(model.scale.mean)
    if not 0 < n <= min(count, MOST_ANSWERS):
        raise ValueError(f"answers: got {n} of a total of {count}")
    shapes: tuple[Any, Any] = (n, k), (n,) if model.classes else (n, k)
    if later is not None:
        shapes = _shapes_ahead(later, targets)
    for name, array, shape in zip(
        ("answers", "targets"), (answers, targets), shapes, strict=True
    ):  # fmt: skip
        if array.shape != shape:
            raise ValueError(f"{name}: got the shape {array.shape}, expected {shape}")
    if later is not None and later.tokens:
        _check_tokens("targets", targets, later.tokens)
        _check_tokens("inputs", inputs, later.tokens)
    if model.classes and not (targets.dtype.kind == "i" and ((targets >= 0) & (targets < k)).all()):
        raise ValueError(f"targets: expected whole numbers at least 0 and less than {k}")
    ndim = 2 if later is not None and later.tokens else 3
    if (
        inputs.ndim != ndim
        or 0 in inputs.shape
        or inputs.shape[0] > SAMPLE
        or inputs.shape[1] > STEPS
    ):
        raise ValueError(
            f"inputs: got the shape {inputs.shape}, expected at most {SAMPLE} series of at most "
            f"{STEPS} steps"
        )
    lift = model.trainer.export_state()["model.lift.weight"]
    if ndim == 3 and inputs.shape[2] != lift.shape[1]:
        raise ValueError(f"inputs: got {inputs.shape[2]} channels, expected {lift.shape[1]}")
    return Record(
        model=model, answers=answers, targets=targets, inputs=inputs, total=count, **about
    )


def _shapes_ahead(later: Ahead, targets: np.ndarray) -> tuple[Any, Any]:
    """The shapes of answers and targets of later steps."""
    n, steps = len(targets), targets.shape[1] if targets.ndim > 1 else 0
    if not 0 < steps <= max(later.context, later.answers):
        raise ValueError(f"targets: got the shape {targets.shape}")
    if later.tokens:
        return (n, steps, 2), (n, steps)
    own = (n, steps, later.answers) if targets.ndim == 3 else (n, later.answers)
    return own, own


def _check_tokens(name: str, array: np.ndarray, size: int) -> None:
    if array.dtype.kind != "i" or not ((array >= 0) & (array < size)).all():
        raise ValueError(f"{name}: expected whole numbers at least 0 and less than {size}")


def _told(model: Trained, held: dict[str, Any]) -> dict[str, Any]:
    """What `report.json` tells, checked entry by entry."""
    metric = model.config.best or model.task.best
    history = [_epoch(record, metric) for record in a_list("history", held.get("history"))]
    bests = [record for record in history if record["best"]]
    # also a limit: a header may name any number of loops
    solves = 0 if model.config.cell == "attention" else model.config.blocks * model.config.loops
    if not bests or any(len(record["iterations"]) != solves for record in history):
        raise ValueError(f"history: expected epochs of {solves} solves each, one of them the best")
    test, data = an_object("test", held.get("test")), an_object("data", held["data"])
    parts = an_object("parts", data.get("parts"))
    return dict(
        history=history,
        best=bests[-1],
        metric=metric,
        metrics={
            name: number(name, value)
            for name, value in an_object("metrics", test.get("metrics")).items()
        },
        gap=number("gap", test.get("gap")),
        scale=number("scale", test.get("scale")),
        iterations=[whole("iterations", n) for n in a_list("iterations", test.get("iterations"))],
        chunks=whole("chunks", test.get("chunks")),
        name=a_text("name", data.get("name")),
        notes=[a_text("notes", note) for note in a_list("notes", data.get("notes"))],
        parts={name: _part_of(parts.get(name), len(model.classes)) for name in PARTS},
        versions={
            name: a_text("versions", value)
            for name, value in an_object("versions", held["versions"]).items()
        },
    )


def _epoch(record: Any, metric: str) -> dict[str, Any]:
    record = an_object("history", record)
    names = ("loss", metric, "validation_loss", f"validation_{metric}", "seconds")
    return {name: number(f"history: {name}", record.get(name)) for name in names} | dict(
        epoch=whole("history: epoch", record.get("epoch")),
        iterations=[
            whole("history: iterations", n)
            for n in a_list("history: iterations", record.get("iterations"))
        ],
        best=record.get("best") is True,
    )


def _part_of(held: Any, classes: int) -> Part:
    held = an_object("parts", held)
    steps = [whole("steps", n) for n in a_list("steps", held.get("steps"))]
    counts = [whole("classes", n) for n in a_list("classes", held.get("classes"))]
    if len(steps) != 2 or len(counts) != classes:
        raise ValueError(f"parts: got {len(steps)} steps and {len(counts)} classes, expected 2 and "
                         f"{classes}")  # fmt: skip
    return Part(whole("series", held.get("series")), (steps[0], steps[1]), tuple(counts))


def _array(name: str, arrays: dict[str, np.ndarray], gaps: bool = False) -> np.ndarray:
    """The finite numbers of this name; with `gaps` NaN, too."""
    if name not in arrays:
        raise ValueError(f"{name}: expected an array of this name")
    array = arrays[name]
    size = np.abs(array.astype(np.float64)) if array.dtype.kind in "if" else None
    if size is None or not ((size <= LARGEST) | (gaps & np.isnan(size))).all():
        raise ValueError(f"{name}: expected finite numbers, up to {LARGEST:g}, got {array.dtype}")
    return array


def number(name: str, value: Any) -> float:
    """A finite number of JSON; raises ValueError that names it."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not -LARGEST <= value <= LARGEST or math.isnan(value):
        raise ValueError(f"{name}: got {shown(value)}, expected a finite number")
    return float(value)


def whole(name: str, value: Any) -> int:
    """A whole number of JSON, at least 0; raises ValueError that names it."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError(f"{name}: got {shown(value)}, expected a whole number, at least 0")
    return value


def _expect(kind: type[T], word: str) -> Callable[[str, Any], T]:
    def check(name: str, value: Any) -> T:
        if not isinstance(value, kind):
            raise ValueError(f"{name}: got {_kind(value)}, expected {word}")
        return value

    return check


an_object: Callable[[str, Any], dict[str, Any]] = _expect(dict, "an object")
a_list: Callable[[str, Any], list[Any]] = _expect(list, "a list")
a_text: Callable[[str, Any], str] = _expect(str, "text")


def _kind(value: Any) -> str:
    """The kind of a value of JSON, in words."""
    words = {
        dict: "an object",
        list: "a list",
        str: "text",
        type(None): "nothing",
        bool: "a yes or no",
    }
    return words.get(type(value), "a number")


def _json(path: Path) -> Any:
    """What a file of JSON holds, NaN and infinity refused."""
    size = path.stat().st_size
    if size > HEADER:  # the history stands in the checkpoint's header as well
        raise ValueError(f"report: {path} has {size} bytes, expected at most {HEADER}")

    def refuse(name: str) -> None:
        raise ValueError(f"got {name}, expected a finite number")

    try:
        return json.loads(path.read_text("utf-8"), parse_constant=refuse)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"report: {path} is not JSON that a run writes ({error})") from error


def _checked(path: Path, make: Callable[[], T]) -> T:
    """What `make` makes; its errors name the file."""
    try:
        return make()
    except ValueError as error:
        if str(error).startswith("report: "):
            raise
        raise ValueError(f"report: {path} is not what a run writes ({error})") from error
