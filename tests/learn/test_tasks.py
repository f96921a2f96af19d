"""What judges a model, against the definitions written out; regression from end to end."""

from dataclasses import replace

import numpy as np
import pytest
from toy_runs import BACKENDS, SMALL, toy

from parnl.learn import judging, tasks, training
from parnl.learn.data import Dataset


def logits_for(answers, classes):
    return np.eye(classes, dtype=np.float32)[answers]


def test_classes():
    labels, answers = np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 1, 1, 0, 2, 2])
    found = tasks.classes_judged(logits_for(answers, 3), labels)
    # of the classes: 3 of 4 found and 3 of 4 right; 1 of 2 and 1 of 2; all
    assert found == {"accuracy": 6 / 8, "f1": pytest.approx((3 / 4 + 1 / 2 + 1) / 3)}


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 2)).astype(np.float32), rng.integers(0, 2, 40)
    certain = (logits[:, 1] - logits[:, 0]).astype(float)
    pairs = certain[labels == 1][:, None] > certain[labels == 0]
    assert tasks.classes_judged(logits, labels)["auroc"] == pytest.approx(pairs.mean())
    assert "auroc" not in tasks.classes_judged(logits, np.zeros(40, int))


def test_numbers():
    targets = np.array([[1.0, 7.0], [3.0, 7.0]])
    found = tasks.numbers_judged(np.array([[2.0, 7.0], [3.0, 10.0]], np.float32), targets)
    expected = {"mae": 1.0, "mse": 2.5, "rmse": 2.5**0.5, "r2": 1 - 0.5 / 1.0}
    assert found == pytest.approx(expected)  # the second target does not vary: no R2


def test_a_scale_brings_targets_to_mean_0_and_back():
    targets = np.random.default_rng(0).normal(5, 3, size=(50, 2)).astype(np.float32)
    targets[:, 1] = 4  # a target that does not vary
    scale = tasks.Scale.of(targets)
    learned = scale.learned(targets)
    assert learned.dtype == np.float32
    np.testing.assert_allclose(learned.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(learned.std(axis=0), [1, 0], atol=1e-6)
    np.testing.assert_allclose(scale.told(learned), targets, rtol=1e-6)
    labels = np.arange(3)
    assert tasks.Scale.of(labels).learned(labels) is labels


def numbers(count=60):
    """Series whose mean over time, of each channel, is what is to be learned, on another scale."""
    whole = toy(count=count)
    scale = np.array([100, 1e-2])

    def part(split):
        steps = split.lengths[:, None]
        return split._replace(labels=(1e3 + scale * split.inputs.sum(axis=1) / steps))

    return Dataset("numbers", (), *(part(split) for split in whole[2:5]))


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_are_learned(backend, tmp_path):
    config = replace(SMALL, task="regress", backend=backend, epochs=25)
    dataset = numbers()
    result = training.fit(config, dataset, tmp_path)
    scale = tasks.Scale.of(dataset.train.labels)
    test = judging.compare(
        result.trainer, dataset.test, 16, task=tasks.TASKS["regress"], scale=scale
    )
    assert test.metrics["r2"] > 0.8
    errors = [record["validation_mse"] for record in result.history]
    assert result.best["validation_mse"] == min(errors)
    answers, _ = judging.evaluate(result.trainer, dataset.validation, 16)
    gap = scale.told(answers) - dataset.validation.labels
    np.testing.assert_allclose(np.mean(gap**2), min(errors), rtol=1e-4)
    loss = np.mean((answers - scale.learned(dataset.validation.labels)) ** 2)
    np.testing.assert_allclose(result.best["validation_loss"], loss, rtol=1e-4)


def test_the_metric_that_decides(tmp_path):
    config = replace(SMALL, best="f1", epochs=3)
    result = training.fit(config, toy(count=20), tmp_path)
    found = [record["validation_f1"] for record in result.history]
    assert result.best["validation_f1"] == max(found)
    with pytest.raises(ValueError, match=r"best: got 'mae', expected one of .*accuracy, f1"):
        training.fit(replace(config, best="mae"), toy(count=20), tmp_path / "other")
    message = "task: got 'sort', expected 'classify', 'regress', 'forecast' or 'next'"
    with pytest.raises(ValueError, match=message):
        replace(SMALL, task="sort")


def test_less_of_an_error_is_better():
    records = [{"validation_mse": e, "validation_loss": 1.0} for e in (3.0, 2.0)]
    first, second = (tasks.score(tasks.TASKS["regress"], "mse", r) for r in records)
    assert second > first


def test_the_loss_is_the_trainers(tmp_path):
    """In float64, of the answers that a trainer gives before its step."""
    dataset = toy(count=8)
    trainer = training.build(replace(SMALL, dropout=0.0), 2, 3)
    inputs, labels, lengths, _ = dataset.train
    loss, answers, _ = trainer.step(inputs, lengths, labels, np.ones(8, np.float32))
    tally = tasks.Tally(tasks.TASKS["classify"], tasks.PLAIN)
    tally.add(answers, labels)
    assert tally.loss == pytest.approx(loss, rel=1e-5)
