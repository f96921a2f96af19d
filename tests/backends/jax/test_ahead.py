"""XLA runs nothing ahead of the question whether it is wanted.

Of a loop's body it computes before the loop whatever depends on nothing that the loop changes: the
plain loop, which is run only where Newton was given up, once took its time in every solve.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parnl
from parnl.backends.jax import ffi

T, D = 4096, 2
LOOP = f"f32[1,1,{D}]"  # where the plain loop writes in which state it ends


@pytest.fixture(params=["gru", "lru"])
def problem(request):
    cell = parnl.get_cell(request.param, 3, D)
    u = np.random.default_rng(0).standard_normal((1, T, 3))
    return cell, cell.init(0, "jax"), jnp.asarray(u, jnp.float32)


def calls_at_once(function, *arguments):
    """Return the shapes that kernels write whenever the compiled `function` is called."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    entry = text[text.index("\nENTRY ") :]
    entry = entry[: entry.index("\n}")]
    lines = [line for line in entry.splitlines() if f'custom_call_target="{ffi.TARGET}"' in line]
    return ["".join(re.findall(r"f32\[[\d,]*\]", line.split("custom-call(")[0])) for line in lines]


def states(cell, chunks, params, u):
    return parnl.solve(cell, params, u, chunks=chunks).outputs


def test_kernels_are_seen_there(problem, monkeypatch):
    if not ffi.usable("float32"):
        pytest.skip("the C kernels of JAX are not in use")
    cell, params, u = problem
    found = calls_at_once(lambda p, u: states(cell, 1, p, u), params, u)
    assert sum(LOOP in shapes for shapes in found) == 1, found


def test_the_plain_loop_is_not_run_ahead(problem):
    cell, params, u = problem
    found = calls_at_once(lambda p, u: states(cell, 4, p, u), params, u)
    assert not any(LOOP in shapes for shapes in found), found


def test_the_plain_loop_backward_is_not_run_ahead(problem):
    cell, params, u = problem

    def gradients(p, g):
        return jax.vjp(lambda p: states(cell, 4, p, u), p)[1](g)

    found = calls_at_once(gradients, params, jnp.ones((1, T, D), jnp.float32))
    assert not any(LOOP in shapes for shapes in found), found
