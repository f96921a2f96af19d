"""What the modules for Flax and Equinox do alike: `parnl.flax.RNN` and `parnl.equinox.RNN`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from parnl.frameworks import name_of
from parnl.layers import Layers, LayersSolution, laid_out, moved, shape_in_time, solver
from parnl.solve import Solution


class JaxLayers:
    """Runs layers of a cell; a subclass has their settings and parameters, by `nn.GRU`'s names."""

    layers: Layers
    batch_first: bool
    method: str
    chunks: int | str | None
    stretch: int | None

    def _weights(self) -> Mapping[str, Any]:
        """Return all parameters by name."""
        raise NotImplementedError

    def _called(
        self, given: Any, hx: Any, between: Callable[[Any], Any], told: dict[str, Any]
    ) -> tuple[Any, Any]:
        x, told = self._laid_out(given, told)
        output, h_n, _ = self._run(x, hx, between, told)
        return moved(output, self.batch_first), h_n

    def _solved(
        self, given: Any, hx: Any, between: Callable[[Any], Any], told: dict[str, Any]
    ) -> LayersSolution:
        x, told = self._laid_out(given, told)
        output, h_n, solutions = self._run(x, hx, between, told | {"states": True})
        return self.layers.solution(output, h_n, solutions, self.batch_first)

    def _stepped(
        self, given: Any, state: Any, between: Callable[[Any], Any], told: dict[str, Any]
    ) -> tuple[Any, Any]:
        self._check_input("input_t", given, "(B, {})", (1, 2))
        starts = self._starts("state", state, given.shape[:-1])
        anew = None if told["reset"] is None else self._starts("state", None, given.shape[:-1])
        output, ends = self.layers.step(self._params(), given, starts, between, anew, **told)
        return output, self.layers.state(ends, _stacked)

    def initialize_carry(self, batch: Sequence[int] = ()) -> Any:
        """Return the state before the first step, for inputs of this shape of a batch."""
        starts = self._starts("carry", None, batch)
        cell = self.layers.cells[0]
        if starts is None:
            like = next(iter(self._weights().values()))
            dtype = jnp.float32 if like.dtype.itemsize < 4 else like.dtype
            shape = (self.layers.count, *batch, cell.hidden_size)
            starts = [jnp.zeros(shape, dtype) for _ in cell.states]
        return self.layers.in_module_order(cell.State(*starts))

    def _params(self) -> list[dict[str, Any]]:
        weights = self._weights()
        like = next(iter(weights.values()))
        found = []
        for run in range(self.layers.count):
            shapes = self.layers.cell(run).parameter_shapes
            names = self.layers.parameter_names(run)
            # what is not there is a bias of a module without biases
            found.append(
                {n: weights[m] if m in weights else jnp.zeros(shapes[n], like.dtype)
                 for n, m in names.items()}
            )  # fmt: skip
        return found

    def _starts(self, argument: str, given: Any, batch: Sequence[int]) -> list[Any] | None:
        weights = self._weights()
        names = [f"initial_{name}" for name in self.layers.names]
        if given is None and names[0] in weights:
            lead = (self.layers.count, *batch)
            given = self.layers.State(
                *(
                    jnp.broadcast_to(jnp.expand_dims(weights[n], [*range(1, len(lead))]),
                                     (*lead, weights[n].shape[-1]))
                    for n in names
                )
            )  # fmt: skip
        return self.layers.starts(argument, given, batch)

    def _run(
        self, x: Any, hx: Any, between: Callable[[Any], Any], told: Mapping[str, Any]
    ) -> tuple[Any, Any, list[Solution]]:
        batch, anew = x.shape[:-2], None
        starts = self._starts("hx", hx, batch)
        if hx is not None and told["resets"] is not None and starts is not None:
            anew = self._starts("hx", None, batch) or [jnp.zeros_like(s) for s in starts]
        output, solutions = self.layers.run(
            self._params(), x, starts, _joined, between, anew,
            **solver(self, x.shape[-2], told), **told,
        )  # fmt: skip
        h_n = self.layers.state([s.final_state for s in solutions], _stacked)
        return output, h_n, solutions

    def _laid_out(self, given: Any, told: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._check_input("input", given, shape_in_time(self.batch_first), (2, 3))
        return laid_out(given, told, self.batch_first)

    def _check_input(self, name: str, x: Any, shape: str, dimensions: Sequence[int]) -> None:
        if name_of(x) != "jax":
            kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
            raise TypeError(
                f"{name}: expected a jax.Array, got {kind}; convert it by jnp.asarray({name})"
            )
        size = self.layers.cells[0].input_size
        if x.ndim not in dimensions or x.shape[-1] != size:
            raise ValueError(f"{name}: expected shape {shape.format(size)}, got {x.shape}")


def drawn(layers: Layers, key: Any, dtype: str, bias: bool, learn_initial: bool) -> dict[str, Any]:
    """Return initial parameters by name; key: a JAX PRNG key, or an integer as in PyTorch."""
    first = layers.cells[0]
    if not bias and not first.biases:
        raise ValueError(f"bias: expected True, since {type(first).__name__} has no biases")
    found = {}
    for run in range(layers.count):
        seed = key + run if isinstance(key, int) else jax.random.fold_in(key, run)
        values = layers.cell(run).init(seed, "jax", dtype)
        for name, called in layers.parameter_names(run).items():
            if bias or name not in first.biases:
                found[called] = values[name]
    like = next(iter(found.values()))
    for name in layers.names if learn_initial else ():
        found[f"initial_{name}"] = jnp.zeros((layers.count, first.hidden_size), like.dtype)
    return found


def _joined(outputs: Sequence[Any]) -> Any:
    return jnp.concatenate(outputs, axis=-1)


def _stacked(states: Sequence[Any]) -> Any:
    return jnp.stack(states)
