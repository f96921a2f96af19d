"""Models of equal size, each around one recurrence: parnl's cells, ncps's layers and `nn.GRU`.

Each maps inputs (N, T, channels), whose last channel is dt, and lengths (N,) to outputs
(N, T, outputs). Outputs at and after a row's length are of no meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import parnl
from parnl.learn.torch_model import Classifier


class Sizes(NamedTuple):
    """`units` are those of ncps's models and of CfC's backbone; `width` is the linear encoder's."""

    channels: int
    outputs: int
    units: int = 64
    width: int = 64
    block_width: int = 32
    blocks: int = 2


class Plain(nn.Module):
    """A linear encoder, the recurrence of one of parnl's cells, a linear readout."""

    def __init__(self, cell: str, state: int, sizes: Sizes, seed: int) -> None:
        super().__init__()
        self.cell = parnl.get_cell(cell, sizes.width, state)
        self.encoder = nn.Linear(sizes.channels, sizes.width)
        start = self.cell.init(seed=seed, backend="torch")
        self.recurrence = nn.ParameterDict({n: nn.Parameter(v) for n, v in start.items()})
        self.head = nn.Linear(state, sizes.outputs)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        more = dict(dt=inputs[..., -1], lengths=lengths)
        out = parnl.solve(self.cell, dict(self.recurrence), self.encoder(inputs), **more)
        return self.head(out.outputs)


class Blocks(nn.Module):
    """The LrcSSM architecture; a cell that takes no dt has it as a channel alone."""

    def __init__(self, cell: str, state: int, sizes: Sizes, seed: int) -> None:
        super().__init__()
        inner = dict(width=sizes.block_width, state=state, blocks=sizes.blocks, seed=seed)
        inner |= dict(readout="each", clock=cell in ("cfc", "ltc"))
        self.model = Classifier(sizes.channels, sizes.outputs, cell=cell, **inner)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.model(inputs, lengths)[0]


class Dense(nn.Module):
    """`nn.GRU`, and a linear readout."""

    def __init__(self, cell: str, state: int, sizes: Sizes, seed: int) -> None:
        super().__init__()
        self.recurrence = nn.GRU(sizes.channels, state, batch_first=True)
        self.head = nn.Linear(state, sizes.outputs)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.recurrence(inputs)[0])


class Ncps(nn.Module):
    """A layer of ncps, fully connected, and a linear readout."""

    def __init__(self, cell: str, state: int, sizes: Sizes, seed: int) -> None:
        super().__init__()
        layers = ncps_layers()
        if cell == "cfc":
            self.recurrence = layers.CfC(sizes.channels, state, backbone_units=sizes.units)
        else:
            self.recurrence = layers.LTC(sizes.channels, state)
        self.head = nn.Linear(state, sizes.outputs)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        # One dt for every unit: of (N, T) ncps makes (N,) at each step, which stands for the units.
        spans = inputs[..., -1:].expand(*inputs.shape[:2], self.recurrence.state_size)
        return self.head(self.recurrence(inputs, timespans=spans)[0])


def ncps_layers() -> Any:
    try:
        import ncps.torch
    except ImportError:
        raise SystemExit("The models of ncps need it: pip install ncps==1.0.1") from None
    return ncps.torch


# Each with the class that builds it and the cell.
MODELS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "ncps cfc": (Ncps, "cfc"),
    "ncps ltc": (Ncps, "ltc"),
    "cfc": (Blocks, "cfc"),
    "cfc plain": (Plain, "cfc"),
    "gru": (Blocks, "gru"),
    "nn.GRU": (Dense, "gru"),
    "ltc": (Blocks, "ltc"),
}
REFERENCE = "ncps cfc"
SHOWN = {
    "ncps cfc": "ncps CfC, dense",
    "ncps ltc": "ncps LTC, dense",
    "cfc": "cfc, blocks",
    "cfc plain": "cfc, one layer",
    "gru": "gru, blocks, dt as a channel",
    "nn.GRU": "`nn.GRU`, dense, dt as a channel",
    "ltc": "ltc, blocks",
}


def wanted(sizes: Sizes) -> int:
    """The parameters of ncps's CfC with `units` units, without ncps: all models have as many."""
    units = sizes.units
    backbone = (sizes.channels + units + 1) * units
    return backbone + 4 * (units + 1) * units + (units + 1) * sizes.outputs


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def build(name: str, state: int, sizes: Sizes, seed: int) -> nn.Module:
    kind, cell = MODELS[name]
    # the seed decides every layer, those of the libraries too
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  ncps draws its signs by it
        return kind(cell, state, sizes, seed)


def matched_state(name: str, sizes: Sizes) -> int:
    """The state size at which the model has about as many parameters as ncps's CfC."""
    if MODELS[name][0] is Ncps:
        return sizes.units
    return nearest(lambda state: count(build(name, state, sizes, 0)), wanted(sizes))


def nearest(counted: Callable[[int], int], goal: int, step: int = 1) -> int:
    """The multiple of `step` whose count is nearest to the goal; counts grow with the size."""
    low, high = 1, 512
    while high - low > 1:
        middle = (low + high) // 2
        below = counted(middle * step) < goal
        low, high = (middle, high) if below else (low, middle)
    return min(low * step, high * step, key=lambda size: abs(counted(size) - goal))
