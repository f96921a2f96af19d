"""A trained model at work: read from the folder of its run, it answers for new data.

    model = load_model(Path("runs/walks-lrc-torch/model.safetensors"))
    found = answer(model, "new.csv")
    found.ids, found.values          # series, and the logits or numbers (N, k) of each
    judge(model, found)              # {"accuracy": ...}, where the file has labels

The file of a model holds all that was done to its data: new data is read, prepared and joined in
the same way, whichever framework trained it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from parnl.learn import ahead, readers
from parnl.learn.ahead import Ahead
from parnl.learn.checkpoints import check_arrays, read_checkpoint
from parnl.learn.config import Config
from parnl.learn.data import Split, channels_of, joined, prepared, with_clock
from parnl.learn.judging import evaluate
from parnl.learn.preparation import Preparation
from parnl.learn.readers import Collection, Options
from parnl.learn.readers.collection import shown
from parnl.learn.tasks import PLAIN, TASKS, TOKENS, Metrics, Scale, Task
from parnl.learn.training import MODEL, build, model_of


class Trained(NamedTuple):
    """What the file of a model holds.

    Attributes:
        trainer: holds the model of the framework, as `trainer.model`.
        config: all options of the run.
        classes: their names, none where numbers were learned.
        scale: of those numbers.
        preparation: how data becomes inputs; None if the run does not tell, or for text.
        reading: how a table was read; None likewise.
        ahead: of a model of later steps, see `parnl.learn.continued`.
    """

    trainer: Any
    config: Config
    classes: tuple[str, ...]
    scale: Scale
    preparation: Preparation | None
    reading: Options | None
    ahead: Ahead | None = None

    @property
    def task(self) -> Task:
        """What it was trained for."""
        return TOKENS if self.ahead and self.ahead.tokens else TASKS[self.config.task]

    def prepared_by(self) -> Preparation:
        """The preparation. Raises ValueError where there is none."""
        if self.preparation is None:
            raise ValueError("model: its run did not keep how its data was prepared")
        return self.preparation


class Answers(NamedTuple):
    """A model's answers (N, k) to the series of a file: logits of classes, or numbers.

    Attributes:
        ids: a name of each series.
        values: (N, k).
        split: what the model read.
        labelled: whether the file has labels.
    """

    ids: tuple[str, ...]
    values: np.ndarray
    split: Split
    labelled: bool


def load_model(path: Path, **changes: Any) -> Trained:
    """Read a `model.safetensors`, which need not be trusted.

    `changes` replace options of the run: `backend="jax"` reads in JAX what torch has trained.
    """
    arrays, header = read_checkpoint(path)
    if "channels" not in header:
        raise ValueError(f"checkpoint: {path} is no model; expected the {MODEL} of a run")
    try:
        config = Config(**header["config"])
        _check_kinds(config)
        channels, classes = int(header["channels"]), tuple(map(str, list(header["classes"])))
        later = Ahead.checked(dict(header["ahead"])) if config.task in ahead.TASKS else None
        mean, deviation = (np.array(numbers, np.float64) for numbers in header["scale"])
        made, read = header.get("preparation"), header.get("reading")
        preparation = None if made is None else Preparation.from_dict(dict(made))
        reading = None if read is None else Options(**read)
        scale = Scale(mean, deviation)
        scale.check()
        tokens = 0 if later is None else later.tokens
        if tokens != channels if tokens else later is not None and preparation is None:
            raise ValueError(f"{channels} channels, {tokens} tokens")
        if later is not None and preparation is not None:
            ahead.check_targets(preparation, later.targets)
        if preparation is not None:
            own = len(channels_of(preparation))
            if channels != own * config.patch:
                raise ValueError(f"{channels} channels, {own} prepared, {config.patch} joined")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: the header of {path} is no model's ({error})") from error
    # A header may name any size: only what the file's arrays can fill is built.
    answers = later.answers if later else len(classes) or len(scale.mean)
    numbers = sum(value.size for value in arrays.values())
    wanted = config.blocks * config.width**2 + config.width * (channels + answers)
    if channels < 1 or max(wanted, config.state) > numbers:
        raise ValueError(
            f"checkpoint: {path} holds {numbers} numbers, too few for the model in its header"
        )
    config = replace(config, **changes)
    try:
        trainer = build(config, channels, answers, tokens=tokens)
    except TypeError as error:  # options that the cell does not have
        raise ValueError(f"checkpoint: the header of {path} is no model's ({error})") from error
    check_arrays(arrays, model_of(trainer.export_state()))
    trainer.import_state(arrays)
    if config.task != "regress":
        scale = PLAIN
    return Trained(trainer, config, classes, scale, preparation, reading, later)


def _check_kinds(config: Config) -> None:
    """Raise ValueError for a value of the wrong kind: a header may hold anything."""
    # a caller in Python may name several columns
    kinds = get_type_hints(Config) | {"label": str | list[str] | None}
    for name, kind in kinds.items():
        value = getattr(config, name)
        if not _is_a(value, kind):
            raise ValueError(f"{name}: got {shown(value)}")


def _is_a(value: Any, kind: Any) -> bool:
    inner = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_is_a(value, one) for one in inner)
    if get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(_is_a(one, inner[0]) for one in value)
    if kind is bool or not isinstance(value, bool):
        return isinstance(value, int | float if kind is float else get_origin(kind) or kind)
    return False


def load_run(folder: Path, backend: str | None = None) -> Trained:
    """The model of the run in a folder, in its own framework unless `backend` names one."""
    return load_model(folder / MODEL, **({} if backend is None else {"backend": backend}))


def answer(model: Trained, data: str, *, label: str | None = None) -> Answers:
    """The model's answers to all series of a file or a folder, labelled or not.

    label: the column of the labels, or a file of them, where it is not that of the training data.
    """
    preparation = model.prepared_by()
    collection = series_in(model, data, label)
    split = with_clock(prepared(collection, preparation, model.classes))
    split = split if model.config.patch == 1 else joined(split, model.config.patch)
    found, _ = evaluate(model.trainer, split, model.config.batch, chunks=model.config.chunks)
    values = model.scale.told(found)
    ids = collection.ids or [str(i) for i in range(len(found))]
    return Answers(tuple(map(str, ids)), values, split, collection.labels is not None)


def series_in(model: Trained, data: str, label: str | None = None) -> Collection:
    """The series of a file or a folder, read as the training data was; see `answer`."""
    if not readers.is_file(data):
        raise ValueError(f"data: got {data!r}, expected a file or a folder of series")
    options = model.reading or Options()
    if label is not None:
        options = options._replace(label=label)
    return readers.read(data, options._replace(unlabelled=label is None))


def judge(model: Trained, answers: Answers) -> Metrics:
    """The metrics of the run's task. Raises ValueError where the file has no labels."""
    if not answers.labelled:
        raise ValueError("data: expected labels to judge by; --label names their column or file")
    return model.task.judge(answers.values, answers.split.labels)


def columns(model: Trained, answers: Answers) -> dict[str, Any]:
    """The answers as a table: the series, its class and the probability of each, or its numbers."""
    found: dict[str, Any] = {"series": answers.ids}
    if not model.classes:
        names = ["value"] if answers.values.shape[1] == 1 else None
        names = names or [f"value {i}" for i in range(answers.values.shape[1])]
        return found | dict(zip(names, answers.values.T, strict=True))
    logits = answers.values.astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = odds / odds.sum(axis=1, keepdims=True)
    found["class"] = [model.classes[k] for k in logits.argmax(axis=1)]
    return found | {f"probability {c}": p for c, p in zip(model.classes, shares.T, strict=True)}
