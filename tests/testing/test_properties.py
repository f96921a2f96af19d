"""The property tests that users run on their cells: they pass what is right and catch faults.

`tests/mutations.py` plants faults in parnl itself; here the suite's own parts are broken.
"""

import ast
import os
from dataclasses import replace

import mutations
import numpy as np
import pytest
from hypothesis import given, settings

import parnl
from parnl import inputs, ops
from parnl.graph.operations import OPERATIONS
from parnl.graph.program import Program, adjoint_program
from parnl.params import matrix, vector
from parnl.testing import (
    HOSTILE,
    TOLERANCES,
    NotApplicable,
    cells,
    check_cell,
    check_property,
    hostile,
    installed,
    problems,
    shapes,
)
from parnl.testing import properties as checks


def passes(name, cell, backend="torch", **how):
    """Whether the property holds; NotApplicable passes through."""
    try:
        check_property(name, cell, backend, **how)
    except AssertionError as error:
        if not str(error).startswith(f"{name}: "):
            raise
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["gru", "lrc", "lstm", "ltc"])
@pytest.mark.turns("name")
def test_built_in_cells_pass(name, backend):
    check_cell(name, backends=[backend], examples=8 if "PARNL_EVERY" in os.environ else 3)


def test_the_faults_to_be_planted_fit():
    assert not mutations.misfits()


@pytest.mark.long
def test_a_built_in_cell_passes_in_jax():
    check_cell("lrc", backends=["jax"], examples=3)


@pytest.mark.long
def test_an_instance_keeps_its_sizes_and_options():
    check_cell(parnl.get_cell("lrc", 2, 5, symmetric=True), backends=["torch"], examples=2)


def test_all_frameworks_are_found():
    assert installed() == ("numpy", "jax", "torch")


def drawn(strategy, count):
    found = []

    @settings(max_examples=count, database=None, derandomize=True, deadline=None)
    @given(strategy)
    def collect(x):
        found.append(x)

    collect()
    return found


def test_problems_vary():
    seen = drawn(problems("lrc"), 100)
    for field in ("backend", "dtype", "chunks", "reverse", "cut", "batch", "steps"):
        assert len({getattr(p, field) for p in seen}) > 1, field
    for field in ("initial_state", "dt", "lengths"):
        assert len({getattr(p, field) is None for p in seen}) == 2, field
    assert {p.dtype for p in seen} == {"float64", "float32"} <= set(TOLERANCES)
    assert all(1 <= p.chunks <= p.steps and 0 <= p.cut <= p.steps for p in seen)


def test_shapes_vary():
    seen = drawn(shapes(max_steps=9, hidden=(2, 5)), 100)
    assert {s.hidden_size for s in seen} == {2, 5}
    assert {s.steps for s in seen} == set(range(1, 10))
    assert len({s.batch for s in seen}) == 4


def test_hostile_inputs_are_what_they_are_called():
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        found = {n: make(rng, rng.normal(size=(40, 3))) for n, make in HOSTILE.items()}
    size = {n: np.abs(x) for n, x in found.items()}
    assert size["huge"].min() > 1e19
    assert 0 < size["tiny"].max() < 1e-19
    assert 0 < size["subnormal"].max() < np.finfo(np.float32).tiny
    assert 0 < size["subnormal"].min() < np.finfo(np.float64).tiny
    assert np.isnan(found["nan"]).sum() == np.isinf(found["inf"]).sum() == 1
    assert np.ptp(found["constant"]) == 0
    assert np.all(np.diff(np.sign(found["alternating"]), axis=0) != 0)
    assert np.isnan(found["mixed"]).any()
    assert np.isinf(found["mixed"]).any()
    assert all(x.shape == (7, 2) for x in drawn(hostile((7, 2)), 20))


@pytest.mark.long
def test_random_cells_are_their_source():
    """What is printed makes the same step, and in time every operation is drawn."""
    seen = drawn(cells(hidden=(2,), max_leaves=16), 200)
    used = set()
    for cell in seen:
        used |= {node.op for node in cell.program.graph.nodes}
        scope = {"parnl": parnl, "ops": ops, "matrix": matrix, "vector": vector}
        ast.parse(cell.source)
        exec(cell.source, scope)
        again = scope["Random"](2, 2)
        assert again.program is cell.program
        assert cell.source in repr(cell)
    assert {len(c.states) for c in seen} == {1, 2, 3, 4}
    assert OPERATIONS.keys() <= used


@pytest.mark.long
def test_random_cells_pass_the_suite():
    for cell in drawn(cells(hidden=(3,)), 4):
        check_cell(cell, backends=["torch"], examples=1)


class Plain(parnl.Cell):
    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return ops.tanh(p.a * x + f.f)


class Tied(Plain):
    """Its features read the future."""

    def features(self, p, u):
        return dict(f=(u - u.sum(-2, keepdims=True) / max(1, u.shape[-2])) @ p.W)


class Mixing(Plain):
    """Its features mix the sequences of a batch."""

    def features(self, p, u):
        return dict(f=(u + (u[::-1] if u.ndim > 2 else u)) @ p.W)


class Forgetful(Plain):
    """Its features depend on the direction of time."""

    def features(self, p, u):
        ramp = 1.0 + 0.0 * u[..., :1] + (u[..., :1] * 0 + 1.0).cumsum(-2)
        return dict(f=(u * ramp) @ p.W)


class Choosy(Plain):
    """Its last channel is another one."""

    def features(self, p, u):
        f = u @ p.W
        return dict(f=f * f, g=f[..., -1:])

    def step(self, p, x, f):
        return ops.tanh(p.a * x + f.f + f.g)


@pytest.mark.long
@pytest.mark.parametrize(
    ("cell", "caught"),
    [
        (Plain, set()),
        (Tied, {"streaming", "splitting", "padding"}),
        (Mixing, {"padding", "batch_order", "hostile_inputs"}),
        (Forgetful, {"streaming", "splitting", "reversal"}),
    ],
)
def test_cells_are_caught_by_what_they_break(monkeypatch, cell, caught):
    names = ["streaming", "splitting", "padding", "batch_order", "reversal", "hostile_inputs"]
    names += ["precision", "channel_order", "chunking"]
    monkeypatch.setenv("PARNL_KERNELS", "off")
    failed = {n for n in names if not passes(n, cell, "numpy", examples=12, max_steps=6)}
    assert caught <= failed
    assert not (failed if cell is Plain else failed & {"chunking", "channel_order"})


def test_channels_that_differ_are_left_out():
    with pytest.raises(NotApplicable, match="tell channels apart"):
        check_property("channel_order", parnl.get_cell("s6", 2, 8), "numpy", examples=5)


def test_channels_that_the_solver_mixes_are_caught(monkeypatch):
    from parnl.backends.numpy import NumpyBackend

    right = NumpyBackend.solve

    def mixing(self, program, plan, operands, x0):
        states, stats = right(self, program, plan, operands, x0)
        return [s + 1e-6 * s[..., :1] for s in states], stats

    assert passes("channel_order", "gru", "numpy")
    monkeypatch.setattr(NumpyBackend, "solve", mixing)
    assert not passes("channel_order", "gru", "numpy")


@pytest.mark.long
def test_half_precision_solved_in_half_precision_is_caught(monkeypatch):
    right = inputs.working_dtype

    def low(xp, arrays):
        _, result = right(xp, arrays)
        return result, result

    assert passes("precision", "indrnn", "numpy", examples=20)
    monkeypatch.setattr(inputs, "working_dtype", low)
    assert not passes("precision", "indrnn", "numpy", examples=20)


def test_a_function_that_differs_from_numpy_is_caught(monkeypatch):
    """The loop calls the same wrong function: only another library can tell."""
    from parnl.backends.torch import adaptor

    monkeypatch.setenv("PARNL_KERNELS", "off")
    right = adaptor.backend.functions["tanh"]
    assert passes("same_on_numpy", Fresh(2, 3, salt=50.0))
    monkeypatch.setitem(adaptor.backend.functions, "tanh", lambda x: right(x) * (1 + 1e-6))
    assert passes("equals_loop", Fresh(2, 3, salt=51.0)) is False
    assert passes("same_on_numpy", Fresh(2, 3, salt=51.0)) is False


@pytest.mark.long
def test_gradients_that_do_not_shrink_are_caught(monkeypatch):
    """A proof of too much: half the rho that holds; and a box that is left."""
    cell, right = parnl.get_cell("indrnn", 2, 2), checks.certify
    assert passes("shrinking_gradients", cell, examples=20)

    def half(*args, **kwargs):
        proof = right(*args, **kwargs)
        return proof._replace(rho=proof.rho / 2)

    monkeypatch.setattr(checks, "certify", half)
    with pytest.raises(AssertionError, match="times the bound"):
        check_property("shrinking_gradients", cell, "torch", examples=40)

    def narrow(*args, **kwargs):
        proof = right(*args, **kwargs)
        return proof._replace(low=proof.low / 50, high=proof.high / 50)

    monkeypatch.setattr(checks, "certify", narrow)
    with pytest.raises(AssertionError, match="is reached at step"):
        check_property("shrinking_gradients", cell, "torch", examples=40)


def test_an_unproved_cell_has_no_bound():
    with pytest.raises(NotApplicable, match="no bound below 1"):
        check_property("shrinking_gradients", "slstm", "torch", examples=4)


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
    """The operation with a derivative that is off by a factor."""
    right = OPERATIONS[op]
    rules = [lambda *a, rule=rule: rule(*a) * factor for rule in right.derivative]
    return replace(right, derivative=tuple(rules))


def transposed(k, restarting=False):
    """The adjoint recurrence with J where J^T belongs."""
    program = adjoint_program(k, restarting)
    n = k * k
    jac, grad = program.operand_symbols[:n], program.operand_symbols[n : n + k]
    lam = [g + m for g, m in zip(grad, program.state_symbols, strict=True)]
    outputs = [sum((jac[i * k + j] * lam[j] for j in range(1, k)), jac[i * k] * lam[0])
               for i in range(k)]  # fmt: skip
    return Program(program.graph, program.state_symbols, program.operand_symbols, outputs)


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize("op", ["tanh", "sigmoid", "sin"])
@pytest.mark.turns("op")
def test_a_wrong_derivative_rule_is_caught(monkeypatch, op, kernels):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    monkeypatch.setitem(OPERATIONS, op, wrong_rule(op, 1.001))
    salt = 1.0 + ["tanh", "sigmoid", "sin"].index(op) + 10 * (kernels == "c")
    name = "equals_loop" if kernels == "c" else "diagonal_jacobian"
    assert not passes(name, Fresh(2, 3, salt=salt), examples=3)


def test_a_missing_transpose_in_the_adjoint_is_caught(monkeypatch):
    from parnl.backends.torch import implicit

    monkeypatch.setenv("PARNL_KERNELS", "off")
    monkeypatch.setattr(implicit, "adjoint_program", transposed)
    with pytest.raises(AssertionError, match="equals_loop: gradient"):
        check_cell(Fresh(2, 3, salt=30.0), backends=["torch"])


def test_a_solve_that_stops_too_early_is_caught(monkeypatch):
    from parnl.solver.newton import Plan

    right = Plan.make.__func__

    def lax(cls, steps, chunks, epsilon, tolerance=None, *others):
        return right(cls, steps, chunks, epsilon, 1e-3, *others)

    monkeypatch.setattr(Plan, "make", classmethod(lax))
    with pytest.raises(AssertionError, match="relative error"):
        check_cell("gru", backends=["numpy"])


@pytest.mark.long
def test_without_faults_the_same_cell_passes():
    check_cell(Fresh(2, 3), backends=["torch"], examples=10)


@pytest.mark.long
def test_nonfinite_answers_are_compared_too(monkeypatch):
    monkeypatch.setenv("PARNL_KERNELS", "off")

    class Exploding(parnl.Cell):
        parameters = dict(W=matrix("input", "hidden"))

        def features(self, p, u):
            return dict(f=u @ p.W)

        def step(self, p, x, f):
            return x * x * 30.0 + f.f

    with np.errstate(all="ignore"):
        check_cell(Exploding, backends=["numpy"], examples=20)
