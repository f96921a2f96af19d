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
from typing import Any

import numpy as np

from parnl.learn.data import channels_of
from parnl.learn.preparation import Preparation
from parnl.learn.trained import Trained, load_run


def write(folder: Path, to: str, out: Path) -> list[str]:
    """Write the model of the run in `folder` as `to`: a name in FORMATS; return names of files.

    The model takes series (N, T, channels), all of one length; as C, one step after the other. Its
    answers (N, k) are logits of the classes, or numbers on their own scale.
    """
    if to not in FORMATS:
        raise ValueError(f"to: got {to!r}, expected {' or '.join(FORMATS)}")
    backend, make = FORMATS[to]
    model = load_run(folder, backend)
    preparation = model.prepared_by()
    if model.config.patch > 1:
        raise ValueError(
            f"patch: the model reads {model.config.patch} steps at a time, expected one"
        )
    out.mkdir(parents=True, exist_ok=True)
    files = make(model, *moments(preparation), out)
    names, classes = channels_of(preparation), list(model.classes)
    about = dict(task=model.config.task, channels=names, classes=classes)
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


def _in_torch(model: Trained, mean: np.ndarray, deviation: np.ndarray) -> Any:
    import torch
    from torch import Tensor, nn

    class Whole(nn.Module):
        """The model between values as they are and answers as they are meant."""

        mean: Tensor
        deviation: Tensor
        answer_mean: Tensor
        answer_deviation: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model, self.input_size = model.trainer.model.cpu(), len(mean)
            told = {"mean": mean, "deviation": deviation}
            if not model.classes:
                told |= {"answer_mean": model.scale.mean, "answer_deviation": model.scale.deviation}
            for name, value in told.items():
                self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

        def told(self, answers: Tensor) -> Tensor:
            return answers if model.classes else answers * self.answer_deviation + self.answer_mean

        def forward(self, inputs: Tensor) -> Tensor:
            return self.told(self.model((inputs - self.mean) / self.deviation)[0])

        def step(self, input_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            answers, state = self.model.step((input_t - self.mean) / self.deviation, state)
            return self.told(answers), state

    return Whole().eval().requires_grad_(False)


def _any_series(channels: int) -> tuple[tuple[Any], tuple[Any]]:
    """An example of series, and that their number and length are free."""
    import torch

    free = torch.export.Dim.DYNAMIC
    return (torch.zeros(2, 5, channels),), ({0: free, 1: free},)


def _c(model: Trained, mean: np.ndarray, deviation: np.ndarray, out: Path) -> list[str]:
    from parnl.export.to_c import to_c

    to_c(_in_torch(model, mean, deviation), folder=out)
    return ["model.c", "model.h"]


def _torch(model: Trained, mean: np.ndarray, deviation: np.ndarray, out: Path) -> list[str]:
    import torch

    whole, (example, free) = _in_torch(model, mean, deviation), _any_series(len(mean))
    program = torch.export.export(whole, example, dynamic_shapes=free)
    torch.export.save(program, out / "model.pt2")
    return ["model.pt2"]


def _onnx(model: Trained, mean: np.ndarray, deviation: np.ndarray, out: Path) -> list[str]:
    from parnl.backends.torch.onnx import export_onnx

    whole, (example, free) = _in_torch(model, mean, deviation), _any_series(len(mean))
    export_onnx(whole, example, out / "model.onnx", dynamic_shapes=free, external_data=False)
    return ["model.onnx"]


def _jax(model: Trained, mean: np.ndarray, deviation: np.ndarray, out: Path) -> list[str]:
    import jax
    import jax.numpy as jnp
    from jax import export

    def answer(inputs: Any) -> Any:
        answers, _ = model.trainer.model((inputs - mean) / deviation)
        if model.classes:
            return answers
        offset, scale = (jnp.asarray(a, jnp.float32) for a in model.scale)
        return answers * scale + offset

    sizes = export.symbolic_shape(f"N, T, {len(mean)}")
    program = export.export(jax.jit(answer))(jax.ShapeDtypeStruct(sizes, jnp.float32))
    (out / "model.jax").write_bytes(program.serialize())
    return ["model.jax"]


# Of each format: the framework that reads the model, and what writes it.
FORMATS: dict[str, tuple[str, Callable[..., list[str]]]] = {
    "c": ("torch", _c),
    "onnx": ("torch", _onnx),
    "torch": ("torch", _torch),
    "jax": ("jax", _jax),
}
