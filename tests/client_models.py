"""A model and data for tests of other libraries, whose processes import them from here."""

import torch
from torch import nn

from parnl.torch import RNN

STEPS, CHANNELS = 12, 2


def series(count, seed=0):
    """Return inputs (count, T, 2) and labels (count,): whether the mean of a channel is above 0."""
    x = torch.randn(count, STEPS, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return x, (x[..., 0].mean(1) > 0).long()


class Labels(nn.Module):
    """Logits (B, 2) of inputs (B, T, 2)."""

    def __init__(self, cell="gru", hidden=8, num_layers=1):
        super().__init__()
        self.rnn = RNN(cell, CHANNELS, hidden, num_layers, batch_first=True, seed=0)
        self.head = nn.Linear(hidden, 2)
        with torch.no_grad():
            self.head.bias.zero_()
            self.head.weight.copy_(torch.linspace(-1, 1, 2 * hidden).reshape(2, hidden))

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(1))
