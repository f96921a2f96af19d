"""Parameters drawn from a key of `jax.random`, also while a function is being traced.

A cell draws from NumPy's generator: its own functions, or a user's, may use any distribution, and
one parameter may depend on another. So the key becomes the seed of such a generator. If the key's
value is not known yet, XLA calls back for the numbers. So a key gives the same parameters inside
and outside of `jit`, and each key in a `vmap` gives what it gives alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parnl.backends.jax.private import Tracer


def seed_of_key(key: jax.Array) -> int | list[int] | None:
    """Return the seed of NumPy's generator that `key` stands for, None while it is traced.

    key: one key, of either style, or an integer as an array. Raises TypeError for anything else.
    """
    words = _words(key)
    return None if isinstance(words, Tracer) else _seed(words)


def draw_traced(cell: Any, key: jax.Array, dtype: str, device: Any) -> dict[str, jax.Array]:
    """Return the parameters that `cell` draws from a traced `key`."""
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        for name, shape in cell.parameter_shapes.items()
    }
    draw = partial(_drawn, cell, jnp.dtype(dtype))
    found = jax.pure_callback(draw, shapes, _words(key), vmap_method="sequential")
    found = {name: found[name] for name in shapes}  # JAX has sorted them
    return found if device is None else jax.device_put(found, device)


def _drawn(cell: Any, dtype: Any, words: Any) -> dict[str, np.ndarray]:
    values = cell.draw(np.random.default_rng(_seed(words)))
    return {name: np.asarray(v, dtype) for name, v in values.items()}


def _words(key: jax.Array) -> jax.Array:
    """Return the key's bits (n,), or the integer ()."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim == 0:
            return jax.random.key_data(key)
    elif jnp.issubdtype(key.dtype, jnp.integer) and (
        key.ndim == 0 or (key.dtype == jnp.uint32 and key.ndim == 1)
    ):
        return key
    raise TypeError(
        "seed: expected an integer or one key of jax.random, got "
        f"{key.dtype}{list(key.shape)}; for several keys, jax.vmap(cell.init)(keys)"
    )


def _seed(words: Any) -> int | list[int]:
    return np.asarray(words).tolist()
