"""A sequence classifier around any cell: the LrcSSM architecture in PyTorch."""

from typing import Any

import torch
from torch import Tensor, nn

import parnl


class Block(nn.Module):
    """Norm, recurrence, residual; norm, MLP, residual. Maps (N, T, width) to (N, T, width)."""

    def __init__(self, cell: Any, width: int, *, dropout: float, seed: int) -> None:
        super().__init__()
        self.cell = cell
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.recurrence = nn.ParameterDict(
            {
                name: nn.Parameter(value)
                for name, value in cell.init(seed=seed, backend="torch").items()
            }
        )
        same = cell.hidden_size == width
        self.back = nn.Identity() if same else nn.Linear(cell.hidden_size, width)
        self.expand = nn.Linear(width, 2 * width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, lengths: Tensor | None, **solver: Any) -> tuple[Tensor, Any]:
        """The block's output and the solve's info."""
        out = parnl.solve(self.cell, dict(self.recurrence), self.norm(x), lengths=lengths, **solver)
        x = x + self.back(out.outputs)
        hidden = self.dropout(self.activation(self.expand(self.norm(x))))
        return x + self.contract(hidden), out.info


class Classifier(nn.Module):
    """Encoder, `blocks` blocks, a head at every step, and the mean over time.

        model = Classifier(channels=12, classes=9, cell="lrc", width=64, state=64)
        logits, infos = model(inputs, lengths)

    `state` is the hidden size of the cell; further keywords are options of the cell.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        cell: str = "lrc",
        width: int = 64,
        state: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        recurrence = parnl.get_cell(cell, input_size=width, hidden_size=state, **options)
        # The seed decides every layer, and the caller's random numbers stay as they were.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.encoder = nn.Linear(channels, width)
            self.blocks = nn.ModuleList(
                Block(recurrence, width, dropout=dropout, seed=seed + index)
                for index in range(blocks)
            )
            self.head = nn.Linear(width, classes)

    def forward(
        self, inputs: Tensor, lengths: Tensor | None = None, **solver: Any
    ) -> tuple[Tensor, list[Any]]:
        """Logits (N, classes) of inputs (N, T, channels), and each block's solver info.

        Keywords (`method`, `chunks`, `tolerance`, ...) go to `parnl.solve`.
        """
        x = self.encoder(inputs)
        infos = []
        for block in self.blocks:
            x, info = block(x, lengths, **solver)
            infos.append(info)
        return mean_over_time(self.head(x), lengths), infos


def mean_over_time(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The mean of x (N, T, k) over each row's first `lengths` (N,) steps, as (N, k)."""
    if lengths is None:
        return x.mean(dim=1)
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(real[..., None], x, 0).sum(dim=1) / lengths.clamp(min=1)[:, None]
