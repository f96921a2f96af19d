"""What TensorBoard shows of a run, written by its own writer, which needs no framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATTERN = "events.out.tfevents.*"


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of an epoch by the names that TensorBoard groups: `loss/train`."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if name == "iterations":
            found |= {f"iterations/block_{i}": count for i, count in enumerate(value, start=1)}
        elif name.startswith("validation_"):
            found[f"{name.removeprefix('validation_')}/validation"] = value
        elif f"validation_{name}" in record:
            found[f"{name}/train"] = value
        elif name == "learning_rate":
            found[name] = value
    return found


@contextmanager
def writing(
    folder: Path, history: list[dict[str, Any]], wanted: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that takes the record of each epoch; it does nothing unless `wanted`.

    history: the epochs of a resumed run so far. The file of events begins with them and takes the
    place of an older one, so that each epoch is there once, wherever the run was stopped.

    Raises ModuleNotFoundError where tensorboard is not installed, before anything is done.
    """
    if not wanted:
        yield lambda record: None
        return
    from tensorboard.summary import Writer

    writer = None

    def add(*records: dict[str, Any]) -> None:
        nonlocal writer
        if writer is None:  # not earlier: a run that is refused leaves no file
            for old in folder.glob(PATTERN):
                old.unlink()
            writer, records = Writer(str(folder)), (*history, *records)
        for record in records:
            for name, value in scalars(record).items():
                writer.add_scalar(name, value, record["epoch"])
        writer.flush()

    try:
        yield add
        if writer is None and history:  # nothing was left to train
            add()
    finally:
        if writer is not None:
            writer.close()
