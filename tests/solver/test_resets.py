"""Sequences that begin anew within a sequence: each is as if it were solved by itself."""

import functools
import itertools

import numpy as np
import oracles
import pytest
from oracles import BACKENDS, assert_bits, assert_close, assert_same, numpy_of, to

import parnl

DIFFERENTIABLE = ("torch", "jax")
CELLS = ("gru", "lstm", "lrc", "lru", "s6")  # diagonal, blocks, time-aware, linear
T = 23
# PARNL_KERNELS: "" are compiled ones, C
WAYS = [
    *itertools.product(BACKENDS, ("", "off")),
    *(pytest.param(b, "triton", marks=pytest.mark.long) for b in BACKENDS[1:]),
]


def drawn(share, *batch):
    """Return random booleans (*batch, T)."""
    return np.random.default_rng(0).random((*batch, T)) < share


def only(t):
    return np.eye(T, dtype=bool)[[t] * 3]


RESETS = {
    "none": drawn(0, 3),
    "first": only(0),
    "second": only(1),
    "last": only(-1),
    "every": drawn(1, 3),
    "some": drawn(0.2, 3),
    "many": drawn(0.6, 3),
}
PACKED = {
    "one": [0, T],
    "several": [0, 7, 8, 16, T],
    "empty ones": [0, 0, 5, 5, 5, 20, T, T],
    "single steps": list(range(T + 1)),
}


@pytest.fixture
def choose(monkeypatch):
    """Return a function that chooses the kernels of a backend."""

    def kernels(backend, which):
        monkeypatch.setenv("PARNL_KERNELS", which)
        if which == "triton":
            pytest.importorskip("triton", minversion="3.6")
            pytest.importorskip("torch")
            monkeypatch.setenv("TRITON_INTERPRET", "1")
        if backend == "jax":
            from optional import jax

            jax.clear_caches()

    yield kernels
    if "jax" in BACKENDS:
        from optional import jax

        jax.clear_caches()


def compare(task, backend, *counts):
    expected = oracles.reference(task)
    for chunks in counts:
        found = oracles.answer(task, backend, chunks=chunks, gradients=backend in DIFFERENTIABLE)
        assert_same(found, expected, 1e-9)


@pytest.mark.turns("kernels", "name")
@pytest.mark.parametrize("chunks", [9, T, 1])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("backend", "kernels"), WAYS)
def test_resets_equal_a_run_for_each_piece(choose, backend, kernels, name, resets, reverse, chunks):
    choose(backend, kernels)
    task = oracles.problem(name, steps=T, resets=RESETS[resets], reverse=reverse)
    compare(task, backend, chunks)


@pytest.mark.turns("kernels", "name")
@pytest.mark.parametrize("chunks", [1, T, 9])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("where", PACKED)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("backend", "kernels"), WAYS)
def test_packed_equal_a_run_for_each(choose, backend, kernels, name, where, reverse, start, chunks):
    choose(backend, kernels)
    offsets = PACKED[where]
    how = {"batch": (), "cu_seqlens": offsets, "reverse": reverse, "start": start}
    compare(oracles.problem(name, steps=T, **how), backend, chunks)


@pytest.mark.long
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_every_kind_of_beginning_in_numpy(name, reverse):
    """All that the two tests above draw from, and not only one case in turn."""
    counts = (1, 9, T)
    for resets in RESETS.values():
        task = oracles.problem(name, steps=T, resets=resets, reverse=reverse)
        compare(task, "numpy", *counts)
    for offsets, start in itertools.product(PACKED.values(), (False, True)):
        how = {"batch": (), "cu_seqlens": offsets, "reverse": reverse, "start": start}
        compare(oracles.problem(name, steps=T, **how), "numpy", *counts)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_lengths_and_times(backend, reverse):
    """Resets in the padding do nothing; the padding may hold NaN."""
    lengths = [0, 9, T]
    how = {"lengths": lengths, "resets": drawn(0.3, 3), "times": "own", "reverse": reverse}
    task = oracles.problem("lrc", steps=T, **how)
    expected = oracles.reference(task)
    for b, n in enumerate(lengths):
        task.inputs[b, n:] = task.dt[b, n:] = np.nan
    for chunks in (1, 9):
        gradients = backend in DIFFERENTIABLE
        found = oracles.answer(task, backend, chunks=chunks, gradients=gradients)
        assert_same(found, expected, 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_broadcast(backend):
    task = oracles.problem("gru", steps=T, resets=drawn(0.2))
    whole = task._replace(resets=np.broadcast_to(task.resets, (3, T)))
    assert_same(oracles.answer(task, backend, chunks=5), oracles.reference(whole), 1e-10)
    found = oracles.answer(task._replace(resets=np.array(True)), backend, chunks=5)
    whole = task._replace(resets=drawn(1, 3))
    assert_same(found, oracles.reference(whole), 1e-10)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_within_packed_sequences(backend):
    """A sequence that begins anew begins with its own initial state."""
    offsets, resets = [0, 9, 9, T], drawn(0.2)
    task = oracles.problem("lstm", steps=T, batch=(), cu_seqlens=offsets)
    pieces = sorted({*offsets, *np.flatnonzero(resets).tolist()})
    owner = [next(i for i in (2, 1, 0) if offsets[i] <= t) for t in pieces[:-1]]
    start = tuple(s[owner] for s in task.initial_state)
    finer = task._replace(cu_seqlens=np.array(pieces), initial_state=start)
    expected = oracles.reference(finer._replace(weights=(task.weights[0], *start)))
    found = oracles.answer(task._replace(resets=resets), backend, chunks=4)
    assert_close(found.outputs, expected.outputs, 1e-10)
    ends = [max(i for i, o in enumerate(owner) if o == n) if n in owner else None for n in range(3)]
    for a, e, s in zip(found.final_state, expected.final_state, task.initial_state, strict=True):
        for n, at in enumerate(ends):
            assert_close(a[n], s[n] if at is None else e[at], 1e-10)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_sequence_of_a_batch_is_packed_too(backend):
    task = oracles.problem("gru", steps=T, batch=(), cu_seqlens=[0, 4, T])
    outputs = oracles.answer(task, backend, chunks=4).outputs
    found = oracles.answer(task._replace(inputs=task.inputs[None]), backend, chunks=4)
    assert_bits(found.outputs, outputs[None])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_no_steps(backend, reverse):
    how = {"batch": (), "cu_seqlens": [0, 0, 0], "reverse": reverse}
    task = oracles.problem("lstm", steps=0, **how)
    found = oracles.answer(task, backend)
    assert found.outputs.shape == (0, 4)
    for a, e in zip(found.final_state, task.initial_state, strict=True):
        assert_bits(a, e)


# -- one segment does not touch another -----------------------------------------------------------


@pytest.mark.long
@pytest.mark.turns("backend", "kernels")
@pytest.mark.parametrize("chunks", [9, 5, T, 1])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("backend", "kernels"), WAYS)
def test_what_is_odd_stays_in_its_segment(choose, backend, kernels, name, value, reverse, chunks):
    """The bits of the others stay, where a framework's rounding does not depend on shapes.

    PyTorch's and XLA's own operations may differ in the last bit, by how many are done at once.
    """
    choose(backend, kernels)
    offsets = np.array([0, 6, 15, T])
    task = oracles.problem(name, steps=T, batch=(), cu_seqlens=offsets, reverse=reverse)
    bad = task._replace(inputs=task.inputs.copy())
    bad.inputs[8] = value
    others = np.r_[0:6, 15:T]
    gradients = backend in DIFFERENTIABLE
    with np.errstate(all="ignore"):
        clean, found = (
            oracles.answer(t, backend, chunks=chunks, gradients=gradients) for t in (task, bad)
        )
    rounds = backend != "numpy" and kernels == "off"
    same = functools.partial(assert_close, tolerance=1e-15) if rounds else assert_bits
    same(found.outputs[others], clean.outputs[others])
    if np.isnan(value):
        assert np.isnan(found.outputs[8]).all()
    for a, e in zip(found.final_state, clean.final_state, strict=True):
        same(a[[0, 2]], e[[0, 2]])
    if gradients:
        assert_close(found.gradients["inputs"][others], clean.gradients["inputs"][others], 1e-12)
        assert np.isfinite(clean.gradients["inputs"]).all()


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_segment_does_not_make_a_small_one_coarse(backend):
    """Gaps are measured by the states' size, and that of an earlier sequence is none of it."""
    steps = 400
    cell = parnl.get_cell("lru", 3, 4)
    params = cell.init(0, backend)
    rng = np.random.default_rng(0)
    u = rng.normal(size=(2 * steps, 3)).astype("float32")
    u[:steps] *= 1e12
    offsets = np.array([0, steps, 2 * steps])
    found = parnl.solve(cell, params, to(backend, u), cu_seqlens=offsets, chunks=40)
    alone = parnl.solve(cell, params, to(backend, u[steps:]), method="sequential")
    assert_close(found.outputs[steps:], alone.outputs, 1e-5)


@pytest.mark.parametrize("name", ["lru", "s5", "s6"])
def test_a_linear_cell_stays_linear(name):
    task = oracles.problem(name, steps=T, resets=drawn(0.2, 3))
    told = {"resets": task.resets, "chunks": 7}
    out = parnl.solve(task.cell, task.params, task.inputs, task.initial_state, **told)
    assert task.cell.program.restarting.linear
    assert int(out.info.iterations) == 1


# -- derivatives of every order -------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("chunks", [1, 4])
def test_second_derivatives_in_torch(chunks):
    torch = pytest.importorskip("torch")
    for name, reverse in (("gru", True), ("lstm", False)):
        task = oracles.problem(name, steps=7, n_in=2, hidden=2, batch=(), cu_seqlens=[0, 3, 3, 7])
        params = {n: torch.tensor(v) for n, v in task.params.items()}

        def outputs(u, *start, task=task, params=params, reverse=reverse):
            told = {"cu_seqlens": task.cu_seqlens, "reverse": reverse, "chunks": chunks}
            return parnl.solve(task.cell, params, u, start, **told).outputs

        given = [torch.tensor(a).requires_grad_() for a in (task.inputs, *task.initial_state)]
        assert torch.autograd.gradcheck(outputs, given, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(outputs, given)


@pytest.mark.long
@pytest.mark.parametrize("chunks", [1, 4])
def test_second_derivatives_in_jax(chunks):
    jax = pytest.importorskip("jax")
    task = oracles.problem("lstm", steps=7, n_in=2, hidden=2, batch=(), cu_seqlens=[0, 3, 3, 7])

    def apart(u):
        return oracles.run_apart(task, oracles._arguments(task, leaves | {"inputs": u}))[0]

    def packed(u):
        told = {"cu_seqlens": task.cu_seqlens, "chunks": chunks}
        return parnl.solve(task.cell, params, u, start, **told).outputs

    leaves = {n: to("jax", v) for n, v in oracles._leaves(task).items()}
    params, start = (oracles._arguments(task, leaves)[n] for n in ("params", "initial_state"))
    weights = to("jax", task.weights[0])
    expected, found = (
        jax.hessian(lambda u, f=f: (f(u) * weights).sum())(leaves["inputs"])
        for f in (apart, packed)
    )
    assert_close(found, expected, 1e-10)
    both = [jax.jacfwd(f)(leaves["inputs"]) for f in (packed, apart)]
    assert_close(*both, 1e-10)


# -- under transformations ------------------------------------------------------------------------


@pytest.mark.long
def test_traced_resets_in_jax():
    jax = pytest.importorskip("jax")
    task = oracles.problem("gru", steps=T, resets=drawn(0.2, 3))
    args = [jax.tree.map(to_jax, a) for a in (task.params, task.inputs, task.initial_state)]

    def solve(params, u, start, **told):
        return parnl.solve(task.cell, params, u, start, chunks=5, **told).outputs

    expected = oracles.reference(task).outputs
    assert_close(jax.jit(solve)(*args, resets=to_jax(task.resets)), expected, 1e-10)
    by_row = jax.vmap(lambda u, x, r: solve(args[0], u, x, resets=r))
    assert_close(by_row(args[1], args[2], to_jax(task.resets)), expected, 1e-10)
    packed = oracles.problem("gru", steps=T, batch=(), cu_seqlens=[0, 7, T])
    args = [jax.tree.map(to_jax, a) for a in (packed.params, packed.inputs, packed.initial_state)]
    found = jax.jit(solve)(*args, cu_seqlens=to_jax(packed.cu_seqlens))
    assert_close(found, oracles.reference(packed).outputs, 1e-10)


def to_jax(array):
    return to("jax", array)


@pytest.mark.long
def test_compiled_by_torch():
    torch = pytest.importorskip("torch")
    for how in ({"resets": drawn(0.2, 3)}, {"batch": (), "cu_seqlens": [0, 7, 7, T]}):
        task = oracles.problem("gru", steps=T, **how)
        torch._dynamo.reset()

        cell = task.cell

        @torch.compile(fullgraph=True, backend="aot_eager")
        def solve(params, u, start, told, cell=cell):
            return parnl.solve(cell, params, u, start, **told, chunks=5)

        args = oracles._arguments(
            task, {n: to("torch", v) for n, v in oracles._leaves(task).items()}
        )
        (told,) = [n for n in ("resets", "cu_seqlens") if n in how]
        told = {told: to("torch", getattr(task, told))}
        out = solve(args["params"], args["inputs"], args["initial_state"], told)
        expected = oracles.reference(task)
        assert_close(out.outputs, expected.outputs, 1e-10)
        for a, e in zip(out.final_state, expected.final_state, strict=True):
            assert_close(a, e, 1e-10)


# -- streaming, checks, errors --------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_with_reset(backend):
    """Steps one by one, from zeros where `reset` says so, are the solve."""
    resets = drawn(0.3, 3)
    task = oracles.problem("lstm", steps=T, start=False, resets=resets)
    params, u = ({n: to(backend, v) for n, v in task.params.items()}, to(backend, task.inputs))
    state, rows = None, []
    for t in range(T):
        reset = to(backend, resets[:, t])
        y, state = parnl.step(task.cell, params, u[:, t], state, reset=reset)
        rows.append(numpy_of(y))
    expected = oracles.reference(task)
    assert_close(np.stack(rows, 1), expected.outputs, 1e-10)
    for a, e in zip(state, expected.final_state, strict=True):
        assert_close(a, e, 1e-10)
    y, _ = parnl.step(task.cell, params, u[:, 0], state, reset=True)
    assert_close(y, rows[0], 1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_check_sees_beginnings(reverse):
    task = oracles.problem("lrc", steps=T, resets=drawn(0.2, 3), reverse=reverse)
    oracles.answer(task, "numpy", chunks=5, check=True)
    packed = oracles.problem("lrc", steps=T, batch=(), cu_seqlens=[0, 5, 5, T], reverse=reverse)
    oracles.answer(packed, "numpy", chunks=5, check=True)
    packed.initial_state[0][2, 1] = np.nan
    with pytest.raises(parnl.SolveError, match="initial_state x: nan at sequence 2, channel 1"):
        oracles.answer(packed, "numpy", chunks=5, check=True)


WRONG = [
    ({"resets": np.zeros((3, T))}, TypeError, "resets: expected booleans, got dtype .*float64"),
    ({"resets": drawn(0, 2)}, ValueError, r"resets: expected an array .* \(3, 23\), got \(2, 23\)"),
    ({"cu_seqlens": [0, T]}, ValueError, r"cu_seqlens: expected inputs .* got \(3, 23, 3\)"),
]
WRONG_PACKED = [
    ({"cu_seqlens": [0, 4]}, ValueError, r"rise from 0 to T = 23, got \[0, 4\]"),
    ({"cu_seqlens": [1, T]}, ValueError, r"rise from 0 to T = 23, got \[1, 23\]"),
    ({"cu_seqlens": [0, 7, 5, T]}, ValueError, "cu_seqlens: expected numbers that rise"),
    ({"cu_seqlens": [0.0, T]}, TypeError, "cu_seqlens: expected integers, got dtype .*float64"),
    ({"cu_seqlens": [T]}, ValueError, r"cu_seqlens: expected shape \(S \+ 1,\)"),
    ({"cu_seqlens": [0, T], "lengths": 3}, ValueError, "lengths: expected None with cu_seqlens"),
    (
        {"cu_seqlens": [0, 5, T], "initial_state": np.zeros(4)},
        ValueError,
        r"initial_state h: expected shape \(2, 4\), got \(4,\)",
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_errors(backend):
    for batch, cases in (((3,), WRONG), ((), WRONG_PACKED)):
        task = oracles.problem("gru", steps=T, batch=batch)
        params = {n: to(backend, v) for n, v in task.params.items()}
        for told, error, message in cases:
            if "initial_state" in told:
                told = told | {"initial_state": to(backend, told["initial_state"])}
            with pytest.raises(error, match=message):
                parnl.solve(task.cell, params, to(backend, task.inputs), **told)
