"""A model of the next byte, on short documents that stand one after the other without padding.

`cu_seqlens` says where each document begins: none sees the one before it, and no step is wasted on
padding. Text is then written byte by byte with `parnl.step`, in memory that does not grow.

    python examples/packed_language.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import parnl

DOCUMENTS = b"""\
A cell reads its own state and all of the input.
The steps look as if they had to be run one after the other.
They are cut into chunks, and all chunks run at once.
Where a chunk ends, the next one should begin.
If it does not, Newton moves the start of the next chunk.
A few rounds are enough, and the answer is that of the loop.
The gradient is one linear scan, from the last step to the first.
What the past has done to a state fades if the step contracts.
A chaotic cell takes as many rounds as there are chunks.
Then the plain loop is run, and it costs the same answer.
A long input is solved in stretches that fit the cache.
One state goes in, one state comes out, and the text goes on.
""".splitlines(keepends=True)
END = ord("\n")


class Writer(nn.Module):
    """Logits of the next byte, (N, 256)."""

    def __init__(self, cell, hidden):
        super().__init__()
        self.cell = parnl.get_cell(cell, input_size=hidden, hidden_size=hidden)
        drawn = self.cell.init(seed=0, backend="torch")
        self.params = nn.ParameterDict({n: nn.Parameter(v) for n, v in drawn.items()})
        self.bytes = nn.Embedding(256, hidden)
        self.head = nn.Linear(hidden, 256)

    def forward(self, text, cu_seqlens):
        """text: bytes (N,) of all documents; cu_seqlens: (documents + 1,)."""
        out = parnl.solve(self.cell, self.params, self.bytes(text), cu_seqlens=cu_seqlens)
        return self.head(out.outputs)

    @torch.no_grad()
    def write(self, begin, most):
        """Return `begin` and up to `most` bytes after it, each the likeliest one."""
        text, state, ahead = bytearray(), None, list(begin)
        while ahead and len(text) < len(begin) + most:
            text.append(ahead.pop(0))
            y, state = parnl.step(self.cell, self.params, self.bytes.weight[text[-1]], state)
            if not ahead and text[-1] != END:
                ahead = [int(self.head(y).argmax())]
        return bytes(text)


def packed(documents):
    """Return inputs and targets (N,), and where documents begin and the last one ends."""
    # the first byte of a document is told by a line's end, as if one stood before it
    before = [bytes([END]) + d[:-1] for d in documents]
    lengths = torch.tensor([0, *map(len, documents)])
    given, following = (torch.tensor(list(b"".join(d))) for d in (before, documents))
    return given, following, torch.cumsum(lengths, 0)


def main(cell="gru", hidden=64, epochs=150, documents=None, seed=0):
    """Train on so many documents, or all.

    Returns the bits per byte at each epoch, and a line that begins with "The ".
    """
    torch.manual_seed(seed)
    model, bits = Writer(cell, hidden), []
    given, following, cu_seqlens = packed(DOCUMENTS[:documents])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(epochs):
        loss = cross_entropy(model(given, cu_seqlens), following)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        bits.append(loss.item() / torch.log(torch.tensor(2.0)).item())
        if epoch % 25 == 24:
            print(f"epoch {epoch + 1:3}: {bits[-1]:.2f} bits per byte")
    line = model.write(bytes([END]) + b"The ", most=80) if epochs else b""
    print(line.decode(errors="replace"))
    return bits, line


if __name__ == "__main__":
    main()
