"""JAX's strict modes, as users set them for their own code: parnl runs in each, and in all at once.

Outside of `jit` JAX's own `grad` makes a transfer of the number 1, so with transfers disallowed
gradients are those of a compiled function.
"""

import os
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parnl
from parnl import cells
from parnl.params import matrix, vector

MODES = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "transfers": lambda: jax.transfer_guard("disallow"),
    "NaN": lambda: jax.debug_nans(True),
    "leaks": jax.checking_leaks,
    "checks": lambda: jax.enable_checks(True),
    "without jit": jax.disable_jit,
}
TOGETHER = [mode for mode in MODES if mode != "without jit"]


class Own(parnl.Cell):
    """As users write cells: ranks are promoted in features, output and numbers."""

    parameters = {"W": matrix("input", "hidden"), "b": vector("hidden"), "a": vector("hidden")}

    def features(self, p, u):
        return {"x": 2.0 * (u @ p.W) + p.b}

    def step(self, p, x, f):
        return 0.5 * (p.a * x + f.x)

    def output(self, p, x, f):
        return x[..., ::-1] * p.b + 1.0


def posed(name):
    """Return (cell, params, inputs, what else a solve is given), in float32."""
    cell = Own(4, 4) if name == "own" else parnl.get_cell(name, 4, 4)
    inputs = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    state = [np.full((2, 4), 0.1, "float32") for _ in cell.states]
    more = {"initial_state": state, "lengths": np.array([5, 3])}
    if cell.time_aware:
        more["dt"] = np.full((2, 5), 0.5, "float32")
    return cell, cell.init(0), inputs, more


def strictly(modes, call):
    """Return call(), waited for, in these modes."""
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(MODES[mode]())
        return jax.block_until_ready(call())


def outputs(cell, params, inputs, more):
    found = parnl.solve(cell, params, inputs, chunks=2, **more)
    return found.outputs, found.final_state


def assert_runs(name, modes, derived):
    """Forward against NumPy's answer, streaming and `derived`, the way gradients are taken."""
    cell, *given = posed(name)
    expected = outputs(cell, *given)
    params, inputs, more = jax.tree.map(jnp.asarray, tuple(given))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 4)).astype("float32"))
    first = inputs[:, 0]

    def loss(params, inputs):
        return jnp.sum(outputs(cell, params, inputs, more)[0] * weights)

    found = strictly(modes, lambda: outputs(cell, params, inputs, more))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5, atol=1e-6), found, expected
    )
    streamed = strictly(modes, lambda: parnl.step(cell, params, first, more["initial_state"])[0])
    assert streamed.shape == (2, 4)
    slope = derived(jax.grad(loss, (0, 1)))
    grads = strictly(modes, lambda: slope(params, inputs))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    return grads, slope(params, inputs)


# each compiles a gradient, and all are written alike: the others come with `make fuzz`
FEW = ["lstm"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["own", *cells.__all__] if "PARNL_FUZZ" in os.environ else FEW)
def test_all_at_once(name):
    assert_runs(name, TOGETHER, jax.jit)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["own", "s5"])
@pytest.mark.turns("mode")
def test_each_alone_changes_nothing(name, mode):
    found, expected = assert_runs(name, [mode], jax.jit if mode == "transfers" else lambda f: f)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-4, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("mode", ["rank promotion", "transfers"])
def test_scans(mode):
    a, b, x = jnp.full((2, 5, 3), 0.5), jnp.ones((2, 5, 3)), jnp.ones((2, 3))
    found = strictly([mode], lambda: parnl.affine_scan(a, b, x))
    np.testing.assert_allclose(found[..., -1, :], 2.0 - 0.5**5, rtol=1e-12)


def test_the_callers_own_code_stays_strict():
    """Also after a solve, and after one that failed."""
    cell, params, inputs, _ = posed("gru")
    params, inputs = jax.tree.map(jnp.asarray, (params, inputs))
    vector_, number = jnp.ones(4, jnp.float32), jnp.ones(3)
    with jax.numpy_rank_promotion("raise"), jax.transfer_guard("disallow"):
        parnl.solve(cell, params, inputs)
        with pytest.raises(ValueError, match="chunks"):
            parnl.solve(cell, params, inputs, chunks=0)
        with pytest.raises(ValueError, match="rank"):
            inputs + vector_
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            number + 1.0
