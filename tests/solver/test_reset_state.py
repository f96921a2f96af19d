"""`reset_state`: at `resets` the state is another than the one that the run began with."""

import numpy as np
import pytest
from optional import jax, jnp, torch
from oracles import assert_close

import parnl

B, T, D = 3, 40, 4
RESETS = np.random.default_rng(3).random((B, T)) < 0.15
LENGTHS = np.array([T, 17, 1])
RESETS[:, 0] = [True, False, False]
RESETS[1, 17] = True  # the first step of the padding


def loop(cell, params, u, state, fresh, where, stack, reverse, lengths):
    """Return outputs (B, T, D) and last states: one step after the other."""
    rows = [None] * T
    valid = np.arange(T) < (np.full(B, T) if lengths is None else lengths)[:, None]
    ends = (RESETS & valid)[:, 1:]  # what begins at a step ends, in reverse, what came before it
    anew = np.concatenate([ends, np.zeros((B, 1), bool)], 1) if reverse else RESETS & valid
    for t in reversed(range(T)) if reverse else range(T):
        before = [where(anew[:, t], f, s) for f, s in zip(fresh, state, strict=True)]
        y, after = parnl.step(cell, params, u[:, t], tuple(before))
        rows[t] = where(valid[:, t], y, 0 * y)
        state = [where(valid[:, t], a, s) for a, s in zip(after, state, strict=True)]
    return stack(rows), state


def given(name):
    rng = np.random.default_rng(0)
    cell = parnl.get_cell(name, 2, D)
    params = cell.init(seed=1, dtype="float64")
    u = rng.standard_normal((B, T, 2))
    start, fresh = (tuple(rng.standard_normal((B, D)) for _ in cell.states) for _ in range(2))
    return cell, params, u, start, fresh


ASKED = [{}, {"chunks": 7}, {"stretch": 11}, {"lengths": LENGTHS, "chunks": 4}]


@pytest.mark.long
@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_pytorch(name, reverse, asked):
    cell, params, u, start, fresh = given(name)
    params = {n: torch.tensor(v, requires_grad=True) for n, v in params.items()}
    u = torch.tensor(u, requires_grad=True)
    start, fresh = (tuple(torch.tensor(a, requires_grad=True) for a in s) for s in (start, fresh))

    def where(mask, a, b):
        return torch.where(torch.tensor(mask)[:, None], a, b)

    out = parnl.solve(
        cell, params, u, start, resets=RESETS, reset_state=fresh, reverse=reverse, **asked
    )
    lengths = asked.get("lengths")
    y, end = loop(
        cell, params, u, start, fresh, where, lambda r: torch.stack(r, 1), reverse, lengths
    )
    assert_close(out.outputs.detach(), y.detach(), 1e-10)
    weights = torch.randn_like(y)
    wanted = [u, *params.values(), *start, *fresh]
    totals = []
    for outputs, last in ((out.outputs, out.final_state), (y, end)):
        totals.append((outputs * weights).sum() + sum(s.square().sum() for s in last))
    found, expected = (torch.autograd.grad(total, wanted) for total in totals)
    for f, e in zip(found, expected, strict=True):
        assert e.abs().max() > 0
        assert_close(f, e, 1e-9)


@pytest.mark.long
@pytest.mark.parametrize("asked", ASKED[1:3], ids=str)
def test_jax(asked):
    with jax.enable_x64(True):
        cell, params, u, start, fresh = given("lstm")
        u, start, fresh = jax.tree.map(jnp.asarray, (u, start, fresh))
        params = {n: jnp.asarray(v) for n, v in params.items()}

        def where(mask, a, b):
            return jnp.where(mask[:, None], a, b)

        def fast(start, fresh):
            out = parnl.solve(cell, params, u, start, resets=RESETS, reset_state=fresh, **asked)
            return jnp.sum(out.outputs**3), out.outputs

        def slow(start, fresh):
            def stack(rows):
                return jnp.stack(rows, 1)

            y, _ = loop(cell, params, u, start, fresh, where, stack, False, None)
            return jnp.sum(y**3), y

        found, expected = (jax.grad(f, (0, 1), has_aux=True)(start, fresh) for f in (fast, slow))
        for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert_close(f, e, 1e-9)


def test_numpy_and_a_step():
    cell, params, u, start, fresh = given("lstm")
    out = parnl.solve(cell, params, u, start, resets=RESETS, reset_state=fresh, check=True)

    def where(mask, a, b):
        return np.where(mask[:, None], a, b)

    y, end = loop(cell, params, u, start, fresh, where, lambda r: np.stack(r, 1), False, None)
    assert_close(out.outputs, y, 1e-12)
    for f, e in zip(out.final_state, end, strict=True):
        assert_close(f, e, 1e-12)
    state, rows = start, []
    for t in range(T):
        told = {"reset": RESETS[:, t], "reset_state": fresh}
        row, state = parnl.step(cell, params, u[:, t], state, **told)
        rows.append(row)
    assert_close(np.stack(rows, 1), y, 1e-12)


def test_wrong_calls():
    cell, params, u, start, fresh = given("gru")
    with pytest.raises(ValueError, match="reset_state: expected None without resets"):
        parnl.solve(cell, params, u, start, reset_state=fresh)
    with pytest.raises(ValueError, match=r"reset_state h: expected shape \(3, 4\), got \(2, 4\)"):
        parnl.solve(cell, params, u, start, resets=RESETS, reset_state=fresh[0][:2])
    packed = {"cu_seqlens": np.array([0, 5, T]), "resets": RESETS[0]}
    with pytest.raises(ValueError, match=r"reset_state: expected None without .* or with cu_seq"):
        parnl.solve(cell, params, u[0], reset_state=fresh[0][:2], **packed)
