"""A run's model for use elsewhere: it takes values as they stand in a file, and answers.

    write(Path("runs/walks-lrc-torch"), "c", Path("board"))   # board/model.c, model.h, model.json

Means and deviations are part of what is written, so that nothing has to be prepared but this:
missing values are filled in, names and times are numbers. `model.json` says which channels the
model reads, in their order, and what its answers stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parnl.learn.data import channels_of
from parnl.learn.preparation import Preparation
from parnl.learn.trained import Trained, load_run


def write(folder: Path, to: str, out: Path) -> list[str]:
    """Write the model of the run in `folder` as `to`: a name in FORMATS; return names of files.

    The model takes series (N, T, channels), all of one length; as C, one step after the other, or
    what a forecast reads at once (see `around`). Its answers (N, k) are logits of the classes, or
    numbers on their own scale. For the task "forecast" they are (N, horizon, targets), for "next"
    (N, T, targets). A text model takes tokens (N, T), and its answers are logits (N, T, tokens).
    """
    if to not in FORMATS:
        raise ValueError(f"to: got {to!r}, expected {' or '.join(FORMATS)}")
    backend, make = FORMATS[to]
    model = load_run(folder, backend)
    if model.config.patch > 1:
        raise ValueError(
            f"patch: the model reads {model.config.patch} steps at a time, expected one"
        )
    about: dict[str, Any] = dict(task=model.config.task, classes=list(model.classes))
    logits = bool(model.classes) or bool(model.ahead and model.ahead.tokens)
    about["answers"] = "logits" if logits else "numbers"
    if model.ahead is not None:
        about |= model.ahead._asdict()
    if about.get("tokens"):
        mean, deviation = np.zeros(1, np.float32), np.ones(1, np.float32)
    else:
        about |= dict(channels=channels_of(model.prepared_by()))
        mean, deviation = moments(model.prepared_by())
        unit = model.prepared_by().time_step
        if unit is not None:  # the last channel: the time since the step before, in such units
            about["dt"] = dict(unit=unit, first=1.0)
    out.mkdir(parents=True, exist_ok=True)
    files = make(model, mean, deviation, out)
    (out / "model.json").write_text(json.dumps(about, indent=1))
    return [*files, "model.json"]


def moments(preparation: Preparation) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (channels,) float32 of what the model reads; 0 and 1 of what is 0 or 1."""
    count = len(channels_of(preparation))
    mean, deviation = np.zeros(count, np.float32), np.ones(count, np.float32)
    place = 0
    for i, channel in enumerate(preparation.channels):
        if preparation.standardise and channel not in preparation.categories:
            mean[place], deviation[place] = preparation.mean[i], preparation.deviation[i]
        place += len(preparation.categories.get(channel, (channel,)))
    return mean, deviation


class Told(NamedTuple):
    """How a model's answers become what they mean: answers * deviation + mean, if not None.

    places: of what a forecast answers with among the channels that it reads; else none.
    """

    mean: np.ndarray | None
    deviation: np.ndarray | None
    places: list[int] = []


def told_by(model: Trained) -> Told:
    """What is done with the answers of a model."""
    own = model.ahead
    if own is None:
        return Told(*model.scale) if model.config.task == "regress" else Told(None, None)
    if own.tokens:
        return Told(None, None)
    preparation = model.prepared_by()
    places = preparation.places(own.targets)
    scale = preparation.scale(own.targets)
    return Told(*scale, places if model.config.task == "forecast" else [])


def _in_torch(model: Trained, mean: np.ndarray, deviation: np.ndarray) -> Any:
    import torch
    from torch import Tensor, nn

    own, how = model.ahead, told_by(model)
    tokens = bool(own and own.tokens)

    class Whole(nn.Module):
        """The model between values as they are and answers as they are meant."""

        mean: Tensor
        deviation: Tensor
        answer_mean: Tensor
        answer_deviation: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model, self.input_size = model.trainer.model.cpu(), len(mean)
            told: dict[str, Any] = {"mean": mean, "deviation": deviation}
            told |= {"answer_mean": how.mean, "answer_deviation": how.deviation}
            for name, value in told.items():
                if value is not None:
                    self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

        def prepared(self, inputs: Tensor) -> Tensor:
            return inputs if tokens else (inputs - self.mean) / self.deviation

        def told(self, answers: Tensor) -> Tensor:
            if how.mean is None:
                return answers
            return answers * self.answer_deviation + self.answer_mean

        def forward(self, inputs: Tensor) -> Tensor:
            read = self.prepared(inputs)
            if own is None or not how.places:
                return self.told(self.model(read)[0])
            changes = torch.zeros_like(read[:, -1:])
            changes[..., how.places] = read[:, -1:, how.places]
            answers = self.model(read - changes)[0].reshape(read.shape[0], own.horizon, -1)
            return self.told(answers + read[:, -1:, how.places])

        def step(self, input_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            answers, state = self.model.step(self.prepared(input_t), state)
            return self.told(answers), state

    return Whole().eval().requires_grad_(False)


def _any_series(model: Trained, channels: int) -> tuple[tuple[Any], tuple[Any]]:
    """An example of series, and that their number and length are free."""
    import torch

    free = torch.export.Dim.DYNAMIC
    tokens = model.ahead is not None and model.ahead.tokens
    example = torch.zeros(2, 5, dtype=torch.int64) if tokens else torch.zeros(2, 5, channels)
    return (example,), ({0: free, 1: free},)


def _c(model: Trained, mean: np.ndarray, deviation: np.ndarray, out: Path) -> list[str]:
    import torch

    from parnl.export import around
    from parnl.export.to_c import to_c

    own, how = model.ahead, told_by(model)
    whole, more = _in_torch(model, mean, deviation), {}
    if own is not None and own.tokens:
        whole, rows = _of_rows(whole.model)
        more = around.tokens(rows)
    elif own is not None and how.places:
        # differences have no mean, and each of the steps answered has the same deviations
        whole.mean[how.places] = 0.0
        whole.answer_mean = torch.zeros(())
        whole.answer_deviation = whole.answer_deviation.repeat(own.horizon)
        more = around.forecast(how.places, own.context, own.horizon)
    to_c(whole, folder=out)
    for name, text in more.items():
        (out / name).write_text(text, encoding="ascii", newline="\n")
    return ["model.c", "model.h", *more]


def _of_rows(model: Any) -> tuple[Any, np.ndarray]:
    """Split a model of tokens: (one that reads a row at a step, the row of each token)."""
    import copy

    import torch

    rows = model.encoder(model.activation(model.lift(torch.arange(model.input_size))))
    rest = copy.deepcopy(model)
    rest.lift = rest.activation = rest.encoder = torch.nn.Identity()
    rest.input_size = rows.shape[1]
    return rest.eval(), rows.detach().numpy()


def _torch(model: Trained, mean: np.ndarray, deviation: np.ndarray, out: Path) -> list[str]:
    import torch

    whole, (example, free) = _in_torch(model, mean, deviation), _any_series(model, len(mean))
    program = torch.export.export(whole, example, dynamic_shapes=free)
    torch.export.save(program, out / "model.pt2")
    return ["model.pt2"]


def _onnx(model: Trained, mean: np.ndarray, deviation: np.ndarray, out: Path) -> list[str]:
    from parnl.backends.torch.onnx import export_onnx

    whole, (example, free) = _in_torch(model, mean, deviation), _any_series(model, len(mean))
    export_onnx(whole, example, out / "model.onnx", dynamic_shapes=free, external_data=False)
    return ["model.onnx"]


def _jax(model: Trained, mean: np.ndarray, deviation: np.ndarray, out: Path) -> list[str]:
    import jax
    import jax.numpy as jnp
    from jax import export

    own, how = model.ahead, told_by(model)
    tokens = bool(own and own.tokens)

    def answer(inputs: Any) -> Any:
        read = inputs if tokens else (inputs - mean) / deviation
        if own is not None and how.places:
            last = read[:, -1:, jnp.array(how.places)]
            read = read.at[..., jnp.array(how.places)].add(-last)
            answers = model.trainer.model(read)[0].reshape(read.shape[0], own.horizon, -1) + last
        else:
            answers = model.trainer.model(read)[0]
        if how.mean is None:
            return answers
        offset, scale = (jnp.asarray(a, jnp.float32) for a in (how.mean, how.deviation))
        return answers * scale + offset

    sizes = export.symbolic_shape("N, T" if tokens else f"N, T, {len(mean)}")
    given = jax.ShapeDtypeStruct(sizes, jnp.int32 if tokens else jnp.float32)
    program = export.export(jax.jit(answer))(given)
    (out / "model.jax").write_bytes(program.serialize())
    return ["model.jax"]


# Of each format: the framework that reads the model, and what writes it.
FORMATS: dict[str, tuple[str, Callable[..., list[str]]]] = {
    "c": ("torch", _c),
    "onnx": ("torch", _onnx),
    "torch": ("torch", _torch),
    "jax": ("jax", _jax),
}
