"""A model of series around any cell: the LrcSSM architecture in PyTorch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from parnl.learn.model_checks import check_clock, check_readout, check_series
from parnl.registry import get_cell
from parnl.solve import solve
from parnl.step import step

# Of a block with attention in the place of a recurrence.
HEADS = 4


class Block(nn.Module):
    """Norm, recurrence, residual; norm, MLP, residual. Maps (N, T, width) to (N, T, width).

    With the cell None the recurrence is self-attention over all steps, as in a Transformer.
    """

    def __init__(self, cell: Any, width: int, *, dropout: float, seed: int) -> None:
        super().__init__()
        self.cell = cell
        self.causal = False  # attention at a step sees the steps after it, too
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        size = width
        if cell is None:
            self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        else:
            size = cell.hidden_size
            start = cell.init(seed=seed, backend="torch")
            self.recurrence = nn.ParameterDict({n: nn.Parameter(v) for n, v in start.items()})
        self.back = nn.Identity() if size == width else nn.Linear(size, width)
        self.expand = nn.Linear(width, width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(width, width)

    def forward(self, x: Tensor, lengths: Tensor | None, **solver: Any) -> tuple[Tensor, Any]:
        """The block's output and the solve's info, None of attention."""
        mixed, info = self.mix(self.norm(x), lengths, **solver)
        x = x + self.back(mixed)
        hidden = self.activation(self.expand(self.norm(x)))
        # A hidden unit is dropped at all steps or at none (Gal and Ghahramani, 2016): a random
        # number for every step took a quarter of the training time on a CPU.
        kept = self.dropout(torch.ones_like(hidden[:, :1]))
        return x + self.contract(hidden * kept), info

    def step(self, x: Tensor, state: Any = None, **time: Any) -> tuple[Tensor, Any]:
        """One time step, without dropout: x (..., width) and the cell's state to both anew.

        time: dt (...,), of a cell that takes it.
        """
        mixed, state = self.mix_step(self.norm(x), state, **time)
        x = x + self.back(mixed)
        return x + self.contract(self.activation(self.expand(self.norm(x)))), state

    def mix_step(self, x: Tensor, state: Any, **time: Any) -> tuple[Tensor, Any]:
        """What `mix` does, one time step at a time."""
        if self.cell is None or type(self).mix is not Block.mix:
            kind = "attention" if self.cell is None else type(self).__name__
            raise NotImplementedError(f"step: {kind} lacks mix_step, which does it step by step")
        return step(self.cell, dict(self.recurrence), x, state, **time)

    def mix(self, x: Tensor, lengths: Tensor | None, **solver: Any) -> tuple[Tensor, Any]:
        """What tells one step of the others."""
        if self.cell is not None:
            out = solve(self.cell, dict(self.recurrence), x, lengths=lengths, **solver)
            return out.outputs, out.info
        padding = None
        if lengths is not None:
            padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        later = None
        if self.causal:
            ones = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            later = ones.triu(diagonal=1)
        mixed, _ = self.attention(
            x, x, x, key_padding_mask=padding, attn_mask=later, need_weights=False
        )
        return mixed, None


class State(NamedTuple):
    """What a classifier knows of the steps so far.

    blocks: the state of each block's cell, in each of the loops; steps: how many, (); total: the
    sum of what the head made of them, (..., classes).
    """

    blocks: tuple[Any, ...]
    steps: Tensor
    total: Tensor


class Classifier(nn.Module):
    """Encoder MLP, `blocks` blocks, a head at every step, and the mean over time.

        model = Classifier(channels=12, classes=9, cell="lrc", width=64, state=64)
        logits, infos = model(inputs, lengths)

    `state` is the hidden size of the cell; further keywords are options of the cell. With `loops`
    all blocks are applied that often, with the same weights (arXiv 2605.16048). `readout` says
    which steps the answer is of: the "mean" of all, the "last", or "each", (N, T, classes). With
    `tokens` the inputs are integers (N, T) below `channels`, each with a vector of its own. With
    `clock` the last channel is dt, the time since the step before, which the cells take, too.

    The cell "attention" makes it a Transformer's encoder, with sinusoidal positions. With the
    readout "each" a step then sees only the steps before it. `block` takes the place of `Block`,
    for a recurrence of one's own.
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
        loops: int = 1,
        dropout: float = 0.0,
        seed: int = 0,
        readout: str = "mean",
        tokens: bool = False,
        clock: bool = False,
        block: type[Block] = Block,
        **options: Any,
    ) -> None:
        super().__init__()
        check_readout(readout)
        self.input_size, self.loops, self.readout, self.tokens = channels, loops, readout, tokens
        recurrence = None
        if cell != "attention":
            recurrence = get_cell(cell, input_size=width, hidden_size=state, **options)
        check_clock(clock, recurrence, tokens)
        self.clock = clock
        # The seed decides every layer, and the caller's random numbers stay as they were.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.lift = nn.Embedding(channels, width) if tokens else nn.Linear(channels, width)
            self.activation = nn.GELU()
            self.encoder = nn.Linear(width, width)
            self.blocks = nn.ModuleList(
                block(recurrence, width, dropout=dropout, seed=seed + index)
                for index in range(blocks)
            )
            self.head = nn.Linear(width, classes)
        own: Any
        for own in self.blocks:
            own.causal = readout == "each"

    def forward(
        self, inputs: Tensor, lengths: Tensor | None = None, **solver: Any
    ) -> tuple[Tensor, list[Any]]:
        """Logits (N, classes) of inputs (N, T, channels), and the solver's info of each solve.

        Keywords (`method`, `chunks`, `tolerance`, ...) go to `parnl.solve`.
        """
        check_series(inputs, self.input_size, self.tokens)
        if self.clock:
            solver["dt"] = inputs[..., -1]
        x = self.encoder(self.activation(self.lift(inputs)))
        if self.blocks[0].cell is None:
            x = x + positions(*x.shape[1:]).to(x.device)
        infos = []
        for _ in range(self.loops):
            for block in self.blocks:
                x, info = block(x, lengths, **solver)
                infos.append(info)
        if self.readout == "last":
            return self.head(last_step(x, lengths)), infos
        logits = self.head(x)
        return logits if self.readout == "each" else mean_over_time(logits, lengths), infos

    def step(self, input_t: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (..., classes) of the sequence up to now, and the state for the next step.

        input_t: (..., channels), or tokens (...,). It needs eval mode, since dropout is drawn for a
        whole sequence. Raises NotImplementedError for attention, which looks at all steps.
        """
        if self.training:
            raise ValueError("step: expected the model in eval mode: model.eval()")
        x = self.encoder(self.activation(self.lift(input_t)))
        before = (None,) * (self.loops * len(self.blocks)) if state is None else state.blocks
        after = []
        time = {"dt": input_t[..., -1]} if self.clock else {}
        for block, known in zip([*self.blocks] * self.loops, before, strict=True):
            x, new = block.step(x, known, **time)
            after.append(new)
        logits = self.head(x)
        steps = logits.new_ones(()) if state is None else state.steps + 1
        total = logits if state is None else state.total + logits
        answer = total / steps if self.readout == "mean" else logits
        return answer, State(tuple(after), steps, total)


def positions(steps: int, width: int) -> Tensor:
    """Sinusoidal positions (steps, width) (Vaswani et al., 2017): wavelengths 2 pi to 20000 pi."""
    frequency = 1e-4 ** (torch.arange(width) // 2 * 2 / width)
    angle = torch.arange(steps)[:, None] * frequency
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())


def last_step(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The last of each row's first `lengths` (N,) steps of x (N, T, k), as (N, k)."""
    if lengths is None:
        return x[:, -1]
    return x[torch.arange(len(x), device=x.device), lengths.clamp(min=1) - 1]


def mean_over_time(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The mean of x (N, T, k) over each row's first `lengths` (N,) steps, as (N, k)."""
    if lengths is None:
        return x.mean(dim=1)
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(real[..., None], x, 0).sum(dim=1) / lengths.clamp(min=1)[:, None]
