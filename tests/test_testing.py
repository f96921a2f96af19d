"""The property tests that users run on their cells: they pass what is right and catch faults."""

import numpy as np
import pytest

import parnl
from parnl import diff, ops
from parnl.params import matrix, vector
from parnl.program import Program, adjoint_program
from parnl.testing import TOLERANCES, check_cell, installed, problems


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["gru", "lrc", "lstm", "ltc"])
def test_built_in_cells_pass(name, backend):
    check_cell(name, backends=[backend], examples=40)


def test_a_built_in_cell_passes_in_jax():
    check_cell("lstm", backends=["jax"], examples=3)


def test_an_instance_keeps_its_sizes_and_options():
    check_cell(parnl.get_cell("lrc", 2, 5, symmetric=True), backends=["torch"], examples=10)


def test_all_frameworks_are_found():
    assert installed() == ("numpy", "jax", "torch")


def test_problems_vary():
    seen = [problems("lrc").example() for _ in range(60)]
    for field in ("backend", "dtype", "chunks", "reverse"):
        assert len({getattr(p, field) for p in seen}) > 1
    for field in ("initial_state", "dt", "lengths"):
        assert len({getattr(p, field) is None for p in seen}) == 2
    assert set(TOLERANCES) == {p.dtype for p in seen}


class Tied(parnl.Cell):
    """Wrong on purpose: its features read the future, so that streaming cannot agree."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=(u - u.mean(-2, keepdims=True)) @ p.W)

    def step(self, p, x, f):
        return ops.tanh(p.a * x + f.f)


def test_features_that_read_the_future_are_caught():
    with pytest.raises(AssertionError, match="streaming"):
        check_cell(Tied, backends=["numpy"])


class Fresh(parnl.Cell):
    """A cell whose derived functions nobody has asked for yet; `salt` makes it a program apart."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden"))
    states = ("x", "y")
    options = dict(salt=0.0)

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, y, f):
        new = ops.tanh(p.a * x + 0.5 * y + f.f) + 1e-9 * self.salt
        return new, ops.sigmoid(p.b * y + x) * ops.sin(new)


def wrong_rule(op, factor):
    right = diff._partial

    def partial(node, position):
        return right(node, position) * factor if node.op == op else right(node, position)

    return partial


def transposed(k):
    """The adjoint recurrence with J where J^T belongs."""
    program = adjoint_program(k)
    n = k * k
    jac, grad = program.operand_symbols[:n], program.operand_symbols[n:]
    lam = [g + m for g, m in zip(grad, program.state_symbols, strict=True)]
    outputs = [sum((jac[i * k + j] * lam[j] for j in range(1, k)), jac[i * k] * lam[0])
               for i in range(k)]  # fmt: skip
    return Program(program.graph, program.state_symbols, program.operand_symbols, outputs)


@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize("op", ["tanh", "sigmoid", "sin"])
def test_a_wrong_derivative_rule_is_caught(monkeypatch, op, kernels):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    monkeypatch.setattr(diff, "_partial", wrong_rule(op, 1.001))
    salt = 1.0 + ["tanh", "sigmoid", "sin"].index(op) + 10 * (kernels == "c")
    with pytest.raises(AssertionError, match=r"gradient|Jacobian"):
        check_cell(Fresh(2, 3, salt=salt), backends=["torch"])


def test_a_missing_transpose_in_the_adjoint_is_caught(monkeypatch):
    from parnl.backends.torch import implicit

    monkeypatch.setenv("PARNL_KERNELS", "off")
    monkeypatch.setattr(implicit, "adjoint_program", transposed)
    with pytest.raises(AssertionError, match="gradient"):
        check_cell(Fresh(2, 3, salt=30.0), backends=["torch"])


def test_a_solve_that_stops_too_early_is_caught(monkeypatch):
    from parnl.newton import Plan

    right = Plan.make.__func__

    def lax(cls, steps, chunks, epsilon, tolerance=None, max_iterations=None, reverse=False):
        return right(cls, steps, chunks, epsilon, 1e-3, max_iterations, reverse)

    monkeypatch.setattr(Plan, "make", classmethod(lax))
    with pytest.raises(AssertionError, match="relative error"):
        check_cell("gru", backends=["numpy"], examples=100)


def test_without_faults_the_same_cell_passes():
    check_cell(Fresh(2, 3), backends=["torch"], examples=40)


def test_nonfinite_answers_are_compared_too():
    class Exploding(parnl.Cell):
        parameters = dict(W=matrix("input", "hidden"))

        def features(self, p, u):
            return dict(f=u @ p.W)

        def step(self, p, x, f):
            return x * x * 30.0 + f.f

    with np.errstate(all="ignore"):
        check_cell(Exploding, backends=["numpy"], examples=60)
