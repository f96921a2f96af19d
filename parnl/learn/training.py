"""Training a model of whole series, whatever the framework.

    config = Config(data="JapaneseVowels", backend="jax")
    result = fit(config, dataset_of(config), Path("runs/vowels"))

The framework's part, a model and one optimizer step, is `parnl.learn.<name>_trainer`. A run is a
function of its config alone: shuffling and dropout are seeded by epoch and step, so a run that was
stopped and resumed ends with the same bits as one that was not.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parnl.learn import ahead
from parnl.learn.checkpoints import check_arrays, read_checkpoint, write_checkpoint
from parnl.learn.class_weights import balanced
from parnl.learn.config import ADJUSTABLE, OF_AHEAD, OF_DATA, Config
from parnl.learn.data import Dataset, Split, fingerprint, load, patched, timed
from parnl.learn.judging import batches as batches_of
from parnl.learn.judging import judge, lengths_of, take
from parnl.learn.schedules import plan, scheduled
from parnl.learn.tasks import PLAIN, TASKS, TOKENS, Scale, Tally, Task, known, score

CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"


class Result(NamedTuple):
    """A finished run: the trainer holds the weights of `best`, one of the records in `history`."""

    trainer: Any
    history: list[dict[str, Any]]
    best: dict[str, Any]


def dataset_of(config: Config) -> Dataset:
    """The data of a run."""
    if config.task in ahead.TASKS:
        found = ahead.load(config.data, **{name: getattr(config, name) for name in OF_AHEAD})
        return patched(found, config.patch) if config.patch > 1 else found
    dataset = load(config.data, **{name: getattr(config, name) for name in OF_DATA})
    return patched(timed(dataset), config.patch)


def fit(
    config: Config,
    dataset: Dataset,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trainer: Any = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Result:
    """Train for `epochs`, or until validation has not improved for `patience` of them.

    `trainer` takes the place of `build(config, ...)`, which decides the model by default.
    `folder` gets a checkpoint after every epoch, and at the end the best epoch's model. With
    `resume` the run of the checkpoint there goes on, on the same data. Without it, a run that is
    there is lost only with `overwrite`. `on_step(batches done, batches in an epoch)` and
    `on_epoch(record)` report progress.

    Numbers to be learned are brought to mean 0 and deviation 1, by the training series; metrics are
    of the numbers as they were.

    Raises ValueError for such a folder or other data, FloatingPointError where the loss or an
    answer of the model is not finite; the checkpoint is then the last good epoch's.
    """
    there = any((folder / name).exists() for name in (CHECKPOINT, MODEL))
    if there and not (resume or overwrite):
        raise ValueError(
            f"out: {folder} holds a run; give --resume to go on with it, --overwrite to lose it, "
            "or name another folder"
        )
    made = dataset.preparation
    if config.clock == "cell" and made is not None and made.time_step is None:
        raise ValueError(
            "clock: got 'cell', but the data has no times, or regular ones; expected 'channel'"
        )
    task, scale = task_of(config, dataset), scale_of(config, dataset)
    channels, data = channels_in(dataset), fingerprint(dataset)
    trainer = trainer or build(config, channels, answers_of(dataset), tokens=_tokens(dataset))
    history: list[dict[str, Any]] = []

    def value(record: dict[str, Any]) -> tuple[float, float]:
        return score(task, config.best or task.best, record)

    best = model_of(trainer.export_state())
    if resume:
        history, best = _restore(trainer, config, data, folder / CHECKPOINT)
    while (
        len(history) < config.epochs and _stalled([value(h)[0] for h in history]) < config.patience
    ):
        record = _epoch(trainer, config, dataset, scale, len(history), on_step)
        if config.best is not None and f"validation_{config.best}" not in record:
            names = ", ".join(n.removeprefix("validation_") for n in record if "validation_" in n)
            raise ValueError(f"best: got {config.best!r}, expected one of {names}")
        record["best"] = not history or value(record) > max(map(value, history))
        history.append(record)
        state = trainer.export_state()
        if record["best"]:
            best = model_of(state)
        state |= {f"best.{name}": value for name, value in best.items()}
        about: dict[str, Any] = dict(config=asdict(config), data=data, history=history)
        write_checkpoint(folder / CHECKPOINT, state, **about)
        on_epoch(record)
    trainer.import_state(best)
    chosen = max(history, key=value)
    model: dict[str, Any] = dict(
        channels=channels, classes=list(dataset.classes), scale=scale.listed()
    )
    if dataset.preparation is not None:
        model |= dict(preparation=dataset.preparation.to_dict())
    if dataset.reading is not None:
        model |= dict(reading=dataset.reading._asdict())
    if dataset.ahead is not None:
        model |= dict(ahead=dataset.ahead._asdict())
    write_checkpoint(folder / MODEL, best, config=asdict(config), **model, epoch=chosen)
    return Result(trainer, history, chosen)


def answers_of(dataset: Dataset) -> int:
    """How many numbers a model answers with: classes, or columns of the targets."""
    if dataset.ahead is not None:
        return dataset.ahead.answers
    targets = dataset.train.labels
    return len(dataset.classes) if targets.ndim == 1 else targets.shape[1]


def channels_in(dataset: Dataset) -> int:
    """How many channels a model reads, or how many tokens there are."""
    return _tokens(dataset) or dataset.train.inputs.shape[-1]


def task_of(config: Config, dataset: Dataset) -> Task:
    """The task of a run on this data."""
    return TOKENS if _tokens(dataset) else TASKS[config.task]


def scale_of(config: Config, dataset: Dataset) -> Scale:
    """The scale of what is learned: that of the targets of "regress"."""
    return Scale.of(dataset.train.labels) if config.task == "regress" else PLAIN


def _tokens(dataset: Dataset) -> int:
    return 0 if dataset.ahead is None else dataset.ahead.tokens


def build(config: Config, channels: int, answers: int, tokens: int = 0, **changes: Any) -> Any:
    """A fresh trainer of the backend; `trainer.model` answers a series with `answers` numbers.

    tokens: how many there are, of which series consist; 0 of numbers. `changes` are further
    keywords of the model.
    """
    task = TOKENS if tokens else TASKS[config.task]
    module = import_module(f"parnl.learn.{config.backend}_trainer")
    model = dict(
        channels=channels,
        classes=answers,
        cell=config.cell,
        width=config.width,
        state=config.state,
        blocks=config.blocks,
        loops=config.loops,
        dropout=config.dropout,
        readout=task.readout,
        tokens=tokens > 0,
        clock=config.clock == "cell",
        **config.options,
        **changes,
    )
    return module.Trainer(
        model,
        loss=task.loss,
        learning_rate=None if scheduled(config) else config.learning_rate,
        clip=config.clip,
        seed=config.seed,
        chunks=config.chunks,
        weight_decay=config.weight_decay,
        accumulate=config.accumulate,
        precision=config.precision,
    )


def _epoch(
    trainer: Any,
    config: Config,
    dataset: Dataset,
    scale: Scale,
    epoch: int,
    on_step: Callable[[int, int], None],
) -> dict[str, Any]:
    """Train on every series once, then validate."""
    begin, task = time.perf_counter(), task_of(config, dataset)
    train, validation = dataset.train, dataset.validation
    order = np.random.default_rng((config.seed, epoch)).permutation(len(train.labels))
    batches = list(batches_of(order, config.batch))
    balance = None
    if config.class_weights is not None:
        balance = balanced(train.labels, len(dataset.classes))
        batches = [(rows, weights * balance[train.labels[rows]]) for rows, weights in batches]
    amounts = [weights for _, weights in batches]
    if config.accumulate > 1:
        amounts = [_amounts(train, task, rows, weights) for rows, weights in batches]
    plans = plan(config, epoch, amounts)
    used, trained = 0, Tally(task, scale, balance)
    for done, (rows, weights) in enumerate(batches, start=1):
        inputs, lengths = take(train, rows)
        targets = train.labels[rows]
        value, answers, used = trainer.step(
            inputs, lengths, scale.learned(targets), weights, **plans[done - 1]
        )
        if not np.isfinite(value):
            raise FloatingPointError(
                f"loss: got {value} in epoch {epoch + 1}, expected a finite number; "
                f"a learning rate below {config.learning_rate:g} may help"
            )
        real = weights > 0
        trained.add(answers[real], targets[real], None if lengths is None else lengths[real])
        on_step(done, len(batches))
    validated = judge(
        trainer, validation, Tally(task, scale, balance), config.batch, chunks=config.chunks
    )
    # One batch is solved in parallel even where the others are not: that shows the iterations.
    sample = take(validation, np.arange(min(config.batch, len(validation.labels))))
    chunks = config.chunks or validation.inputs.shape[1]
    _, iterations = trainer.predict(*sample, method="newton", chunks=chunks)
    return dict(
        epoch=epoch + 1,
        loss=trained.loss,
        **trained.metrics(),
        validation_loss=validated.loss,
        **{f"validation_{name}": value for name, value in validated.metrics().items()},
        iterations=iterations,
        chunks=used,
        learning_rate=plans[-1].get("rate", config.learning_rate),
        seconds=time.perf_counter() - begin,
    )


def _amounts(split: Split, task: Task, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How much each row of a batch weighs in its loss (n,): its weight times the targets known."""
    counted = known(split.labels[rows], lengths_of(split, rows), task.readout == "each")
    return weights * counted.reshape(len(rows), -1).sum(axis=1)


def _stalled(scores: list[float]) -> int:
    """Epochs since the score last rose."""
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def model_of(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the model among those of a trainer."""
    return {name: value for name, value in state.items() if name.startswith("model.")}


def check_same(config: Config, before: dict[str, Any], what: str) -> None:
    """Raise ValueError for an option that would make another run of that with options `before`."""
    fixed = {"epochs"} if config.schedule != "constant" else set()
    for name, value in asdict(config).items():
        if (name not in ADJUSTABLE or name in fixed) and before[name] != value:
            reason = f"; its schedule, {config.schedule}, ends with them" if name in fixed else ""
            raise ValueError(
                f"{name}: got {value!r}, {what} was trained with {before[name]!r}{reason}"
            )


def _restore(
    trainer: Any, config: Config, data: str, path: Path
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Put the checkpoint into the trainer; its history and the best model so far."""
    arrays, header = read_checkpoint(path)
    before = asdict(Config()) | header["config"]  # an older one lacks later options
    check_same(config, before, f"the checkpoint {path}")
    state = trainer.export_state()
    best = {f"best.{name}": value for name, value in model_of(state).items()}
    check_arrays(arrays, state | best)
    if header.get("data", data) != data:  # an older one does not say
        raise ValueError(
            f"data: {config.data} has changed since the run of {path}; train anew in another "
            "folder, without --resume"
        )
    trainer.import_state(arrays)
    return header["history"], {name.removeprefix("best."): arrays[name] for name in best}
