"""`RNN`: any registered cell as an `nn.Module` with the conventions of `nn.GRU`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from parnl.backends.torch.operators import recorded
from parnl.cell import Cell
from parnl.frameworks import backend_of
from parnl.registry import get_class
from parnl.solve import solve


class RNN(nn.Module):
    """Layers of a parnl cell, with the interface of `torch.nn.GRU`.

        rnn = RNN("lrc", input_size=6, hidden_size=64, num_layers=2, batch_first=True)
        output, h_n = rnn(inputs, h_0)

    Args: cell, a name or a `parnl.Cell` class; input_size, hidden_size, num_layers, batch_first,
    dropout (between layers), bidirectional as in `nn.GRU`; `seed` of the initial parameters, by
    default drawn from torch's generator; all other keywords are options of the cell.

    Shapes: inputs (T, B, input), (B, T, input) if batch_first, (T, input) unbatched, or a
    `PackedSequence`; output likewise with D * hidden channels, D = 2 if bidirectional; h_0 and h_n
    (D * num_layers, B, hidden). A cell with several states has a tuple of them, the output state
    first, as `nn.LSTM` has (h, c), then the others in the cell's order. `method`, `chunks` and
    `stretch` are those of `parnl.solve`. Parameters are called `<name>_l<layer>`, with the suffix
    `_reverse` for the backward direction.
    """

    def __init__(
        self,
        cell: str | type[Cell],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        seed: int | None = None,
        method: str = "auto",
        chunks: int | str | None = None,
        stretch: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError(f"num_layers: expected a positive integer, got {num_layers!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, got {dropout!r}")
        kind = get_class(cell) if isinstance(cell, str) else cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.bidirectional = batch_first, bidirectional
        self.method, self.chunks, self.stretch = method, chunks, stretch
        self.dropout = nn.Dropout(dropout)
        self.directions = 2 if bidirectional else 1
        wide = hidden_size * self.directions
        self.cells = [
            kind(input_size if layer == 0 else wide, hidden_size, **options)
            for layer in range(num_layers)
        ]
        if seed is None:
            drawn = torch.randint(2**31, (), device="cpu")
            seed = 0 if recorded([drawn]) else int(drawn)  # without values, any will do
        name = str(dtype or torch.get_default_dtype()).removeprefix("torch.")
        for run in range(num_layers * self.directions):
            values = self.cells[run // self.directions].init(seed + run, "torch", name, device)
            for parameter, value in values.items():
                self.register_parameter(parameter + self._suffix(run), nn.Parameter(value))

    def _suffix(self, run: int) -> str:
        layer, backward = divmod(run, self.directions)
        return f"_l{layer}{'_reverse' if backward else ''}"

    def forward(self, inputs: Any, h_0: Any = None, *, time_axis: Any = None) -> tuple[Any, Any]:
        """Return (output, h_n); time_axis: processes that share it, see `parnl.solve`."""
        if isinstance(inputs, PackedSequence):
            if time_axis is not None:
                raise ValueError("time_axis: expected None for a PackedSequence")
            return self._packed(inputs, h_0)
        backend_of([("inputs", inputs)])
        if inputs.ndim not in (2, 3):
            raise ValueError(f"inputs: expected 2 or 3 dimensions, got {tuple(inputs.shape)}")
        time_first = inputs.ndim == 3 and not self.batch_first
        x = inputs.transpose(0, 1) if time_first else inputs
        output, h_n = self._layers(x, h_0, x.shape[:-2], time_axis=time_axis)
        return (output.transpose(0, 1) if time_first else output), h_n

    def _packed(self, inputs: PackedSequence, h_0: Any) -> tuple[PackedSequence, Any]:
        """Run the sequences in the order they are packed in; h_0 and h_n are in the caller's."""
        data, sizes, order, back = inputs
        rows, offsets = _one_after_the_other(sizes)
        rows = rows.to(data.device)
        batch = (len(offsets) - 1,)
        if h_0 is not None and order is not None:
            self._starts(h_0, batch)  # of what is too short, no row must be asked for
            h_0 = _rows(h_0, order)
        output, h_n = self._layers(data[rows], h_0, batch, cu_seqlens=offsets.to(data.device))
        h_n = h_n if back is None else _rows(h_n, back)
        as_it_came = torch.empty_like(output).index_copy(0, rows, output)
        return PackedSequence(as_it_came, sizes, order, back), h_n

    def _layers(self, x: Tensor, h_0: Any, batch: Sequence[int], **told: Any) -> tuple[Tensor, Any]:
        starts = self._starts(h_0, batch)
        ends = []
        for layer, cell in enumerate(self.cells):
            outputs = []
            for backward in range(self.directions):
                run = layer * self.directions + backward
                params = {n: getattr(self, n + self._suffix(run)) for n in cell.specs}
                start = None if starts is None else [s[run] for s in starts]
                out = solve(
                    cell, params, x, start, reverse=bool(backward), method=self.method,
                    chunks=self.chunks, stretch=self.stretch, **told,
                )  # fmt: skip
                outputs.append(out.outputs)
                ends.append(out.final_state)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
            if layer + 1 < self.num_layers:
                x = self.dropout(x)
        states = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        return x, states[0] if len(states) == 1 else (states[-1], *states[:-1])

    def _starts(self, h_0: Any, batch: Sequence[int]) -> list[Tensor] | None:
        """Return one (D * num_layers, ..., hidden) for each state, in the cell's order."""
        if h_0 is None:
            return None
        names = self.cells[0].states
        given = [h_0] if isinstance(h_0, Tensor) else list(h_0)
        shape = (self.num_layers * self.directions, *batch, self.hidden_size)
        if len(given) != len(names) or any(tuple(g.shape) != shape for g in given):
            raise ValueError(
                f"h_0: expected {len(names)} tensor(s) of shape {shape}, the output state first, "
                f"got shape(s) {[tuple(g.shape) for g in given]}"
            )
        return [*given[1:], given[0]]

    def __prepare_scriptable__(self) -> RNN:
        """Refuse `torch.jit.script`, which asks for this and cannot compile a solve."""
        raise NotImplementedError(
            "parnl.torch.RNN: torch.jit.script cannot compile it; use torch.export.export"
        )

    def extra_repr(self) -> str:
        """Describe the module in its repr."""
        return (
            f"{type(self.cells[0]).__name__}, {self.input_size}, {self.hidden_size}, "
            f"num_layers={self.num_layers}, bidirectional={self.bidirectional}"
        )


def _one_after_the_other(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return in which order packed steps stand sequence after sequence, and where each begins.

    sizes: as `PackedSequence.batch_sizes`. Returns the rows (N,) and the offsets (B + 1,).
    """
    begins = torch.cumsum(sizes, 0) - sizes
    row = torch.arange(int(sizes.sum()))
    sequence = row - torch.repeat_interleave(begins, sizes)
    lengths = torch.bincount(sequence)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return torch.argsort(sequence, stable=True), offsets


def _rows(states: Any, order: Tensor) -> Any:
    """Return the sequences of states (layers, B, hidden), one tensor or several, in `order`."""
    if isinstance(states, Tensor):
        return states.index_select(1, order.to(states.device))
    return tuple(_rows(x, order) for x in states)
