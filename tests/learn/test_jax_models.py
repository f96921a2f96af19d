"""parnl.flax.Classifier and parnl.equinox.Classifier: PyTorch's, and what each is used with."""

import numpy as np
import pytest
from optional import jax, jnp, torch
from oracles import assert_close

eqx = pytest.importorskip("equinox")
nnx = pytest.importorskip("flax.nnx")

import parnl.equinox  # noqa: E402
import parnl.flax  # noqa: E402

SIZES = {"width": 4, "blocks": 2, "dropout": 0.5}
CASES = [{"cell": "lrc", "state": 6}, {"cell": "lstm", "state": 4, "loops": 2, "peephole": True}]
LENGTHS = np.array([9, 4, 1])


def name_of(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")


def weights_of(tree):
    """Return parameters, or their gradients, by PyTorch's names."""
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree, nnx.Param)
    if isinstance(tree, nnx.State):
        return {".".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(tree)}
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {name_of(path): np.asarray(value) for path, value in leaves}


def in_flax(weights, **how):
    model = parnl.flax.Classifier(2, 3, rngs=nnx.Rngs(1), **SIZES | how)
    assert weights_of(model).keys() == weights.keys()
    # as its docstring says
    known = nnx.to_flat_state(nnx.state(model, nnx.Param))
    found = [(path, nnx.Param(weights[".".join(map(str, path))])) for path, _ in known]
    nnx.update(model, nnx.from_flat_state(found))
    return model


def in_equinox(weights, **how):
    model = parnl.equinox.Classifier(2, 3, seed=1, **SIZES | how)
    assert weights_of(model).keys() == weights.keys()
    arrays, rest = eqx.partition(model, eqx.is_array)
    arrays = jax.tree_util.tree_map_with_path(lambda path, _: weights[name_of(path)], arrays)
    return eqx.combine(arrays, rest)


def drawn(**how):
    """Return weights by name, of which none is 0 throughout, in float64."""
    rng = np.random.default_rng(0)
    model = parnl.equinox.Classifier(2, 3, **SIZES | how)
    return {
        n: jnp.asarray(v + 0.1 * rng.standard_normal(v.shape), jnp.float64)
        for n, v in weights_of(model).items()
    }


def inputs():
    return np.random.default_rng(1).standard_normal((3, 9, 2))


@pytest.mark.long
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("how", CASES, ids=str)
def test_one_set_of_weights_is_one_map_with_one_gradient(how, lengths):
    _ = torch.Tensor  # skips where there is none
    from parnl.torch import Classifier

    weights, x = drawn(**how), inputs()
    theirs = Classifier(2, 3, **SIZES | how).double().eval()
    theirs.load_state_dict({n: torch.tensor(np.asarray(v)) for n, v in weights.items()})
    told = None if lengths is None else torch.tensor(lengths)
    expected, infos = theirs(torch.tensor(x), told)
    (expected**2).sum().backward()
    slopes = {n: p.grad.numpy() for n, p in theirs.named_parameters()}

    def loss(model):
        logits, found = model(jnp.asarray(x), None if lengths is None else jnp.asarray(lengths))
        assert len(found) == len(infos)
        return jnp.sum(logits**2), logits

    flax, equinox = in_flax(weights, **how), in_equinox(weights, **how)
    flax.eval()
    logits = {"flax": loss(flax)[1], "equinox": loss(equinox)[1]}
    logits["nnx.jit"] = nnx.jit(loss)(flax)[1]
    found = {
        "flax": nnx.grad(loss, has_aux=True)(flax)[0],
        "nnx.jit": nnx.jit(nnx.grad(loss, has_aux=True))(flax)[0],
        "equinox": eqx.filter_grad(loss, has_aux=True)(equinox)[0],
    }
    for kind, value in logits.items():
        assert_close(value, expected.detach().numpy(), 1e-12, kind)
        gradients = weights_of(found[kind])
        assert gradients.keys() == slopes.keys()
        for name, slope in slopes.items():
            assert np.abs(slope).max() > 0
            assert_close(gradients[name], slope, 1e-11, f"{kind} {name}")


def test_the_solver_s_keywords_reach_it():
    weights = drawn(**CASES[0])
    for model in (in_flax(weights, **CASES[0]), in_equinox(weights, **CASES[0])):
        if isinstance(model, nnx.Module):
            model.eval()
        expected, infos = model(jnp.asarray(inputs()), method="sequential")
        assert [info.chunks for info in infos] == [1, 1]
        found, infos = model(jnp.asarray(inputs()), method="newton", chunks=3)
        assert [info.chunks for info in infos] == [3, 3]
        assert_close(found, expected, 1e-9)


def test_flax_drops_a_hidden_unit_at_all_steps_or_at_none():
    cell = parnl.get_cell("gru", 16, 16)
    block = parnl.flax.Block(cell, 16, dropout=0.5, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 9, 16)))

    def hidden():
        outputs = []
        for scale in (0.0, 1.0):  # the residual alone, then with the hidden units as they are
            nnx.update(block.contract, {"weight": nnx.Param(scale * jnp.eye(16))})
            outputs.append(block(x, None)[0])
        return outputs[1] - outputs[0]

    block.eval()
    whole = hidden()
    np.testing.assert_array_equal(hidden(), whole)
    block.train()
    kept = np.asarray(hidden() / whole)
    assert_close(kept, np.broadcast_to(kept[:, :1].round(), kept.shape), 1e-9)
    assert set(kept.round().flat) == {0.0, 2.0}
    assert np.abs(kept[0] - kept[1]).max() > 1  # each sequence drops its own
    assert np.abs(kept - np.asarray(hidden() / whole)).max() > 1  # and each call


def test_flax_draws_its_parameters_from_rngs():
    def made(key):
        return weights_of(parnl.flax.Classifier(2, 3, rngs=nnx.Rngs(key), **SIZES | CASES[0]))

    first, again, other = made(0), made(0), made(1)
    for name, value in first.items():
        assert value.dtype == np.float32  # although JAX's 64-bit mode is on
        np.testing.assert_array_equal(value, again[name])
        assert np.abs(value - other[name]).max() > 0
    for layer, size in (("lift", 2), ("blocks.0.back", 6), ("head", 4)):
        for part in ("weight", "bias"):
            assert 0 < np.abs(first[f"{layer}.{part}"]).max() <= size**-0.5
    assert np.abs(first["blocks.0.expand.weight"] - first["blocks.1.expand.weight"]).max() > 0
    assert np.abs(first["blocks.0.recurrence.W_f"] - first["blocks.1.recurrence.W_f"]).max() > 0
    shapes = nnx.eval_shape(lambda: parnl.flax.Classifier(2, 3, rngs=nnx.Rngs(0), width=8))
    assert shapes.head.weight.shape == (3, 8)


@pytest.mark.long
def test_flax_learns():
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 3, 32))
    x = jnp.asarray(rng.standard_normal((32, 12, 2)) + np.asarray(labels)[:, None, None] - 1)
    how = {"cell": "lrc", "width": 8, "state": 8, "blocks": 1, "dropout": 0.1}
    model = parnl.flax.Classifier(2, 3, rngs=nnx.Rngs(0), **how)
    optimiser = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)

    def loss(model):
        logits, _ = model(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @nnx.jit
    def train(model, optimiser):
        value, grads = nnx.value_and_grad(loss)(model)
        optimiser.update(model, grads)
        return value

    losses = [float(train(model, optimiser)) for _ in range(80)]
    model.eval()
    assert float(loss(model)) < 0.3 * losses[0]


@pytest.mark.parametrize("kind", ["torch", "flax", "equinox"])
def test_wrong_shapes(kind):
    xp = torch if kind == "torch" else jnp
    _ = xp.zeros  # skips where there is none
    if kind == "torch":
        from parnl.torch import Classifier

        model = Classifier(2, 3, **SIZES | CASES[0])
    else:
        model = (in_flax if kind == "flax" else in_equinox)(drawn(**CASES[0]), **CASES[0])
    for shape in ((3, 9, 5), (9, 2), (1, 3, 9, 2)):
        expected = rf"inputs: expected shape \(N, T, 2\), got \({', '.join(map(str, shape))}\)"
        with pytest.raises(ValueError, match=expected):
            model(xp.zeros(shape))
    with pytest.raises(ValueError, match="lengths: expected"):
        model(xp.zeros((3, 9, 2)), xp.ones((4,), dtype=xp.int32))
