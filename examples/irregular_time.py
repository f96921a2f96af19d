"""Irregular time series: a cell that is told the time between observations, and one that is not.

The velocity of damped oscillators is seen at random times, and their position is to be told. That
is an integral over time, so each observation counts by `dt=`, the time since the one before it.

    python examples/irregular_time.py
"""

import torch
from torch import nn

from parnl.torch import RNN


def oscillators(count, steps, generator):
    """Return velocities (count, steps, 1), times between (count, steps), positions (count, steps).

    They begin at rest at 0 and are struck: x = a exp(-c t) sin(w t).
    """

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator)

    a, c, w = uniform(0.5, 1, count, 1), uniform(0.1, 0.3, count, 1), uniform(1, 2, count, 1)
    dt = uniform(0.0, 0.6, count, steps)
    time = torch.cumsum(dt, dim=1)
    position = a * torch.exp(-c * time) * torch.sin(w * time)
    velocity = a * torch.exp(-c * time) * (w * torch.cos(w * time) - c * torch.sin(w * time))
    return velocity[..., None], dt, position


class Tracker(nn.Module):
    """Read velocities, return positions (B, T)."""

    def __init__(self, cell, hidden, told):
        super().__init__()
        self.rnn = RNN(cell, 1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)
        self.told = told

    def forward(self, x, dt):
        """x: (B, T, 1); dt: (B, T), which only a tracker that is told of it gives to its cell."""
        y, _ = self.rnn(x, dt=dt if self.told else None)
        return self.head(y)[..., 0]


def train(cell, told, count, steps, hidden, updates, seed):
    """Train on `count` series; return the error on as many others, as a part of the variance."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, dt, position = oscillators(count, steps, generator)
    model = Tracker(cell, hidden, told)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(updates):
        loss = (model(x, dt) - position).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, dt, position = oscillators(count, steps, generator)
    with torch.no_grad():
        return float((model(x, dt) - position).square().mean() / position.var())


def main(cells=("ltc", "cfc"), count=64, steps=64, hidden=32, updates=200, seed=0):
    """Return for each cell the errors (with dt, without), as parts of the variance."""
    found = {}
    for cell in cells:
        errors = tuple(train(cell, t, count, steps, hidden, updates, seed) for t in (True, False))
        found[cell] = errors
        print(f"{cell}: error with dt {errors[0]:.3f}, without {errors[1]:.3f} of the variance")
    return found


if __name__ == "__main__":
    main()
