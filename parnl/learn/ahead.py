"""Data sets whose targets are later steps of the series themselves: windows to learn from.

    dataset = load("ETTh1.csv", task="forecast", context=96, horizon=24)
    dataset.train.inputs[:2].shape      # (2, 96, 7): windows, steps, channels
    dataset.train.labels[:2].shape      # (2, 168): what 7 columns change by, 24 steps ahead

    dataset = load("shakespeare.txt", task="next", context=256)
    dataset.train.inputs[:2].shape      # (2, 256): windows, steps; the labels are one step later

Windows are cut when they are asked for. One series is divided in time: its first steps train, its
last ones test. Of many, a forecast divides each in time, and "next" takes whole series for a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parnl.learn import readers, splits
from parnl.learn.data import Dataset, Split, names_of, published
from parnl.learn.lazy import Lazy
from parnl.learn.preparation import Preparation, learn, said
from parnl.learn.readers import Collection, Options, text
from parnl.learn.readers.collection import counted, listed, wrong
from parnl.learn.readers.mapped import MappedSeries

TASKS = ("forecast", "next")
CONTEXT = {"forecast": 96, "next": 256}
HORIZON = 24


class Ahead(NamedTuple):
    """What a model of later steps reads and answers.

    context: how many steps it reads. horizon: how many it answers with, 1 for the task "next".
    targets: the columns it answers with. tokens: how many there are; 0 where steps are numbers.
    bytes_: whether a token is a byte.
    """

    context: int
    horizon: int
    targets: tuple[str, ...] = ()
    tokens: int = 0
    bytes_: bool = False

    @property
    def answers(self) -> int:
        """How many numbers an answer has."""
        return self.tokens or self.horizon * len(self.targets)

    @classmethod
    def checked(cls, held: dict[str, Any]) -> Ahead:
        """What `_asdict` returned, checked: it may come from a file."""
        made = cls(**held)
        made = made._replace(targets=tuple(map(str, made.targets)))
        numbers = (made.context, made.horizon, made.tokens)
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        if not whole or made.context < 1 or made.horizon < 1 or not 0 <= made.tokens < 2**31:
            raise ValueError(f"a context of {made.context}, a horizon of {made.horizon}")
        if bool(made.targets) == bool(made.tokens) or not isinstance(made.bytes_, bool):
            raise ValueError("expected either targets or tokens")
        return made


def is_text(name: str) -> bool:
    """Whether the data of a task "next" is a file of tokens."""
    return text.is_text(Path(name), readers.SUFFIXES)


def without_labels(collection: Collection) -> Collection:
    """The series alone. Raises ValueError for series larger than memory."""
    if isinstance(collection.series, MappedSeries):
        raise ValueError(
            f"data: {collection.source}: got series larger than what is kept in memory, expected "
            "smaller ones for a task whose targets are later steps"
        )
    return collection._replace(labels=None)


class Series(NamedTuple):
    """Series as a model reads them, and their later steps to learn.

    read: (steps, channels) each. told: (steps, targets) each, NaN where a value is missing. places:
    where the targets stand among the channels.
    """

    read: Sequence[np.ndarray]
    told: Sequence[np.ndarray]
    places: Sequence[int]


def series_of(collection: Collection, preparation: Preparation, targets: Sequence[str]) -> Series:
    """The prepared series of a collection."""
    found, every = preparation.whole_series(collection)
    columns = [preparation.channels.index(name) for name in targets]
    told = [own[:, columns] for own in every]
    return Series(found, told, preparation.places(targets))


def targets_in(collection: Collection, names: Sequence[str], wanted: Sequence[str] | None) -> Any:
    """The columns to answer with: those wanted, or all that hold numbers."""
    numbers = [name for name in names if name not in collection.categories]
    if wanted is None:
        if not numbers:
            raise wrong(collection.source, "target", "columns of text alone", "one of numbers")
        return tuple(numbers)
    unknown = [name for name in wanted if name not in numbers]
    if unknown or not wanted or len({*wanted}) < len(wanted):
        expected = f"columns of numbers, each once, of {listed(numbers)}"
        raise wrong(collection.source, "target", listed(unknown or wanted) or "none", expected)
    return tuple(wanted)


def check_targets(preparation: Preparation, targets: Sequence[str]) -> None:
    """Raise ValueError unless these are columns of numbers: they may come from a file."""
    numbers = [n for n in preparation.channels if n not in preparation.categories]
    unknown = [name for name in targets if name not in numbers]
    if unknown:
        raise ValueError(f"targets {listed(unknown)}, expected columns of {listed(numbers)}")


# A part of a data set: (series, first step, step after the last) of each piece of a series.
Pieces = list[tuple[int, int, int]]


def forecast_windows(series: Series, pieces: Pieces, ahead: Ahead) -> Split:
    """Every window whose `horizon` steps ahead lie within a piece; it may read steps before that.

    Targets are read and learned as differences from the last value that is read. On ETTh1, 24 hours
    ahead, this brought the test error from 0.61 to 0.44. labels: (N, horizon * targets). Windows
    without a known value ahead are left out.
    """
    which, ends = [], []
    for i, first, last in pieces:
        own = np.arange(max(first, ahead.context), last - ahead.horizon + 1)
        if not len(own):
            continue
        known = np.cumsum(np.r_[0, (~np.isnan(series.told[i])).any(axis=1)])
        own = own[known[own + ahead.horizon] > known[own]]
        which.append(np.full(len(own), i))
        ends.append(own)
    at = np.concatenate(which or [np.zeros(0, int)]), np.concatenate(ends or [np.zeros(0, int)])

    def inputs(rows: np.ndarray) -> np.ndarray:
        found = _cut(series.read, at[0][rows], at[1][rows] - ahead.context, ahead.context)
        return from_last(found, series.places)[0]

    def labels(rows: np.ndarray) -> np.ndarray:
        later = _cut(series.told, at[0][rows], at[1][rows], ahead.horizon)
        last = _cut(series.read, at[0][rows], at[1][rows] - 1, 1)[..., series.places]
        return (later - last).reshape(len(rows), -1)

    count, channels = len(at[0]), series.read[0].shape[1]
    return Split(
        Lazy((count, ahead.context, channels), inputs, np.float32),
        Lazy((count, ahead.answers), labels, np.float32),
        None,
    )


def from_last(inputs: np.ndarray, places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, steps, channels) less the last values of channels at `places`; those values."""
    last = np.zeros_like(inputs[:, -1:])
    last[..., places] = inputs[:, -1:, places]
    return inputs - last, last[:, 0, places]


def next_windows(series: Series, pieces: Pieces, ahead: Ahead, rest: bool) -> Split:
    """Windows one after the other, within pieces; labels are the same steps, one later.

    rest: whether a piece with other windows also keeps one that is shorter than the context. Tokens
    are series (steps,), with `read` and `told` the same.
    """
    which, starts, lengths = [], [], []
    for i, first, last in pieces:
        own = np.arange(first, last - 1, ahead.context)
        steps = np.minimum(last - 1 - own, ahead.context)
        if len(own) > 1 and not rest:
            own, steps = own[steps == ahead.context], steps[steps == ahead.context]
        which.append(np.full(len(own), i))
        starts.append(own)
        lengths.append(steps)
    nothing = [np.zeros(0, int)]
    at = np.concatenate(which or nothing), np.concatenate(starts or nothing)
    steps = np.concatenate(lengths or nothing)
    longest = int(steps.max(initial=1))

    def cut(of: Sequence[np.ndarray], later: int) -> Lazy:
        tokens = of[0].ndim == 1
        shape = (len(steps), longest, *of[0].shape[1:])
        dtype = np.dtype(np.int64 if tokens else np.float32)

        def make(rows: np.ndarray) -> np.ndarray:
            if (steps[rows] == longest).all():
                return _cut(of, at[0][rows], at[1][rows] + later, longest).astype(dtype)
            found = np.zeros((len(rows), *shape[1:]), dtype)
            for row, k in zip(found, rows, strict=True):
                begin = at[1][k] + later
                row[: steps[k]] = of[at[0][k]][begin : begin + steps[k]]
            return found

        return Lazy(shape, make, dtype)

    return Split(
        cut(series.read, 0), cut(series.told, 1), steps if (steps < longest).any() else None
    )


def _cut(series: Sequence[np.ndarray], which: np.ndarray, starts: Any, steps: int) -> np.ndarray:
    return np.stack([series[i][s : s + steps] for i, s in zip(which, starts, strict=True)])


class Cut(NamedTuple):
    """The pieces of series that make each part."""

    train: Pieces
    validation: Pieces
    test: Pieces


def in_time(
    source: Any, rows: Sequence[int], lengths: Sequence[int], validation: float, test: float
) -> Cut:
    """Each of these series in three: its last steps test, those before validate, the others train.

    validation, test: numbers of steps, or shares; that of validation is of what the test leaves.
    """
    train, held, tested = [], [], []
    for i in rows:
        steps = lengths[i]
        last = int(test) if test >= 1 else round(test * steps)
        before = int(validation) if validation >= 1 else round(validation * (steps - last))
        if steps - last - before < 1:
            got = f"{counted(before, 'step')} to validate and {last} to test"
            expected = f"fewer than the {steps} steps of series {i}"
            raise ValueError(f"data: {source}: got {got}, expected {expected}")
        train.append((i, 0, steps - last - before))
        held.append((i, steps - last - before, steps - last))
        tested.append((i, steps - last, steps))
    return Cut(train, held, tested)


def by_series(rows: splits.Rows, lengths: Sequence[int]) -> Cut:
    """Whole series."""
    return Cut(*([(int(i), 0, lengths[i]) for i in own] for own in rows))


def divided(collection: Collection, task: str, seed: int, **shares: float) -> Cut:
    """The parts of a data set, as the file gives them, or by series, or in time."""
    lengths, given = [len(one) for one in collection.series], collection.parts
    if given is None and (task == "forecast" or len(lengths) == 1):
        return in_time(collection.source, [*range(len(lengths))], lengths, **shares)
    train = None if given is None or given.validation is not None else given.train
    if given is not None and train is not None and (task == "forecast" or len(train) == 1):
        shares = shares | {"test": 0}  # the end of what trains validates
        cut = in_time(collection.source, train.tolist(), lengths, **shares)
        tested = [] if given.test is None else given.test.tolist()
        return cut._replace(test=[(i, 0, lengths[i]) for i in tested])
    rows = splits.drawn(
        collection.source, len(lengths), None, collection.parts, seed=seed, **shares
    )
    return by_series(rows, lengths)


def learned(collection: Collection, cut: Cut, **how: Any) -> Preparation:
    """The preparation that the steps of the training pieces teach."""
    pieces = [*cut.train, *cut.validation, *cut.test]
    times = collection.times
    alone = collection._replace(
        series=[collection.series[i][first:last] for i, first, last in pieces],
        times=None if times is None else [times[i][first:last] for i, first, last in pieces],
    )
    return learn(alone, np.arange(len(cut.train)), **how)


def windows(task: str, series: Series, pieces: Pieces, ahead: Ahead, rest: bool = True) -> Split:
    """The windows of a part, as the task wants them."""
    if task == "forecast":
        return forecast_windows(series, pieces, ahead)
    return next_windows(series, pieces, ahead, rest)


def check_windows(source: Any, part: str, found: Split, ahead: Ahead) -> None:
    """Raise ValueError for a part without windows."""
    if not len(found.inputs):
        raise ValueError(
            f"data: {source}: the {part} part has no {ahead.context} steps with {ahead.horizon} "
            "after them that hold a known value; expected longer series, or a smaller context "
            "or horizon"
        )


def notes_on(collection: Collection, preparation: Preparation, task: str, ahead: Ahead) -> Any:
    """Sentences on what was taken for what."""
    targets = listed(ahead.targets)
    aim = "the next step"
    if task == "forecast":
        aim = f"the next {counted(ahead.horizon, 'step')}"
    learns = f"{counted(ahead.context, 'step')} are read, {aim} of {targets} learned"
    return (*collection.notes, *said(preparation, collection), learns)


def load(
    name: str,
    *,
    task: str,
    context: int | None = None,
    horizon: int | None = None,
    target: Sequence[str] | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    standardise: bool = True,
    missing: str | None = None,
    id: str | None = None,
    time: str | None = None,
    columns: Sequence[str] | None = None,
    layout: str = "auto",
) -> Dataset:
    """The data set `name`, a file, a folder or one of aeon's, as windows of `context` steps.

    task: "forecast" answers with the next `horizon` steps of the columns `target`, all that hold
    numbers if None. "next" answers at each step with the one that follows. A file of text is read
    as bytes (`parnl.learn.readers.text`).

    Parts that a file gives are kept. Else `test` and `validation` are shares, `validation` of what
    the test leaves. Or they are numbers: of steps where series are divided in time, else of series.
    missing: as `parnl.learn.data.load` has it, "previous" if None; "interpolate" would look at
    later steps. Other options are those of `parnl.learn.data.load`. Raises ValueError.
    """
    context = CONTEXT[task] if context is None else context
    horizon = 1 if task == "next" else HORIZON if horizon is None else horizon
    if task == "next" and is_text(name):
        of_series: dict[str, Any] = dict(
            target=target, id=id, time=time, columns=columns, missing=missing
        )
        of_series |= dict(layout=None if layout == "auto" else layout)
        of_series |= dict(standardise=None if standardise else False)
        for option, value in of_series.items():
            if value is not None:
                raise ValueError(
                    f"{option}: got {value!r}, expected none for a text, which has no columns"
                )
        return _text(Path(name), context, validation, test)
    if missing == "interpolate":
        raise ValueError(
            f"missing: got 'interpolate', which looks at later steps; for the task {task!r} "
            "expected 'previous', 'mean' or 'mask'"
        )
    options = Options(id, time, (), columns, layout)
    if readers.is_file(name):
        collection = without_labels(readers.read(name, options, seed=seed))
    else:
        collection = without_labels(published(name, options._replace(label=None)))
    names = names_of(collection, None, columns)
    ahead = Ahead(context, horizon, targets_in(collection, names, target))
    cut = divided(collection, task, seed, validation=validation, test=test)
    preparation = learned(
        collection, cut, channels=names, standardise=standardise, missing=missing or "previous"
    )
    series = series_of(collection, preparation, ahead.targets)
    parts = [
        windows(task, series, pieces, ahead, rest=part != "train")
        for part, pieces in cut._asdict().items()
    ]
    for part, found in zip(cut._fields, parts, strict=True):
        check_windows(collection.source, part, found, ahead)
    notes = notes_on(collection, preparation, task, ahead)
    first, held, last = parts
    taken = collection.taken
    return Dataset(
        Path(name).stem, (), first, held, last, preparation, notes, taken, ahead
    )  # fmt: skip


def text_windows(tokens: np.ndarray, ahead: Ahead, rest: bool = True) -> Split:
    """The windows of a text (steps,), in their order."""
    return next_windows(Series([tokens], [tokens], []), [(0, 0, len(tokens))], ahead, rest)


def read_text(name: str, ahead: Ahead) -> np.ndarray:
    """The tokens (steps,) of a new text; of an .npz file, those of its test part."""
    found = text.read(Path(name))
    if (found.bytes_, found.size > ahead.tokens) != (ahead.bytes_, False):
        kind = "bytes" if ahead.bytes_ else f"tokens below {ahead.tokens}"
        raise wrong(name, "tokens", f"others, up to {found.size - 1}", kind)
    return found.parts["test"] if found.whole is None else found.whole


def _text(path: Path, context: int, validation: float, test: float) -> Dataset:
    found = text.read(path)
    parts = found.parts
    if found.whole is not None:
        cut = in_time(path, [0], [len(found.whole)], validation, test)
        parts = {
            part: found.whole[own[0][1] : own[0][2]] for part, own in cut._asdict().items()
        }  # fmt: skip
    elif "validation" not in parts:
        cut = in_time(path, [0], [len(parts["train"])], validation, 0)
        (_, first, last), (_, _, end) = cut.train[0], cut.validation[0]
        whole = parts["train"]
        parts = parts | {"train": whole[first:last], "validation": whole[last:end]}
    ahead = Ahead(context, 1, (), found.size, found.bytes_)
    made = [text_windows(parts[part], ahead, rest=part != "train") for part in Cut._fields]
    for part, own in zip(Cut._fields, made, strict=True):
        check_windows(path, part, own, ahead)
    verbs = dict(train="train on", validation="validate", test="test")
    sizes = ", ".join(f"{len(parts[part])} to {verb}" for part, verb in verbs.items())
    kind = "a step is a byte" if found.bytes_ else f"{found.size} tokens are told apart"
    train, held, tested = made
    notes = (f"{kind}; steps: {sizes}",)
    return Dataset(path.stem, (), train, held, tested, notes=notes, ahead=ahead)
