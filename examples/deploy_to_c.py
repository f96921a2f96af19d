"""From PyTorch to a board: train a detector, write it as C, compile it, and compare the two.

A microphone hears noise, a low tone or a high tone, and at every sample the detector tells which.
It is trained on whole sequences, in parallel over time. `parnl.to_c` writes its `step` as two C99
files that need nothing but libm: a program feeds them a stream it has not heard, sample by sample.

    python examples/deploy_to_c.py
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import parnl
from parnl.torch import RNN

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-O2")
PROGRAM = """\
#include <stdio.h>
#include "detector.h"

int main(void)
{
    float sample[DETECTOR_INPUT_SIZE], logits[DETECTOR_OUTPUT_SIZE];
    detector_state state;
    detector_reset(&state);
    while (fread(sample, sizeof sample, 1, stdin) == 1) {
        detector_step(&state, sample, logits);
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return 0;
}
"""


class Detector(nn.Module):
    """Logits of noise, low tone and high tone at every sample."""

    input_size = 1

    def __init__(self, hidden):
        super().__init__()
        self.rnn = RNN("gru", 1, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x):
        """x: (B, T, 1); for training, all samples at once."""
        return self.head(self.rnn(x)[0])

    def step(self, x, state):
        """x: (1,); what becomes C: one sample, and the state before and after it."""
        y, state = self.rnn.step(x, state)
        return self.head(y), state


def sounds(count, steps, generator):
    """Return samples (count, steps, 1) and what they are (count, steps): 0, 1 or 2."""
    begins = torch.rand(count, steps, generator=generator) < 1 / 50
    begins[:, 0] = True
    drawn = torch.randint(3, (count, steps), generator=generator)
    latest = torch.where(begins, torch.arange(steps), 0).cummax(dim=1).values
    kind = drawn.gather(1, latest)
    angle = torch.tensor([0.0, 0.4, 1.2])[kind].cumsum(dim=1)  # radians from sample to sample
    noise = 0.3 * torch.randn(count, steps, generator=generator)
    return (torch.sin(angle) * (kind > 0) + noise)[..., None], kind


def train(model, count, steps, updates, generator):
    """Train on `count` new sequences at each update; return the losses."""
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=2e-2), []
    for update in range(updates):
        x, kind = sounds(count, steps, generator)
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), kind.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if update % 50 == 49:
            print(f"update {update + 1:3}: loss {losses[-1]:.3f}")
    return losses


def run_in_c(model, stream, compiler):
    """Return the logits (T, 3) of the C program for a stream (T, 1), and the sizes in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = parnl.to_c(model, folder=folder, name="detector")
        (Path(folder) / "main.c").write_text(PROGRAM)
        sources = ["main.c", "detector.c", "-o", "detector", "-lm"]
        subprocess.run([compiler, *FLAGS, *sources], cwd=folder, check=True)
        given = stream.numpy().astype(np.float32).tobytes()
        program = Path(folder) / "detector"
        done = subprocess.run([program], input=given, stdout=subprocess.PIPE, check=True)
    return torch.from_numpy(np.frombuffer(done.stdout, np.float32).reshape(-1, 3).copy()), sizes


def main(hidden=16, count=16, steps=200, updates=200, heard=10_000, compiler="cc", seed=0):
    """Train, deploy; return losses, the accuracy of the C program, and how far it is from PyTorch.

    heard: samples of the stream; that distance is the largest of a logit.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Detector(hidden)
    losses = train(model, count, steps, updates, generator)
    model.eval()
    stream, kind = sounds(1, heard, generator)
    in_c, sizes = run_in_c(model, stream[0], compiler)
    with torch.no_grad():
        gap = float((in_c - model(stream)[0]).abs().max())
    assert gap < 1e-5, f"logits differ by {gap:.1e}"
    accuracy = float((in_c.argmax(-1) == kind[0]).float().mean())
    print(f"in C: {sizes.constants} bytes of weights, {sizes.state} of state")
    print(f"in C: {accuracy:.1%} of {heard} samples are right; logits differ by at most {gap:.1e}")
    return losses, accuracy, gap


if __name__ == "__main__":
    main()
