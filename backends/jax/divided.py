"""Arrays divided over the devices of a mesh, under `jit`: how XLA may divide what parnl computes.

To XLA a kernel is a closed box, run whole on every device. For each of parnl's primitives, this
file says which axes of its arrays are the same: sequences b, time t, channels d. XLA then leaves
them divided, and each device computes its own part. Sequences and channels know nothing of one
another; a divided axis of time is a line of devices, as in `shard_map`.

In a mesh of explicit axes, whose arrays tell in their types how they are divided, a solve is a
`shard_map` over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from parnl.backends.jax.private import (
    ArrayMapping,
    SdyShardingRule,
    custom_partitioning,
    device_count,
    mlir,
)

# The axes of an array, by letters; those of length 1 are "".
Letters = tuple[str, ...]
# The axes of the mesh that each letter is divided over.
Over = dict[str, tuple[str, ...]]


class Rule(NamedTuple):
    """How a function of arrays may be divided.

    given, found: the letters of its arrays and of its results; whole: letters that are never
    divided. local(over, sizes, arrays): the results of one device, from its own part of the arrays;
    sizes: of the axes of the mesh.
    """

    given: Sequence[Letters]
    found: Sequence[Letters]
    local: Callable[[Over, dict[str, int], Sequence[Any]], Sequence[Any]]
    whole: tuple[str, ...] = ()

    def over(self, arrays: Sequence[Any], specs: Sequence[Any], sizes: dict[str, int]) -> Over:
        """Return what each letter is divided over, where arrays are divided so.

        The first array that is divided decides. What does not divide a length evenly is left out.
        """
        found: Over = {}
        used: set[str] = set()
        for letters, array, spec in zip(self.given, arrays, specs, strict=True):
            for letter, length, names in zip(letters, array.shape, spec, strict=False):
                names = (names,) if isinstance(names, str) else tuple(names or ())
                parts = 1
                for name in names:
                    parts *= sizes[name]
                fits = letter and letter not in (*self.whole, *found) and not used & {*names}
                if fits and parts > 1 and length % parts == 0:
                    found[letter] = names
                    used |= {*names}
        return found


def summed(results: Sequence[Any], letters: Sequence[Letters], over: Over) -> list[Any]:
    """Return results that are sums over what is divided and does not stand in their letters."""
    found = []
    for x, own in zip(results, letters, strict=True):
        names = tuple(n for letter, axes in over.items() if letter not in own for n in axes)
        found.append(lax.psum(x, names) if names else x)
    return found


def spec_of(letters: Letters, over: Over) -> PartitionSpec:
    """Return how an array is divided."""
    return PartitionSpec(*(over.get(letter) for letter in letters))


def lowered(context: Any, arrays: Sequence[Any], function: Callable, rule: Rule | None) -> Any:
    """Lower function(*arrays) for XLA; where there are several devices, with its rule."""
    if rule is None or device_count(context) < 2:
        return mlir.lower_fun(function, multiple_results=True)(context, *arrays)
    known: Rule = rule

    def partition(mesh: Any, given: Any, found: Any) -> tuple:
        sizes = dict(mesh.shape)
        told = [*given, *found]
        both = known._replace(given=[*known.given, *known.found])
        specs = [x.sharding.spec for x in told]
        over = both.over(told, specs, sizes)

        def local(*arrays: Any) -> tuple:
            return tuple(known.local(over, sizes, arrays))

        shardings = [NamedSharding(mesh, spec_of(letters, over)) for letters in both.given]
        count = len(known.given)
        return mesh, local, tuple(shardings[count:]), tuple(shardings[:count])

    run = custom_partitioning(lambda *arrays: tuple(function(*arrays)))
    run.def_partition(partition, sharding_rule=_for_xla(rule))
    return mlir.lower_fun(run, multiple_results=True)(context, *arrays)


def _for_xla(rule: Rule) -> SdyShardingRule:
    ones = iter(range(10**6))

    def mapping(letters: Letters) -> ArrayMapping:
        return ArrayMapping(*(letter or f"one{next(ones)}" for letter in letters))

    given, found = (tuple(map(mapping, group)) for group in (rule.given, rule.found))
    return SdyShardingRule(given, found, need_replication_factors=rule.whole)


def explicitly(arrays: Sequence[Any], rule: Rule) -> list[Any] | None:
    """Return the results where arrays tell that they are divided, None where they do not."""
    types = [jax.typeof(a) for a in arrays]
    mesh = next((t.sharding.mesh for t in types if not t.sharding.mesh.empty), None)
    if mesh is None:
        return None
    sizes = {
        n: size
        for n, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }
    over = rule.over(types, [t.sharding.spec for t in types], sizes) if sizes else {}
    if not over:
        return None
    specs = [spec_of(x, over) for x in rule.given]
    pairs = zip(arrays, specs, strict=True)
    run = jax.shard_map(
        lambda *arrays: tuple(rule.local(over, sizes, arrays)),
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=tuple(spec_of(x, over) for x in rule.found),
        axis_names={n for names in over.values() for n in names},
    )
    return list(run(*(jax.reshard(a, NamedSharding(mesh, spec)) for a, spec in pairs)))


def step_of(states: Any, step: int) -> Any:
    """Return states[:, step] of (B, T, D), whatever axis is divided."""
    if jax.typeof(states).sharding.spec[1] is None:
        return states[:, step]
    # JAX cannot slice an axis that is divided
    here = jnp.arange(states.shape[1]) == step % states.shape[1]
    return jnp.sum(jnp.where(here[:, None], states, 0), axis=1)
