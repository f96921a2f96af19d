"""A dynamical system from observations: Lorenz-63, learned in parallel, then left to run freely.

For training every step is given the observation before it (teacher forcing), so all steps are
solved at once, in parallel over time. To forecast, the model reads what was observed and then goes
on from its own answers, by `rnn.step`. `parnl.lyapunov` tells that the trained cell forgets: where
exponents are negative, training is stable, and what is chaotic is the closed loop.

    python examples/lorenz.py
"""

import torch
from torch import nn

import parnl
from parnl.torch import RNN


def lorenz(count, steps, dt, generator):
    """Return trajectories (steps, count, 3), by Runge-Kutta, of mean 0 and variance 1 or so."""

    def slope(s):
        x, y, z = s.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    state, kept = torch.randn(count, 3, generator=generator) + torch.tensor([0.0, 0.0, 25.0]), []
    for _ in range(steps + 200):  # the first ones lead to the attractor
        a = slope(state)
        b = slope(state + dt / 2 * a)
        c = slope(state + dt / 2 * b)
        d = slope(state + dt * c)
        state = state + dt / 6 * (a + 2 * b + 2 * c + d)
        kept.append(state)
    return (torch.stack(kept[200:]) - torch.tensor([0.0, 0.0, 23.5])) / 8.5


class Forecaster(nn.Module):
    """The next observation, as a change of the last one."""

    def __init__(self, hidden):
        super().__init__()
        self.rnn = RNN("gru", 3, hidden, num_layers=2)
        self.head = nn.Sequential(nn.Linear(hidden + 3, hidden), nn.Tanh(), nn.Linear(hidden, 3))

    def after(self, x, y):
        """x: observations (..., 3), y: (..., hidden)."""
        return x + 0.1 * self.head(torch.cat([x, y], -1))

    def forward(self, x):
        """Return what follows each of the observations (T, B, 3), and the state at the end."""
        y, state = self.rnn(x)
        return self.after(x, y), state

    @torch.no_grad()
    def run(self, seen, steps):
        """Return a forecast (steps, B, 3) from observations (T, B, 3)."""
        guesses, state = self(seen)
        found = [guesses[-1]]
        for _ in range(steps - 1):
            y, state = self.rnn.step(found[-1], state)
            found.append(self.after(found[-1], y))
        return torch.stack(found)


def main(hidden=32, count=16, steps=64, updates=300, horizon=25, dt=0.02, seed=0):
    """Train; return one-step errors (first, last), and the forecast's (model, no change)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x = lorenz(count, steps + 1, dt, generator)
    model, errors = Forecaster(hidden), []
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(updates, 1))
    for update in range(updates):
        loss = (model(x[:-1])[0] - x[1:]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        errors.append(loss.item() ** 0.5)
        if update % 50 == 49:
            print(f"update {update + 1:4}: one-step error {errors[-1]:.4f}")
    unseen = lorenz(count, steps + horizon, dt, generator)
    seen, future = unseen[:steps], unseen[steps:]
    found = float((model.run(seen, horizon) - future).square().mean().sqrt())
    still = float((seen[-1] - future).square().mean().sqrt())
    print(f"{horizon} steps ahead: error {found:.3f}, that of no change {still:.3f}")
    params = {n.removeprefix("weight_").removeprefix("bias_").removesuffix("_l0"): p.detach()
              for n, p in model.rnn.named_parameters() if n.endswith("_l0")}  # fmt: skip
    first = parnl.lyapunov(model.rnn.cells[0], params, seen.transpose(0, 1))
    print(f"largest Lyapunov exponent of the first layer {first.largest:.2f} per step")
    return (errors[0], errors[-1]), (found, still), first.largest


if __name__ == "__main__":
    main()
