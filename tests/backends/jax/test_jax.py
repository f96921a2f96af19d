"""What JAX users rely on: `solve` is a pure function that every transformation accepts."""

import functools
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from oracles import CELLS, VARIANTS, assert_bits, assert_close

import parnl
from parnl import ops


def small(name, *, steps=5, batch=(2,), n_in=2, hidden=2, **options):
    """Draw (task, params, inputs, initial state) as float64 JAX arrays."""
    task = oracles.problem(name, steps=steps, batch=batch, n_in=n_in, hidden=hidden, **options)
    params = {k: jnp.asarray(v) for k, v in task.params.items()}
    state = tuple(jnp.asarray(s) for s in task.initial_state or ())
    return task, params, jnp.asarray(task.inputs), state


def values(cell, params, inputs, state, **how):
    out = parnl.solve(cell, params, inputs, state, **how)
    return out.outputs, out.final_state


# -- derivatives ----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("mode", ["fwd", "rev"])
@pytest.mark.parametrize("variant", ["lrc-symmetric", "gru", "lstm-peephole", "ltc-unfolds"])
@pytest.mark.turns("variant")
def test_check_grads(variant, mode):
    """Orders 1 and 2 against finite differences, in all arguments at once."""
    name, options = VARIANTS[variant]
    task, *arguments = small(name, steps=4, **options)
    f = jax.jit(functools.partial(values, task.cell, chunks=2))
    check_grads(f, tuple(arguments), order=2, modes=[mode], atol=1e-5, rtol=1e-5, eps=1e-5)


@pytest.mark.long
def test_check_grads_of_the_sequential_method():
    task, *arguments = small("gru", steps=4)
    f = jax.jit(functools.partial(values, task.cell, method="sequential"))
    check_grads(f, tuple(arguments), order=2, atol=1e-5, rtol=1e-5, eps=1e-5)


@pytest.mark.long
def test_check_grads_in_dt_with_lengths_and_reverse():
    task, params, inputs, state = small("lrc", steps=4, times="own")

    @jax.jit
    def f(dt, inputs):
        how: dict[str, Any] = {"lengths": jnp.array([4, 2]), "reverse": True, "chunks": 2}
        return values(task.cell, params, inputs, state, dt=dt, **how)

    check_grads(f, (jnp.asarray(task.dt), inputs), order=2, atol=1e-5, rtol=1e-5, eps=1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_equal_those_of_scan(name):
    """Reverse mode, against JAX's own derivative of `lax.scan` over the same step."""
    task, *arguments = small(name, steps=11, batch=(3,), hidden=4)
    rng = np.random.default_rng(0)

    def loss(run, *args):
        parts = jax.tree.leaves(run(*args))
        return sum((x * w).sum() for x, w in zip(parts, weights, strict=True))

    scan = functools.partial(oracles.scan_loop, task.cell)
    weights = [rng.normal(size=x.shape) for x in jax.tree.leaves(scan(*arguments))]
    expected = jax.grad(functools.partial(loss, scan), (0, 1, 2))(*arguments)
    solve = functools.partial(values, task.cell, chunks=4)
    found = jax.grad(functools.partial(loss, solve), (0, 1, 2))(*arguments)
    jax.tree.map(lambda a, e: assert_close(a, e, 1e-10), found, expected)


@pytest.mark.long
@pytest.mark.parametrize("name", CELLS)
def test_jvp_equals_that_of_scan(name):
    task, *arguments = small(name, steps=11, batch=(3,), hidden=4)
    rng = np.random.default_rng(0)
    tangents = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), tuple(arguments))
    scan = functools.partial(oracles.scan_loop, task.cell)
    solve = functools.partial(values, task.cell, chunks=4)
    expected = jax.jvp(scan, tuple(arguments), tangents)
    found = jax.jvp(solve, tuple(arguments), tangents)
    jax.tree.map(lambda a, e: assert_close(a, e, 1e-10), found, expected)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "key", "outer", "inner"),
    [
        ("gru", "a_r", jax.jacfwd, jax.jacrev),
        ("gru", "a_n", jax.jacrev, jax.jacfwd),
        ("lstm", "a_f", jax.jacrev, jax.jacrev),
    ],
)
def test_hessian(name, key, outer, inner):
    task, params, inputs, state = small(name, steps=6, batch=())

    def loss(run, x):
        return (run(params | {key: x}, inputs, state)[0] ** 2).sum()

    scan = functools.partial(loss, functools.partial(oracles.scan_loop, task.cell))
    solve = functools.partial(loss, functools.partial(values, task.cell, chunks=3))
    expected = jax.jit(jax.hessian(scan))(params[key])
    assert np.abs(expected).max() > 1e-6
    assert_close(jax.jit(outer(inner(solve)))(params[key]), expected, 1e-9)


# -- jit and vmap ---------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", CELLS)
def test_jit_equals_eager(name):
    task, *arguments = small(name, steps=11)
    solve = functools.partial(parnl.solve, task.cell, chunks=3)
    found, expected = jax.jit(solve)(*arguments), solve(*arguments)
    jax.tree.map(lambda a, e: assert_close(a, e, 1e-13), tuple(found[:2]), tuple(expected[:2]))
    assert int(found.info.iterations) == int(expected.info.iterations)
    assert bool(found.info.converged)


def test_jit_of_empty_tasks():
    for steps, batch in ((0, (2,)), (3, (0,)), (1, ())):
        task, *arguments = small("lstm", steps=steps, batch=batch)
        found = jax.jit(functools.partial(values, task.cell))(*arguments)
        assert_close(found[0], oracles.reference(task).outputs, 1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_traced_lengths(reverse):
    lengths = [0, 3, 7]
    task, params, inputs, state = small(
        "gru", steps=7, batch=(3,), lengths=lengths, reverse=reverse
    )

    traces = []

    @jax.jit
    def f(lengths, inputs):
        traces.append(lengths)
        out = parnl.solve(
            task.cell, params, inputs, state, lengths=lengths, reverse=reverse, chunks=2
        )
        return out.outputs, out.final_state

    for rotation in range(3):
        turned = task._replace(lengths=np.roll(lengths, rotation))
        outputs, (h,) = f(jnp.asarray(turned.lengths), inputs)
        expected = oracles.reference(turned)
        assert_close(outputs, expected.outputs, 1e-10)
        assert_close(h, expected.final_state[0], 1e-10)
    assert len(traces) == 1


@pytest.mark.parametrize("name", CELLS)
def test_vmap_over_inputs(name):
    task, params, inputs, state = small(name, steps=7, batch=(3,))
    solve = functools.partial(values, task.cell, chunks=3)
    found = jax.jit(jax.vmap(solve, (None, 0, 0)))(params, inputs, state)
    jax.tree.map(lambda a, e: assert_close(a, e, 1e-12), found, tuple(solve(params, inputs, state)))


def test_vmap_over_params():
    task, params, inputs, state = small("lstm", steps=7)
    factors = jnp.array([0.5, 1.0, 1.3])
    many = {k: jnp.stack([c * v for c in factors]) for k, v in params.items()}
    solve = functools.partial(values, task.cell, chunks=3)
    found = jax.vmap(solve, (0, None, None))(many, inputs, state)[0]
    for i in range(3):
        one = {k: v[i] for k, v in many.items()}
        assert_close(found[i], oracles.scan_loop(task.cell, one, inputs, state)[0], 1e-10)


def test_vmap_over_lengths_and_dt():
    task, params, inputs, state = small("lrc", steps=7, batch=(3,), lengths=[0, 4, 7], times="own")

    def f(inputs, state, lengths, dt):
        return values(task.cell, params, inputs, state, lengths=lengths, dt=dt, chunks=2)

    found = jax.vmap(f)(inputs, state, jnp.asarray(task.lengths), jnp.asarray(task.dt))
    expected = oracles.reference(task)
    assert_close(found[0], expected.outputs, 1e-10)
    assert_close(found[1][0], expected.final_state[0], 1e-10)


def test_gradients_per_sample():
    task, params, inputs, state = small("gru", steps=7, batch=(3,))

    def loss(run, p, u, s):
        return (run(p, u, s)[0] ** 2).sum()

    solve = functools.partial(values, task.cell, chunks=3)
    found = jax.vmap(jax.grad(functools.partial(loss, solve)), (None, 0, 0))(params, inputs, state)
    scan = functools.partial(oracles.scan_loop, task.cell)
    for i in range(3):
        one = tuple(s[i] for s in state)
        expected = jax.grad(functools.partial(loss, scan))(params, inputs[i], one)
        for k, e in expected.items():
            assert_close(found[k][i], e, 1e-10, k)


@pytest.mark.long
def test_solve_inside_scan_and_checkpoint():
    """A stack of two layers under remat, called in the body of a scan."""
    task, params, inputs, state = small("gru", steps=6)

    def body(x, run):
        return x + run(params, x, state)[0], None

    def stack(run, x):
        f = jax.checkpoint(functools.partial(body, run=run))
        return (jax.lax.scan(lambda c, _: f(c), x, None, length=2)[0] ** 2).sum()

    solve = functools.partial(stack, functools.partial(values, task.cell, chunks=2))
    loop = functools.partial(stack, functools.partial(oracles.scan_loop, task.cell))
    assert_close(jax.grad(solve)(inputs), jax.grad(loop)(inputs), 1e-10)

    def hessian(run, outer, inner):
        return outer(inner(lambda a: run(inputs * a)))(jnp.ones((1, 2)))

    # JAX forgets the rules of custom_jvp and custom_vmap in some of these orders
    expected = hessian(loop, jax.jacfwd, jax.jacrev)
    for order in itertools.product((jax.jacfwd, jax.jacrev), repeat=2):
        assert_close(hessian(solve, *order), expected, 1e-10)
    by_hand = jax.jit(jax.vmap(jax.grad(lambda x, v: (jax.grad(solve)(x) * v).sum()), (None, 0)))
    one = jnp.zeros((2, *inputs.shape)).at[:, 0, 1, 0].set(1.0)
    found = by_hand(inputs, one)
    assert_close(found[0], jax.jvp(jax.grad(loop), (inputs,), (one[0],))[1], 1e-10)
    assert_close(found[0], found[1], 1e-14)


# -- compilation ----------------------------------------------------------------------------------


class Compilations:
    """Count how often XLA compiles while the block runs."""

    def __enter__(self):
        self.events: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self.open = True
        return self

    def __exit__(self, *error):
        self.open = False  # listeners cannot be removed one by one

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if getattr(self, "open", False) and event.endswith("backend_compile_duration"):
            self.events.append(event)


def test_the_counter_counts():
    with Compilations() as compilations:
        jax.jit(lambda x: x * 1.2345 + 6)(jnp.ones(17)).block_until_ready()
    assert compilations.events


@pytest.mark.long
@pytest.mark.parametrize("name", CELLS)
def test_repeated_eager_calls_do_not_compile(name):
    task, *arguments = small(name, steps=9)
    cell = task.cell
    other = jax.tree.map(lambda x: 0.9 * x, arguments)

    def loss(arguments):
        return parnl.solve(cell, *arguments, chunks=3).outputs.sum()

    for f in (jax.grad(loss), loss):
        jax.block_until_ready(f(arguments))
        with Compilations() as compilations:
            jax.block_until_ready(f(other))
        assert compilations.events == []


def test_a_cell_made_anew_does_not_compile():
    task, *arguments = small("gru", steps=9)
    first, second = task.cell, task.cell
    assert first is not second
    jax.block_until_ready(parnl.solve(first, *arguments, chunks=3))
    with Compilations() as compilations:
        jax.block_until_ready(parnl.solve(second, *arguments, chunks=3))
    assert compilations.events == []


@pytest.mark.parametrize("name", CELLS)
def test_repeated_streaming_does_not_compile(name):
    task, params, inputs, state = small(name, steps=9)
    steps = [inputs[:, t] for t in range(9)]
    cell = task.cell
    for u in steps[:2]:  # the second state comes from a computation, as all later ones do
        _, state = parnl.step(cell, params, u, state)
    with Compilations() as compilations:
        for u in steps[2:]:
            _, state = parnl.step(cell, params, u, state)
        jax.block_until_ready(state)
    assert compilations.events == []


def test_streaming_under_scan():
    task, params, inputs, state = small("gru", steps=9)

    def body(s, u):
        y, s = parnl.step(task.cell, params, u, s)
        return s, y

    end, outputs = jax.lax.scan(body, state, jnp.moveaxis(inputs, 1, 0))
    expected = oracles.reference(task)
    assert_close(jnp.moveaxis(outputs, 0, 1), expected.outputs, 1e-12)
    assert_close(end[0], expected.final_state[0], 1e-12)


def test_single_precision_stays_single():
    """Also where x64 is on, nothing is promoted on the way."""
    task, params, inputs, state = small("ltc", dtype="float32")
    f = functools.partial(values, task.cell, chunks=2)
    jaxpr = str(jax.make_jaxpr(f)(params, inputs, state))
    assert re.search(r"f32\[\d", jaxpr)
    assert not re.search(r"f64\[\d", jaxpr)  # scalar literals are weakly typed
    outputs, final = f(params, inputs, state)
    assert outputs.dtype == final[0].dtype == jnp.float32


def test_eager_solve_is_repeatable():
    task, *arguments = small("lstm", steps=20)
    first = values(task.cell, *arguments, chunks=5)
    second = values(task.cell, *arguments, chunks=5)
    jax.tree.map(assert_bits, first, second)


SHARDED = """
import functools, os, sys
sys.path.insert(0, os.path.join(os.getcwd(), "tests"))
import jax, numpy as np, oracles, parnl
from jax.sharding import Mesh, PartitionSpec as P

task = oracles.problem("gru", steps=12, batch=(4,), hidden=3)
params = {n: jax.numpy.asarray(p) for n, p in task.params.items()}
inputs, x0 = jax.numpy.asarray(task.inputs), jax.numpy.asarray(task.initial_state[0])

def each(run, *arrays):
    # Gradients of parameters and inputs, outputs, and a Hessian times the parameters.
    def loss(*arrays):
        params, u, x = arrays
        out = run(task.cell, params, u, (x,))[0]
        return (out**3).sum(), out

    gradient = jax.grad(loss, (0, 1), has_aux=True)
    params, *rest = arrays
    twice = jax.jvp(lambda p: gradient(p, *rest)[0], (params,), (params,))[1]
    return *gradient(*arrays), twice

def solve(*arrays):
    return parnl.solve(*arrays, **{sys.argv[1]: 4})

mesh = Mesh(np.array(jax.devices()), ("data",))
rows, gradients = P("data"), (P(), P("data"))
found = jax.jit(jax.shard_map(
    functools.partial(each, solve), mesh=mesh,
    in_specs=(P(), rows, rows), out_specs=(gradients, rows, gradients),
))(params, inputs, x0)
assert len(found[1].sharding.device_set) == 2
expected = jax.jit(functools.partial(each, oracles.scan_loop))(params, inputs, x0)
jax.tree.map(lambda f, e: oracles.assert_close(f, e, 1e-10), found, expected)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("kernels", "how"),
    [
        ("c", "chunks"),
        ("off", "chunks"),
        ("triton", "chunks"),
        ("c", "stretch"),
        ("off", "stretch"),
    ],
)
def test_sequences_shared_among_devices(kernels, how):
    """In a shard_map gradients of what all devices share are summed over them, as JAX's own are."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    there = {**os.environ, "PARNL_KERNELS": kernels, "XLA_FLAGS": flags, "TRITON_INTERPRET": "1"}
    if kernels == "triton":
        pytest.importorskip("triton", minversion="3.6")
        pytest.importorskip("torch")  # which Triton's interpreter computes with
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", SHARDED, how], env=there, cwd=root, check=True)


@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize(
    ("steps", "inputs"), [(5, 0), (5, 1), (5, 4), (5, 16), (5, 17), (2500, 3), (0, 3)]
)
def test_matmul_is_the_product_and_so_are_its_derivatives(steps, inputs, kernels, monkeypatch):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    jax.clear_caches()  # the choice of kernels is made when a function is traced
    rng = np.random.default_rng(inputs)
    u, m = rng.normal(size=(2, steps, inputs)), rng.normal(size=(inputs, 3))
    du, dm = rng.normal(size=u.shape), rng.normal(size=m.shape)
    weights = rng.normal(size=(2, steps, 3))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    y, dy = jax.jvp(ops.matmul, tuple(map(jnp.asarray, (u, m))), tuple(map(jnp.asarray, (du, dm))))
    close(y, u @ m)
    close(dy, du @ m + u @ dm)
    loss = jax.jit(jax.grad(lambda u, m: (weights * ops.matmul(u, m)).sum(), argnums=(0, 1)))
    found_u, found_m = loss(jnp.asarray(u), jnp.asarray(m))
    close(found_u, weights @ m.T)
    close(found_m, np.einsum("btn,bth->nh", u, weights))
    three = np.arange(1.0, 4.0)[:, None, None]
    for axes in (None, 0), (0, None), (0, 0):
        left, right = u if axes[0] is None else u[0] * three, m if axes[1] is None else m * three
        many = jax.vmap(ops.matmul, axes)(jnp.asarray(left), jnp.asarray(right))
        close(many, left @ (right if axes[0] == 0 else right[:, None]))
