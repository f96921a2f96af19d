"""Data-parallel training: two processes with half of each batch are one with all of it.

`DistributedDataParallel` wraps a model with `parnl.torch.RNN` as any other, and sums the gradients.
The processes talk by gloo, so this runs on a CPU; with nccl and a device for each it is the same.

    python examples/distributed.py
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from parnl.torch import RNN


class Follower(nn.Module):
    """What came one step ago, (B, T, 1) to (B, T, 1)."""

    def __init__(self, hidden):
        super().__init__()
        self.rnn = RNN("gru", 1, hidden, batch_first=True, seed=0)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        """Return the guess at every step."""
        return self.head(self.rnn(x)[0])


def train(model, part, sizes):
    """Train on the part of each batch that is this process's own; return the losses."""
    batch, steps, updates = sizes
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(updates):
        x = torch.randn(batch, steps, 1, generator=generator)[part]
        loss = (model(x)[:, 1:] - x[:, :-1]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def made(hidden):
    """Return a model with the same parameters in every process."""
    torch.manual_seed(0)
    return Follower(hidden)


def process(rank, world, folder, hidden, sizes):
    """Run one of the processes; the first writes what it has learned."""
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    model = DistributedDataParallel(made(hidden))
    train(model, slice(rank, None, world), sizes)
    if rank == 0:
        torch.save(model.module.state_dict(), Path(folder) / "learned.pt")
    # First the model, then the group: where the model is the last to hold it, PyTorch 2.13 may wait
    # for ever, for a thread of gloo's that waits for Python.
    del model
    dist.destroy_process_group()


def main(world=2, hidden=32, batch=16, steps=32, updates=100):
    """Train in `world` processes and in one; return the losses and the largest difference."""
    sizes = (batch, steps, updates)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, (world, folder, hidden, sizes), nprocs=world)
        learned = torch.load(Path(folder) / "learned.pt", weights_only=True)
    alone = made(hidden)
    losses = train(alone, slice(None), sizes)
    gaps = [(learned[n] - p).abs().max() for n, p in alone.state_dict().items()]
    gap = float(max(gaps))
    assert gap < 1e-4, f"parameters differ by {gap:.1e}"
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    print(f"{world} processes and one: parameters differ by at most {gap:.1e}")
    return losses, gap


if __name__ == "__main__":
    main()
