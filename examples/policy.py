"""A recurrent policy trained by PPO: it acts step by step and learns from whole rollouts at once.

The cue is seen at the first step of an episode only; the right action at the last step, some steps
later, is the cue. Without memory the mean return is 0. Episodes end within a rollout and go on into
the next one: `rnn.step(..., reset=)` plays them, `rnn(..., state, resets=)` solves all steps in
parallel over time for the update, and both give the same log-probabilities.

    python examples/policy.py
"""

import torch
from torch import nn

from parnl.torch import RNN


class Recall:
    """Games side by side: see +1 or -1, wait, then choose it. Lengths are 2 to `longest`."""

    def __init__(self, games: int, longest: int):
        self.longest = longest
        self.cue, self.left = torch.zeros(games), torch.zeros(games, dtype=torch.long)
        self.begins = torch.ones(games, dtype=torch.bool)

    def observe(self):
        """Return observations (games, 2) of cue and last step, and which games begin here."""
        cue = torch.randint(2, self.cue.shape) * 2.0 - 1.0
        left = torch.randint(1, self.longest, self.left.shape)
        self.cue = torch.where(self.begins, cue, self.cue)
        self.left = torch.where(self.begins, left, self.left)
        seen = torch.where(self.begins, self.cue, 0.0)
        return torch.stack([seen, (self.left == 0).float()], -1), self.begins

    def act(self, action):
        """Return rewards (games,): 1 or -1 at the last step of a game, 0 before."""
        ends = self.left == 0
        right = (action * 2 - 1) == self.cue
        self.left, self.begins = self.left - 1, ends
        return torch.where(ends, torch.where(right, 1.0, -1.0), 0.0), ends


class Policy(nn.Module):
    """Logits of two actions and a value, from a recurrent state."""

    def __init__(self, hidden: int):
        super().__init__()
        self.rnn = RNN("lstm", 2, hidden)
        self.head = nn.Linear(hidden, 3)

    def split(self, y):
        """Return the distribution of actions and the value."""
        out = self.head(y)
        return torch.distributions.Categorical(logits=out[..., :2]), out[..., 2]


@torch.no_grad()
def rollout(policy, game, state, steps):
    """Play: tensors (steps, games) by name, and the state to go on from."""
    kept = []
    for _ in range(steps):
        seen, begins = game.observe()
        y, state = policy.rnn.step(seen, state, reset=begins)
        chosen, value = policy.split(y)
        action = chosen.sample()
        reward, ends = game.act(action)
        kept.append((seen, begins, action, chosen.log_prob(action), value, reward, ends))
    names = ("seen", "begins", "action", "log_prob", "value", "reward", "ends")
    return {n: torch.stack(x) for n, x in zip(names, zip(*kept, strict=True), strict=True)}, state


def advantages(played, discount=0.95):
    """Return what each action earned beyond its value, (steps, games)."""
    later, found = torch.zeros_like(played["value"][0]), []
    for reward, ends in zip(played["reward"].flip(0), played["ends"].flip(0), strict=True):
        later = reward + discount * torch.where(ends, 0.0, later)
        found.append(later)
    return torch.stack(found[::-1]) - played["value"]


def main(updates=60, games=32, steps=32, hidden=16, longest=6, epochs=4, seed=0):
    """Train; return the mean return of an episode in each rollout."""
    torch.manual_seed(seed)
    policy, game, state, returns = Policy(hidden), Recall(games, longest), None, []
    optimiser = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for update in range(updates):
        start = state
        played, state = rollout(policy, game, start, steps)
        gain = advantages(played)
        target = gain + played["value"]
        for epoch in range(epochs):
            y, _ = policy.rnn(played["seen"], start, resets=played["begins"])
            chosen, value = policy.split(y)
            log_prob = chosen.log_prob(played["action"])
            if epoch == 0:
                torch.testing.assert_close(log_prob, played["log_prob"], atol=1e-5, rtol=0)
            ratio = (log_prob - played["log_prob"]).exp()
            clipped = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
            loss = (value - target).square().mean() - clipped - 0.01 * chosen.entropy().mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimiser.step()
        returns.append(float(played["reward"].sum() / played["ends"].sum()))
        if update % 10 == 9:
            print(f"update {update + 1:3}: mean return {returns[-1]:+.2f}")
    return returns


if __name__ == "__main__":
    main()
