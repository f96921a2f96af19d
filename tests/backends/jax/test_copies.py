"""Pytrees that hold a cell are copied and pickled after they were used, and compile once."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parnl

eqx = pytest.importorskip("equinox")


class Layer(eqx.Module):
    cell: Any = eqx.field(static=True)
    params: dict[str, jax.Array]

    def __call__(self, u):
        return parnl.solve(self.cell, self.params, u).outputs


def used():
    cell = parnl.get_cell("lstm", 2, 3)
    layer = Layer(cell, cell.init(0, "jax"))
    jax.jit(lambda u: layer(u))(jnp.ones((2, 9, 2)))
    return layer


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_the_same_pytree(way):
    layer, u = used(), jnp.ones((2, 9, 2), jnp.float32)
    other = way(layer)
    assert jax.tree.structure(other) == jax.tree.structure(layer)
    traced = []

    @jax.jit
    def run(layer):
        traced.append(None)
        return layer(u)

    np.testing.assert_array_equal(run(other), run(layer))
    assert len(traced) == 1
    halved = jax.tree.map(lambda a, b: 0.5 * (a + b), layer, other)
    np.testing.assert_array_equal(run(halved), run(layer))
