"""One set of weights, wherever a model may go: the same outputs. `pytest -s` prints the table."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
from optional import jax, jnp, torch

import parnl

STEPS, BATCH, INPUTS, HIDDEN = 60, 2, 3, 8


def weights_and_inputs(name):
    cell = parnl.get_cell(name, INPUTS, HIDDEN)
    params = {n: p.astype(np.float32) for n, p in cell.init(3, dtype="float64").items()}
    return cell, params, np.random.default_rng(0).standard_normal((BATCH, STEPS, INPUTS), "float32")


def by_loop(cell, params, u):
    """The truth: float64, step after step, composed of NumPy's operations."""
    wide = {n: p.astype(np.float64) for n, p in params.items()}
    return parnl.solve(cell, wide, u.astype(np.float64), method="sequential").outputs


def by_numpy(name, cell, params, u, folder):
    return parnl.solve(cell, params, u, chunks=4).outputs


def by_array_api(name, cell, params, u, folder):
    strict = pytest.importorskip("array_api_strict")
    given = {n: strict.asarray(p) for n, p in params.items()}
    return np.from_dlpack(parnl.solve(cell, given, strict.asarray(u), chunks=4).outputs)


def in_torch(name, cell, params):
    from parnl.torch import RNN

    rnn = RNN(name, INPUTS, HIDDEN, batch_first=True, chunks=4).eval()
    with torch.no_grad():
        for parameter, called in rnn._names[0].items():
            getattr(rnn, called).copy_(torch.from_numpy(params[parameter]))
    return rnn


def by_torch(name, cell, params, u, folder):
    with torch.no_grad():
        return in_torch(name, cell, params)(torch.from_numpy(u))[0].numpy()


def by_equinox(name, cell, params, u, folder):
    eqx = pytest.importorskip("equinox")
    from parnl.equinox import RNN

    rnn = RNN(name, INPUTS, HIDDEN, batch_first=True, chunks=4, key=0)
    names = rnn.layers.parameter_names(0)
    given = {names[n]: jnp.asarray(p) for n, p in params.items()}
    return eqx.tree_at(lambda r: r.weights, rnn, given)(jnp.asarray(u))[0]


def by_flax(name, cell, params, u, folder):
    nnx = pytest.importorskip("flax.nnx")
    from parnl.flax import RNN

    rnn = RNN(name, INPUTS, HIDDEN, batch_first=True, chunks=4, rngs=nnx.Rngs(0))
    names = rnn.layers.parameter_names(0)
    nnx.update(rnn, {names[n]: nnx.Param(jnp.asarray(p)) for n, p in params.items()})
    return rnn(jnp.asarray(u))[0]


def by_exported_torch(name, cell, params, u, folder):
    program = torch.export.export(in_torch(name, cell, params), (torch.from_numpy(u),))
    torch.export.save(program, folder / "model.pt2")
    with torch.no_grad():
        return torch.export.load(folder / "model.pt2").module()(torch.from_numpy(u))[0].numpy()


def by_exported_jax(name, cell, params, u, folder):
    pytest.importorskip("flatbuffers")  # which JAX asks for
    given = {n: jnp.asarray(p) for n, p in params.items()}
    solve = jax.jit(lambda u: parnl.solve(cell, given, u).outputs)
    data = jax.export.export(solve)(jnp.asarray(u)).serialize()
    return jax.export.deserialize(data).call(jnp.asarray(u))


def by_onnx(name, cell, params, u, folder):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from parnl.torch import export_onnx

    export_onnx(in_torch(name, cell, params), (torch.from_numpy(u),), folder / "model.onnx")
    session = runtime.InferenceSession(folder / "model.onnx")
    return session.run(None, {session.get_inputs()[0].name: u})[0]


def by_c(name, cell, params, u, folder):
    _ = torch.Tensor  # which records the step
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    sizes = parnl.to_c(cell, params, folder)
    library = folder / "model.so"
    flags = ["-std=c99", "-O2", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, folder / "model.c", "-o", library, "-lm"], check=True)
    model = ctypes.CDLL(library)
    state, found = ctypes.create_string_buffer(sizes.state), np.empty((BATCH, STEPS, HIDDEN), "f")
    pointer = ctypes.POINTER(ctypes.c_float)
    for b in range(BATCH):
        model.model_reset(state)
        for t in range(STEPS):
            row, output = np.ascontiguousarray(u[b, t]), np.empty(HIDDEN, np.float32)
            model.model_step(state, row.ctypes.data_as(pointer), output.ctypes.data_as(pointer))
            found[b, t] = output
    return found


WAYS = {
    "NumPy": by_numpy,
    "array-api-strict": by_array_api,
    "PyTorch": by_torch,
    "Equinox": by_equinox,
    "Flax": by_flax,
    "torch.export": by_exported_torch,
    "jax.export": by_exported_jax,
    "ONNX": by_onnx,
    "C": by_c,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gru", "lstm", "lrc"])
def test_one_model_everywhere(tmp_path, name, way):
    cell, params, u = weights_and_inputs(name)
    expected = by_loop(cell, params, u)
    found = np.asarray(WAYS[way](name, cell, params, u, tmp_path))
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"\n{name:6} {way:18} {difference:.1e}")
    assert difference < 1e-6
