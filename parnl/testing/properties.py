"""The properties: each a function that raises AssertionError if a problem is solved wrong.

Most compare two solves of problems that have one answer (metamorphic relations); the answer itself
is taken from `loop` wherever there is one to be had. The file is long because the list is: each
property is read by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from parnl.frameworks import get_backend
from parnl.params import Values
from parnl.stability.certificates import certify
from parnl.step import step
from parnl.testing.problems import HOSTILE, Problem
from parnl.testing.reference import (
    TOLERANCES,
    Results,
    agree,
    arrays,
    differentiable,
    largest,
    looped,
    looped_gradients,
    named,
    no_gradient,
    numbers,
    real_dtype,
    relative_error,
    same_bits,
    same_pattern,
    solution,
    solved,
    solved_gradients,
    tolerated,
)


class NotApplicable(Exception):  # noqa: N818, it is no error
    """The property says nothing about this problem; the message tells why."""


class Property(NamedTuple):
    """A property: its name, its function of a `Problem`, and what `problems` is to draw for it.

    share: the part of the problems asked for that is checked: 1, or less if that takes long.
    """

    name: str
    check: Callable[[Problem], None]
    draws: dict[str, Any]
    share: float

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (self.check.__doc__ or "").partition("\n")[0]


PROPERTIES: dict[str, Property] = {}


Check = Callable[[Problem], None]


def _property(share: float = 1.0, **draws: Any) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        PROPERTIES[check.__name__] = Property(check.__name__, check, draws, share)
        return check

    return add


SEQUENCES = ((3,), (2, 2))  # batches of several sequences
EXACT = ("float64",)


@_property()
def equals_loop(problem: Problem) -> None:
    """Outputs, final state and every gradient are those of the plain loop."""
    if not differentiable(problem):
        agree(problem, solved(problem), looped(problem), _rounded(problem))
        return
    rounded = looped_gradients(problem, "float32") if problem.dtype == "float32" else None
    agree(problem, solved_gradients(problem), looped_gradients(problem), rounded)


@_property(dtypes=EXACT)
def diagonal_jacobian(problem: Problem) -> None:
    """The traced blocks are a step's whole Jacobian: equal on the diagonal, zero off it."""
    if not differentiable(problem):
        raise NotApplicable("NumPy has no derivatives to compare with")
    cell, backend = problem.cell, get_backend(problem.backend)
    p, u, x, dt, _ = arrays(problem, "float64")
    k, d = len(cell.states), cell.hidden_size
    values = Values("parameter", p)
    first = tuple(0 for _ in problem.batch)
    features = {
        n: a[first][0] if a.ndim == u.ndim else a[0] for n, a in cell.features(values, u).items()
    }
    given = backend.asarray(getattr(cell, "dt", 1.0), real_dtype(problem, "float64"))
    now: Any = given if dt is None else dt[(*first, 0)]
    start = backend.xp.stack([s[first] for s in x])

    def whole(s: Any) -> Any:
        time = {"dt": now} if cell.time_aware else {}
        new = cell.step(values, *(s[i] for i in range(k)), Values("feature", features), **time)
        new = new if isinstance(new, tuple | list) else (new,)
        return backend.xp.stack([n + backend.xp.zeros_like(s[0]) for n in new])

    if problem.backend == "torch":
        import torch

        full = torch.func.jacrev(whole)(start)
    else:
        import jax

        full = jax.jacrev(whole)(start)
    found = numbers(problem, full)  # (k, D, k, D)
    sources = {"parameter": p, "feature": features, "dt": {"dt": now}}
    operands = [sources[kind][name] for kind, name in cell.program.operands]
    blocks = cell.program.function("jacobian", backend)(*start, *operands)
    expected = np.zeros_like(found)
    for entry, block in enumerate(blocks):
        value = block if isinstance(block, float) else backend.to_numpy(block)
        expected[entry // k, np.arange(d), entry % k, np.arange(d)] = value
    tolerance = TOLERANCES[real_dtype(problem, "float64")]
    np.testing.assert_allclose(
        expected, found, rtol=tolerance, atol=tolerance, err_msg=f"Jacobian of {problem!r}"
    )


@_property()
def streaming(problem: Problem) -> None:
    """Step by step equals the whole sequence."""
    cell, backend = problem.cell, get_backend(problem.backend)
    problem = problem._replace(lengths=None, resets=None, reverse=False)
    p, u, start, dt, _ = arrays(problem, problem.dtype)
    outputs: list[Any] = []
    state: Any = start
    with no_gradient(problem):
        for t in range(problem.steps):
            now = None if dt is None else dt[..., t]
            y, state = step(cell, p, u[..., t, :], state, dt=now)
            outputs.append(y)
    found = named(problem, backend.xp.stack(outputs, axis=-2), state)
    agree(problem, found, looped(problem), _rounded(problem))


@_property(resets=False)
def splitting(problem: Problem) -> None:
    """Two parts of a sequence, the state carried from one to the other, equal the whole."""
    parts = [problem.between(0, problem.cut), problem.between(problem.cut, problem.steps)]
    outputs: list[np.ndarray] = []
    state = problem.start
    for part in reversed(parts) if problem.reverse else parts:
        found = solved(part._replace(initial_state=state))
        outputs.append(found["outputs"])
        state = tuple(found[f"final state {n}"] for n in problem.cell.states)
    outputs = outputs[::-1] if problem.reverse else outputs
    joined = {"outputs": np.concatenate(outputs, axis=-2)}
    joined |= {f"final state {n}": x for n, x in zip(problem.cell.states, state, strict=True)}
    agree(problem, joined, looped(problem), _rounded(problem))


@_property()
def chunking(problem: Problem) -> None:
    """Any number of chunks gives the loop's answer; one chunk is the sequential run to the bit.

    A solve converges in at most as many updates as there are chunks, in one if the cell is linear;
    what is then left between chunks is at rounding level.
    """
    expected, rounded = looped(problem), _rounded(problem)
    plain = solved(problem, chunks=1, method="newton")
    sequential = solved(problem, chunks=None, method="sequential")
    for name, s in sequential.items():
        assert same_bits(plain[name], s), f"{name}: chunks=1 is not sequential for {problem!r}"
    counts = {1, problem.chunks}
    if problem.backend != "jax":  # which would compile each
        counts |= {min(2, problem.steps), -(-problem.steps // 2), problem.steps}
    finite = all(np.isfinite(e).all() for e in expected.values())
    for chunks in sorted(counts):
        out = solution(problem, chunks=chunks)
        agree(problem, named(problem, out.outputs, out.final_state), expected, rounded)
        info = out.info
        assert int(info.iterations) <= info.chunks <= chunks, f"{info} for {problem!r}"
        assert bool(info.converged) or not finite, f"{info} for {problem!r}"
        if problem.cell.linear and info.chunks > 1:
            assert int(info.iterations) == 1, f"a linear cell took {info} for {problem!r}"
        if finite:
            level = 20.0 * float(np.finfo(tolerated(problem)).eps) * problem.steps**0.5
            size = max(map(largest, [*problem.start, *expected.values()]))
            assert float(info.residual) <= level * size, f"{info} for {problem!r}"


@_property()
def stretching(problem: Problem) -> None:
    """In stretches the answer is the loop's, if features do not look along time."""
    length = 1 + problem.seed % max(1, problem.steps)
    tried = problem.backend, None, "float32", problem.steps, length
    if problem.backend == "jax" or not problem.cell.can_be_cut(*tried):  # JAX would compile each
        return
    found = solved(problem, stretch=length, chunks=min(length, problem.chunks))
    agree(problem, found, looped(problem), _rounded(problem))


@_property(batches=SEQUENCES)
def batch_order(problem: Problem) -> None:
    """Sequences of a batch do not know of each other: in another order they give the same."""
    order = np.random.default_rng(problem.seed).permutation(problem.batch[0])
    turned = problem._replace(
        inputs=problem.inputs[order],
        initial_state=_each(problem.initial_state, lambda x: x[order]),
        dt=None if problem.dt is None else problem.dt[order],
        lengths=None if problem.lengths is None else problem.lengths[order],
        resets=None if problem.resets is None else problem.resets[order],
    )
    expected, rounded = looped(problem), _rounded(problem)
    agree(problem, solved(turned), _mapped(expected, order), _mapped(rounded, order))


@_property()
def channel_order(problem: Problem) -> None:
    """Channels do not mix: with all that belongs to them, they may stand in another order.

    For cells that give all channels the same equations. Whether a cell does is seen from the loop:
    a permutation of each axis called "hidden" must permute its outputs.
    """
    cell = problem.cell
    order = np.random.default_rng(problem.seed).permutation(cell.hidden_size)
    params = dict(problem.params)
    for name, spec in cell.specs.items():
        for axis, dim in enumerate(spec.dims):
            if dim == "hidden":
                params[name] = np.take(params[name], order, axis)
    start = _each(problem.initial_state, lambda x: x[..., order])
    turned = problem._replace(params=params, initial_state=start)
    expected, rounded = looped(problem), _rounded(problem)
    expected, rounded = (_mapped(r, (..., order)) for r in (expected, rounded))
    same = looped(turned)
    if any(relative_error(same[n], e) > 1e-6 for n, e in expected.items()):
        raise NotApplicable("its features or outputs tell channels apart")
    agree(problem, solved(turned), expected, rounded)


@_property(batches=SEQUENCES, lengths=True, resets=False)
def padding(problem: Problem) -> None:
    """Values after the end of a sequence have no effect, even NaN, inf or huge ones.

    Outputs are those of the loop over the valid steps alone, then 0; gradients do not change.
    """
    rng, n = np.random.default_rng(problem.seed), np.asarray(problem.lengths)
    past = np.arange(problem.steps) >= n[..., None]
    rubbish = rng.choice([np.nan, np.inf, -np.inf, 1e30], problem.inputs.shape)
    inputs = np.where(past[..., None], rubbish, problem.inputs)
    dt = problem.dt
    if dt is not None and problem.inputs.shape[:-1] != (1,):  # that would be one for all steps
        dt = np.where(past, rubbish[..., 0], dt)
    hostile = problem._replace(inputs=inputs, dt=dt)

    def alone(dtype: str) -> Results:
        results = {k: np.zeros_like(w) for k, w in zip(names, problem.weights, strict=True)}
        for row in np.ndindex(problem.batch):
            length = int(n[row])
            one = problem._replace(
                inputs=problem.inputs[row],
                initial_state=tuple(x[row] for x in problem.start),
                dt=None if problem.dt is None else problem.dt[row],
                lengths=None,
                weights=tuple(w[row] for w in problem.weights),
            ).between(0, length)
            found = looped(one, dtype)
            results["outputs"][row][:length] = found["outputs"]
            for k in names[1:]:
                results[k][row] = found[k]
        return results

    names = ["outputs", *(f"final state {s}" for s in problem.cell.states)]
    rounded = alone("float32") if problem.dtype == "float32" else None
    agree(problem, solved(hostile), alone("float64"), rounded)
    if not differentiable(problem):
        return
    clean, found = solved_gradients(problem), solved_gradients(hostile)
    agree(problem, found, clean)
    assert not found["gradient of inputs"][past].any(), f"gradient of padding for {problem!r}"


@_property(batches=((),), lengths=False, resets=False)
def packing(problem: Problem) -> None:
    """Packed sequences, told apart by `cu_seqlens`, each give what they give alone.

    A sequence full of NaN changes no bit of the others.
    """
    rng, steps = np.random.default_rng(problem.seed), problem.steps
    inner = np.sort(rng.integers(0, steps + 1, rng.integers(0, 5)))
    offsets = np.concatenate([[0], inner, [steps]])
    count = len(offsets) - 1
    starts = tuple(rng.normal(size=(count, problem.cell.hidden_size)) for _ in problem.cell.states)
    finals = [f"final state {n}" for n in problem.cell.states]
    packed = problem._replace(initial_state=starts)

    def alone(dtype: str) -> Results:
        pieces = [
            looped(packed.between(a, b)._replace(initial_state=tuple(x[i] for x in starts)), dtype)
            for i, (a, b) in enumerate(itertools.pairwise(offsets))
        ]
        outputs = np.concatenate([piece["outputs"] for piece in pieces])
        return {"outputs": outputs} | {n: np.stack([p[n] for p in pieces]) for n in finals}

    rounded = alone("float32") if problem.dtype == "float32" else None
    found = solved(packed, cu_seqlens=offsets)
    agree(problem, found, alone("float64"), rounded)
    odd = rng.integers(0, count)
    inside = slice(*offsets[odd : odd + 2])
    inputs = problem.inputs.copy()
    inputs[inside] = np.nan
    other = solved(packed._replace(inputs=inputs), cu_seqlens=offsets)
    for name, f in other.items():
        others = np.ones(len(f), bool)
        others[inside if name == "outputs" else odd] = False
        assert same_bits(f[others], found[name][others]), (
            f"{name}: NaN in sequence {odd} of {offsets.tolist()} changes others, for {problem!r}"
        )


@_property(resets=False)
def reversal(problem: Problem) -> None:
    """A reversed run is the run over the reversed sequence, reversed."""
    steps = np.arange(problem.steps)
    length = np.asarray(problem.steps if problem.lengths is None else problem.lengths)[..., None]
    turned = np.where(steps < length, length - 1 - steps, steps)  # the padding stays where it is

    def turn(x: np.ndarray, axes: int) -> np.ndarray:
        index = np.broadcast_to(turned, (*problem.batch, problem.steps))
        return np.take_along_axis(x, index.reshape(*index.shape, *[1] * axes), len(problem.batch))

    flipped = problem._replace(
        inputs=turn(problem.inputs, 1),
        dt=None if problem.dt is None else turn(problem.dt, 0),
        reverse=False,
    )

    def expected(dtype: str) -> Results:
        results = looped(flipped, dtype)
        return results | {"outputs": turn(results["outputs"], 1)}

    rounded = expected("float32") if problem.dtype == "float32" else None
    agree(problem, solved(problem._replace(reverse=True)), expected("float64"), rounded)


@_property()
def precision(problem: Problem) -> None:
    """float32, float16 and bfloat16 give nearly float64's answer, in their own dtype.

    The reference in half precision is the loop in float32 on arrays that were rounded to it. States
    are handed on in float32.
    """
    known = {"numpy": ("float16",), "torch": ("bfloat16",), "jax": ("bfloat16",)}
    for dtype in ("float32", *known[problem.backend]):
        backend = get_backend(problem.backend)
        changed = problem._replace(dtype=dtype)
        out = solution(changed)
        wanted = backend.asarray(np.zeros(1), dtype).dtype
        assert out.outputs.dtype == wanted, f"{dtype}: got {out.outputs.dtype} for {changed!r}"
        carried = backend.asarray(np.zeros(1), "float32").dtype
        for x in out.final_state:
            assert x.dtype == carried, f"{dtype}: got states of {x.dtype} for {changed!r}"
        found = named(problem, out.outputs, out.final_state)
        if dtype == "float32":
            agree(changed, found, looped(problem), looped(problem, "float32"))
        else:
            # terms of an output, each rounded to half precision, may cancel: states tell their size
            expected = looped(problem, dtype)
            size = max(map(largest, expected.values()))
            agree(changed, found, expected, least=size)


@_property()
def same_on_numpy(problem: Problem) -> None:
    """Every backend gives NumPy's answer, by the operations of another library."""
    if problem.backend == "numpy":
        raise NotApplicable("NumPy is what the others are compared with")
    elsewhere = problem._replace(backend="numpy")
    agree(problem, solved(problem), looped(elsewhere), _rounded(elsewhere))
    agree(problem, solved(problem), solved(elsewhere), _rounded(elsewhere))


@_property(batches=SEQUENCES, dtypes=EXACT)
def hostile_inputs(problem: Problem) -> None:
    """One sequence of huge, tiny, subnormal, constant, alternating numbers, of NaN or inf.

    Its parallel solve equals its sequential one, with NaN and inf in the same places, and equals
    the loop where the loop is finite. The other sequences, and their gradients, keep every bit.
    """
    rng = np.random.default_rng(problem.seed)
    row = tuple(rng.integers(0, b) for b in problem.batch)
    kind = list(HOSTILE)[rng.integers(0, len(HOSTILE))]
    inputs = problem.inputs.copy()
    with np.errstate(all="ignore"):
        inputs[row] = HOSTILE[kind](rng, inputs[row])
    attacked = problem._replace(inputs=inputs)
    clean, found = solved(problem), solved(attacked)
    sequential = solved(attacked, chunks=1)
    expected = looped(attacked)
    # a solve is exact relative to the largest state on the way, which the last may be far below
    passed = [problem.start, [expected["outputs"]]]
    size = max(largest(x[row]) for group in passed for x in group)
    for name, f in found.items():
        about = f"{name}, of {kind} inputs in sequence {row}, for {problem!r}"
        assert same_pattern(f[row], sequential[name][row]), f"NaN or inf elsewhere: {about}"
        error = relative_error(f[row], sequential[name][row], size)
        if np.isfinite(expected[name][row]).all():
            error = max(error, relative_error(f[row], expected[name][row], size))
        allowed = TOLERANCES[tolerated(problem)]
        assert error <= allowed, f"relative error {error:.3g} > {allowed:.3g}: {about}"
    _others(problem, clean, found, row, kind)
    if differentiable(problem):
        _others(problem, solved_gradients(problem), solved_gradients(attacked), row, kind)


def _others(problem: Problem, clean: Results, found: Results, row: tuple, kind: str) -> None:
    """Assert that all that belongs to other sequences than `row` has the same bits."""
    others = np.ones(problem.batch, bool)
    others[row] = False
    for name, f in found.items():
        if name.startswith("gradient of") and name.removeprefix("gradient of ") in problem.params:
            continue  # a sum over all sequences
        assert same_bits(f[others], clean[name][others]), (
            f"{name}: {kind} inputs in sequence {row} change others, for {problem!r}"
        )


@_property(share=0.25, dtypes=EXACT, lengths=False, resets=False)
def shrinking_gradients(problem: Problem) -> None:
    """Where `certify` proves rho < 1, gradients shrink by rho a step, and states stay in the box.

    Theorem 1 of arXiv 2505.21717: |dL/dx_t| <= rho^(T - t) |dL/dx_T|, in the certificate's norm.
    """
    if not differentiable(problem):
        raise NotApplicable("NumPy has no gradients")
    problem = problem._replace(reverse=False, initial_state=None)
    cell, steps = problem.cell, problem.steps
    proof = certify(cell, problem.params, inputs=problem.inputs, dt=problem.dt, budget=8)
    if not proof.stable:
        raise NotApplicable("no bound below 1 is proved for it")
    slack = 1.0 + 10 * TOLERANCES[tolerated(problem)]
    names = [f"final state {n}" for n in cell.states]
    grown = np.stack(problem.weights[1:])  # dL/dx_T, for L linear in the final state
    size = np.einsum("kd,k...d->...d", proof.weights, np.abs(grown))
    for t in {0, problem.cut}:
        state = problem.start if t == 0 else tuple(_in_order(solved(problem.between(0, t)), names))
        for x, low, high in zip(state, proof.low, proof.high, strict=True):
            room = (slack - 1.0) * np.maximum(1.0, np.abs(x))
            assert np.all((low - room <= x) & (x <= high + room)), (
                f"states {low} to {high} were proved, {x} is reached at step {t} of {problem!r}"
            )
        if t == steps:
            continue
        rest = problem.between(t, steps)._replace(initial_state=state)
        rest = rest._replace(weights=(np.zeros_like(rest.weights[0]), *problem.weights[1:]))
        found = solved_gradients(rest)
        pulled = np.stack([found[f"gradient of initial {n}"] for n in cell.states])
        left = np.einsum("kd,k...d->...d", proof.weights, np.abs(pulled))
        bound = proof.rho ** (steps - t) * size
        with np.errstate(all="ignore"):
            times = float(np.max(left / bound))
        assert np.all(left <= slack * bound + 1e-300), (
            f"|dL/dx_{t}| is {times:.3g} times the bound that rho = "
            f"{proof.rho} proves for {problem!r}"
        )


def _in_order(results: Results, names: list[str]) -> list[np.ndarray]:
    return [results[n] for n in names]


def _rounded(problem: Problem) -> Results | None:
    return looped(problem, "float32") if problem.dtype == "float32" else None


def _each(arrays: Any, change: Callable[[Any], Any]) -> Any:
    return None if arrays is None else tuple(map(change, arrays))


def _mapped(results: Results | None, index: Any) -> Any:
    return None if results is None else {n: x[index] for n, x in results.items()}
