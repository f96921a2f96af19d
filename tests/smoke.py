"""Try an installed parnl as a user would: `python tests/smoke.py EXTRA`, in an empty folder."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import parnl

CELL = parnl.get_cell("lstm", 3, 8)
INPUTS = np.random.default_rng(0).normal(size=(2, 50, 3)).astype("float32")
EXPECTED = parnl.solve(CELL, CELL.init(0), INPUTS, method="sequential").outputs


def close(outputs) -> None:
    np.testing.assert_allclose(np.asarray(outputs), EXPECTED, rtol=1e-5, atol=1e-6)


def command(*words: str) -> str:
    """Run `parnl`; it fails with the message it gives."""
    parnl_command = str(Path(sys.executable).with_name("parnl"))
    done = subprocess.run([parnl_command, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plain() -> None:
    """No extra: NumPy, the certificate, and what a command says that needs another package."""
    close(parnl.solve(CELL, CELL.init(0), INPUTS, chunks=7).outputs)
    assert len(parnl.list_cells()) >= 20
    assert parnl.certify(CELL, CELL.init(0), inputs=INPUTS).rho.shape == (8,)
    done = subprocess.run(
        [Path(sys.executable).with_name("parnl"), "cells"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "pip install 'parnl[train]'" in done.stderr, done.stderr


def torch() -> None:
    import torch

    from parnl.torch import RNN

    params = {n: p.requires_grad_() for n, p in CELL.init(0, "torch").items()}
    outputs = parnl.solve(CELL, params, torch.from_numpy(INPUTS)).outputs
    outputs.sum().backward()
    assert all(p.grad.isfinite().all() for p in params.values())
    close(outputs.detach())
    assert RNN("gru", 3, 8)(torch.from_numpy(INPUTS))[0].shape == (2, 50, 8)


def jax() -> None:
    import jax

    params = CELL.init(0, "jax")
    run = jax.jit(lambda p, u: parnl.solve(CELL, p, u).outputs)
    close(run(params, INPUTS))
    found = jax.grad(lambda p: run(p, INPUTS).sum())(params)
    assert all(np.isfinite(g).all() for g in found.values())


def flax() -> None:
    import jax.numpy as jnp
    from flax import nnx

    from parnl.flax import RNN

    assert RNN("gru", 3, 8, rngs=nnx.Rngs(0))(jnp.asarray(INPUTS))[0].shape == (2, 50, 8)


def equinox() -> None:
    import jax

    from parnl.equinox import RNN

    assert RNN("gru", 3, 8, key=jax.random.key(0))(jax.numpy.asarray(INPUTS))[0].shape == (2, 50, 8)


def onnx() -> None:
    import torch

    from parnl.torch import RNN, export_onnx

    export_onnx(RNN("gru", 3, 8), (torch.from_numpy(INPUTS),), "rnn.onnx")
    assert Path("rnn.onnx").stat().st_size > 0


def triton() -> None:
    import triton

    assert triton.__version__


def checkpoint() -> None:
    parnl.save_params("weights.safetensors", CELL, CELL.init(0))
    close(parnl.solve(CELL, parnl.load_params("weights.safetensors", CELL), INPUTS).outputs)


def testing() -> None:
    from parnl.testing import check_cell

    check_cell(CELL, backends=["numpy"], examples=3)


def train() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    series = rng.normal(size=(60, 20, 1)) + 2.0 * labels[:, None, None]
    np.savez("toy.npz", X=series, y=labels)
    command(*"train --data toy.npz --backend jax --state 8 --epochs 20 --out run".split())
    assert "gru" in command("cells")
    assert "accuracy" in command("evaluate", "run", "--data", "toy.npz")
    command("report", "run")
    assert Path("run/report.html").stat().st_size > 1000


def tensorboard() -> None:
    import tensorboard

    assert tensorboard.__version__


if __name__ == "__main__":
    {f.__name__: f for f in (
        torch, jax, flax, equinox, onnx, triton, checkpoint, testing, train, tensorboard,
    )}.get(sys.argv[1] if len(sys.argv) > 1 else "", plain)()  # fmt: skip
