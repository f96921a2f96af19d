"""`RNN`: any registered cell as an `nn.Module` with the conventions of `nn.GRU`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from parnl.backends.torch.onnx import export_onnx
from parnl.backends.torch.operators import recorded
from parnl.cell import Cell
from parnl.frameworks import name_of
from parnl.interop import layers_of
from parnl.layers import (
    Layers,
    LayersSolution,
    check_options,
    laid_out,
    moved,
    shape_in_time,
    solver,
)
from parnl.learn.torch_model import Block, Classifier
from parnl.solve import Solution

__all__ = ["RNN", "Block", "Classifier", "export_onnx"]


class RNN(nn.Module):
    """Layers of a parnl cell, with the interface of `torch.nn.GRU`.

        rnn = RNN("lrc", input_size=6, hidden_size=64, num_layers=2, batch_first=True)
        output, h_n = rnn(input, h_0)
        output_t, state = rnn.step(input_t, state)

    Args:
        cell: a name, or a `parnl.Cell` class.
        input_size: channels of the input.
        hidden_size: channels of the output, in one direction.
        num_layers: number of layers, one after the other.
        bias: if False, the cell's biases are 0 and are not parameters.
        batch_first: input and output are (B, T, ...); else (T, B, ...).
        dropout: share of values between layers that is set to 0 in training.
        bidirectional: run a second recurrence from the end to the start.
        device: of the parameters.
        dtype: of the parameters.
        proj_size: must be 0: a projected state would mix channels.
        learn_initial: make parameters of the initial states, `initial_<state>`, zeros at first.
        seed: of the initial parameters; if None, drawn from PyTorch's generator.
        method: as in `parnl.solve`.
        chunks: as in `parnl.solve`, but a sequence may have fewer steps than `chunks`: each of its
            steps is then a chunk.
        stretch: as in `parnl.solve`.
        **options: all other keywords are options of the cell.

    Raises:
        TypeError: the cell does not know an option, or an input is not a tensor of the module's
            dtype.
        ValueError: names the argument, what came, and what was expected.

    Shapes: input (T, B, input), (B, T, input) if batch_first, or (T, input) unbatched, or a
    `PackedSequence`; output likewise with D * hidden channels, D = 2 if bidirectional. The state
    h_0, h_n is (D * num_layers, B, hidden). If the cell has several states, it is a named tuple of
    such arrays in the cell's order, but (h, c) for an LSTM, as in `nn.LSTM`. A named tuple given
    back is taken by its names. `step` has the same state, so a sequence may be run whole, in
    pieces, or step by step.

    Parameters are called as `nn.GRU` calls them: `weight_<name>_l<layer>` for the matrices of the
    cell, `bias_<name>_l<layer>` for its biases, and `<name>_l<layer>` for other vectors. Names of
    the backward direction end in `_reverse`.
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
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        learn_initial: bool = False,
        seed: int | None = None,
        method: str = "auto",
        chunks: int | str | None = None,
        stretch: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if proj_size:
            raise ValueError(
                "proj_size: expected 0, since a projected state mixes channels, got "
                f"{proj_size!r}; project the outputs by torch.nn.Linear"
            )
        check_options(method, chunks, dropout)
        self._layers = Layers(cell, input_size, hidden_size, num_layers, bidirectional, options)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.dropout, self.proj_size = float(dropout), 0
        self.method, self.chunks, self.stretch = method, chunks, stretch
        self._names = [self._layers.parameter_names(run) for run in range(self._layers.count)]
        first = self._layers.cells[0]
        if not bias and not first.biases:
            raise ValueError(f"bias: expected True, since {type(first).__name__} has no biases")
        for names, values in zip(self._names, self._drawn(seed, device, dtype), strict=True):
            for name, value in values.items():
                if bias or name not in first.biases:
                    self.register_parameter(names[name], nn.Parameter(value))
                else:
                    zeros = torch.zeros_like(value)
                    self.register_buffer(names[name], zeros, persistent=False)
        self._initial = [f"initial_{name}" for name in self._layers.names if learn_initial]
        like = next(self.parameters())
        for name in self._initial:
            zeros = like.new_zeros(self._layers.count, hidden_size)
            self.register_parameter(name, nn.Parameter(zeros))
        self.register_state_dict_post_hook(_describe)

    def _drawn(self, seed: int | None, device: Any, dtype: Any) -> list[dict[str, Tensor]]:
        """Return initial parameters of each run."""
        if seed is None:
            drawn = torch.randint(2**31, (), device="cpu")
            seed = 0 if recorded([drawn]) else int(drawn)  # without values, any will do
        name = str(dtype or torch.get_default_dtype()).removeprefix("torch.")
        runs = range(self._layers.count)
        return [self._layers.cell(run).init(seed + run, "torch", name, device) for run in runs]

    @classmethod
    def from_torch(cls, module: nn.RNNBase, *, take: str | None = None, **how: Any) -> RNN:
        """Return layers with the weights of a `torch.nn.GRU`, `nn.LSTM` or `nn.RNN`.

        Both compute the same if the recurrent weights are diagonal. See `parnl.interop`.

        Args:
            module: `torch.nn.GRU`, `nn.LSTM` or `nn.RNN`.
            take: "diagonal" drops recurrent weights off the diagonal, to begin training from.
            **how: keywords of `RNN` that the module does not have, such as `chunks`.

        Raises:
            ValueError: recurrent weights are not diagonal; the message tells how far off they are.

        >>> lstm = torch.nn.LSTM(3, 1, num_layers=2)
        >>> x = torch.randn(20, 5, 3)
        >>> torch.allclose(RNN.from_torch(lstm)(x)[0], lstm(x)[0], atol=1e-5)
        True
        """
        (cell, first), *rest = layers_of(module, take=take)
        like = next(iter(first.values()))
        options = {n: getattr(cell, n) for n in cell.chosen}
        made = cls(
            type(cell), module.input_size, module.hidden_size, module.num_layers, True,
            module.batch_first, module.dropout, module.bidirectional, like.device, like.dtype,
            seed=0, **options, **how,
        )  # fmt: skip
        with torch.no_grad():
            for names, params in zip(made._names, [first, *(p for _, p in rest)], strict=True):
                for name, value in params.items():
                    getattr(made, names[name]).copy_(value)
        return made.train(module.training)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, from PyTorch's generator."""
        with torch.no_grad():
            for names, values in zip(self._names, self._drawn(None, None, None), strict=True):
                for name, value in values.items():
                    mine = getattr(self, names[name])
                    if isinstance(mine, nn.Parameter):
                        mine.copy_(value)
            for name in self._initial:
                getattr(self, name).zero_()

    @property
    def cells(self) -> list[Cell]:
        """The cell of each layer."""
        return self._layers.cells

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction."""
        weights = [[getattr(self, n) for n in names.values()] for names in self._names]
        return [[w for w in run if isinstance(w, nn.Parameter)] for run in weights]

    def flatten_parameters(self) -> None:
        """Do nothing: there is no memory that parameters would have to share, as cuDNN's do."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        dt: Any = None,
        lengths: Any = None,
        resets: Any = None,
        time_axis: Any = None,
    ) -> tuple[Any, Any]:
        """Return (output, h_n).

        dt and resets that have one value for each step are laid out as the input is, (T, B), (B, T)
        or (T,), or packed as it is.

        Args:
            input: (T, B, input), (B, T, input), (T, input), or a `PackedSequence`.
            hx: the initial state, as `forward` and `step` return it; zeros, or the learned one, if
                None.
            dt: as in `parnl.solve`, for all layers.
            lengths: (B,), as in `parnl.solve`.
            resets: as in `parnl.solve`. A reset sets the state to that of a call without hx.
            time_axis: as in `parnl.solve`.
        """
        told = {"dt": dt, "lengths": lengths, "resets": resets, "time_axis": time_axis}
        if isinstance(input, PackedSequence):
            return self._packed(input, hx, told)
        x, told = self._laid_out(input, told)
        output, h_n, _ = self._run(x, hx, x.shape[:-2], told)
        output = moved(output, self.batch_first)
        # what the gradient is computed from is no memory of the caller's, who may write to it
        if output.requires_grad:
            return output.clone(memory_format=torch.contiguous_format), h_n
        return output.contiguous(), h_n

    def solve(
        self,
        input: Tensor,
        hx: Any = None,
        *,
        dt: Any = None,
        lengths: Any = None,
        resets: Any = None,
        time_axis: Any = None,
    ) -> LayersSolution:
        """Return outputs and final state, as `forward` does, and each run's states and `Info`."""
        told = {"dt": dt, "lengths": lengths, "resets": resets, "time_axis": time_axis}
        x, told = self._laid_out(input, told)
        output, h_n, solutions = self._run(x, hx, x.shape[:-2], told | {"states": True})
        return self._layers.solution(output, h_n, solutions, self.batch_first)

    def step(
        self, input_t: Tensor, state: Any = None, *, dt: Any = None, reset: Any = None
    ) -> tuple[Tensor, Any]:
        """Run one time step: (output_t (B, hidden), state). Not for a bidirectional module.

        Args:
            input_t: (B, input), or (input,).
            state: as `forward` returns it, and this function; None for the initial one.
            dt: a number or (B,).
            reset: booleans (B,). Where true, the state before this step is the initial one.
        """
        self._check_input("input_t", input_t, "(B, {})", (1, 2))
        starts = self._starts("state", state, input_t.shape[:-1])
        anew = None if reset is None else self._starts("state", None, input_t.shape[:-1])
        output, ends = self._layers.step(
            self._params(), input_t, starts, self._dropped, anew, dt=dt, reset=reset
        )
        return output, self._layers.state(ends, _stacked)

    def initial_state(self, batch: Sequence[int] = ()) -> Any:
        """Return the state before the first step, for inputs of this shape of a batch."""
        starts = self._starts("state", None, batch)
        if starts is None:
            like = next(self.parameters())
            wide = torch.float32 if like.dtype.itemsize < 4 else like.dtype
            shape = (self._layers.count, *batch, self.hidden_size)
            starts = [like.new_zeros(shape, dtype=wide) for _ in self._layers.names]
        cell = self.cells[0]
        return self._layers.in_module_order(cell.State(*starts))

    def _laid_out(self, given: Any, told: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        self._check_input("input", given, shape_in_time(self.batch_first), (2, 3))
        return laid_out(given, told, self.batch_first)

    def _check_input(self, name: str, x: Any, shape: str, dimensions: Sequence[int]) -> None:
        if not isinstance(x, Tensor):
            kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
            convert = "torch.from_numpy" if name_of(x) == "numpy" else "torch.as_tensor"
            raise TypeError(
                f"{name}: expected a torch.Tensor, got {kind}; convert it by {convert}({name})"
            )
        if x.ndim not in dimensions or x.shape[-1] != self.input_size:
            expected = shape.format(self.input_size)
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(x.shape)}")
        own = next(self.parameters()).dtype
        if x.dtype == torch.float64 != own:
            raise TypeError(
                f"{name}: expected {own}, the dtype of the module, got {x.dtype}; convert it by "
                f"{name}.to({own}), or the module by .double()"
            )

    def _params(self) -> list[dict[str, Tensor]]:
        # `getattr` of a module is slow, and needed only for a weight that is computed
        own: Mapping[str, Any] = self._parameters
        return [
            {n: own[name] if name in own else getattr(self, name) for n, name in names.items()}
            for names in self._names
        ]

    def _starts(self, argument: str, given: Any, batch: Sequence[int]) -> list[Tensor] | None:
        if given is None and self._initial:
            given = self._layers.State(
                *(
                    getattr(self, n).reshape(-1, *[1] * len(batch), self.hidden_size)
                    .expand(-1, *batch, -1)
                    for n in self._initial
                )
            )  # fmt: skip
        return self._layers.starts(argument, given, batch)

    def _dropped(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout, self.training)

    def _run(
        self, x: Tensor, hx: Any, batch: Sequence[int], told: Mapping[str, Any]
    ) -> tuple[Tensor, Any, list[Solution]]:
        starts, anew = self._starts("hx", hx, batch), None
        if hx is not None and told["resets"] is not None and starts is not None:
            anew = self._starts("hx", None, batch) or [torch.zeros_like(s) for s in starts]
        output, solutions = self._layers.run(
            self._params(), x, starts, _joined, self._dropped, anew,
            **solver(self, x.shape[-2], told), **told,
        )  # fmt: skip
        h_n = self._layers.state([s.final_state for s in solutions], _stacked)
        # what is exported has no names
        return output, tuple(h_n) if _exporting() and isinstance(h_n, tuple) else h_n, solutions

    def _packed(
        self, given: PackedSequence, hx: Any, told: dict[str, Any]
    ) -> tuple[PackedSequence, Any]:
        """Run the sequences in the order they are packed in; hx and h_n are in the caller's."""
        for name in ("time_axis", "lengths"):
            if told[name] is not None:
                raise ValueError(f"{name}: expected None for a PackedSequence")
        if hx is not None and told["resets"] is not None:
            raise ValueError("resets: expected None for a PackedSequence with hx")
        data, sizes, order, back = given
        self._check_input("input", data, "(N, {}) packed", (2,))
        rows, offsets = _one_after_the_other(sizes)
        rows = rows.to(data.device)
        batch = (len(offsets) - 1,)
        if hx is not None and order is not None:
            self._layers.starts("hx", hx, batch)  # of what is too short, no row is asked for
            hx = _rows(hx, order)
        told = {n: _packed_alike(n, v, given, rows) for n, v in told.items()}
        told |= {"cu_seqlens": offsets.to(data.device)}
        output, h_n, _ = self._run(data[rows], hx, batch, told)
        h_n = h_n if back is None else _rows(h_n, back)
        as_it_came = torch.empty_like(output).index_copy(0, rows, output)
        return PackedSequence(as_it_came, sizes, order, back), h_n

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Take parameters under the names of earlier releases; refuse those of another cell."""
        for run, names in enumerate(self._names):
            for name, now in names.items():
                before = f"{prefix}{name}{self._layers.suffix(run)}"
                if prefix + now not in state_dict and before in state_dict:
                    state_dict[prefix + now] = state_dict.pop(before)
        theirs = local_metadata.get("parnl")
        if theirs not in (None, self._description()):
            # one of the lists that count only if loading is strict
            unexpected_keys.append(f"{prefix}cell: {theirs}, expected {self._description()}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _description(self) -> str:
        """The cell and its options: what must be the same for the same parameters to mean it."""
        cell = self.cells[0]
        options = (f"{n}={getattr(cell, n)!r}" for n in cell.chosen)
        return f"{type(cell).__name__}({', '.join(options)})"

    def __prepare_scriptable__(self) -> RNN:
        """Refuse `torch.jit.script`, which asks for this and cannot compile a solve."""
        raise NotImplementedError(
            "parnl.torch.RNN: torch.jit.script cannot compile it; use torch.export.export"
        )

    def extra_repr(self) -> str:
        """Describe the module in its repr."""
        cell = self.cells[0]
        told = [type(cell).__name__, f"{self.input_size}", f"{self.hidden_size}"]
        told += [f"{n}={getattr(cell, n)!r}" for n in cell.chosen]
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        usual |= {"bidirectional": False}
        told += [f"{n}={getattr(self, n)!r}" for n, v in usual.items() if getattr(self, n) != v]
        return ", ".join(told)


def _describe(module: RNN, state_dict: Any, prefix: str, local_metadata: dict) -> None:
    """Write into the state dictionary's metadata which cell its parameters are of."""
    local_metadata["parnl"] = module._description()


def _exporting() -> bool:
    return torch.compiler.is_exporting()


def _joined(outputs: Sequence[Tensor]) -> Tensor:
    return torch.cat([*outputs], dim=-1)


def _stacked(states: Sequence[Tensor]) -> Tensor:
    return torch.stack([*states])


def _packed_alike(name: str, value: Any, given: PackedSequence, rows: Tensor) -> Any:
    """Return an argument that is packed as the input is, sequence after sequence; others as is."""
    if not isinstance(value, PackedSequence):
        return value
    if not torch.equal(value.batch_sizes, given.batch_sizes):
        raise ValueError(f"{name}: expected the batch_sizes of the input, got others")
    return value.data[rows]


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
    moved = [_rows(x, order) for x in states]
    return type(states)(*moved) if hasattr(states, "_fields") else tuple(moved)
