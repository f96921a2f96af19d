"""What is done to series before a model sees them, learned from the training part and kept.

preparation = learn(collection, rows)               # rows: of the training part
inputs, lengths, dt = preparation.apply(collection)
later = Preparation.from_dict(json.loads(text))     # of json.dumps(preparation.to_dict())
later.apply(read("new.csv"))                        # the same channels, by their names
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from parnl.learn.lazy import Lazy
from parnl.learn.readers.collection import (
    LARGEST,
    Collection,
    check_values,
    listed,
    shown,
    wrong,
)
from parnl.learn.readers.mapped import MappedSeries, blocks, lengths_of
from parnl.learn.tasks import Scale

REGULAR = 1e-4  # differences of times that differ by less, as a share, are alike
WAYS = ("interpolate", "previous", "mask", "mean")


class Prepared(NamedTuple):
    """Series as a model reads them, padded at the end to one length T.

    inputs: (N, T, channels) float32. lengths: (N,) int64, or None when all T steps are real.
    dt: (N, T) float32, the time since the step before in usual steps, or None where all are 1.
    """

    inputs: Any
    lengths: np.ndarray | None
    dt: np.ndarray | None


@dataclass(frozen=True)
class Preparation:
    """The meaning of the numbers that a model was trained on; plain data, `to_dict` is JSON.

    channels: columns of the file. categories: of a column of text, the names that become channels
    of 0 and 1; a missing one is all zeros. mean, deviation: of each column; 0 and 1 in columns of
    text. standardise: whether they are applied. missing: what becomes of missing values,
    "interpolate" (between the values around them in time), "previous" (the value before, or the
    mean), "mean", or "mask": the mean, and a further channel that is 1 where a value of a column in
    `masked` is missing. time_step: the usual
    difference of two times, which is dt = 1, in `time_unit`; None where dt is not used. regular:
    the difference where all are alike, so that dt tells nothing; None where that is not known.
    """

    channels: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    categories: dict[str, tuple[str, ...]]
    standardise: bool = True
    missing: str = "interpolate"
    masked: tuple[str, ...] = ()
    time_step: float | None = None
    time_unit: str = ""
    regular: float | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the channels that a model reads."""
        names: list[str] = []
        for channel in self.channels:
            own = self.categories.get(channel)
            names += [channel] if own is None else [f"{channel}={name}" for name in own]
        return (*names, *(f"{channel} is missing" for channel in self.masked))

    def to_dict(self) -> dict[str, Any]:
        """Lists, numbers and strings."""
        held = asdict(self)
        held["categories"] = {name: list(own) for name, own in self.categories.items()}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in held.items()}

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> "Preparation":
        """What `to_dict` returned, checked: it may come from a file."""
        try:
            wanted = {field.name for field in fields(cls)}
            held = {"regular": None} | held  # an older model does not tell
            if held.keys() != wanted:
                raise ValueError(f"keys {sorted(held.keys() ^ wanted)}")
            text = ("channels", "masked")
            new = held | {name: tuple(map(str, held[name])) for name in text}
            new |= {name: tuple(map(float, held[name])) for name in ("mean", "deviation")}
            new["categories"] = {str(k): tuple(map(str, v)) for k, v in held["categories"].items()}
            made = cls(**new)
            numbers = [*made.mean, *made.deviation, made.time_step or 1.0, made.regular or 1.0]
            if not {len(made.mean), len(made.deviation)} == {len(made.channels)}:
                raise ValueError("means and deviations of other channels")
            if made.missing not in WAYS or not np.isfinite(numbers).all():
                raise ValueError("a way or a number that is none")
            if not min(*made.deviation, made.time_step or 1.0, made.regular or 1.0, 1.0) > 0:
                raise ValueError("a deviation or a step that is not positive")
            if not {*made.masked, *made.categories} <= {*made.channels}:
                raise ValueError("names of other channels")
            if not isinstance(made.standardise, bool):
                raise ValueError("no yes or no for standardise")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"preparation: got {shown(str(error), 200)}, which is none") from error
        return made

    def apply(
        self, collection: Collection, rows: np.ndarray | None = None, steps: int | None = None
    ) -> Prepared:
        """The series in `rows`, or all, prepared in this way and padded to `steps`, or the longest.

        Columns are found by their names; others are left out. Missing ones are an error. Series
        that are mapped from a file stay there and are prepared when they are indexed.
        """
        view = _View(self, collection, np.arange(len(collection.series)) if rows is None else rows)
        lengths = view.lengths
        longest = int(lengths.max(initial=1))
        steps = longest if steps is None else steps
        kept = lengths if lengths.min(initial=steps) < steps else None
        if isinstance(collection.series, MappedSeries):
            shape = len(view.rows), steps, len(self.inputs)
            inputs = Lazy(shape, lambda chosen: view.padded(chosen, steps), np.float32)
            return Prepared(inputs, kept, None)
        return Prepared(view.padded(np.arange(len(view.rows)), steps), kept, self._dt(view, steps))

    def places(self, names: Sequence[str]) -> list[int]:
        """Where the channels of these columns, none of text, stand among those a model reads."""
        return [self.inputs.index(name) for name in names]

    def scale(self, names: Sequence[str]) -> Scale:
        """The scale on which a model reads these columns; mean 0, deviation 1 of raw values."""
        count = len(names)
        if not self.standardise:
            return Scale(np.zeros(count), np.ones(count))
        at = [self.channels.index(name) for name in names]
        return Scale(np.array(self.mean)[at], np.array(self.deviation)[at])

    def whole_series(self, collection: Collection) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What a model reads of each series, (steps, channels), and what it is to tell.

        The second are the series' columns on the model's scale, (steps, columns) float32, NaN where
        a value is missing. Where dt is used, it is the last channel of the first.
        """
        view = _View(self, collection, np.arange(len(collection.series)))
        lengths = view.lengths
        dt = self._dt(view, int(lengths.max(initial=1)))
        read, told = [], []
        for i, steps in enumerate(lengths):
            own = view.padded(np.array([i]), int(steps))[0]
            if dt is not None:
                own = np.concatenate([own, dt[i, :steps, None]], axis=1)
            read.append(own)
            values = np.asarray(collection.series[i], np.float64)[:, view.columns]
            told.append(self.scale(self.channels).learned(values))
        return read, told

    def _dt(self, view: "_View", steps: int) -> np.ndarray | None:
        times = view.collection.times
        if self.time_step is None:
            if self.regular is not None and times is not None:
                _check_regular(view.collection.source, times, view.rows, self.regular)
            return None
        if times is None:
            raise ValueError(
                f"data: {view.collection.source} has no times, expected them as in the training "
                "data; time= names their column"
            )
        dt = np.ones((len(view.rows), steps), np.float32)
        for row, i in zip(dt, view.rows, strict=True):
            row[1 : len(times[i])] = np.diff(times[i]) / self.time_step
        return dt


class _View:
    """Some series of a collection, through a preparation."""

    def __init__(self, preparation: Preparation, collection: Collection, rows: np.ndarray) -> None:
        self.preparation, self.collection, self.rows = preparation, collection, rows
        lacking = [name for name in preparation.channels if name not in collection.channels]
        if lacking:
            raise ValueError(
                f"data: {collection.source} lacks the columns {listed(lacking)}; it has "
                f"{listed(collection.channels)}"
            )
        self.columns = [collection.channels.index(name) for name in preparation.channels]
        self.mean = np.array(preparation.mean)
        self.deviation = np.array(preparation.deviation)
        self.recode = [self._codes(name) for name in preparation.channels]

    @property
    def lengths(self) -> np.ndarray:
        return lengths_of(self.collection.series)[self.rows]

    def padded(self, chosen: np.ndarray, steps: int) -> np.ndarray:
        """(len(chosen), steps, channels) float32, zeros after the end of a series."""
        rows, series = self.rows[chosen], self.collection.series
        own = series.take(rows) if isinstance(series, MappedSeries) else [series[i] for i in rows]
        inputs = np.zeros((len(rows), steps, len(self.preparation.inputs)), np.float32)
        for one, i, values in zip(inputs, rows, own, strict=True):
            one[: len(values)] = self._transformed(int(i), np.asarray(values, np.float64))
        return inputs

    def _codes(self, name: str) -> np.ndarray | None:
        """The place of each name of a text column among those of the preparation."""
        known, here = self.preparation.categories.get(name), self.collection.categories.get(name)
        source = self.collection.source
        if known is None and here is not None:
            raise ValueError(f"data: {source}: column {shown(name)} holds text, expected numbers")
        if known is None:
            return None
        if here is None:
            raise ValueError(
                f"data: {source}: column {shown(name)} holds numbers, expected {listed(known)}"
            )
        unknown = [n for n in here if n not in known]
        if unknown:
            raise ValueError(
                f"data: {source}: column {shown(name)} holds {listed(unknown)}, expected "
                f"{listed(known)}"
            )
        return np.array([known.index(n) for n in here], np.int64)

    def _transformed(self, i: int, values: np.ndarray) -> np.ndarray:
        """One series (steps, channels of the file) as (steps, channels of the model)."""
        how, source = self.preparation, self.collection.source
        values = values[:, self.columns]
        if isinstance(self.collection.series, MappedSeries):
            check_values(values, source, lambda step, c: f"series {i}, step {step}, channel {c}")
        gaps = np.isnan(values)
        numbers = self._filled(i, values, gaps) if gaps.any() else values
        if how.standardise:
            with np.errstate(over="ignore"):
                numbers = (numbers - self.mean) / self.deviation
            far = np.abs(numbers).max(axis=0, initial=0)
            if far.max() > LARGEST:
                raise ValueError(
                    f"data: {source}: series {i}, column {shown(how.channels[far.argmax()])}: got "
                    f"values {far.max():.0e} deviations from the training mean, expected what "
                    "float32 holds"
                )
        if not how.categories and not how.masked:
            return numbers
        columns = []
        for c, name in enumerate(how.channels):
            codes = self.recode[c]
            if codes is None:
                columns.append(numbers[:, c, None])
            else:
                columns.append(_one_hot(values[:, c], codes, len(how.categories[name])))
        masked = [how.channels.index(name) for name in how.masked]
        return np.concatenate([*columns, gaps[:, masked]], axis=1)

    def _filled(self, i: int, values: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        """The values without gaps. A channel without any value becomes the mean."""
        values = np.where(gaps, self.mean, values)
        if self.preparation.missing == "interpolate":
            times = self.collection.times
            at = np.arange(len(values)) if times is None else times[i]
            for c in np.flatnonzero(gaps.any(axis=0) & ~gaps.all(axis=0)):
                own = gaps[:, c]
                values[own, c] = np.interp(at[own], at[~own], values[~own, c])
        elif self.preparation.missing == "previous":
            last = np.maximum.accumulate(np.where(gaps, -1, np.arange(len(values))[:, None]))
            before = np.take_along_axis(values, np.maximum(last, 0), axis=0)
            values = np.where(gaps & (last >= 0), before, values)
        return values


def learn(
    collection: Collection,
    rows: np.ndarray,
    *,
    channels: Sequence[str] | None = None,
    standardise: bool = True,
    missing: str = "interpolate",
) -> Preparation:
    """The preparation that the series in `rows`, those of the training part, teach.

    `channels`: the columns that are kept, all if None.
    """
    if missing not in WAYS:
        raise ValueError(f"missing: got {missing!r}, expected {', '.join(map(repr, WAYS))}")
    names = collection.channels if channels is None else tuple(channels)
    columns = [collection.channels.index(name) for name in names]
    text = np.array([name in collection.categories for name in names])
    mean, deviation, empty = (found[columns] for found in moments(collection, rows))
    if isinstance(collection.series, MappedSeries):
        others = np.setdiff1d(np.arange(len(collection.series)), rows)
        for own, steps in blocks(collection.series, others):
            _check_block(collection, own, steps)
    mean, deviation = np.where(text, 0.0, mean), np.where(text, 1.0, deviation)
    lacking = [name for name, none in zip(names, empty, strict=True) if none]
    if lacking:
        raise ValueError(
            f"data: {collection.source}: the columns {listed(lacking)} have no value in any "
            "training series; columns= can leave them out"
        )
    masked: list[str] = []
    if missing == "mask":
        gaps = np.zeros(len(collection.channels), bool)
        for _, steps in blocks(collection.series, np.arange(len(collection.series))):
            gaps |= np.isnan(steps).any(axis=0)
        masked = [n for n, gap, t in zip(names, gaps[columns], text, strict=True) if gap and not t]
    return Preparation(
        names,
        tuple(mean.tolist()),
        tuple(deviation.tolist()),
        {name: own for name, own in collection.categories.items() if name in names},
        standardise=standardise,
        missing=missing,
        masked=tuple(masked),
        **usual_step(collection, rows),
        time_unit=collection.unit,
    )


def _check_regular(
    source: str, times: Sequence[np.ndarray], rows: np.ndarray, step: float
) -> None:  # fmt: skip
    """Refuse times that a model, trained on regular ones, would not see."""
    for i in rows:
        other = ~np.isclose(np.diff(times[i]), step, rtol=REGULAR, atol=0)
        if other.any():
            at = int(other.argmax()) + 1
            got = f"a time {np.diff(times[i])[at - 1]:g} after the one before"
            expected = f"{step:g}, as between all steps of the training data"
            raise wrong(source, f"series {i}, step {at}", got, expected)


def usual_step(collection: Collection, rows: np.ndarray) -> dict[str, float | None]:
    """Under "time_step" the median difference of times in the training part.

    If all in the file are alike it stands under "regular" instead.
    """
    if collection.times is None:
        return {}
    every = [np.diff(times) for times in collection.times]
    steps = np.concatenate([every[i] for i in rows])
    steps = steps[steps > 0]
    if not len(steps):
        if all((own == 0).all() for own in every):
            return {}
        raise ValueError(f"data: {collection.source}: times do not differ in any training series")
    usual = float(np.median(steps))
    alike = all(np.allclose(own, usual, rtol=REGULAR, atol=0) for own in every)
    return {"regular": usual} if alike else {"time_step": usual}


def moments(collection: Collection, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and deviation of each channel over the series in `rows`, and which have no value.

    A constant channel has the deviation 1. Mapped series are read block by block, each block's
    moments joined to those before (Chan, Golub and LeVeque, 1983).
    """
    width = len(collection.channels)
    count, mean, square = np.zeros(width), np.zeros(width), np.zeros(width)
    for own, steps in blocks(collection.series, rows):
        if isinstance(collection.series, MappedSeries):
            _check_block(collection, own, steps)
        n, m, s = _block_moments(steps)
        total = np.maximum(count + n, 1)
        square = square + s + (m - mean) ** 2 * (count * n / total)
        mean = mean + (m - mean) * (n / total) if count.any() else m
        count = count + n
    variance = square / np.maximum(count, 1)
    return mean, np.where(variance > 0, np.sqrt(variance), 1.0), count == 0


def _block_moments(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of (steps, channels): how many values, their mean, the sum of squares about it."""
    total = steps.sum(axis=0)
    if np.isfinite(total).all():  # nothing is missing
        count = np.full(len(total), float(len(steps)))
        mean = total / len(steps)
        return count, mean, np.square(steps - mean).sum(axis=0)
    real = ~np.isnan(steps)
    count = real.sum(axis=0).astype(float)
    mean = np.where(real, steps, 0).sum(axis=0) / np.maximum(count, 1)
    return count, mean, np.where(real, (steps - mean) ** 2, 0).sum(axis=0)


def _check_block(collection: Collection, rows: np.ndarray, steps: np.ndarray) -> None:
    """Refuse infinite and huge values of mapped series, which no reader has looked at."""
    if steps.max(initial=0) <= LARGEST and steps.min(initial=0) >= -LARGEST:
        return  # NaN takes the long way
    ends = np.cumsum(lengths_of(collection.series)[rows])

    def place(step: int, channel: int) -> str:
        k = int(np.searchsorted(ends, step, side="right"))
        first = int(ends[k - 1]) if k else 0
        return f"series {rows[k]}, step {step - first}, channel {channel}"

    check_values(steps, collection.source, place)


def _one_hot(codes: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """(steps, size) with a 1 where a code's name stands; a missing code is all zeros."""
    real = ~np.isnan(codes)
    out = np.zeros((len(codes), size))
    out[np.flatnonzero(real), places[codes[real].astype(int)]] = 1
    return out


def said(preparation: Preparation, collection: Collection) -> list[str]:
    """Sentences on what became of missing values and of times."""
    notes = []
    series = collection.series
    if not isinstance(series, MappedSeries):
        names = [n for n in preparation.channels if n not in collection.categories]
        columns = [collection.channels.index(name) for name in names]
        gaps = sum(int(np.isnan(one[:, columns]).sum()) for one in series)
        if gaps:
            total = sum(len(one) for one in series) * len(columns)
            way = {
                "interpolate": "interpolated",
                "previous": "replaced by the value before",
                "mean": "replaced by the mean",
                "mask": "replaced by the mean and marked in further channels",
            }[preparation.missing]
            notes.append(f"{gaps} of {total} values are missing: {way}")
    unit = f" {preparation.time_unit}".rstrip()
    if preparation.time_step is not None:
        notes.append(f"dt = 1 is the median step, {preparation.time_step:g}{unit}")
    elif collection.times is not None:
        notes.append("the times are regular: dt is not used")
    return notes
