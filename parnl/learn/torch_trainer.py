"""What `parnl.learn.training` asks of a framework, in PyTorch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from parnl.learn.torch_model import Classifier

Parts = tuple[Tensor, Tensor]


def _cross_entropy(answers: Tensor, targets: Tensor) -> Parts:
    losses = cross_entropy(answers.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.reshape(targets.shape), torch.ones_like(targets, dtype=torch.bool)


def _squared_error(answers: Tensor, targets: Tensor) -> Parts:
    known = ~torch.isnan(targets)
    return torch.where(known, answers - targets, 0) ** 2, known


# Each gives the losses, in the targets' shape, and which of them count.
LOSSES: dict[str, Callable[[Tensor, Tensor], Parts]] = {
    "cross_entropy": _cross_entropy,
    "squared_error": _squared_error,
}


class Trainer:
    """A model and its Adam optimizer. Arrays are NumPy's on the way in and on the way out."""

    def __init__(
        self,
        model: dict[str, Any],
        *,
        loss: str = "cross_entropy",
        learning_rate: float | None,
        clip: float,
        seed: int,
        chunks: int | None = None,
        weight_decay: float = 0.0,
        accumulate: int = 1,
        precision: str = "float32",
        make: Callable[..., Any] = Classifier,
    ) -> None:
        """`model` holds the keywords of `make`; `clip` bounds the global gradient norm.

        loss: see `parnl.learn.tasks.Task`. learning_rate: None where each step is given its own.
        weight_decay: of AdamW; 0 is Adam. accumulate: the most batches that make a step.
        precision: of the products in a step, "float32" or "bfloat16".
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = make(**model, seed=seed).to(self.device)
        self.parameters = dict(self.model.named_parameters())
        adam: Any = torch.optim.Adam
        if weight_decay:
            adam = partial(torch.optim.AdamW, weight_decay=weight_decay)
        self.optimizer = adam(self.parameters.values(), lr=learning_rate or 0.0, fused=True)
        self.loss, self.clip, self.seed, self.chunks = LOSSES[loss], clip, seed, chunks
        self.count, self.part, self.accumulate = 0, 0, accumulate
        self.autocast = partial(
            torch.autocast, self.device.type, torch.bfloat16, enabled=precision == "bfloat16"
        )
        moments = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self._set_moments(moments, moments)

    def step(
        self,
        inputs: np.ndarray,
        lengths: np.ndarray | None,
        targets: np.ndarray,
        weights: np.ndarray,
        *,
        rate: float | None = None,
        share: float = 1.0,
        last: bool = True,
    ) -> tuple[float, np.ndarray, int]:
        """One optimizer step on a batch; rows of weight 0 do not count.

        inputs: (N, T, channels). lengths, weights: (N,). targets: see `parnl.learn.tasks.Task`.
        rate: the learning rate. share, last: of several batches that make a step, the part that
        this one's gradient has in their mean, and whether the step is taken now.
        Returns the mean loss, the answers before the step and the chunks of the solve (of attention
        0). Answers are (N, k), or (N, T, k) of a model whose readout is "each".
        """
        self.model.train()
        target, weight, ends = self._tensor(targets), self._tensor(weights), self._tensor(lengths)
        # Seeded by the step, so that a resumed run needs no generator state to repeat it.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed((self.seed << 32) + self.count * self.accumulate + self.part)
            with self.autocast():
                answers, infos = self.model(self._tensor(inputs), ends, chunks=self.chunks)
        if answers.dtype == torch.bfloat16:
            answers = answers.float()
        losses, counted = self.loss(answers, target)
        counted = counted * _at_steps(weight, losses.ndim)
        if answers.ndim == 3 and lengths is not None:
            real = torch.arange(target.shape[1], device=self.device) < ends[:, None]
            counted = counted * _at_steps(real, losses.ndim)
        loss = (counted * losses).sum() / counted.sum()
        if self.part == 0:
            self.optimizer.zero_grad()
        (loss * share).backward()
        self.part += 1
        if last:
            if rate is not None:
                self.optimizer.param_groups[0]["lr"] = rate
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
            self.optimizer.step()
            self.count, self.part = self.count + 1, 0
        used = 0 if infos[0] is None else infos[0].chunks
        return float(loss.detach()), answers.numpy(force=True), used

    @torch.no_grad()
    def predict(
        self, inputs: np.ndarray, lengths: np.ndarray | None, **solver: Any
    ) -> tuple[np.ndarray, list[int]]:
        """Answers to inputs (N, T, channels), as `step` has them, and each block's iterations."""
        self.model.eval()
        answers, infos = self.model(self._tensor(inputs), self._tensor(lengths), **solver)
        return answers.numpy(force=True), _iterations(infos)

    def stream(self) -> Callable[[np.ndarray], np.ndarray]:
        """A function of one step (..., channels), or tokens (...,), after those it was given.

        It returns the answer (..., k) of new sequences up to that step.
        """
        self.model.eval()
        state: Any = None

        @torch.no_grad()
        def advance(input_t: np.ndarray) -> np.ndarray:
            nonlocal state
            answer, state = self.model.step(self._tensor(input_t), state)
            return answer.numpy(force=True)

        return advance

    def export_state(self) -> dict[str, np.ndarray]:
        """All that decides the next step: `model.*`, `optimizer.*` and the step count."""
        moments = self.optimizer.state_dict()["state"]
        state = {"optimizer.count": np.array(self.count, np.int64)}
        for index, (name, value) in enumerate(self.parameters.items()):
            state[f"model.{name}"] = value.numpy(force=True).copy()
            state[f"optimizer.mean.{name}"] = moments[index]["exp_avg"].numpy(force=True).copy()
            state[f"optimizer.square.{name}"] = (
                moments[index]["exp_avg_sq"].numpy(force=True).copy()
            )
        return state

    def import_state(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `export_state` gave. Without `optimizer.*` only the model changes."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(torch.from_numpy(state[f"model.{name}"]))
        if "optimizer.count" in state:
            self.count, self.part = int(state["optimizer.count"]), 0
            self._set_moments(
                {
                    name: torch.from_numpy(state[f"optimizer.mean.{name}"])
                    for name in self.parameters
                },
                {
                    name: torch.from_numpy(state[f"optimizer.square.{name}"])
                    for name in self.parameters
                },
            )

    def _set_moments(self, mean: dict[str, Tensor], square: dict[str, Tensor]) -> None:
        state = {
            index: {
                "step": torch.tensor(float(self.count)),
                "exp_avg": mean[name].clone(),
                "exp_avg_sq": square[name].clone(),
            }
            for index, name in enumerate(self.parameters)
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _tensor(self, array: np.ndarray | None) -> Any:
        return None if array is None else torch.from_numpy(array).to(self.device)


def _at_steps(x: Tensor, ndim: int) -> Tensor:
    """x with further axes at its end, up to `ndim`."""
    return x.reshape(x.shape + (1,) * (ndim - x.ndim))


def _iterations(infos: list[Any]) -> list[int]:
    return [int(torch.as_tensor(info.iterations).max()) for info in infos if info is not None]
