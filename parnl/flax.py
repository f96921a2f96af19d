"""`RNN`: any registered cell as a Flax module (`nnx`), with the arguments of `nn.GRU`."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from parnl.cell import Cell
from parnl.jax_layers import JaxLayers, drawn
from parnl.layers import Layers, LayersSolution, check_options
from parnl.learn.flax_model import Block, Classifier

__all__ = ["RNN", "Block", "Classifier"]


class RNN(JaxLayers, nnx.Module):
    """Layers of a parnl cell. Arguments, shapes and states are those of `parnl.torch.RNN`.

        rnn = RNN("lrc", input_size=6, hidden_size=64, num_layers=2, rngs=nnx.Rngs(0))
        output, h_n = rnn(inputs)                       # inputs (T, 6), or (T, B, 6)
        output_t, state = rnn.step(input_t, state)

    Args:
        cell: a name, or a `parnl.Cell` class.
        input_size: see `parnl.torch.RNN`, as for all that follow.
        hidden_size: channels of the output, in one direction.
        num_layers: number of layers, one after the other.
        bias: if False, the cell's biases are 0 and are not parameters.
        batch_first: input and output are (B, T, ...); else (T, B, ...).
        dropout: share of values between layers that is set to 0 in training.
        bidirectional: run a second recurrence from the end to the start.
        dtype: of the parameters.
        learn_initial: make parameters of the initial states.
        method: as in `parnl.solve`.
        chunks: as in `parnl.solve`.
        stretch: as in `parnl.solve`.
        **options: of the cell.
        rngs: `nnx.Rngs`; its stream "params" draws parameters, its stream "dropout" is for
            dropout. `train()` and `eval()` turn dropout on and off.

    Each parameter is an `nnx.Param`, an attribute with the name it has in PyTorch's module.
    """

    def __init__(
        self,
        cell: str | type[Cell],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = "float32",
        *,
        rngs: nnx.Rngs,
        learn_initial: bool = False,
        method: str = "auto",
        chunks: int | str | None = None,
        stretch: int | None = None,
        **options: Any,
    ) -> None:
        check_options(method, chunks, dropout)
        self.layers = Layers(cell, input_size, hidden_size, num_layers, bidirectional, options)
        weights = drawn(self.layers, rngs.params(), dtype, bias, learn_initial)
        for name, value in weights.items():
            setattr(self, name, nnx.Param(value))
        self.weight_names = tuple(weights)
        self.batch_first = batch_first
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.method, self.chunks, self.stretch = method, chunks, stretch

    def _weights(self) -> dict[str, jax.Array]:
        return {name: getattr(self, name)[...] for name in self.weight_names}

    def __call__(
        self,
        input: jax.Array,
        hx: Any = None,
        *,
        dt: Any = None,
        lengths: Any = None,
        resets: Any = None,
        time_axis: Any = None,
    ) -> tuple[jax.Array, Any]:
        """Return (output, h_n); dt, lengths, resets, time_axis as in `parnl.solve`."""
        told = {"dt": dt, "lengths": lengths, "resets": resets, "time_axis": time_axis}
        return self._called(input, hx, self.dropout, told)

    def solve(
        self,
        input: jax.Array,
        hx: Any = None,
        *,
        dt: Any = None,
        lengths: Any = None,
        resets: Any = None,
        time_axis: Any = None,
    ) -> LayersSolution:
        """Return outputs and final state, as a call does, and each run's states and `Info`."""
        told = {"dt": dt, "lengths": lengths, "resets": resets, "time_axis": time_axis}
        return self._solved(input, hx, self.dropout, told)

    def step(
        self, input_t: jax.Array, state: Any = None, *, dt: Any = None, reset: Any = None
    ) -> tuple[jax.Array, Any]:
        """Run one time step: (output_t (B, hidden), state), from an input (B, input)."""
        return self._stepped(input_t, state, self.dropout, {"dt": dt, "reset": reset})

    def to_torch(self) -> Any:
        """Return `parnl.torch.RNN` with the same weights, in float32 and in eval mode."""
        from parnl.interop.twins import in_torch

        return in_torch(self)
