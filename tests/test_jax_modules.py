"""parnl.flax.RNN and parnl.equinox.RNN: the layers of PyTorch, and what each is used with."""

import numpy as np
import pytest
from optional import jax, jnp, torch
from oracles import assert_close

eqx = pytest.importorskip("equinox")
nnx = pytest.importorskip("flax.nnx")

import parnl.equinox  # noqa: E402
import parnl.flax  # noqa: E402

STEPS, BATCH = 12, 3
KINDS = ["equinox", "flax"]


def made(kind, *args, key=0, **how):
    if kind == "flax":
        return parnl.flax.RNN(*args, rngs=nnx.Rngs(key), **how)
    return parnl.equinox.RNN(*args, key=jax.random.key(key), **how)


def put(rnn, weights):
    """Return the module with these weights, by the names of PyTorch's module."""
    if isinstance(rnn, parnl.equinox.RNN):
        assert rnn.weights.keys() == weights.keys()
        return eqx.tree_at(lambda r: r.weights, rnn, weights)
    assert set(rnn.weight_names) == weights.keys()
    nnx.update(rnn, {name: nnx.Param(value) for name, value in weights.items()})
    return rnn


def inputs(batch_first=False, steps=STEPS):
    shape = (BATCH, steps, 2) if batch_first else (steps, BATCH, 2)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape))


def torch_module():
    _ = torch.Tensor  # skips where there is none
    from parnl.torch import RNN

    return RNN


LAYOUTS = [
    {},
    {"batch_first": True, "learn_initial": True},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
]


@pytest.mark.parametrize("how", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["gru", "lstm", "lem"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_set_of_weights_is_one_map(kind, name, how):
    RNN = torch_module()
    with jax.enable_x64(True):
        theirs = RNN(name, 2, 4, seed=1, **how).double()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.1)
        weights = {n: jnp.asarray(p.detach().numpy()) for n, p in theirs.named_parameters()}
        ours = put(made(kind, name, 2, 4, dtype="float64", **how), weights)
        x = inputs(how.get("batch_first", False))
        steps = x.shape[:-1]
        rng = np.random.default_rng(1)
        told = {"resets": rng.random(steps) < 0.2, "lengths": np.array([STEPS, 5, 1])}
        if name == "lem":
            told["dt"] = rng.random(steps)
        expected, end = theirs(
            torch.tensor(np.asarray(x)), **{n: torch.tensor(v) for n, v in told.items()}
        )
        found, state = ours(x, **{n: jnp.asarray(v) for n, v in told.items()})
        assert_close(found, expected.detach().numpy(), 1e-13)
        if name != "gru":
            assert state._fields == end._fields
        for a, b in zip(*(s if isinstance(s, tuple) else (s,) for s in (state, end)), strict=True):
            assert_close(a, b.detach().numpy(), 1e-13)


def test_the_seed_of_pytorch():
    RNN = torch_module()
    ours = parnl.equinox.RNN("lstm", 2, 4, 2, key=7)
    for name, value in RNN("lstm", 2, 4, 2, seed=7).named_parameters():
        np.testing.assert_array_equal(ours.weights[name], value.detach().numpy())


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_in_pieces_and_step_by_step(kind, name):
    with jax.enable_x64(True):
        rnn = made(kind, name, 2, 4, num_layers=2, dtype="float64", learn_initial=True)
        x = inputs()
        whole, end = rnn(x)
        first, state = rnn(x[:5])
        second, state = rnn(x[5:], state)
        assert_close(jnp.concatenate([first, second]), whole, 1e-13)
        carry = rnn.initialize_carry((BATCH,))
        assert jax.tree.structure(carry) == jax.tree.structure(end)
        last, streamed = jax.lax.scan(lambda s, u: rnn.step(u, s)[::-1], carry, x)
        assert_close(streamed, whole, 1e-13)
        for one in (state, last):
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(end), strict=True):
                assert_close(a, b, 1e-13)
        full = rnn.solve(x)
        np.testing.assert_array_equal(full.outputs, whole)
        assert full.states[1].h.shape == (STEPS, BATCH, 4)
        np.testing.assert_array_equal(full.states[1].h[-1], jax.tree.leaves(end)[0][1])
        alone, _ = rnn(x[:, 0])  # without a batch
        assert_close(alone, whole[:, 0], 1e-13)


@pytest.mark.parametrize("learn_initial", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_resets_in_a_rollout_that_goes_on(kind, learn_initial):
    with jax.enable_x64(True):
        rnn = made(kind, "lstm", 2, 4, dtype="float64", learn_initial=learn_initial)
        if learn_initial:
            ours = rnn.weights if kind == "equinox" else rnn._weights()
            rnn = put(rnn, {n: w + 0.3 for n, w in ours.items()})
        x, resets = inputs(), np.zeros((STEPS, BATCH), bool)
        resets[3, 0] = resets[0, 1] = True
        _, start = rnn(x[::-1])
        whole, _ = rnn(x, start, resets=jnp.asarray(resets))
        _, streamed = jax.lax.scan(
            lambda s, a: rnn.step(a[0], s, reset=a[1])[::-1], start, (x, jnp.asarray(resets))
        )
        assert_close(streamed, whole, 1e-13)
        assert_close(whole[3:, 0], rnn(x[3:, 0])[0], 1e-13)


@pytest.mark.long
def test_equinox_transformations():
    rnn = made("equinox", "lrc", 2, 4, num_layers=2)
    x = inputs().astype(jnp.float32)

    def loss(rnn, x):
        return jnp.mean(rnn(x)[0] ** 2)

    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(loss))(rnn, x)
    assert value > 0
    assert grads.weights.keys() == rnn.weights.keys()
    assert all(jnp.isfinite(g).all() and jnp.any(g) for g in grads.weights.values())
    keys = jax.random.split(jax.random.key(0), 3)
    ensemble = eqx.filter_vmap(lambda k: parnl.equinox.RNN("lrc", 2, 4, key=k))(keys)
    outputs = eqx.filter_vmap(lambda r, x: r(x)[0], in_axes=(eqx.if_array(0), None))(ensemble, x)
    for i, key in enumerate(keys):
        assert_close(outputs[i], parnl.equinox.RNN("lrc", 2, 4, key=key)(x)[0], 1e-6)
    compiled = eqx.filter_jit(lambda r, x: r(x)[0])
    compiled(rnn, x)
    count = compiled._cached._cache_size() if hasattr(compiled, "_cached") else None
    compiled(made("equinox", "lrc", 2, 4, num_layers=2, key=1), x)  # equal settings: no new trace
    assert count is None or compiled._cached._cache_size() == count


def test_equinox_scan_over_layers():
    make = eqx.filter_vmap(lambda k: parnl.equinox.RNN("gru", 4, 4, key=k))
    stack = make(jax.random.split(jax.random.key(1), 3))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((STEPS, BATCH, 4)), jnp.float32)
    arrays, rest = eqx.partition(stack, eqx.is_array)
    found, _ = jax.lax.scan(lambda x, layer: (eqx.combine(layer, rest)(x)[0], None), x, arrays)
    expected = x
    for i in range(3):
        expected = eqx.combine(jax.tree.map(lambda a, i=i: a[i], arrays), rest)(expected)[0]
    assert_close(found, expected, 1e-6)


def test_equinox_dropout_and_files(tmp_path):
    rnn = made("equinox", "gru", 2, 4, num_layers=2, dropout=0.5)
    x = inputs().astype(jnp.float32)
    one, two = rnn(x)[0], rnn(x, key=jax.random.key(1))[0]
    np.testing.assert_array_equal(one, rnn(x)[0])
    assert jnp.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(two, rnn(x, key=jax.random.key(1))[0])
    eqx.tree_serialise_leaves(tmp_path / "rnn.eqx", rnn)
    other = made("equinox", "gru", 2, 4, num_layers=2, dropout=0.5, key=9)
    read = eqx.tree_deserialise_leaves(tmp_path / "rnn.eqx", other)
    np.testing.assert_array_equal(read(x)[0], one)


def test_flax_transformations():
    rnn = made("flax", "lrc", 2, 4, num_layers=2)
    x = inputs().astype(jnp.float32)

    @nnx.jit
    def loss(rnn, x):
        return jnp.mean(rnn(x)[0] ** 2)

    grads = nnx.grad(loss)(rnn, x)
    leaves = jax.tree.leaves(grads)
    assert len(leaves) == len(rnn.weight_names)
    assert all(jnp.isfinite(g).all() and jnp.any(g) for g in leaves)
    shapes = nnx.eval_shape(lambda: made("flax", "lrc", 2, 4, num_layers=2))
    assert {n: getattr(shapes, n).shape for n in rnn.weight_names} == {
        n: getattr(rnn, n).shape for n in rnn.weight_names
    }

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def ensemble(rngs):
        return parnl.flax.RNN("lrc", 2, 4, rngs=rngs)

    several = ensemble(nnx.Rngs(0))
    outputs = nnx.vmap(lambda r, x: r(x)[0], in_axes=(0, None))(several, x)
    graph, state = nnx.split(several)
    for i in range(3):
        alone = nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], state))
        assert_close(outputs[i], alone(x)[0], 1e-6)
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_flax_learns_and_is_saved_by_orbax(tmp_path):
    optax = pytest.importorskip("optax")
    checkpoint = pytest.importorskip("orbax.checkpoint")
    rnn = made("flax", "lstm", 2, 4, num_layers=2, dropout=0.1)
    x = inputs().astype(jnp.float32)
    target = jnp.roll(x.sum(-1), 1, axis=0)
    optimiser = nnx.Optimizer(rnn, optax.adam(0.02), wrt=nnx.Param)

    @nnx.jit
    def train(rnn, optimiser):
        loss, grads = nnx.value_and_grad(lambda r: jnp.mean((r(x)[0].sum(-1) - target) ** 2))(rnn)
        optimiser.update(rnn, grads)
        return loss

    losses = [float(train(rnn, optimiser)) for _ in range(60)]
    assert min(losses[-5:]) < 0.8 * losses[0]
    rnn.eval()
    found = rnn(x)[0]
    np.testing.assert_array_equal(found, rnn(x)[0])
    _, params, _ = nnx.split(rnn, nnx.Param, ...)
    keeper = checkpoint.StandardCheckpointer()
    keeper.save((tmp_path / "state").absolute(), params.to_pure_dict())
    keeper.wait_until_finished()
    other = made("flax", "lstm", 2, 4, num_layers=2, dropout=0.1, key=3)
    other.eval()
    assert jnp.abs(other(x)[0] - found).max() > 1e-3
    like = nnx.split(other, nnx.Param, ...)[1].to_pure_dict()
    read = keeper.restore((tmp_path / "state").absolute(), like)
    nnx.update(other, {n: nnx.Param(v) for n, v in read.items()})
    np.testing.assert_array_equal(other(x)[0], found)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_calls(kind):
    rnn = made(kind, "gru", 2, 4)
    with pytest.raises(ValueError, match=r"input: expected shape \(T, B, 2\), got \(5, 3, 7\)"):
        rnn(jnp.zeros((5, 3, 7)))
    with pytest.raises(TypeError, match=r"input: expected a jax.Array, got numpy.ndarray"):
        rnn(np.zeros((5, 3, 2)))
    with pytest.raises(ValueError, match=r"hx: expected 1 array\(s\) of shape \(1, 3, 4\)"):
        rnn(jnp.zeros((5, 3, 2)), jnp.zeros((1, 2, 4)))
    with pytest.raises(TypeError, match="cell: expected the name of a cell"):
        made(kind, 2, 4, 5)
    with pytest.raises(ValueError, match="bias: expected True, since LRC has no biases"):
        made(kind, "lrc", 2, 4, bias=False)
    with pytest.raises(ValueError, match="dropout: expected a number"):
        made(kind, "gru", 2, 4, dropout=2)
