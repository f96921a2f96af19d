"""Weights of classes, against scikit-learn's and the loss of PyTorch that takes them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from toy_runs import BACKENDS, SMALL, toy, trainer_of

from parnl.learn import judging, tasks, training
from parnl.learn.class_weights import balanced


def uneven(count=40):
    """Toy data with few series of the last class in the training part."""
    dataset = toy(count=count)
    train = dataset.train
    rows = np.flatnonzero((train.labels != 2) | (np.arange(count) < count // 3))
    return dataset._replace(
        train=train._replace(
            inputs=train.inputs[rows], labels=train.labels[rows], lengths=train.lengths[rows]
        )
    )


def test_the_weights_are_those_of_scikit_learn():
    labels = np.random.default_rng(0).choice(5, size=90, p=[0.5, 0.3, 0.1, 0.06, 0.04])
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels)
    np.testing.assert_allclose(balanced(labels, 5), expected, rtol=1e-6)


def test_a_class_that_does_not_occur():
    found = balanced(np.array([0, 0, 0, 2]), 4)
    np.testing.assert_allclose(found, [4 / 6, 1, 4 / 2, 1], rtol=1e-6)


def judged_by_torch(answers, labels, weights):
    """The loss in float64, and its gradient by the answers."""
    logits = torch.tensor(answers, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(weights, dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), weight=weight)
    loss.backward()
    return loss.item(), logits.grad.numpy()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_takes_the_loss_of_torch(backend):
    """Also its gradient: that of the head's bias is the sum over the series."""
    inputs, labels, lengths = uneven().train[:3]
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    trainer = trainer_of(backend, toy(), dropout=0.0, clip=1e9)
    rows, real = np.arange(8), np.arange(8) < 6  # the rest fills the batch
    own = (weights[labels[rows]] * real).astype(np.float32)
    loss, answers, _ = trainer.step(inputs[rows], lengths[rows], labels[rows], own)
    expected, gradient = judged_by_torch(answers[real], labels[rows][real], weights)
    assert loss == pytest.approx(expected, rel=1e-5)
    state = trainer.export_state()
    first = [v for n, v in state.items() if n.endswith(("mean.head.bias", "mu.head.bias"))]
    np.testing.assert_allclose(first, [0.1 * gradient.sum(axis=0)], atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("batch", [64, 7])
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_and_validation_have_the_weights_of_the_training_part(backend, batch, tmp_path):
    dataset = uneven()
    assert len(dataset.train.labels) % 7  # the last batch is filled up
    config = replace(
        SMALL, backend=backend, dropout=0.0, epochs=1, batch=batch, class_weights="balanced",
        learning_rate=1e-9,
    )  # fmt: skip
    result = training.fit(config, dataset, tmp_path)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=dataset.train.labels)
    for part, name in ((dataset.train, "loss"), (dataset.validation, "validation_loss")):
        answers, _ = judging.evaluate(result.trainer, part, 16)
        expected, _ = judged_by_torch(answers, part.labels, weights)
        assert result.history[0][name] == pytest.approx(expected, rel=1e-5)
        plain = tasks.Tally(tasks.TASKS["classify"], tasks.PLAIN)
        plain.add(answers, part.labels)
        assert abs(plain.loss - expected) > 1e-3
    assert result.history[0]["accuracy"] == pytest.approx(
        np.mean(judging.evaluate(result.trainer, dataset.train, 16)[0].argmax(1)
                == dataset.train.labels)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(class_weights="heavy"), "class_weights: got 'heavy', expected 'balanced'"),
        (
            dict(class_weights="balanced", task="regress"),
            "class_weights: got 'balanced' with the task 'regress', expected the task 'classify'",
        ),
    ],
)
def test_wrong_options(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)
