"""Training steps whose products are in bfloat16."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.core import jaxprs_in_params
from toy_runs import BACKENDS, SMALL, toy, trainer_of

from parnl.learn import training
from parnl.learn.jax_trainer import _in_half, _step

ONES = np.ones(8, np.float32)


@pytest.mark.long
@pytest.mark.parametrize("cell", ["lrc", "lstm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_near_that_in_float32(backend, cell):
    """Loss and gradient, which the first moment tells, differ as bfloat16 rounds: 8 bits."""
    inputs, labels, lengths = toy(count=8).train[:3]
    found = {}
    for precision in ("float32", "bfloat16"):
        trainer = trainer_of(
            backend, toy(), precision=precision, dropout=0.0, cell=cell, width=16, clip=1e9
        )
        loss, answers, _ = trainer.step(inputs, lengths, labels, ONES)
        assert answers.dtype == np.float32
        state = trainer.export_state()
        means = [v for n, v in state.items() if n.startswith("optimizer.mean.") or ".mu." in n]
        found[precision] = loss, np.concatenate([value.ravel() for value in means])
        assert {v.dtype for n, v in state.items() if "count" not in n} == {np.dtype(np.float32)}
    (loss, gradient), (half, half_gradient) = found["float32"], found["bfloat16"]
    assert 0 < abs(half / loss - 1) < 0.02
    gap = np.linalg.norm(half_gradient - gradient) / np.linalg.norm(gradient)
    assert 1e-4 < gap < 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_of_a_trained_model_are_in_float32(backend):
    inputs, _, lengths = toy(count=8).train[:3]
    answers = [
        trainer_of(backend, toy(), precision=precision).predict(inputs, lengths)[0]
        for precision in ("float32", "bfloat16")
    ]
    np.testing.assert_array_equal(*answers)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_learns_and_keeps_float32_weights(backend, tmp_path):
    config = replace(SMALL, backend=backend, dropout=0.0)
    runs = {
        precision: training.fit(
            replace(config, precision=precision), toy(), tmp_path / precision
        ).history
        for precision in ("float32", "bfloat16")
    }
    for one, other in zip(runs["float32"], runs["bfloat16"], strict=True):
        assert one["loss"] != other["loss"] == pytest.approx(one["loss"], rel=0.05)
    for name in (training.CHECKPOINT, training.MODEL):
        arrays, _ = training.read_checkpoint(tmp_path / "bfloat16" / name)
        weights = {str(v.dtype) for n, v in arrays.items() if "model." in n or "best." in n}
        assert weights == {"float32"}


def test_products_in_torch_are_in_half_precision():
    """The layers' outputs are; those of the recurrence are not."""
    inputs, labels, lengths = toy(count=8).train[:3]
    trainer, seen = trainer_of("torch", toy(), precision="bfloat16"), {}
    block = trainer.model.blocks[0]
    for name in ("back", "expand", "contract"):
        getattr(block, name).register_forward_hook(
            lambda layer, given, out, name=name: seen.update({name: (given[0].dtype, out.dtype)})
        )
    trainer.step(inputs, lengths, labels, ONES)
    assert seen["back"] == (torch.float32, torch.bfloat16)
    assert {out for _, out in seen.values()} == {torch.bfloat16}


def operations(jaxpr):
    """Every operation of a program and the types of what goes in."""
    for equation in jaxpr.eqns:
        kinds = {str(v.aval.dtype) for v in equation.invars if hasattr(v.aval, "dtype")}
        yield equation.primitive.name, kinds
        for inner in jaxprs_in_params(equation.params):
            yield from operations(inner)


def test_products_in_jax_are_in_half_precision():
    """Those of the layers, forward and backward; the recurrence is in float32."""
    inputs, labels, lengths = toy(count=8).train[:3]
    trainer = trainer_of("jax", toy(), precision="bfloat16", cell="gru")
    made = jax.make_jaxpr(
        lambda inputs: _step.__wrapped__(
            trainer.model, trainer.moments, trainer.optimizer, trainer.loss, jax.random.key(0),
            (inputs, lengths, labels, ONES), 1, None, None, True, True,
        )[:2]
    )(jnp.asarray(inputs))  # fmt: skip
    found = list(operations(made.jaxpr))
    products = [kinds for name, kinds in found if name == "dot_general"]
    assert len(products) >= 3 * 6 - 1  # six layers, and their gradients but that of the inputs
    assert set(map(frozenset, products)) == {frozenset({"bfloat16"})}
    solves = [kinds for name, kinds in found if name in ("parnl_product", "parnl_solve")]
    assert len(solves) > 1
    assert not any("bfloat16" in kinds for kinds in solves)
    halved = _in_half(trainer.model)
    assert {v.dtype.name for v in halved.blocks[0].recurrence.values()} == {"float32"}
    assert halved.head.weight.dtype.name == "bfloat16"
