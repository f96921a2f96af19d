"""`cell.init` from a key of `jax.random`, eagerly and traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parnl
from parnl import cells

# where one parameter's draw depends on another's, and where each has its own
CELLS = ["gru", "lru", "s5", "s6", "lstm", "rglru"]
KEYS = {"typed": jax.random.key, "old": jax.random.PRNGKey}


def equal(found, expected):
    assert list(found) == list(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("style", KEYS)
@pytest.mark.parametrize("name", cells.__all__)
def test_traced_or_not_a_key_gives_the_same(name, style):
    cell, key = parnl.get_cell(name, 4, 4), KEYS[style](3)
    expected = cell.init(key)
    assert {n: x.shape for n, x in expected.items()} == cell.parameter_shapes
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in expected.values())
    equal(cell.init(key, "numpy"), expected)
    found = jax.jit(cell.init)(key)
    equal({n: found[n] for n in expected}, expected)  # jit sorts the names
    drawn = [n for n, x in expected.items() if x.size > 1 and np.ptp(np.asarray(x)) > 0]
    other = cell.init(KEYS[style](4))
    same = cell.init(0, "jax")
    assert any((other[n] != expected[n]).any() for n in drawn)
    assert any((same[n] != expected[n]).any() for n in drawn)


@pytest.mark.long
@pytest.mark.parametrize("style", KEYS)
@pytest.mark.parametrize("name", CELLS)
def test_ensembles(name, style):
    cell = parnl.get_cell(name, 2, 4)
    keys = jax.random.split(KEYS[style](0), 3)
    for init in (jax.vmap(cell.init), jax.jit(jax.vmap(cell.init))):
        many = init(keys)
        for i, key in enumerate(keys):
            each, alone = jax.tree.map(lambda x, i=i: x[i], many), cell.init(key)
            equal({n: each[n] for n in alone}, alone)
    inputs = jnp.ones((2, 9, 2), jnp.float32)
    outputs = jax.vmap(lambda p: parnl.solve(cell, p, inputs).outputs)(many)
    assert outputs.shape == (3, 2, 9, 4)


@pytest.mark.parametrize("style", KEYS)
def test_shapes_alone_draw_nothing(style, monkeypatch):
    cell = parnl.get_cell("s5", 2, 3)
    monkeypatch.setattr(type(cell), "draw", lambda *_: pytest.fail("was drawn"))
    found = jax.eval_shape(cell.init, KEYS[style](0))
    assert {n: x.shape for n, x in found.items()} == cell.parameter_shapes


def test_an_integer_is_the_same_seed_traced_or_not():
    cell = parnl.get_cell("lstm", 2, 3)
    expected = cell.init(7, "jax")
    equal(cell.init(7), expected)
    equal(cell.init(jnp.asarray(7)), expected)
    found = jax.jit(cell.init)(7)
    equal({n: found[n] for n in expected}, expected)


def test_dtype_and_device():
    cell, key = parnl.get_cell("gru", 2, 3), jax.random.key(0)
    device = jax.devices()[0]
    expected = cell.init(key, dtype="float64", device=device)
    found = jax.jit(lambda k: cell.init(k, "jax", "float64", device))(key)
    equal({n: found[n] for n in expected}, expected)
    assert found["W_r"].dtype == jnp.float64
    narrow = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with narrow(False), pytest.raises(ValueError, match="jax_enable_x64"):
        jax.jit(lambda k: cell.init(k, "jax", "float64"))(key)


def test_loss_of_what_a_key_gives_has_a_gradient():
    """Initialised and trained in one function, as `flax.linen` users do."""
    cell, u = parnl.get_cell("gru", 2, 3), jnp.ones((1, 5, 2), jnp.float32)

    @jax.jit
    def step(key):
        params = cell.init(key)
        return jax.grad(lambda p: parnl.solve(cell, p, u).outputs.sum())(params)

    params = cell.init(jax.random.key(1))
    expected = jax.grad(lambda p: parnl.solve(cell, p, u).outputs.sum())(params)
    found = step(jax.random.key(1))
    for name, e in expected.items():
        np.testing.assert_allclose(found[name], e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "seed",
    [jnp.ones(2), jnp.ones((3, 2), jnp.uint32), jax.random.split(jax.random.key(0), 3)],
    ids=["floats", "old keys", "typed keys"],
)
def test_what_is_no_key_is_refused(seed):
    cell = parnl.get_cell("gru", 2, 3)
    with pytest.raises(TypeError, match=r"seed: expected an integer or one key .* got \w"):
        cell.init(seed)


def test_traced_keys_are_jax_alone():
    cell = parnl.get_cell("gru", 2, 3)
    with pytest.raises(TypeError, match="seed: a traced key needs backend='jax', got 'numpy'"):
        jax.jit(lambda key: cell.init(key, "numpy"))(jax.random.key(0))


def test_flax_modules():
    nn, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
    cell, u = parnl.get_cell("s5", 2, 3), jnp.ones((1, 5, 2), jnp.float32)

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, u):
            return parnl.solve(cell, self.param("cell", cell.init), u).outputs

    model = Linen()
    variables = model.init(jax.random.key(0), u)
    jitted = jax.jit(model.init)(jax.random.key(0), u)
    jax.tree.map(np.testing.assert_array_equal, variables, jitted)
    assert model.apply(variables, u).shape == (1, 5, 3)

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            values = cell.init(rngs.params())
            self.cell = nnx.Dict({n: nnx.Param(v) for n, v in values.items()})

    shapes = nnx.state(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))))
    found = nnx.state(nnx.jit(lambda: Nnx(nnx.Rngs(0)))())
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, found)
