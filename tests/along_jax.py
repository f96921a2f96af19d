"""Solves along eight devices that share the axis of time, against one device and float64 loops.

python tests/along_jax.py CASE
"""

import os
import re
import sys

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import parnl

DEVICES, STEPS = 8, 64
EVERY, KERNELS = "PARNL_EVERY" in os.environ, os.environ.get("PARNL_KERNELS")
TIME = P(None, "time")
TASKS = (
    ("gru", {}),
    ("gru", {"reverse": True, "lengths": [27, 64]}),
    ("lstm", {"reverse": True, "resets": 0.1}),
    ("lrc", {"times": "own", "resets": 0.1, "lengths": [64, 5]}),
    ("lru", {"resets": 0.1}),
    ("s6", {"reverse": True}),
)


def mesh_of(*sizes, names=("time",)):
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes))


def drawn(name, steps=STEPS, batch=2, hidden=3, resets=None, **asked):
    """Return (task, parameters, what has an axis of time, what has none)."""
    if resets is not None:
        resets = np.random.default_rng(1).random((batch, steps)) < resets
    task = oracles.problem(name, steps=steps, batch=(batch,), hidden=hidden, resets=resets, **asked)
    params = {n: jnp.asarray(p) for n, p in task.params.items()}
    along = {"inputs": task.inputs, "dt": task.dt, "resets": task.resets}
    along = {n: jnp.asarray(a) for n, a in along.items() if a is not None}
    still = {"initial_state": task.initial_state, "lengths": task.lengths}
    still = jax.tree.map(jnp.asarray, {n: a for n, a in still.items() if a is not None})
    return task, params, along, still


def divided(function, mesh, **how):
    """Return function(params, along, still), the axis of time divided over the mesh."""
    one = P()
    return jax.shard_map(
        function, mesh=mesh, in_specs=(one, TIME, one), out_specs=(TIME, one, one), **how
    )


def solving(task, time_axis=None, **how):
    def run(params, along, still):
        out = parnl.solve(
            task.cell, params, **along, **still, reverse=task.reverse, time_axis=time_axis, **how
        )
        return out.outputs, out.final_state, out.info._replace(chunks=0)

    return run


def loss_of(task, run):
    def loss(params, along, still):
        outputs, final, _ = run(params, along, still)
        pairs = zip((outputs, *final), task.weights, strict=True)
        return sum((x * w).sum() for x, w in pairs)

    return loss


def floating(tree):
    """Split what has a gradient from what has none."""
    kept = {n: a for n, a in tree.items() if n in ("inputs", "dt", "initial_state")}
    return kept, {n: a for n, a in tree.items() if n not in kept}


def gradients(task, run, params, along, still):
    """Return those of parameters, inputs, dt and initial states, by name as the oracles have."""
    (moves, fixed), (moving, more) = floating(along), floating(still)

    def loss(params, moves, moving):
        return loss_of(task, run)(params, moves | fixed, moving | more)

    of_params, of_along, of_still = jax.jit(jax.grad(loss, (0, 1, 2)))(params, moves, moving)
    found = {f"params.{n}": g for n, g in of_params.items()} | of_along
    return found | {f"state.{i}": g for i, g in enumerate(of_still["initial_state"])}


def solves():
    """Outputs, states and gradients are those of the loop; bits those of one device."""
    mesh, counts = mesh_of(DEVICES), (1, 16, STEPS)
    for i, (name, asked) in enumerate(TASKS if EVERY else TASKS[KERNELS == "off" :: 2]):
        task, *arrays = drawn(name, **asked)
        expected = oracles.reference(task)
        for chunks in counts if EVERY else [counts[i % 3]]:
            what = f"{name} {asked} in {chunks} chunks"
            run = divided(solving(task, "time", chunks=chunks), mesh)
            outputs, final, info = jax.jit(run)(*arrays)
            whole = jax.jit(solving(task, chunks=chunks))(*arrays)
            oracles.assert_close(outputs, expected.outputs, 1e-12, what)
            oracles.assert_close(outputs, whole[0], 1e-13, what)
            for found, wanted in zip(final, expected.final_state, strict=True):
                oracles.assert_close(found, wanted, 1e-12, what)
            assert int(info.iterations) == int(whole[2].iterations), what
            assert int(info.sequential) == int(whole[2].sequential), what
            assert bool(info.converged), what
            for leaf, found in gradients(task, run, *arrays).items():
                oracles.assert_close(found, expected.gradients[leaf], 1e-9, f"{what}: {leaf}")


def twice():
    """Second derivatives, forward and backward, outside of jit, with and without checks."""
    mesh = mesh_of(DEVICES)
    for name, asked in (("gru", {}), ("lstm", {"reverse": True, "resets": 0.1})):
        task, params, along, still = drawn(name, steps=16, **asked)
        dots = jax.tree.map(lambda p: jnp.cos(7 * p), params)

        def hessian(run, task=task, along=along, still=still, params=params, dots=dots):
            gradient = jax.grad(loss_of(task, run))
            return jax.jvp(lambda p: gradient(p, along, still), (params,), (dots,))

        def back(run, task=task, along=along, still=still, params=params, dots=dots):
            def product(params):
                gradient = jax.grad(loss_of(task, run))(params, along, still)
                return sum((gradient[n] * d).sum() for n, d in dots.items())

            return jax.grad(product)(params)

        for chunks in (1, 8) if EVERY else [1 if name == "gru" else 8]:
            there = divided(solving(task, "time", chunks=chunks), mesh)
            here = solving(task, chunks=chunks)
            for of in (hessian, back) if EVERY else [hessian if name == "gru" else back]:
                found, expected = (jax.jit(of, static_argnums=0)(r) for r in (there, here))
                jax.tree.map(lambda f, e: oracles.assert_close(f, e, 1e-9), found, expected)
        eager = divided(solving(task, "time", chunks=8), mesh)(params, along, still)
        oracles.assert_close(eager[0], here(params, along, still)[0], 1e-12)
        unchecked = divided(solving(task, "time", chunks=8), mesh, check_vma=False)
        expected = gradients(task, here, params, along, still)
        for leaf, found in gradients(task, unchecked, params, along, still).items():
            oracles.assert_close(found, expected[leaf], 1e-9, leaf)


def meshes():
    """Sequences, steps and channels all divided; a trained step; what is sent."""
    mesh = mesh_of(2, 2, 2, names=("data", "time", "model"))
    task, params, along, still = drawn("lstm", batch=4, hidden=6)

    def run(time_axis):
        def solve(params, along, still):
            cell = parnl.get_cell("lstm", 3, params["a_i"].shape[0])  # the own channels
            out = parnl.solve(cell, params, **along, **still, chunks=8, time_axis=time_axis)
            return out.outputs, out.final_state, out.info._replace(chunks=0)

        return solve

    specs = {n: P(*[None] * (p.ndim - 1), "model") for n, p in params.items()}
    rows, states = P("data", "time"), P("data", "model")
    there = jax.shard_map(
        lambda *a: run("time")(*a)[:2], mesh=mesh,
        in_specs=(specs, rows, states), out_specs=(P("data", "time", "model"), states),
    )  # fmt: skip
    found = gradients(task, lambda *a: (*there(*a), None), params, along, still)
    expected = oracles.reference(task)
    oracles.assert_close(jax.jit(there)(params, along, still)[0], expected.outputs, 1e-12)
    for leaf, gradient in found.items():
        oracles.assert_close(gradient, expected.gradients[leaf], 1e-9, leaf)

    task, params, along, still = drawn("lrc", hidden=8)
    four = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def step(run):
        def loss(p):
            return (run(p, along, still)[0] ** 2).sum()

        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.jit(jax.grad(loss))(params))

    found, expected = step(divided(solving(task, "time"), four)), step(solving(task))
    jax.tree.map(lambda f, e: oracles.assert_close(f, e, 1e-9), found, expected)

    mesh, sent = mesh_of(DEVICES), []
    for steps in (1024, 4096):
        task, params, along, still = drawn("lstm", steps=steps, resets=0.01)
        along_mesh = divided(solving(task, "time", chunks=16), mesh)
        training = jax.jit(jax.value_and_grad(loss_of(task, along_mesh)))
        text = training.lower(params, along, still).compile().as_text()
        sent.append(collectives(text))
    assert sent[0]
    assert sent[0] == sent[1]  # nothing that grows with T


def collectives(text, names="all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"):
    """Return the shapes of all that a compiled program sends, in order."""
    return sorted(re.findall(rf"= (.*?) (?:{names})(?:-start)?\(", text))


# Along which axes inputs, parameters (h,) and initial states are divided.
DIVIDED = {
    "sequences": (P("x"), P(), P("x")),
    "channels": (P(), P("x"), P(None, "x")),
    "time": (P(None, "x"), P(), P()),
}


def jit():
    """Arrays divided under jit: the answer of one device, divided, and nothing is gathered."""
    tasks = (TASKS[2], TASKS[3], TASKS[0], TASKS[4])
    for i, (name, asked) in enumerate(tasks if EVERY else [tasks[KERNELS == "off"]]):
        asked = {n: a for n, a in asked.items() if n != "lengths"}
        task, params, along, still = drawn(name, batch=8, hidden=16, n_in=4, **asked)
        run = solving(task, chunks=8)
        expected = jax.jit(run)(params, along, still)
        wanted = gradients(task, run, params, along, still)
        kinds = ("Auto", "Explicit")
        for kind in kinds if EVERY else [kinds[(i + (KERNELS == "off")) % 2]]:
            mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(getattr(AxisType, kind),))
            for axis, (of_inputs, of_channels, of_states) in DIVIDED.items():
                if kind == "Explicit" and axis == "time" and "resets" in asked:
                    continue  # JAX itself refuses to shift what is divided

                def put(array, spec, mesh=mesh):
                    spec = P(*spec[: array.ndim], *[None] * (array.ndim - len(spec)))
                    return jax.device_put(array, NamedSharding(mesh, spec))

                def parameter(array, spec=of_channels, put=put):
                    spec = spec if array.shape[-1] == 16 else P()
                    return put(array, P(*[None] * (array.ndim - 1), *spec))

                there = (
                    jax.tree.map(parameter, params),
                    {n: put(a, of_inputs) for n, a in along.items()},
                    jax.tree.map(lambda x, put=put, spec=of_states: put(x, spec), still),
                )
                what = f"{name} {asked} {kind} {axis}"
                outputs, final, info = jax.jit(run)(*there)
                oracles.assert_close(outputs, expected[0], 1e-12, what)
                oracles.assert_close(final[0], expected[1][0], 1e-12, what)
                assert int(info.sequential) == int(expected[2].sequential), what
                assert bool(info.converged), what
                spec = (*outputs.sharding.spec, None, None)[:3]
                place = ("sequences", "time", "channels").index(axis)
                assert spec == tuple("x" if j == place else None for j in range(3)), (what, spec)
                for leaf, found in gradients(task, run, *there).items():
                    oracles.assert_close(found, wanted[leaf], 1e-9, f"{what}: {leaf}")
                mixes = axis == "channels" and hasattr(task.cell, "output")
                if axis != "time" and not mixes:
                    training = jax.jit(jax.value_and_grad(loss_of(task, run)))
                    text = training.lower(*there).compile().as_text()
                    assert not collectives(text, "all-gather|all-to-all"), what


def hostile():
    """The guess, giving up, a NaN, too few updates: as on one device."""
    mesh, steps = mesh_of(DEVICES), DEVICES * 2048
    task, params, along, still = drawn("gru", steps=steps)
    for reverse in (False, True):
        for kind in ("guessed", "chaos", "unconverged", "nan"):
            own = task._replace(reverse=reverse)
            how, inputs, values = {"chunks": 2 * DEVICES}, along["inputs"], params
            if kind == "chaos":
                own, how, values = own._replace(name=Chaos), {"chunks": 16 * DEVICES}, {}
            elif kind == "unconverged":
                own, values = own._replace(name=Chaos), {}
                how |= {"max_iterations": 2, "tolerance": 1e-3}
            elif kind == "nan":
                inputs = inputs.at[1, steps // 2].set(jnp.nan)
            arrays = values, {"inputs": inputs}, {} if own.name is Chaos else still
            run = divided(solved_by(own, "time", **how), mesh)
            outputs, _, info = jax.jit(run)(*arrays)
            expected, _, told = jax.jit(solved_by(own, **how))(*arrays)
            what = f"{kind}, reverse={reverse}"
            oracles.assert_bits(outputs, expected, what)
            for one, other in zip(info, told, strict=True):
                oracles.assert_bits(one, other, what)
            if kind == "guessed":
                assert int(info.iterations) == 0, info
            elif kind == "chaos":
                assert int(info.sequential) == 6, info
                loop = jax.jit(solved_by(own, method="sequential"))(*arrays)[0]
                oracles.assert_bits(outputs, loop, what)
            elif kind == "unconverged":
                assert not bool(info.converged)


class Chaos(parnl.Cell):
    """The logistic map, which Newton makes nothing of."""

    def features(self, p, u):
        return dict(f=0.01 * u[..., :1])

    def step(self, p, x, f):
        return 3.9 * (x + 0.2) * (0.8 - x) - 0.2 + f.f**2


def solved_by(task, time_axis=None, **how):
    cell = Chaos(3, 3) if task.name is Chaos else parnl.get_cell(task.name, 3, 3)

    def run(params, along, still):
        out = parnl.solve(
            cell, params, **along, **still, reverse=task.reverse, time_axis=time_axis, **how
        )
        return out.outputs, out.final_state, out.info._replace(chunks=0)

    return run


def errors():
    task, params, along, still = drawn("gru")

    def refused(text, axis="time", function=None, **how):
        run = divided(solving(task, axis, **how), mesh_of(DEVICES))
        with pytest.raises((TypeError, ValueError), match=text):
            (function or run)(params, along, still)

    refused("time_axis: expected an axis of the mesh", "model")
    refused("a string, got Mesh", mesh_of(DEVICES))
    refused("there is none", function=solving(task, "time"))
    # an axis of vmap is none of a mesh
    each = jax.vmap(solving(task, "time"), (None, 1, None), axis_name="time")
    parts = {"inputs": along["inputs"].reshape(2, DEVICES, -1, 3)}
    refused("there is none", function=lambda p, _, s: each(p, parts, s))
    refused("chunks <= T = 64", chunks=65)
    refused("stretch: expected None", stretch=4)


if __name__ == "__main__":
    {f.__name__: f for f in (solves, twice, meshes, hostile, jit, errors)}[sys.argv[1]]()
