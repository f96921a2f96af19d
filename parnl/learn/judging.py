"""What a model answers to a split, its metrics, and how exact its parallel solve is."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from parnl.learn.data import Split
from parnl.learn.tasks import PLAIN, TASKS, Metrics, Scale, Tally, Task

# Answers that `compare` returns, and numbers in them.
MOST_ANSWERS, MOST_NUMBERS = 10_000, 2**21


class Comparison(NamedTuple):
    """A model solved in parallel and in sequence over the same series.

    metrics: of the parallel solve. gap: the largest difference of two answers, as the model gives
    them. scale: the largest answer. iterations: of each block of the parallel solve, with `chunks`
    chunks. answers: (n, k) or (n, T, k), of the parallel solve, to the series `rows` (n,): all, or
    as many as are no burden, evenly chosen.
    """

    metrics: Metrics
    gap: float
    scale: float
    iterations: list[int]
    chunks: int
    answers: np.ndarray
    rows: np.ndarray


class Batch(NamedTuple):
    """What a model answers to some series of a split.

    rows: (n,). answers: (n, k), or (n, T, k) of each step. iterations: of each block.
    """

    rows: np.ndarray
    answers: np.ndarray
    iterations: list[int]


def answered(trainer: Any, split: Split, batch: int, **solver: Any) -> Iterator[Batch]:
    """A model's answers to a split, batch by batch.

    Raises FloatingPointError where one is not finite: the largest of some logits would be any.
    """
    for rows, weights in batches(np.arange(len(split.labels)), batch):
        found, iterations = trainer.predict(*take(split, rows), **solver)
        bad = rows[~np.isfinite(found.reshape(len(rows), -1)).all(axis=1)]
        if bad.size:
            raise FloatingPointError(
                f"model: its answer to series {bad[0]} is not finite; if it was just trained, "
                "a lower learning rate may help"
            )
        real = weights > 0
        yield Batch(rows[real], found[real], iterations)


def evaluate(trainer: Any, split: Split, batch: int, **solver: Any) -> tuple[np.ndarray, list[int]]:
    """A model's answers to a split, (N, k) or (N, T, k), and the most iterations each block took.

    Raises FloatingPointError as `answered` does.
    """
    found = list(answered(trainer, split, batch, **solver))
    counts = np.max([one.iterations for one in found], axis=0)
    return np.concatenate([one.answers for one in found]), counts.tolist()


def judge(trainer: Any, split: Split, tally: Tally, batch: int, **solver: Any) -> Tally:
    """Add what a model makes of a split; no answer is kept for longer than needed."""
    for one in answered(trainer, split, batch, **solver):
        tally.add(one.answers, split.labels[one.rows], lengths_of(split, one.rows))
    return tally


def compare(
    trainer: Any,
    split: Split,
    batch: int,
    chunks: int | None = None,
    *,
    task: Task = TASKS["classify"],
    scale: Scale = PLAIN,
) -> Comparison:
    """Solve the model in parallel (one step a chunk unless `chunks` is given) and in sequence.

    scale: of the numbers that it was trained on.
    """
    chunks = chunks or split.inputs.shape[1]
    tally, counts, gap, largest = Tally(task, scale), [], 0.0, 0.0
    kept: list[np.ndarray] = []
    parallel = answered(trainer, split, batch, method="newton", chunks=chunks)
    sequential = answered(trainer, split, batch, method="sequential")
    for one, other in zip(parallel, sequential, strict=True):
        tally.add(one.answers, split.labels[one.rows], lengths_of(split, one.rows))
        counts.append(one.iterations)
        gap = max(gap, float(np.abs(one.answers - other.answers).max()))
        largest = max(largest, float(np.abs(other.answers).max()))
        rows = evenly(len(split.labels), MOST_ANSWERS, MOST_NUMBERS // one.answers[0].size)
        kept.append(one.answers[np.isin(one.rows, rows)])
    iterations = np.max(counts, axis=0).tolist()
    answers = np.concatenate(kept)
    return Comparison(tally.metrics(), gap, largest, iterations, chunks, answers, rows)


def evenly(count: int, *most: int) -> np.ndarray:
    """Rows of `count`, evenly chosen, at least one and not more than the least of `most`."""
    return np.linspace(0, count - 1, max(1, min(count, *most))).round().astype(np.int64)


def batches(order: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and weights of each batch. Compiled steps want one shape: rows of weight 0 fill it."""
    size = min(size, len(order))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield np.resize(rows, size), (np.arange(size) < len(rows)).astype(np.float32)


def take(split: Split, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs and lengths of some series."""
    return split.inputs[rows], lengths_of(split, rows)


def lengths_of(split: Split, rows: np.ndarray) -> np.ndarray | None:
    """Lengths (n,) of some series, None where all have all steps."""
    return None if split.lengths is None else split.lengths[rows]
