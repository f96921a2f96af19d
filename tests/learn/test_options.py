"""Options of a run's steps: schedules, weight decay, accumulated gradients."""

import shutil
from dataclasses import asdict, replace

import jax
import numpy as np
import optax
import pytest
import torch
from toy_runs import BACKENDS, SMALL, toy, trainer_of

from parnl.learn import training
from parnl.learn.schedules import factor, plan

ONES = np.ones(8, np.float32)


def rates(config, batches=5):
    """The learning rate of every batch of a run."""
    made = [plan(config, epoch, [ONES] * batches) for epoch in range(config.epochs)]
    return [how["rate"] for epoch in made for how in epoch]


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_rates_are_those_of_optax(schedule, warmup):
    config = replace(SMALL, schedule=schedule, warmup=warmup, epochs=6, learning_rate=0.3)
    if schedule == "constant" and not warmup:
        assert plan(config, 3, [ONES] * 5) == [{}] * 5
        return
    rise, fall = 5 * warmup, 5 * (6 - warmup)
    expected = {
        "constant": optax.constant_schedule(0.3),
        "cosine": optax.cosine_decay_schedule(0.3, fall),
        "linear": optax.linear_schedule(0.3, 0.0, fall),
    }[schedule]
    found = rates(config)
    np.testing.assert_allclose(found[:rise], [0.03 * (i + 1) for i in range(rise)], rtol=1e-6)
    np.testing.assert_allclose(found[rise:], [expected(i) for i in range(fall)], rtol=1e-5)
    if schedule != "constant":
        assert factor(schedule, 30, rise, 30) == pytest.approx(0, abs=1e-15)


def test_batches_of_a_step_have_one_rate():
    config = replace(SMALL, schedule="linear", accumulate=2, epochs=2, learning_rate=1.0)
    np.testing.assert_allclose(rates(config), np.repeat([6, 5, 4, 3, 2, 1], [2, 2, 1] * 2) / 6)


def test_shares_go_by_the_weights():
    made = plan(replace(SMALL, accumulate=2), 0, [ONES, ONES, ONES, ONES * (np.arange(8) < 2)])
    assert [how["share"] for how in made] == [0.5, 0.5, 0.8, 0.2]
    assert [how["last"] for how in made] == [False, True, False, True]
    assert "rate" not in made[0]


def moments(state):
    """Adam's two moments by the name of the weight, of either backend."""
    found = ({}, {})
    for name, value in state.items():
        for key, marks in enumerate((("optimizer.mean.", ".mu."), ("optimizer.square.", ".nu."))):
            for mark in marks:
                if mark in name and name.startswith("optimizer"):
                    found[key][name.partition(mark)[2]] = value.astype(np.float64)
    return found


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_are_adamw_with_the_rate_that_is_given(backend, decay):
    """The formula in float64, of the gradients that the first moment tells."""
    inputs, labels, lengths = toy(count=8).train[:3]
    trainer = trainer_of(backend, toy(), schedule="cosine", weight_decay=decay, clip=1e9)
    first = trainer.export_state()
    mean = {n: 0.0 for n in moments(first)[0]}
    square = dict(mean)
    known = {n: first[f"model.{n}"].astype(np.float64) for n in mean}
    assert len(known) == sum(name.startswith("model.") for name in first)
    for step, rate in enumerate([0.1, 0.02, 0.05], start=1):
        trainer.step(inputs, lengths, labels, ONES, rate=rate)
        state = trainer.export_state()
        for name, value in known.items():
            gradient = (moments(state)[0][name] - 0.9 * mean[name]) / 0.1
            mean[name] = moments(state)[0][name]
            square[name] = 0.999 * square[name] + 0.001 * gradient**2
            size = np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8
            move = mean[name] / (1 - 0.9**step) / size + decay * value
            known[name] = value - rate * move
            np.testing.assert_allclose(state[f"model.{name}"], known[name], atol=2e-5, rtol=1e-4)


def in_float64(trainer):
    """The trainer, with its weights and moments in float64."""

    def wide(value):
        narrow = getattr(value, "dtype", None) == np.float32
        return value.astype(np.float64) if narrow else value

    if isinstance(trainer.model, torch.nn.Module):
        trainer.model.double()
        zeros = {name: torch.zeros_like(value) for name, value in trainer.parameters.items()}
        trainer._set_moments(zeros, zeros)
    else:
        trainer.model, trainer.moments = jax.tree.map(wide, (trainer.model, trainer.moments))
    return trainer


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_accumulated_batches_equal_one_large_batch(backend):
    inputs, labels, lengths = toy(count=24).train[:3]
    inputs, last = inputs.astype(np.float64), np.arange(8) < 3
    whole = in_float64(trainer_of(backend, toy(), dropout=0.0))
    parts = in_float64(trainer_of(backend, toy(), dropout=0.0, accumulate=3))
    weights = [np.ones(8), np.linspace(0.5, 2, 8), last.astype(np.float64)]
    for _ in range(2):
        loss, _, _ = whole.step(inputs, lengths, labels, np.concatenate(weights))
        losses = []
        for place, how in enumerate(plan(replace(SMALL, accumulate=3), 0, weights)):
            rows = slice(8 * place, 8 * place + 8)
            before = parts.export_state()
            own = parts.step(inputs[rows], lengths[rows], labels[rows], weights[place], **how)
            losses.append(own[0] * how["share"])
            if place < 2:  # nothing moves yet
                np.testing.assert_array_equal(
                    parts.export_state()["model.head.weight"], before["model.head.weight"]
                )
        assert sum(losses) == pytest.approx(loss, rel=1e-12)
    found, expected = parts.export_state(), whole.export_state()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_accumulates_equals_one_of_larger_batches(backend, tmp_path):
    config = replace(SMALL, backend=backend, dropout=0.0, epochs=2, schedule="linear")
    large = training.fit(replace(config, batch=8), toy(count=21), tmp_path / "large")
    small = replace(config, batch=4, accumulate=2)  # 21 series: the last step is of 4 and 1
    parts = training.fit(small, toy(count=21), tmp_path / "parts")
    for one, other in zip(large.history, parts.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-4)
        assert other["learning_rate"] == one["learning_rate"]


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_of_one_step_drop_other_units(backend):
    inputs, labels, lengths = toy(count=8).train[:3]
    trainer = trainer_of(backend, toy(), dropout=0.5, accumulate=2)
    losses = [
        trainer.step(inputs, lengths, labels, ONES, share=0.5, last=last)[0]
        for last in (False, True)
    ]
    assert losses[0] != losses[1]


EVERY = dict(
    dropout=0.3,
    schedule="cosine",
    warmup=1,
    weight_decay=0.1,
    accumulate=2,
    class_weights="balanced",
    precision="bfloat16",
)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_run_with_every_option_keeps_its_bits(backend, tmp_path):
    dataset = toy(count=21)
    config = replace(SMALL, backend=backend, batch=4, **EVERY)
    (tmp_path / "parts").mkdir()

    def keep_the_second(record):
        if record["epoch"] == 2:
            shutil.copy(tmp_path / "whole" / training.CHECKPOINT, tmp_path / "parts")

    whole = training.fit(config, dataset, tmp_path / "whole", on_epoch=keep_the_second)
    parts = training.fit(config, dataset, tmp_path / "parts", resume=True)
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    for name in (training.CHECKPOINT, training.MODEL):
        expected, _ = training.read_checkpoint(tmp_path / "whole" / name)
        found, _ = training.read_checkpoint(tmp_path / "parts" / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_resume_compares_the_options(tmp_path):
    dataset, config = toy(count=8), replace(SMALL, epochs=2, schedule="cosine")
    training.fit(config, dataset, tmp_path)
    message = r"epochs: got 3, the checkpoint .* with 2; its schedule, cosine, ends with them"
    with pytest.raises(ValueError, match=message):
        training.fit(replace(config, epochs=3), dataset, tmp_path, resume=True)
    training.fit(replace(config, patience=3), dataset, tmp_path, resume=True)
    for name, value in (("warmup", 1), ("weight_decay", 0.5), ("accumulate", 2)):
        with pytest.raises(ValueError, match=f"{name}: got {value}, the checkpoint .* with 0|1"):
            training.fit(replace(config, **{name: value}), dataset, tmp_path, resume=True)


def test_a_checkpoint_without_the_options_goes_on(tmp_path):
    config = replace(SMALL, epochs=1)
    training.fit(config, toy(count=8), tmp_path)
    arrays, header = training.read_checkpoint(tmp_path / training.CHECKPOINT)
    later = [name for name in asdict(config) if name in (*EVERY,) and name != "dropout"]
    for name in later:
        del header["config"][name]
    for record in header["history"]:
        del record["learning_rate"]
    training.write_checkpoint(tmp_path / training.CHECKPOINT, arrays, **header)
    result = training.fit(replace(config, epochs=2), toy(count=8), tmp_path, resume=True)
    assert len(result.history) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(schedule="step"), "schedule: got 'step', expected 'constant' or 'cosine' or 'linear"),
        (dict(warmup=-1), "warmup: got -1, expected at least 0 and less than epochs, 4"),
        (dict(warmup=4), "warmup: got 4, expected at least 0 and less than epochs, 4"),
        (dict(weight_decay=-0.1), "weight_decay: got -0.1, expected a finite number, at least 0"),
        (dict(weight_decay=float("nan")), "weight_decay: got nan, expected a finite number"),
        (dict(precision="half"), "precision: got 'half', expected 'float32' or 'bfloat16'"),
        (dict(tensorboard="yes"), "tensorboard: got 'yes', expected True or False"),
        (dict(accumulate=0), "accumulate: got 0, expected at least 1"),
    ],
)
def test_wrong_options(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)
