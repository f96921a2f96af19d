"""Trainers and the training loop."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.special import log_softmax
from toy_runs import BACKENDS, SMALL, toy, trainer_of

from parnl.learn import judging, training
from parnl.learn.data import Dataset, Split


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_weight_0_do_not_count(backend):
    inputs, labels, lengths = toy(count=8).train[:3]
    trainer = trainer_of(backend, toy(), dropout=0.0)
    start = trainer.export_state()
    logits, _ = trainer.predict(inputs[:5], lengths[:5])
    weights = (np.arange(8) < 5).astype(np.float32)
    after = []
    for filling in ([5, 6, 7], [0, 0, 1]):
        rows = [0, 1, 2, 3, 4, *filling]
        trainer.import_state(start)
        loss, answers, chunks = trainer.step(inputs[rows], lengths[rows], labels[rows], weights)
        assert chunks == 1
        np.testing.assert_allclose(answers[:5], logits, atol=1e-5)
        expected = log_softmax(logits.astype(float), axis=1)[np.arange(5), labels[:5]]
        np.testing.assert_allclose(loss, -expected.mean(), rtol=1e-5)
        after.append(trainer.predict(inputs[:5], lengths[:5])[0])
    np.testing.assert_allclose(after[0], after[1], atol=1e-6)
    assert np.abs(after[0] - logits).max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_norm_is_clipped(backend):
    inputs, labels, lengths = toy(count=8).train[:3]
    trainer = trainer_of(backend, toy(), clip=1e-3)
    trainer.step(inputs, lengths, labels, np.ones(8, np.float32))
    state = trainer.export_state()
    means = [v for n, v in state.items() if n.startswith("optimizer.mean.") or ".mu." in n]
    assert len(means) == sum(name.startswith("model.") for name in state)
    # Adam's first moment after one step is (1 - 0.9) times the gradient.
    norm = np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in means))
    np.testing.assert_allclose(norm, 0.1 * 1e-3, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_on_in_training_alone(backend):
    inputs, labels, lengths = toy(count=8).train[:3]
    batch = inputs, lengths, labels, np.ones(8, np.float32)
    with_dropout = trainer_of(backend, toy(), dropout=0.5, learning_rate=1e-12)
    losses = [with_dropout.step(*batch)[0] for _ in range(2)]
    assert losses[0] != losses[1]
    first, second = (with_dropout.predict(inputs, lengths)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_learns(backend, tmp_path):
    dataset = toy()
    config = replace(SMALL, backend=backend, epochs=12)
    result = training.fit(config, dataset, tmp_path)
    test = judging.compare(result.trainer, dataset.test, config.batch)
    assert test.metrics["accuracy"] > 0.9
    assert 0 < test.gap < 1e-5 * max(1, test.scale)
    assert test.chunks == 12
    assert len(test.iterations) == config.blocks
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_run_equals_an_uninterrupted_one(backend, tmp_path):
    dataset = toy(count=21)  # the last batch is partly filled
    config = replace(SMALL, backend=backend, dropout=0.3)
    (tmp_path / "parts").mkdir()

    def keep_the_second(record):
        if record["epoch"] == 2:
            shutil.copy(tmp_path / "whole" / training.CHECKPOINT, tmp_path / "parts")

    whole = training.fit(config, dataset, tmp_path / "whole", on_epoch=keep_the_second)
    parts = training.fit(config, dataset, tmp_path / "parts", resume=True)
    assert len(parts.history) == 4
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    for name in (training.CHECKPOINT, training.MODEL):
        expected, _ = training.read_checkpoint(tmp_path / "whole" / name)
        found, _ = training.read_checkpoint(tmp_path / "parts" / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)


class Scripted:
    """A trainer whose validation accuracy after each epoch is given; its weight counts steps."""

    def __init__(self, accuracies, labels):
        self.accuracies, self.labels = accuracies, labels
        self.weight = 0

    def step(self, inputs, lengths, labels, weights):
        self.weight += 1
        return 1.0, np.eye(2, dtype=np.float32)[labels], 1

    def predict(self, inputs, lengths, **solver):
        right = round(self.accuracies[self.weight - 1] * len(self.labels))
        answers = np.where(np.arange(len(self.labels)) < right, self.labels, 1 - self.labels)
        return np.eye(2, dtype=np.float32)[answers], [3]

    def export_state(self):
        return {"model.weight": np.array(self.weight), "optimizer.count": np.array(self.weight)}

    def import_state(self, state):
        self.weight = int(state["model.weight"])


@pytest.mark.parametrize(
    ("accuracies", "epochs", "best"),
    [
        ([0.2, 0.4, 0.3, 0.4, 0.1, 0.9], 5, 2),  # epoch 4 is no rise; 0.9 comes too late
        ([0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 6, 6),
        ([0.5, 0.1, 0.1, 0.6, 0.1, 0.1, 0.1, 0.9], 7, 4),
    ],
)
def test_early_stopping_keeps_the_best_epoch(accuracies, epochs, best, tmp_path, monkeypatch):
    labels = np.arange(10) % 2
    one = Split(np.zeros((10, 4, 1), np.float32), labels, None)
    scripted = Scripted(accuracies, labels)
    monkeypatch.setattr(training, "build", lambda *arguments, tokens: scripted)
    config = training.Config(epochs=len(accuracies), patience=3, batch=10)
    result = training.fit(config, Dataset("s", ("0", "1"), one, one, one), tmp_path)
    assert len(result.history) == epochs
    assert result.best["epoch"] == best == scripted.weight
    arrays, header = training.read_checkpoint(tmp_path / training.MODEL)
    assert arrays["model.weight"] == best
    assert header["config"] == json.loads(json.dumps(asdict(config)))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    dataset = toy(count=8)
    dataset.train.inputs[0, 0, 0] = np.inf
    with pytest.raises(FloatingPointError, match="loss: got nan in epoch 1"):
        training.fit(SMALL, dataset, tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_are_not_finite_end_the_run(backend, tmp_path):
    """The loss of the only batch was finite; what the step made of the weights is not."""
    config = replace(SMALL, backend=backend, batch=64, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="model: its answer to series 0 is not finite"):
        training.fit(config, toy(count=8), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_lost_by_another(tmp_path):
    config = replace(SMALL, epochs=1)
    first = training.fit(config, toy(count=8), tmp_path)
    with pytest.raises(ValueError, match=r"out: .* holds a run; .* --resume .* --overwrite"):
        training.fit(config, toy(count=8), tmp_path)
    (tmp_path / training.CHECKPOINT).unlink()
    with pytest.raises(ValueError, match="holds a run"):  # its model is left
        training.fit(config, toy(count=8), tmp_path)
    again = training.fit(config, toy(count=8), tmp_path, overwrite=True)
    assert again.history[0]["loss"] == first.history[0]["loss"]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("array", ["inputs", "labels", "lengths"])
def test_other_data_are_not_gone_on_with(part, array, tmp_path):
    config, dataset = replace(SMALL, epochs=1), toy(count=8)
    training.fit(config, dataset, tmp_path)
    training.fit(replace(config, epochs=2), toy(count=8), tmp_path, resume=True)
    changed = getattr(getattr(dataset, part), array)
    changed.flat[-1] = 1 if changed.flat[-1] != 1 else 2
    with pytest.raises(ValueError, match=r"data: .* has changed since the run"):
        training.fit(replace(config, epochs=3), dataset, tmp_path, resume=True)


def test_batches_have_one_size_and_cover_all_rows():
    batches = list(judging.batches(np.array([4, 2, 0, 1, 3]), 2))
    assert [rows.tolist() for rows, _ in batches] == [[4, 2], [0, 1], [3, 3]]
    assert [weights.tolist() for _, weights in batches] == [[1, 1], [1, 1], [1, 0]]


def test_evaluation_does_not_depend_on_the_batch():
    dataset = toy()
    trainer = trainer_of("torch", dataset)
    one, _ = judging.evaluate(trainer, dataset.test, 60)
    many, _ = judging.evaluate(trainer, dataset.test, 7)
    assert one.shape == (60, 3)
    np.testing.assert_allclose(many, one, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(backend="tf"), "backend: got 'tf', expected 'torch' or 'jax'"),
        (dict(blocks=0), "blocks: got 0, expected at least 1"),
        (dict(learning_rate=-1.0), "learning_rate: got -1.0, expected more than 0"),
        (dict(seed=-1), "seed: got -1, expected at least 0"),
        (dict(dropout=1.0), "dropout: got 1.0, expected at least 0 and less than 1"),
    ],
)
def test_wrong_options(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_resuming_with_other_options_or_other_data_is_refused(tmp_path):
    training.fit(replace(SMALL, epochs=1), toy(count=8), tmp_path)
    with pytest.raises(ValueError, match=r"width: got 5, the checkpoint .* trained with 6"):
        training.fit(replace(SMALL, width=5), toy(count=8), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"model.lift.weight is float32 \(6, 2\)"):
        training.fit(SMALL, toy(count=8, channels=3), tmp_path, resume=True)
