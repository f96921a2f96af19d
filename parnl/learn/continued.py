"""What a trained model of later steps says of new series: how they go on, and how well it does.

model = load_model(Path("runs/ETTh1-gru-torch/model.safetensors"))
predicted(model, "ETTh1.csv")        # a table: the steps after the last of each series
metrics, count = judged(model, "ETTh1.csv")
text = generated(load_run(Path("runs/shakespeare-gru-torch")), b"ROMEO:", steps=200)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parnl.learn import ahead
from parnl.learn.data import Split, joined
from parnl.learn.judging import evaluate, judge
from parnl.learn.preparation import REGULAR
from parnl.learn.readers import Collection
from parnl.learn.readers.collection import counted, listed
from parnl.learn.tasks import PLAIN, Metrics, Tally
from parnl.learn.trained import Trained, series_in


def predicted(model: Trained, data: str) -> dict[str, Any]:
    """A table of the steps that follow each series: its name, the step, a time, the targets.

    The task "forecast" gives `horizon` steps, "next" gives one, from the last `context` steps. They
    have times if those of the series are regular.
    """
    own, preparation = _of_numbers(model), model.prepared_by()
    collection = ahead.without_labels(series_in(model, data))
    series = ahead.series_of(collection, preparation, own.targets)
    follow = _forecast if model.config.task == "forecast" else _next
    return _table(model, collection, follow(model, series))


def judged(model: Trained, data: str) -> tuple[Metrics, int]:
    """The metrics of the run's task over all windows of a file, and how many these are."""
    own: Any = model.ahead
    if own.tokens:
        split = ahead.text_windows(ahead.read_text(data, own), own)
    else:
        collection = ahead.without_labels(series_in(model, data))
        series = ahead.series_of(collection, model.prepared_by(), own.targets)
        pieces = [(i, 0, len(one)) for i, one in enumerate(series.read)]
        split = ahead.windows(model.config.task, series, pieces, own)
        split = split if model.config.patch == 1 else joined(split, model.config.patch)
    ahead.check_windows(data, "whole", split, own)
    config = model.config
    tally = Tally(model.task, PLAIN)
    judge(model.trainer, split, tally, config.batch, chunks=config.chunks)
    return tally.metrics(), len(split.labels)


def generated(
    model: Trained, prompt: bytes, steps: int, *, temperature: float = 1.0, seed: int = 0
) -> bytes:
    """How a model of bytes goes on after `prompt`: `steps` bytes, drawn one after the other.

    temperature: 1 draws by the model's probabilities, less favours likely bytes, 0 takes the
    likeliest. Raises ValueError.
    """
    own = model.ahead
    if own is None or not own.bytes_:
        raise ValueError("model: expected a text model, trained by the task 'next'")
    if not prompt:
        raise ValueError("prompt: got no bytes, expected at least one")
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature: got {temperature}, expected at least 0")
    generator, found = np.random.default_rng(seed), bytearray()
    advance = model.trainer.stream()
    for token in prompt:
        logits = advance(np.array(token))
    for _ in range(steps):
        found.append(drawn(logits, temperature, generator))
        logits = advance(np.array(found[-1]))
    return bytes(found)


def drawn(logits: np.ndarray, temperature: float, generator: np.random.Generator) -> int:
    """A token drawn by the logits (tokens,)."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    odds = np.exp(scaled - scaled.max())
    return int(generator.choice(len(odds), p=odds / odds.sum()))


def continued(model: Trained, data: str, steps: int) -> dict[str, Any]:
    """A table of `steps` steps that follow each series of a file, as `predicted` has it.

    Each step is the model's answer to the steps before it, its own answers among them. So it must
    answer with all that it reads. Raises ValueError.
    """
    own, preparation = _of_numbers(model), model.prepared_by()
    if model.config.task != "next":
        raise ValueError(f"model: got one of the task {model.config.task!r}, expected 'next'")
    if own.targets != preparation.inputs or preparation.time_step is not None:
        raise ValueError(
            f"model: it reads {listed(preparation.inputs)} and answers with {listed(own.targets)}; "
            "expected the same columns, at regular times, to go on by itself"
        )
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    collection = ahead.without_labels(series_in(model, data))
    series = ahead.series_of(collection, preparation, own.targets)
    inputs, lengths = _last_steps(series, own.context)
    values = np.zeros((len(inputs), steps, len(own.targets)), np.float32)
    advance, current = model.trainer.stream(), inputs[:, 0]
    for t in range(lengths.max() + steps - 1):  # a series may end while others are still read
        answers = advance(current)
        done = np.flatnonzero((t + 1 >= lengths) & (t + 1 < lengths + steps))
        values[done, t + 1 - lengths[done]] = answers[done]
        here = min(t + 1, inputs.shape[1] - 1)
        current = np.where((t + 1 < lengths)[:, None], inputs[:, here], answers)
    return _table(model, collection, values)


def _of_numbers(model: Trained) -> ahead.Ahead:
    own: Any = model.ahead
    if own.tokens:
        raise ValueError("model: got a text model, expected one of numbers; see `parnl generate`")
    return own


def _forecast(model: Trained, series: ahead.Series) -> np.ndarray:
    """What follows each series, (N, horizon, targets), on the model's scale."""
    own: Any = model.ahead
    for i, one in enumerate(series.read):
        if len(one) < own.context:
            raise ValueError(
                f"data: series {i} has {counted(len(one), 'step')}, expected at least the "
                f"{own.context} that the model reads"
            )
    inputs = np.stack([one[-own.context :] for one in series.read])
    inputs, last = ahead.from_last(inputs, series.places)
    split = Split(inputs, np.zeros(len(inputs)), None)
    split = split if model.config.patch == 1 else joined(split, model.config.patch)
    found, _ = evaluate(model.trainer, split, model.config.batch, chunks=model.config.chunks)
    return found.reshape(len(inputs), own.horizon, -1) + last[:, None]


def _next(model: Trained, series: ahead.Series) -> np.ndarray:
    """The step after each series, (N, 1, targets), on the model's scale."""
    own: Any = model.ahead
    inputs, lengths = _last_steps(series, own.context)
    split = Split(inputs, np.zeros(len(inputs)), lengths)
    found, _ = evaluate(model.trainer, split, model.config.batch, chunks=model.config.chunks)
    return found[np.arange(len(found)), lengths - 1][:, None]


def _last_steps(series: ahead.Series, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `most` steps of each series, padded at the end (N, T, channels), and how many."""
    lengths = np.array([min(len(one), most) for one in series.read])
    inputs = np.zeros((len(lengths), lengths.max(), series.read[0].shape[1]), np.float32)
    for row, one, length in zip(inputs, series.read, lengths, strict=True):
        row[:length] = one[len(one) - length :]
    return inputs, lengths


def _table(model: Trained, collection: Collection, values: np.ndarray) -> dict[str, Any]:
    """Values (N, steps, targets) on the model's scale as columns in the units of the data."""
    own: Any = model.ahead
    preparation, (count, steps, _) = model.prepared_by(), values.shape
    values = preparation.scale(own.targets).told(values)
    ids = collection.ids or [str(i) for i in range(count)]
    found: dict[str, Any] = {"series": np.repeat(np.array(ids, object), steps)}
    found["step"] = np.tile(np.arange(1, steps + 1), count)
    times = times_after(collection, steps)
    if times is not None:
        found["time"] = times.reshape(-1)
    targets = values.reshape(count * steps, -1).T
    return found | dict(zip(own.targets, targets, strict=True))


def times_after(collection: Collection, steps: int) -> np.ndarray | None:
    """The times (N, steps) that follow each series, numbers or dates; None if not regular."""
    if collection.times is None:
        return None
    found = []
    for times in collection.times:
        usual = np.diff(times)
        if not len(usual) or not np.allclose(usual, usual[0], rtol=REGULAR, atol=0):
            return None
        found.append(times[-1] + np.median(usual) * np.arange(1, steps + 1))
    whole = np.array(found)
    if collection.unit != "s":
        return whole
    if collection.began is None:
        return None
    return collection.began + np.round(whole * 1e6).astype("timedelta64[us]")
