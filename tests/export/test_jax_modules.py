"""Modules of Flax and Equinox as C: the program answers as the module does in JAX."""

import numpy as np
import pytest
from optional import jax, jnp, torch
from oracles import assert_close
from toy_runs import answers_in_c

import parnl

eqx = pytest.importorskip("equinox")
nnx = pytest.importorskip("flax.nnx")

import parnl.equinox  # noqa: E402
import parnl.flax  # noqa: E402

INPUTS = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
LAYERS = [
    dict(cell="lstm", num_layers=2),
    dict(cell="gru", bias=False, learn_initial=True),
    dict(cell="ltc", unfolds=2, dt=0.5),
]
CLASSIFIERS = [
    dict(cell="lrc", state=4, loops=2),
    dict(cell="lstm", state=6, readout="each", peephole=True),
]


def moved(model):
    """Move every weight away from where it started: zeros, too."""
    keys = iter(jax.random.split(jax.random.key(5), 100))

    def away(x):
        return x + 0.2 * jax.random.normal(next(keys), x.shape, x.dtype)

    if isinstance(model, nnx.Module):
        nnx.update(model, jax.tree.map(away, nnx.state(model, nnx.Param)))
        return model
    arrays, rest = eqx.partition(model, eqx.is_array)
    return eqx.combine(jax.tree.map(away, arrays), rest)


def made(door, kind, *sizes, **how):
    start = {"rngs": nnx.Rngs(0)} if door is parnl.flax else {}
    if door is parnl.equinox:
        start = {"key": jax.random.key(0)} if kind == "RNN" else {"seed": 0}
    return moved(getattr(door, kind)(*sizes, **start, **how))


@pytest.mark.long
@pytest.mark.parametrize("how", LAYERS, ids=str)
@pytest.mark.parametrize("door", [parnl.flax, parnl.equinox], ids=["flax", "equinox"])
def test_layers(tmp_path, door, how):
    how = dict(how)
    model = made(door, "RNN", how.pop("cell"), 3, 4, batch_first=True, **how)
    expected = model(jnp.asarray(INPUTS))[0]
    parnl.to_c(model, folder=tmp_path)
    assert_close(answers_in_c(tmp_path, INPUTS), expected, 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("how", CLASSIFIERS, ids=str)
@pytest.mark.parametrize("door", [parnl.flax, parnl.equinox], ids=["flax", "equinox"])
def test_classifiers(tmp_path, door, how):
    model = made(door, "Classifier", 3, 2, width=6, **how)
    if how.get("readout") == "each":
        expected = model(jnp.asarray(INPUTS))[0]
    else:
        steps = range(1, INPUTS.shape[1] + 1)
        expected = jnp.stack([model(jnp.asarray(INPUTS[:, :n]))[0] for n in steps], axis=1)
    parnl.to_c(model, folder=tmp_path)
    assert_close(answers_in_c(tmp_path, INPUTS), expected, 1e-5)


def test_the_twin_of_a_module_is_pytorchs(tmp_path):
    model = made(parnl.flax, "RNN", "lstm", 3, 4, bidirectional=True)
    found, (h, c) = model.to_torch()(torch.tensor(INPUTS))
    expected, (h_n, c_n) = model(jnp.asarray(INPUTS))
    for one, other in ((found, expected), (h, h_n), (c, c_n)):
        assert_close(one.detach().numpy(), other, 1e-5)


def test_other_modules_are_refused_by_name(tmp_path):
    message = "RNN or Classifier of parnl.flax or parnl.equinox, got Linear"
    for model in (eqx.nn.Linear(3, 2, key=jax.random.key(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(0))):
        with pytest.raises(TypeError, match=message):
            parnl.to_c(model, folder=tmp_path)
