"""torch.export and AOTInductor: what is saved is run by a process that has not made the cell."""

import subprocess
import sys

import pytest
import torch

import parnl
from parnl import ops
from parnl.params import matrix, vector
from parnl.torch import RNN

RUN = """
import sys, torch
import torch._inductor.codecache  # PyTorch 2.10 forgets to
import parnl.torch
kind, model, given, found = sys.argv[1:]
if kind == "export":
    run = torch.export.load(model).module()
else:
    run = torch._inductor.aoti_load_package(model)
torch.save([run(u) for u in torch.load(given)], found)
"""


class Own(parnl.Cell):
    """A cell of two states that the other process has never heard of."""

    states = ("y", "z")
    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(v=u @ p.W)

    def step(self, p, y, z, f):
        return ops.tanh(p.a * z + f.v), z + 0.1 * ops.softplus(y) - 0.1 * z**3.0


class Last(torch.nn.Module):
    """A layer of it and what it is when the sequence ends."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = RNN(kind, 3, 4, batch_first=True, chunks=2)

    def forward(self, u):
        output, ends = self.rnn(u)
        return output, ends[0]


@pytest.mark.long
@pytest.mark.parametrize("way", ["export", "inductor"])
def test_what_is_saved_is_run_by_another_process(tmp_path, way):
    model = Last(Own).eval()
    given = [torch.randn(batch, steps, 3) for batch, steps in ((2, 20), (5, 33))]
    free = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("time", min=8, max=1024)}
    program = torch.export.export(model, (given[0],), dynamic_shapes=(free,))
    saved = tmp_path / "model.pt2"
    if way == "export":
        torch.export.save(program, saved)
    else:
        torch._inductor.aoti_compile_and_package(program, package_path=str(saved))
    torch.save(given, tmp_path / "given")
    arguments = [way, str(saved), str(tmp_path / "given"), str(tmp_path / "found")]
    subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, timeout=300)
    for u, found in zip(given, torch.load(tmp_path / "found"), strict=True):
        with torch.no_grad():
            torch.testing.assert_close([*found], [*model(u)], rtol=1e-6, atol=1e-6)
