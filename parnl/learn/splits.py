"""Which series train, which validate and which test a model."""

from typing import Any, NamedTuple

import numpy as np

from parnl.learn.readers.collection import Parts, counted, listed


class Rows(NamedTuple):
    """Indices of the series of each part, each (k,)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def drawn(
    source: Any,
    count: int,
    labels: np.ndarray | None,
    parts: Parts | None,
    *,
    validation: float,
    test: float,
    seed: int,
) -> Rows:
    """The parts that a file gives; what it does not give is drawn with `seed`.

    labels: (N,) class numbers, of each of which shares are drawn, or None. Without a test part a
    share `test` of all series is drawn; without a validation part a share of what is left.
    """
    given = parts or Parts()
    known = [part for part in given if part is not None]
    rest = np.setdiff1d(np.arange(count), np.concatenate([np.zeros(0, int), *known]))
    if given.train is not None:
        rest = given.train
    tested, held = given.test, given.validation
    if tested is None:
        kept, chosen = share(labels, rest, test, seed, f"data: {source}: test")
        rest, tested = kept, chosen
    if held is None:
        rest, held = share(labels, rest, validation, seed, f"data: {source}: validation")
    rows = Rows(rest, held, tested)
    check(source, rows)
    return rows


def share(
    labels: np.ndarray | None, rows: np.ndarray, part: float, seed: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted rows (kept, held): a share of every class, or of all where there are none.

    part: a share, or, where there are no classes, a number of series.
    """
    if not len(rows):
        return rows, rows
    if part >= 1:
        if part >= len(rows):
            raise ValueError(f"{name}: got {part:g} series, expected fewer than {len(rows)}")
        part /= len(rows)
    own = np.zeros(len(rows), int) if labels is None else labels[rows]
    kept, held = stratify(own, part, seed, name)
    return rows[kept], rows[held]


def stratify(
    labels: np.ndarray, part: float, seed: int, name: str = "validation"
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (kept, held): `part` of every class is held, but never its last member."""
    generator = np.random.default_rng(seed)
    held: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(part * len(members))), len(members) - 1)
        held.extend(members[:count].tolist())
    if not held:
        raise ValueError(f"{name}: every class has a single series, none can be set aside")
    indices = np.array(sorted(held))
    return np.setdiff1d(np.arange(len(labels)), indices), indices


def check(source: Any, rows: Rows) -> None:
    """Refuse parts that are empty, repeat a series or share one."""
    parts = tuple(rows._asdict().items())
    for name, own in parts:
        if not len(own):
            raise ValueError(
                f"data: {source}: the {name} part has no series, expected at least one"
            )
        found, times = np.unique(own, return_counts=True)
        if (times > 1).any():
            twice = found[times > 1]
            raise ValueError(
                f"data: {source}: the {name} part repeats the series {listed(twice.tolist())}, "
                "expected each once"
            )
    for i, (name, own) in enumerate(parts):
        for other, theirs in parts[:i]:
            both = np.intersect1d(own, theirs)
            if len(both):
                raise ValueError(
                    f"data: {source}: the {other} and {name} parts overlap: they share "
                    f"{counted(len(both), 'series')}, {listed(both.tolist())}"
                )
