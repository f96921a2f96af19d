"""What `parnl.learn.training` asks of a framework, in JAX with Equinox and Optax."""

from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from parnl.learn.jax_model import Classifier


def _cross_entropy(answers: Array, targets: Array) -> tuple[Array, Array]:
    losses = optax.softmax_cross_entropy_with_integer_labels(answers, targets)
    return losses, jnp.ones(targets.shape, bool)


def _squared_error(answers: Array, targets: Array) -> tuple[Array, Array]:
    known = ~jnp.isnan(targets)
    return jnp.where(known, answers - targets, 0) ** 2, known


# Each gives the losses, in the targets' shape, and which of them count.
LOSSES = {"cross_entropy": _cross_entropy, "squared_error": _squared_error}


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
    ) -> None:
        """`model` holds the keywords of `Classifier`; `clip` bounds the global gradient norm.

        loss: see `parnl.learn.tasks.Task`. learning_rate: None where each step is given its own.
        weight_decay: of AdamW; 0 is Adam. accumulate: the most batches that make a step.
        precision: of the products in a step, "float32" or "bfloat16".
        """
        self.model = Classifier(**model, seed=seed)
        self.optimizer = _adam(learning_rate, clip, weight_decay)
        self.moments = self.optimizer.init(eqx.filter(self.model, eqx.is_array))
        self.loss, self.seed, self.chunks = loss, seed, chunks
        self.count, self.part, self.accumulate = 0, 0, accumulate
        self.gathered: Any = None
        self.half = precision == "bfloat16"

    def step(
        self,
        inputs: np.ndarray,
        lengths: np.ndarray | None,
        targets: np.ndarray,
        weights: np.ndarray,
        *,
        rate: float | None = None,
        share: float | None = None,
        last: bool = True,
    ) -> tuple[float, np.ndarray, int]:
        """One optimizer step on a batch; rows of weight 0 do not count.

        inputs: (N, T, channels). lengths, weights: (N,). targets: see `parnl.learn.tasks.Task`.
        rate: the learning rate. share, last: of several batches that make a step, the part that
        this one's gradient has in their mean, and whether the step is taken now.
        Returns the mean loss, the answers before the step and the chunks of the solve. Answers are
        (N, k), or (N, T, k) of a model whose readout is "each".
        """
        number = self.count * self.accumulate + self.part
        key = jax.random.fold_in(jax.random.key(self.seed), number)
        if share is not None and self.part == 0:
            self.gathered = jax.tree.map(jnp.zeros_like, eqx.filter(self.model, eqx.is_array))
        self.model, self.moments, self.gathered, loss, answers, chunks = _step(
            self.model,
            self.moments,
            self.optimizer,
            self.loss,
            key,
            (inputs, lengths, targets, weights),
            self.chunks,
            # as arrays: of numbers there would be a program for each
            None if rate is None else np.array(rate),
            None if share is None else (self.gathered, np.array(share)),
            last,
            self.half,
        )
        self.count, self.part = (self.count + 1, 0) if last else (self.count, self.part + 1)
        return float(loss), np.array(answers), chunks

    def predict(
        self, inputs: np.ndarray, lengths: np.ndarray | None, **solver: Any
    ) -> tuple[np.ndarray, list[int]]:
        """Answers to inputs (N, T, channels), as `step` has them, and each block's iterations."""
        answers, iterations = _predict(self.model, inputs, lengths, solver)
        return np.array(answers), [int(count) for count in iterations]

    def stream(self) -> Callable[[np.ndarray], np.ndarray]:
        """A function of one step (..., channels), or tokens (...,), after those it was given.

        It returns the answer (..., k) of new sequences up to that step.
        """
        state: Any = None

        def advance(input_t: np.ndarray) -> np.ndarray:
            nonlocal state
            answer, state = _advance(self.model, input_t, state)
            return np.array(answer)

        return advance

    def export_state(self) -> dict[str, np.ndarray]:
        """All that decides the next step: `model.*`, `optimizer.*` and the step count."""
        state = {"optimizer.count": np.array(self.count, np.int64)}
        return state | _flatten(self.model, "model.") | _flatten(self.moments, "optimizer.")

    def import_state(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `export_state` gave. Without `optimizer.*` only the model changes."""
        self.model = _replace(self.model, state, "model.")
        if "optimizer.count" in state:
            self.count, self.part = int(state["optimizer.count"]), 0
            self.moments = _replace(self.moments, state, "optimizer.")


@cache
def _adam(
    learning_rate: float | None, clip: float, weight_decay: float
) -> optax.GradientTransformation:
    """Clipped Adam; one object for equal arguments, so that a compiled step serves it again."""
    rate = 1.0 if learning_rate is None else learning_rate  # else the step multiplies by its own
    adam = optax.adamw(rate, weight_decay=weight_decay) if weight_decay else optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(clip), adam)


@eqx.filter_jit
def _step(
    model: Classifier,
    moments: Any,
    optimizer: optax.GradientTransformation,
    loss: str,
    key: Array,
    batch: tuple[Any, Any, Any, Any],
    chunks: int | None,
    rate: Any,
    accumulated: tuple[Any, Any] | None,
    last: bool,
    half: bool,
) -> tuple[Classifier, Any, Any, Array, Array, int]:
    inputs, lengths, targets, weights = batch

    @eqx.filter_value_and_grad(has_aux=True)
    def mean_loss(model: Classifier) -> tuple[Array, tuple[Array, int]]:
        if half:
            model = _in_half(model)
        answers, infos = model(inputs, lengths, key=key, chunks=chunks)
        if half:
            answers = answers.astype(jnp.float32)
        losses, counted = LOSSES[loss](answers, targets)
        counted = counted * _at_steps(weights, losses.ndim)
        if answers.ndim == 3 and lengths is not None:
            real = jnp.arange(targets.shape[1]) < lengths[:, None]
            counted = counted * _at_steps(real, losses.ndim)
        return (counted * losses).sum() / counted.sum(), (answers, infos[0].chunks)

    (value, (answers, used)), gradient = mean_loss(model)
    if accumulated is not None:
        gathered, share = accumulated
        gradient = jax.tree.map(lambda a, g: (a + g * share).astype(g.dtype), gathered, gradient)
        if not last:
            return model, moments, gradient, value, answers, used
    updates, moments = optimizer.update(gradient, moments, eqx.filter(model, eqx.is_array))
    if rate is not None:
        updates = jax.tree.map(lambda u: (u * rate).astype(u.dtype), updates)
    return eqx.apply_updates(model, updates), moments, None, value, answers, used


def _in_half(model: Classifier) -> Classifier:
    """The model with its layers in bfloat16; the recurrences stay as they are."""

    def cast(path: Any, value: Any) -> Any:
        layer = eqx.is_array(value) and "recurrence" not in _name(path)
        return value.astype(jnp.bfloat16) if layer else value

    return jax.tree_util.tree_map_with_path(cast, model)


def _at_steps(x: Any, ndim: int) -> Array:
    """x with further axes at its end, up to `ndim`."""
    return jnp.reshape(x, x.shape + (1,) * (ndim - x.ndim))


@eqx.filter_jit
def _predict(
    model: Classifier, inputs: Any, lengths: Any, solver: dict[str, Any]
) -> tuple[Array, list[Array]]:
    answers, infos = model(inputs, lengths, **solver)
    return answers, _iterations(infos)


@eqx.filter_jit
def _advance(model: Classifier, input_t: Any, state: Any) -> tuple[Array, Any]:
    return model.step(jnp.asarray(input_t), state)


def _iterations(infos: list[Any]) -> list[Array]:
    return [jnp.max(jnp.asarray(info.iterations)) for info in infos]


def _flatten(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a pytree under dotted names, `model.blocks.0.expand.weight`."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {prefix + _name(path): np.array(value) for path, value in leaves}


def _replace(tree: Any, arrays: dict[str, np.ndarray], prefix: str) -> Any:
    def pick(path: Any, value: Any) -> Any:
        return jnp.asarray(arrays[prefix + _name(path)]) if eqx.is_array(value) else value

    return jax.tree_util.tree_map_with_path(pick, tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
