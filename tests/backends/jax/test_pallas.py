"""Pallas kernels: interpreted, against plain loops in NumPy, and lowered for CUDA."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import CELLS, assert_close

import parnl
from parnl.backends.jax import pallas
from parnl.backends.jax.elementwise import elementwise
from parnl.frameworks import get_backend
from parnl.graph.program import affine_program
from parnl.solver.newton import Plan

pytestmark = pytest.mark.usefixtures("quick_compile")


EVERY = [*CELLS, "test-everything"]
KINDS = ["trajectory", "advance", "adjoint", "backward"]


def lowered(traced):
    """Return the text of a traced function for CUDA; from JAX 0.11 on that takes a GPU."""
    try:
        return traced.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:
        if "No supported GPU" not in str(error):
            raise
        pytest.skip(str(error))


class Task:
    """One call of a kernel: a program, and random arrays for all that it reads."""

    def __init__(self, name, kind, batch, steps, chunks, channels, reverse=False, dtype="float64"):
        rng = np.random.default_rng(0)
        shapes = {"parameter": (1, 1, channels), "dt": (1, 1, 1)}
        special = {"f": (1, steps, channels), "g": (batch, steps, 1), "b": (batch, 1, channels)}
        self.program = parnl.get_cell(name, 2, channels).program
        self.kind, self.dtype = kind, dtype
        self.plan = Plan.make(steps, chunks, 1e-7, reverse=reverse)
        k, n = len(self.program.states), len(self.program.operands)
        self.operands = [
            rng.uniform(0.1, 1.2, special.get(o.name, shapes.get(o.kind, (batch, steps, channels)))
                        if name == "test-everything"
                        else shapes.get(o.kind, (batch, steps, channels)))
            for o in self.program.operands
        ]  # fmt: skip
        count = self.plan.chunks - (kind in ("advance", "adjoint") and self.plan.chunks > 1)
        some, whole = (batch, count, channels), (batch, steps, channels)
        self.starts = [rng.normal(size=some) for _ in range(k)]
        self.fixed, self.wanted = None, ()
        if kind in ("adjoint", "backward"):
            self.fixed = {
                "x0": [rng.normal(size=(batch, channels)) for _ in range(k)],
                "state": [rng.normal(size=whole) for _ in range(k)],
                "g": [rng.normal(size=whole) for _ in range(k)],
            }
        self.results = {"end": (k, some), "prod": (k * k, some)}
        if kind == "trajectory":
            self.results = {"out": (k, whole), "end": (k, some)}
        if kind == "backward":
            self.wanted = tuple(i for i in range(n) if i != 1)
            summed = [self.operands[i].shape[1] == 1 for i in self.wanted]
            grads = {f"grad{i}": (1, some if s else whole) for i, s in enumerate(summed)}
            self.results = {"end": (k, some), **grads}

    def arrays(self):
        given = (self.operands, self.starts, self.fixed)
        return jax.tree.map(lambda x: jnp.asarray(x, self.dtype), given)

    def call(self, operands, starts, fixed, interpret=False):
        return pallas.call(
            self.program, self.plan, self.kind, operands, starts,
            wanted=self.wanted, fixed=fixed, interpret=interpret,
        )  # fmt: skip

    def found(self):
        return jax.jit(functools.partial(self.call, interpret=True))(*self.arrays())

    def lowered(self):
        return lowered(jax.jit(self.call).trace(*self.arrays()))

    def expected(self):
        """The same by a loop over chunks and steps in NumPy, with Jacobians as k x k matrices."""
        arrays = jax.tree.map(lambda x: x.astype(self.dtype).astype("float64"),
                              (self.operands, self.starts, self.fixed))  # fmt: skip
        operands, starts, fixed = arrays
        plan, k = self.plan, len(starts)
        outputs = [np.full(shape, np.nan) for n, shape in self.results.values() for _ in range(n)]
        numpy = get_backend("numpy")
        functions = {
            kind: self.program.function(kind, numpy, self.wanted if kind == "vjp" else ())
            for kind in ("step", "jacobian", "vjp")
        }
        batch, count, channels = starts[0].shape
        whole = [np.broadcast_to(a, (batch, plan.steps, channels)) for a in operands]

        def of(kind, *values):
            return [np.broadcast_to(x, (batch, channels)) for x in functions[kind](*values)]

        for c in range(count):
            x = np.stack([s[:, c] for s in starts], -1)  # (B, D, k)
            product = np.broadcast_to(np.eye(k), (batch, channels, k, k))
            sums = np.zeros((len(self.wanted), batch, channels))
            for t in range(c * plan.length, min((c + 1) * plan.length, plan.steps)):
                t = plan.steps - 1 - t if plan.reverse else t
                at = [a[:, t] for a in whole]
                before = list(np.moveaxis(x, -1, 0))
                if fixed:
                    s = t + 1 if plan.reverse is False else t - 1
                    inside = 0 <= s < plan.steps
                    before = [y[:, s] for y in fixed["state"]] if inside else fixed["x0"]
                    lam = x + np.stack([g[:, t] for g in fixed["g"]], -1)
                blocks = np.stack(of("jacobian", *before, *at), -1)
                blocks = blocks.reshape(batch, channels, k, k)
                if fixed:
                    blocks = np.swapaxes(blocks, -1, -2)
                    x = np.einsum("bdij,bdj->bdi", blocks, lam)
                else:
                    x = np.stack(of("step", *before, *at), -1)
                product = blocks @ product
                if self.kind == "trajectory":
                    for i in range(k):
                        outputs[i][:, t] = x[..., i]
                if self.kind == "backward":
                    grads = of("vjp", *before, *at, *np.moveaxis(lam, -1, 0))
                    sums += np.stack(grads)
                    for out, g, i in zip(outputs[k:], grads, self.wanted, strict=True):
                        if operands[i].shape[1] > 1:
                            out[:, t] = g
            first = k if self.kind == "trajectory" else 0
            for i in range(k):
                outputs[first + i][:, c] = x[..., i]
            if self.kind in ("advance", "adjoint"):
                for e in range(k * k):
                    outputs[k + e][:, c] = product[..., e // k, e % k]
            if self.kind == "backward":
                for out, s, i in zip(outputs[k:], sums, self.wanted, strict=True):
                    if operands[i].shape[1] == 1:
                        out[:, c] = s
        return outputs


def compare(task, tolerance):
    found, expected = task.found(), task.expected()
    assert len(found) == len(expected)
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert f.dtype == task.dtype
        assert_close(f, e, tolerance, f"result {i}")


# -- one kernel at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVERY)
def test_kernels_equal_loops_in_numpy(monkeypatch, name, kind):
    """Two blocks of lanes, the second not full; a short last chunk."""
    monkeypatch.setattr(pallas, "_AHEAD", 1)  # half the time to compile
    compare(Task(name, kind, 2, 19, 4, 5, reverse=kind in ("adjoint", "backward")), 1e-12)


# B, T, C, D, reverse
SHAPES = [
    (1, 1, 1, 1, False),
    (2, 9, 1, 33, True),
    (3, 8, 8, 4, True),
    (1, 22, 3, 32, False),
    (2, 23, 5, 3, False),
]


@pytest.mark.parametrize("kind", ["trajectory", "backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, kind):
    compare(Task("gru", kind, *shape), 1e-12)


def test_blocks_of_several_warps():
    compare(Task("gru", "trajectory", 2, 131, 64, 257), 1e-12)


@pytest.mark.parametrize("kind", ["advance", "backward"])
def test_single_precision(kind):
    compare(Task("lstm", kind, 2, 23, 4, 5, dtype="float32"), 5e-6)


def test_long_sums_in_single_precision():
    """x' = a x + b with a = 0: the gradient of b is the sum of those of the states."""
    steps = 20000
    plan = Plan.make(steps, 1, 1e-7)
    zero = jnp.zeros((1, 1, 2), jnp.float32)
    whole = jnp.full((1, steps, 2), 0.1, jnp.float32)
    _, found = pallas.call(
        affine_program(1), plan, "backward", [zero, zero], [zero],
        wanted=(1,), fixed={"x0": [zero[0]], "state": [whole], "g": [whole]}, interpret=True,
    )  # fmt: skip
    # one sum of all of them is off by 2e-4
    np.testing.assert_allclose(found, steps * float(np.float32(0.1)), rtol=1e-5)


def test_no_lanes():
    task = Task("gru", "trajectory", 0, 7, 1, 3)
    assert [f.shape for f in task.found()] == [(0, 7, 3), (0, 1, 3)]


def test_nan_stays_in_its_lane_and_in_its_future():
    task = Task("test-everything", "trajectory", 2, 19, 4, 5)
    clean = task.found()
    feature = task.program.operands.index(("feature", "f"))
    task.operands[feature] = np.broadcast_to(task.operands[feature], (2, 19, 5)).copy()
    task.operands[feature][1, 7, 2] = np.nan  # in the second chunk, of steps 5 to 9
    found, spread = task.found(), False
    for f, c in zip(found[:3], clean[:3], strict=True):
        odd = np.isnan(np.asarray(f))
        spread |= odd.any()
        assert not odd[0].any()
        assert not odd[1, :, [0, 1, 3, 4]].any()
        assert not odd[1, :7].any()
        assert not odd[1, 10:].any()
        np.testing.assert_array_equal(np.where(odd, 0, f), np.where(odd, 0, c))
    assert spread


# -- the operations -------------------------------------------------------------------------------

REFERENCE = {
    "sigmoid": lambda x: np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x))),
    "softplus": lambda x: np.logaddexp(x, 0),
    "relu": lambda x: np.where(np.isnan(x), x, np.maximum(x, 0)),
    "erf": np.vectorize(math.erf),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["erf", "relu", "sign", "sigmoid", "softplus"])
def test_own_forms_of_operations(op, dtype):
    """Within a few units in the last place, from tiny to huge; NaN and infinities too."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=3000) * s for s in (1e-6, 0.3, 1.0, 4.0, 30.0)])
    x = np.concatenate([x, [0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e30, -1e30]]).astype(dtype)
    found = np.asarray(elementwise.functions[op](jnp.asarray(x)))
    assert found.dtype == dtype
    with np.errstate(all="ignore"):
        expected = REFERENCE.get(op, getattr(np, op, None))(x.astype("float64"))
    # below `tiny` a result may be flushed to zero, on GPUs and here
    eps, tiny = np.finfo(dtype).eps, np.finfo(dtype).tiny
    np.testing.assert_allclose(found, expected, rtol=4 * eps, atol=tiny)


@pytest.mark.parametrize("op", ["minimum", "maximum"])
def test_extrema_keep_nan(op):
    x = jnp.asarray([1.0, 2.0, jnp.nan, 1.0, jnp.nan, jnp.inf])
    y = jnp.asarray([2.0, 1.0, 1.0, jnp.nan, jnp.nan, -jnp.inf])
    np.testing.assert_array_equal(elementwise.functions[op](x, y), getattr(np, op)(x, y))


@pytest.mark.parametrize("op", sorted(set(elementwise.functions) - {"number"}))
def test_no_operation_uses_the_extrema_of_triton(op):
    """They return the other argument where one is NaN; the interpreter's do not show it."""
    x, condition = jnp.ones(3), jnp.ones(3, bool)
    arguments = {
        "minimum": (x, x), "maximum": (x, x), "where": (condition, x, x),
        "logical_and": (condition,) * 2, "logical_or": (condition,) * 2,
        "logical_not": (condition,),
    }.get(op, (x,))  # fmt: skip
    used = str(jax.make_jaxpr(elementwise.functions[op])(*arguments)).split()
    assert not {"min", "max", "clamp"} & set(used)


def test_every_operation_of_jax_has_a_form():
    assert set(elementwise.functions) == set(get_backend("jax").functions)


# -- lowering for a GPU ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in EVERY), (EVERY[-1], "float64")]
)
def test_kernels_are_lowered_for_cuda(name, dtype):
    for kind in KINDS:
        text = Task(name, kind, 2, 23, 4, 5, dtype=dtype).lowered()
        assert "triton" in text
        assert f"parnl_{kind}" in text


def solve_for_cuda(cell):
    params = cell.init(0, "jax")
    u = jnp.ones((2, 12, cell.input_size), jnp.float32)
    f = jax.jit(lambda p, u: parnl.solve(cell, p, u, chunks=3).outputs)
    return lowered(f.trace(params, u))


@pytest.fixture
def fresh(monkeypatch):
    """The choice of kernels is made when a function is traced."""
    jax.clear_caches()
    pallas._notice.cache_clear()
    yield monkeypatch
    jax.clear_caches()


def test_a_gpu_gets_pallas(fresh):
    cell = parnl.get_cell("gru", 2, 3)
    fresh.setenv("PARNL_KERNELS", "")
    fresh.setattr(jax, "default_backend", lambda: "gpu")
    text = solve_for_cuda(cell)
    assert "parnl_advance" in text
    assert "parnl_trajectory" in text
    for choice in ("off", "c"):
        fresh.setenv("PARNL_KERNELS", choice)
        jax.clear_caches()
        assert "triton" not in solve_for_cuda(cell)


def test_an_operation_without_a_form_is_composed_and_named(fresh):
    cell = parnl.get_cell("test-everything", 2, 3)
    fresh.setenv("PARNL_KERNELS", "")
    fresh.setattr(jax, "default_backend", lambda: "gpu")
    fresh.delitem(elementwise.functions, "erf")
    with pytest.warns(RuntimeWarning, match=r"without Pallas kernels.*no form of erf") as record:
        assert "triton" not in solve_for_cuda(cell)
    assert len(record) == 1
    assert "triton" in solve_for_cuda(parnl.get_cell("gru", 2, 3))


def test_an_operation_without_a_form_is_an_error_if_forced(fresh):
    cell = parnl.get_cell("test-everything", 2, 3)
    fresh.setenv("PARNL_KERNELS", "pallas")
    fresh.delitem(elementwise.functions, "erf")
    with pytest.raises(NotImplementedError, match=r"=pallas: .*no form of erf"):
        parnl.solve(cell, cell.init(0, "jax"), jnp.ones((2, 12, 2)))


# -- whole solves ---------------------------------------------------------------------------------


@pytest.fixture
def interpreted(fresh):
    fresh.setenv("PARNL_KERNELS", "pallas")
    fresh.setattr(pallas, "_AHEAD", 1)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("name", "chunks", "how"),
    [
        ("gru", 4, {}),
        ("lstm", 3, {"reverse": True}),
        ("lrc", 5, {"lengths": [0, 13, 8], "times": "own"}),
        ("ltc", 1, {"times": "shared"}),
    ],
)
def test_solve(name, chunks, how):
    """Outputs and gradients under jit."""
    task = oracles.problem(name, steps=13, hidden=5, **how)
    found = oracles.answer(task, "jax", chunks=chunks, gradients=True)
    oracles.assert_same(found, oracles.reference(task), 1e-10)


@pytest.mark.usefixtures("interpreted")
def test_solve_under_vmap_and_grad(monkeypatch):
    kernels = []

    def spied(*args, name, **kwargs):
        kernels.append(name)
        return pallas_call(*args, name=name, **kwargs)

    pallas_call = pallas.pl.pallas_call
    monkeypatch.setattr(pallas.pl, "pallas_call", spied)
    task = oracles.problem("gru", steps=7, batch=(3,), hidden=4)
    params = {n: jnp.asarray(p) for n, p in task.params.items()}

    def loss(run, params, u, state):
        return (run(task.cell, params, u, (state,))[0] ** 2).sum()

    def solve(*arguments):
        return parnl.solve(*arguments, chunks=3)[:2]

    arguments = (params, jnp.asarray(task.inputs), jnp.asarray(task.initial_state[0]))
    each = jax.vmap(jax.grad(functools.partial(loss, solve)), (None, 0, 0))
    found = jax.jit(each)(*arguments)
    assert {"parnl_trajectory", "parnl_advance", "parnl_backward"} <= set(kernels)
    scan = jax.grad(functools.partial(loss, oracles.scan_loop))
    for i in range(3):
        expected = scan(params, *(a[i] for a in arguments[1:]))
        for name, e in expected.items():
            assert_close(found[name][i], e, 1e-10, name)
