"""Streamed solves: a `lax.scan` over stretches, whose features are computed again for a gradient.

For the gradient, the scan keeps the states of a stretch, so the recurrence is not run again.
Nothing is compiled here: what features close over may change between calls.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from parnl.backends.jax.implicit import solve_p
from parnl.backends.jax.private import vary
from parnl.stretch import advance, part


def in_stretches(
    backend: Any,
    task: Any,
    fixed: Any,
    carry: Any,
    along: dict[str, Any],
    length: int,
) -> tuple[Any, Any]:
    """See `parnl.frameworks.Backend`."""
    steps, reverse = along["inputs"].shape[-2], task.how.reverse
    count, rest = divmod(steps, length)
    still = {n: a for n, a in along.items() if a.shape[-2] == 1}
    pieces = {n: _stacked(a, count, length) for n, a in along.items() if n not in still}

    def states_only(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive is solve_p

    @partial(jax.checkpoint, prevent_cse=False, policy=states_only)
    def body(carry: Any, here: dict[str, Any]) -> tuple[Any, Any]:
        return advance(backend, task, fixed, carry, still | here)

    first = {n: a[0] for n, a in pieces.items()}
    after = jax.eval_shape(body, carry, first)[0]  # features may be wider than the inputs
    carry = jax.tree.map(lambda x, y: lax.convert_element_type(x, y.dtype), carry, after)
    # in a `shard_map`, zeros to begin with are the same on all devices, and what follows is not
    leaves, tree = jax.tree.flatten(carry)
    alike = vary([*leaves, *jax.tree.leaves((fixed, along))])
    carry = jax.tree.unflatten(tree, alike[: len(leaves)])
    outputs = []

    def ragged(carry: Any) -> Any:
        carry, found = body(carry, part(along, slice(count * length, steps)))
        outputs.append(found)
        return carry

    if rest and reverse:
        carry = ragged(carry)
    carry, found = lax.scan(body, carry, pieces, reverse=reverse)
    outputs.insert(0, jnp.moveaxis(found, 0, -3).reshape(*found.shape[1:-2], -1, found.shape[-1]))
    if rest and not reverse:
        carry = ragged(carry)
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -2), carry


def _stacked(array: Any, count: int, length: int) -> Any:
    """Return (..., T, n) as stretches (count, ..., length, n), without what is left over."""
    *lead, _, channels = array.shape
    cut = array[..., : count * length, :].reshape(*lead, count, length, channels)
    return jnp.moveaxis(cut, -3, 0)
