"""Products of few inputs are computed within the step, with the answer of the loop in float64."""

from functools import partial

import numpy as np
import pytest
from optional import jax, jnp
from oracles import answer, assert_bits, assert_close, assert_same, problem, reference

import parnl
from parnl import ops
from parnl.backends.c import build
from parnl.backends.jax import features
from parnl.params import Values, matrix, vector

if not (build.wanted() and build.available()):
    pytest.skip("products move into C kernels", allow_module_level=True)


@pytest.fixture
def seen(monkeypatch):
    """However small: the steps that were taken, each with whether it computes products."""
    found, inner = [], features.with_products
    monkeypatch.setattr(features, "LEAST", 1)

    def spy(cell, *given):
        program, read = inner(cell, *given)
        assert (program is cell.program) is (read is None)
        found.append(program is not cell.program)
        return program, read

    monkeypatch.setattr(features, "with_products", spy)
    return found


HOW = {
    "plain": {},
    "lengths": {"lengths": [23, 0, 9]},
    "reverse": {"reverse": True},
    "resets": {"resets": np.arange(3 * 23).reshape(3, 23) % 7 == 0},
    "packed": {"batch": (), "cu_seqlens": [0, 4, 4, 5, 23]},
    "one input": {"n_in": 1},
    "one channel": {"hidden": 1},
    "several groups": {"hidden": 70},
    "rows of eight": {"hidden": 8, "batch": (9,)},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("cell", ["gru", "lstm", "lrc", "mingru"])
@pytest.mark.parametrize("chunks", [1, 7])
def test_the_answer_and_all_gradients_are_the_loops(seen, cell, chunks, how):
    task = problem(cell, **HOW[how])
    assert_same(answer(task, "jax", gradients=True, chunks=chunks), reference(task), 1e-11)
    assert set(seen) == {True}


@pytest.mark.parametrize("times", ["shared", "own"])
def test_time_steps(seen, times):
    task = problem("lrc", times=times, input_elastance=True)
    assert_same(answer(task, "jax", gradients=True, chunks=5), reference(task), 1e-11)
    assert set(seen) == {True}


def test_in_stretches(seen):
    task = problem("gru", steps=70)
    assert_same(answer(task, "jax", gradients=True, stretch=16), reference(task), 1e-11)
    assert set(seen) == {True}


def test_time_over_devices(seen):
    mesh = jax.make_mesh((1,), ("t",), axis_types=(jax.sharding.AxisType.Auto,))
    cell = parnl.get_cell("lstm", 3, 4)
    params, u = cell.init(0, "jax", dtype="float64"), jnp.sin(jnp.arange(60.0).reshape(20, 3))
    spec = jax.sharding.PartitionSpec

    def along(params, u):
        return parnl.solve(cell, params, u, chunks=4, time_axis="t").outputs

    split = jax.jit(
        jax.shard_map(along, mesh=mesh, in_specs=(spec(), spec("t")), out_specs=spec("t"))
    )
    assert_close(split(params, u), parnl.solve(cell, params, u, chunks=4).outputs, 1e-14)
    assert any(seen)


def test_tangents_second_derivatives_and_vmap(seen, monkeypatch):
    cell = parnl.get_cell("lrc", 3, 4)
    params, u = cell.init(0, "jax", dtype="float64"), jnp.sin(jnp.arange(60.0).reshape(20, 3))

    def loss(params, u):
        return jnp.sum(parnl.solve(cell, params, u, chunks=4).outputs ** 2)

    def found():
        of_inputs = jax.jit(jax.jacfwd(lambda u: parnl.solve(cell, params, u).outputs[-1]))(u)
        twice = jax.jit(jax.grad(lambda p: jnp.sum(jax.grad(loss)(p, u)["W_f"] ** 2)))(params)
        many = jnp.stack([u, -u, 2 * u])
        mapped = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, many)
        return jax.tree.leaves((of_inputs, twice, mapped))

    within = found()
    assert set(seen) == {True}
    monkeypatch.setattr(features, "LEAST", 1 << 60)  # as whole arrays
    for a, b in zip(within, found(), strict=True):
        assert_close(a, b, 1e-11)
    assert not seen[-1]


def test_a_nan_stays_in_its_channel_and_its_sequence(seen):
    cell = parnl.get_cell("gru", 3, 4)
    params, u = cell.init(0, "jax", dtype="float64"), np.sin(np.arange(120.0)).reshape(2, 20, 3)
    solve = jax.jit(lambda p, u: parnl.solve(cell, p, u, chunks=5).outputs)
    whole = np.array(solve(params, u))
    broken = u.copy()
    broken[1, 11, 2] = np.nan
    found = np.array(solve(params, broken))
    assert set(seen) == {True}
    assert np.isnan(found[1, 11:]).all()
    assert_bits(found[0], whole[0])
    assert_bits(found[1, :11], whole[1, :11])
    of_channel = {**params, "a_z": params["a_z"].at[2].set(jnp.nan)}
    found = np.array(solve(of_channel, u))
    assert np.isnan(found[..., 2]).all()
    assert_bits(found[..., [0, 1, 3]], whole[..., [0, 1, 3]])


def test_a_loop_that_was_given_up_gives_the_gradient_of_the_inputs(seen):
    """Chaotic in one channel: the plain loop runs it, also backward."""
    task = problem("gru", steps=400, hidden=16)
    for gate in "rzn":
        task.params[f"a_{gate}"][1] = -9.0
    found = answer(task, "jax", gradients=True, chunks=40)
    one = answer(task, "jax", gradients=True, chunks=1)
    assert_same(found, one, 1e-9)


class Mixed(parnl.Cell):
    """Products that are features, with and without a bias; and what only looks like one."""

    parameters = {
        "W": matrix("input", "hidden"), "V": matrix("input", "hidden"),
        "U": matrix("hidden", "hidden"), "b": vector("hidden"), "n": vector("hidden"),
    }  # fmt: skip

    def features(self, p, u):
        second = ops.matmul(u, p.V)
        return {
            "plain": ops.matmul(u, p.W),
            "at": p.n + u @ p.W,
            "biased": second + p.b,
            "both": second,
            "twice": second + p.b + p.n,
            "less": second - p.b,
            "sum": second + u @ p.W,
            "many": ops.tanh(second) @ p.U,  # of twelve inputs
            "still": ops.sigmoid(p.b)[None, :],
            "first": u[..., :1, :] @ p.W,
        }

    def step(self, p, x, f):
        total = f.plain * f.at + f.biased + f.both * f.twice + f.less + f.sum - f.many + f.first
        return ops.tanh(0.3 * total + p.n * x * f.still)


def test_what_is_more_than_a_product_stays_a_feature(seen, monkeypatch):
    cell = Mixed(3, 12)
    params, u = cell.init(0, "jax", dtype="float64"), jnp.sin(jnp.arange(60.0).reshape(20, 3))

    def value(params):
        return jnp.sum(parnl.solve(cell, params, u, chunks=4).outputs ** 2)

    found = jax.tree.leaves(jax.jit(jax.value_and_grad(value))(params))
    assert seen == [True]
    whole = jax.tree.leaves(jax.value_and_grad(partial(loop, cell, u))(params))
    for a, b in zip(found, whole, strict=True):
        assert_close(a, b, 1e-12)

    def trace(params):
        program, _ = features.with_products(cell, Values("parameter", params), u)
        kept.extend(o.name for o in program.operands if o.kind == "feature")
        return params

    kept = []
    jax.jit(trace)(params)
    assert sorted(kept) == ["first", "less", "many", "still", "sum", "twice"]


def loop(cell, u, params):
    """The loss by the cell's own functions, one step after the other."""
    p = Values("parameter", params)
    found = cell.features(p, u)
    x, total = jnp.zeros(cell.hidden_size), 0.0
    for t in range(len(u)):
        here = {n: a[t if len(a) > 1 else 0] for n, a in found.items()}
        x = cell.step(p, x, Values("feature", here))
        total = total + jnp.sum(x**2)
    return total


def test_a_cell_with_an_output_of_its_own_and_small_problems_are_left_alone():
    cell = parnl.get_cell("gru", 3, 4)
    params, u = cell.init(0, "jax"), jnp.ones((20, 3))
    found = []

    def look(cell, params, u):
        found.append(features.with_products(cell, Values("parameter", params), u)[1])

    jax.jit(lambda p, u: look(cell, p, u))(params, u)
    lru = parnl.get_cell("lru", 3, 4)
    many = jnp.ones((1 << 19, 3))
    jax.jit(lambda p, u: look(lru, p, u))(lru.init(0, "jax"), many)
    wide = parnl.get_cell("gru", features.FEW + 1, 4)
    jax.jit(lambda p, u: look(wide, p, u))(wide.init(0, "jax"), jnp.ones((1 << 19, 9)))
    jax.jit(lambda p, u: look(cell, p, u))(params, many)
    assert [f is None for f in found] == [True, True, True, False]


def test_features_that_change_what_they_hold_are_called_as_ever(seen):
    """Flax lets nobody count on in a trace that is not the caller's own."""
    nnx = pytest.importorskip("flax.nnx")

    class Dropped(parnl.Cell):
        parameters = {"W": matrix("input", "hidden"), "a": vector("hidden")}

        def features(self, p, u):
            kept = jax.random.bernoulli(self.rngs.dropout(), 0.5, u.shape)
            return {"f": (u * kept) @ p.W}

        def step(self, p, x, f):
            return ops.tanh(p.a * x + f.f)

    cell = Dropped(3, 4)
    params, u = cell.init(0, "jax", dtype="float64"), jnp.sin(jnp.arange(60.0).reshape(20, 3))

    @nnx.jit
    def solve(rngs, params, u):
        cell.rngs = rngs
        return parnl.solve(cell, params, u).outputs

    rngs = nnx.Rngs(dropout=1)
    solve(rngs, params, u)
    assert seen == [False]
    assert rngs.dropout.count[...] == 1


def test_errors_of_a_cells_features_are_the_same(seen, own_cells):
    class Wrong(parnl.Cell):
        parameters = {"W": matrix("input", "hidden")}

        def features(self, p, u):
            return [ops.matmul(u, p.W)]

        def step(self, p, x, f):
            return x + f.W

    cell = Wrong(3, 4)
    with pytest.raises(TypeError, match="expected a dict name -> array"):
        jax.jit(lambda p, u: parnl.solve(cell, p, u).outputs)(cell.init(0, "jax"), jnp.ones((5, 3)))
