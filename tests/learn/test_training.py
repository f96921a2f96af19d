"""Data, classifiers, trainers, and the training loop with its checkpoints."""

import json
import shutil
from dataclasses import asdict, replace

import aeon.datasets
import numpy as np
import pytest

from parnl.learn import data, training
from parnl.learn.data import Dataset, Split

BACKENDS = ("torch", "jax")
SMALL = training.Config(
    data="toy", blocks=1, width=6, state=4, epochs=4, batch=8, learning_rate=0.02, patience=9
)


def toy(channels=2, classes=3, steps=12, count=60, lengths=True):
    """Noisy series whose class is the sign pattern of their slow drift."""
    rng = np.random.default_rng(0)

    def split(count):
        labels = rng.integers(0, classes, size=count)
        centres = np.linspace(-1.5, 1.5, classes)
        inputs = rng.normal(size=(count, steps, channels)) + centres[labels][:, None, None]
        real = rng.integers(steps // 2, steps + 1, size=count) if lengths else None
        if real is not None:
            inputs[np.arange(steps) >= real[:, None]] = 0
        return Split(inputs.astype(np.float32), labels, real)

    names = tuple(str(k) for k in range(classes))
    return Dataset("toy", names, split(count), split(20), split(count))


def trainer_of(backend, dataset, **changes):
    config = replace(SMALL, backend=backend, **changes)
    return training.build(config, dataset.train.inputs.shape[-1], len(dataset.classes))


# Data


def test_japanese_vowels_is_padded_split_and_standardised():
    dataset = data.load("JapaneseVowels", seed=3)
    assert dataset.classes == tuple("123456789")
    assert dataset.train.inputs.shape == (216, 29, 12)
    assert dataset.validation.inputs.shape == (54, 29, 12)
    assert dataset.test.inputs.shape == (370, 29, 12)
    assert np.bincount(dataset.validation.labels).tolist() == [6] * 9
    for part in (dataset.train, dataset.validation, dataset.test):
        assert (part.inputs.dtype, part.labels.dtype) == (np.float32, np.int64)
        padding = np.arange(29) >= part.lengths[:, None]
        assert (part.inputs[padding] == 0).all()
        assert (part.inputs[~padding] != 0).all()
    real = dataset.train.inputs[np.arange(29) < dataset.train.lengths[:, None]]
    np.testing.assert_allclose(real.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(real.std(axis=0), 1, atol=1e-5)


def test_every_training_series_is_kept_or_held_once():
    published, _ = aeon.datasets.load_classification("JapaneseVowels", split="train")
    dataset = data.load("JapaneseVowels", seed=1)
    lengths = np.concatenate([dataset.train.lengths, dataset.validation.lengths])
    assert sorted(lengths) == sorted(one.shape[1] for one in published)
    again, other = data.load("JapaneseVowels", seed=1), data.load("JapaneseVowels", seed=2)
    np.testing.assert_array_equal(again.train.inputs, dataset.train.inputs)
    assert not np.array_equal(other.train.lengths, dataset.train.lengths)


def test_statistics_come_from_the_training_part_alone(monkeypatch):
    rng = np.random.default_rng(0)
    known = rng.normal(5, 3, size=(10, 2, 7))
    known[:, 1] = 4.0  # constant
    known[2, 0, 3] = np.nan
    far = np.full((4, 2, 7), 1e6)

    def load_classification(name, split, **options):
        return (
            (known, np.array(list("ab" * 5))) if split == "train" else (far, np.array(list("abab")))
        )

    monkeypatch.setattr(aeon.datasets, "load_classification", load_classification)
    dataset = data.load("made up")
    assert dataset.train.lengths is None
    both = np.concatenate([dataset.train.inputs, dataset.validation.inputs])
    assert np.count_nonzero(both[..., 0] == 0) == 1  # the missing value became the mean
    assert (both[..., 1] == 0).all()
    kept = dataset.train.inputs[..., 0]
    np.testing.assert_allclose([kept.mean(), kept[kept != 0].std()], [0, 1], atol=1e-5)
    assert dataset.test.inputs.min() > 1e5
    as_they_are = data.load("made up", standardise=False)
    both = np.concatenate([as_they_are.train.inputs, as_they_are.validation.inputs])
    assert set(known[~np.isnan(known)].astype(np.float32)) <= set(both.ravel())
    assert (as_they_are.test.inputs == 1e6).all()
    (missing,) = set(both.ravel()) - set(known.astype(np.float32).ravel())
    assert abs(missing - as_they_are.train.inputs[..., 0].mean()) < 0.5  # that of the channel


def npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = dict(
        X=rng.normal(3, 2, size=(9, 5, 3)).astype(np.float32),
        y=np.array([0, 1, 2] * 3, np.int8),
        val_7=np.array([1, 3]),
        test_7=np.array([0, 8]),
    )
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return arrays


def test_a_file_brings_its_own_splits(tmp_path):
    arrays = npz(tmp_path / "own.npz")
    dataset = data.load(str(tmp_path / "own.npz"), seed=7, channels=[2, 0])
    assert (dataset.name, dataset.classes) == ("own", ("0", "1", "2"))
    rest = [2, 4, 5, 6, 7]
    for part, rows in zip(dataset[2:], (rest, [1, 3], [0, 8]), strict=True):
        np.testing.assert_array_equal(part.labels, arrays["y"][rows])
        assert part.lengths is None
    train_x = arrays["X"][rest][..., [2, 0]].astype(np.float64)
    mean, deviation = train_x.mean(axis=(0, 1)), train_x.std(axis=(0, 1))
    expected = (arrays["X"][[0, 8]][..., [2, 0]] - mean) / deviation
    np.testing.assert_allclose(dataset.test.inputs, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(val_7=None), r"no X, y, val_7 and test_7; it has splits for \[\]"),
        (dict(y=np.zeros(4)), r"X \(9, 5, 3\) and y \(4,\)"),
        (dict(X=np.zeros((9, 5))), r"X \(9, 5\)"),
        (dict(test_7=np.array([0, 9])), "indices of splits below N"),
        (dict(y=np.array([{}] * 9)), "not a file of plain arrays"),
    ],
)
def test_files_that_are_no_data_set(tmp_path, changes, message):
    npz(tmp_path / "own.npz", **changes)
    with pytest.raises(ValueError, match=message):
        data.load(str(tmp_path / "own.npz"), seed=7)


def test_files_that_are_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        data.load(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="not a file of plain arrays"):
        data.load(str(tmp_path / "text.npz"))


def test_pooled_parts_are_split_anew():
    published = data.load("JapaneseVowels")
    parts = [data.load("JapaneseVowels", seed=seed, pooled=True) for seed in (1, 1, 2)]
    count = sum(len(part.labels) for part in published[2:])
    for found in parts:
        assert sum(len(part.labels) for part in found[2:]) == count
        for part in (found.validation, found.test):
            assert abs(len(part.labels) / count - 0.15) < 0.01
            assert np.bincount(part.labels, minlength=9).min() > 0
        labels = np.concatenate([part.labels for part in found[2:]])
        everything = np.concatenate([part.labels for part in published[2:]])
        np.testing.assert_array_equal(np.bincount(labels), np.bincount(everything))
    np.testing.assert_array_equal(parts[0].test.inputs, parts[1].test.inputs)
    assert not np.array_equal(parts[0].test.lengths, parts[2].test.lengths)


def test_patches_join_steps():
    dataset = toy(channels=2, steps=7, count=4)
    found = data.patched(dataset, 3)
    for before, after in zip(dataset[2:], found[2:], strict=True):
        assert after.inputs.shape == (len(before.labels), 3, 6)
        np.testing.assert_array_equal(after.inputs[:, 1, 2:4], before.inputs[:, 4])
        np.testing.assert_array_equal(after.inputs[:, 2, :2], before.inputs[:, 6])
        assert (after.inputs[:, 2, 2:] == 0).all()
        np.testing.assert_array_equal(after.lengths, np.ceil(before.lengths / 3))
    with pytest.raises(ValueError, match="patch: got 0"):
        data.patched(dataset, 0)


def test_a_class_with_one_series_is_never_held():
    labels = np.array([0] * 10 + [1])
    kept, held = data._stratify(labels, 0.2, seed=0)
    assert 10 in kept
    assert len(held) == 2
    assert sorted([*kept, *held]) == list(range(11))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("JapanesVowels", "did you mean 'JapaneseVowels'"),
        ("Nonsense", "aeon ships ACSF1,.*UnitTest"),
        ("Covid3Month", "regression"),
    ],
)
def test_data_that_aeon_cannot_load(name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name)


# Classifiers


@pytest.mark.parametrize("backend", BACKENDS)
def test_parallel_logits_equal_sequential_ones(backend):
    dataset = toy()
    trainer = trainer_of(backend, dataset, blocks=2)
    batch = dataset.train.inputs, dataset.train.lengths
    sequential, nothing = trainer.predict(*batch, method="sequential")
    parallel, iterations = trainer.predict(*batch, method="newton", chunks=12)
    assert nothing == [0, 0]
    assert len(iterations) == 2
    assert min(iterations) >= 1
    np.testing.assert_allclose(parallel, sequential, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_does_not_reach_the_logits(backend):
    dataset = toy(count=4)
    trainer = trainer_of(backend, dataset)
    inputs, _, lengths = dataset.train
    expected, _ = trainer.predict(inputs, lengths)
    noisy = np.where((np.arange(12) < lengths[:, None])[..., None], inputs, np.float32(1e6))
    np.testing.assert_array_equal(trainer.predict(noisy, lengths)[0], expected)
    for row, length in enumerate(lengths):
        alone, _ = trainer.predict(inputs[row : row + 1, :length], None)
        np.testing.assert_allclose(alone[0], expected[row], atol=2e-6)


@pytest.mark.parametrize("lengths", [True, False])
def test_torch_and_jax_are_the_same_model(lengths):
    dataset = toy(lengths=lengths)
    torch, jax = (trainer_of(backend, dataset, cell="gru", blocks=2) for backend in BACKENDS)
    state = torch.export_state()
    weights = {name: value for name, value in state.items() if name.startswith("model.")}
    assert "model.blocks.1.recurrence.a_r" in weights
    assert weights["model.blocks.0.back.weight"].shape == (6, 4)
    training.check_arrays(
        weights, {n: v for n, v in jax.export_state().items() if n.startswith("model.")}
    )
    jax.import_state(weights)
    batch = dataset.test.inputs, dataset.test.lengths
    np.testing.assert_allclose(jax.predict(*batch)[0], torch.predict(*batch)[0], atol=5e-6)


def test_torch_classifier_follows_its_description():
    """Against a plain composition: norm, recurrence, residual, norm, MLP, residual, head, mean."""
    import torch
    from torch.nn.functional import gelu, layer_norm, linear

    import parnl
    from parnl.learn.torch_model import Classifier

    model = Classifier(2, 3, cell="lrc", width=4, state=4, blocks=1, seed=5)
    w = dict(model.named_parameters())
    inputs = torch.randn(3, 9, 2)
    x = gelu(linear(inputs, w["lift.weight"], w["lift.bias"]))
    x = linear(x, w["encoder.weight"], w["encoder.bias"])
    cell = parnl.get_cell("lrc", input_size=4, hidden_size=4)
    params = {n.split(".")[-1]: v for n, v in w.items() if ".recurrence." in n}
    x = x + parnl.solve(cell, params, layer_norm(x, (4,)), method="sequential").outputs
    hidden = gelu(
        linear(layer_norm(x, (4,)), w["blocks.0.expand.weight"], w["blocks.0.expand.bias"])
    )
    x = x + linear(hidden, w["blocks.0.contract.weight"], w["blocks.0.contract.bias"])
    logits = linear(x, w["head.weight"], w["head.bias"]).mean(dim=1)
    torch.testing.assert_close(model(inputs)[0], logits, atol=1e-6, rtol=1e-6)


def test_attention_is_torch_nn_s_with_sinusoidal_positions():
    """A pre-norm encoder layer of torch.nn at the same weights, after positions from the paper."""
    import torch
    from torch import nn

    from parnl.learn.torch_model import Classifier

    model = Classifier(2, 3, cell="attention", width=8, blocks=1, seed=5).eval()
    block = model.blocks[0]
    layer = nn.TransformerEncoderLayer(
        8, 4, dim_feedforward=8, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    layer.self_attn = block.attention
    layer.linear1, layer.linear2 = block.expand, block.contract
    lengths = torch.tensor([9, 4, 1])
    inputs = torch.randn(3, 9, 2)
    t, i = np.arange(9)[:, None], np.arange(4)
    angle = t / 10000 ** (2 * i / 8)
    where = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(9, 8).astype(np.float32)
    padding = torch.arange(9) >= lengths[:, None]
    x = model.encoder(nn.functional.gelu(model.lift(inputs))) + torch.from_numpy(where)
    x = model.head(layer(x, src_key_padding_mask=padding))
    expected = torch.stack([row[:n].mean(dim=0) for row, n in zip(x, lengths, strict=True)])
    found, infos = model(inputs, lengths)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)
    assert infos == [None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_loops_apply_the_same_blocks_again(backend):
    """One block, looped: as many parameters; two blocks of equal weights: the same logits."""
    dataset = toy(count=8)
    batch = dataset.test.inputs, dataset.test.lengths
    looped = trainer_of(backend, dataset, loops=2)
    double = trainer_of(backend, dataset, blocks=2)
    state = looped.export_state()
    state |= {
        name.replace("blocks.0", "blocks.1"): value
        for name, value in state.items()
        if name.startswith("model.blocks.0")
    }
    double.import_state({n: v for n, v in state.items() if n.startswith("model.")})
    expected, _ = double.predict(*batch)
    found, iterations = looped.predict(*batch)
    np.testing.assert_array_equal(found, expected)
    assert len(iterations) == 2
    once, _ = trainer_of(backend, dataset).predict(*batch)
    assert np.abs(once - found).max() > 1e-3


def test_building_a_torch_model_leaves_the_random_numbers_alone():
    import torch

    from parnl.learn.torch_model import Classifier

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (Classifier(2, 3, seed=seed) for seed in (0, 0, 1))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    torch.testing.assert_close(first.head.weight, second.head.weight, rtol=0, atol=0)
    assert not torch.equal(first.head.weight, other.head.weight)


# Trainers


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_weight_0_do_not_count(backend):
    inputs, labels, lengths = toy(count=8).train
    trainer = trainer_of(backend, toy(), dropout=0.0)
    start = trainer.export_state()
    logits, _ = trainer.predict(inputs[:5], lengths[:5])
    weights = (np.arange(8) < 5).astype(np.float32)
    after = []
    for filling in ([5, 6, 7], [0, 0, 1]):
        rows = [0, 1, 2, 3, 4, *filling]
        trainer.import_state(start)
        loss, right, chunks = trainer.step(inputs[rows], lengths[rows], labels[rows], weights)
        assert chunks == 1
        assert right == np.sum(logits.argmax(axis=1) == labels[:5])
        np.testing.assert_allclose(loss, training._cross_entropy(logits, labels[:5]), rtol=1e-5)
        after.append(trainer.predict(inputs[:5], lengths[:5])[0])
    np.testing.assert_allclose(after[0], after[1], atol=1e-6)
    assert np.abs(after[0] - logits).max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_norm_is_clipped(backend):
    inputs, labels, lengths = toy(count=8).train
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
    inputs, labels, lengths = toy(count=8).train
    batch = inputs, lengths, labels, np.ones(8, np.float32)
    with_dropout = trainer_of(backend, toy(), dropout=0.5, learning_rate=1e-12)
    losses = [with_dropout.step(*batch)[0] for _ in range(2)]
    assert losses[0] != losses[1]
    first, second = (with_dropout.predict(inputs, lengths)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


# The loop


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_learns(backend, tmp_path):
    dataset = toy()
    config = replace(SMALL, backend=backend, epochs=12)
    result = training.fit(config, dataset, tmp_path)
    test = training.compare(result.trainer, dataset.test, config.batch)
    assert test.accuracy > 0.9
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
        return 1.0, 0.0, 1

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
    monkeypatch.setattr(training, "build", lambda *arguments: scripted)
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


def test_batches_have_one_size_and_cover_all_rows():
    batches = list(training._batches(np.array([4, 2, 0, 1, 3]), 2))
    assert [rows.tolist() for rows, _ in batches] == [[4, 2], [0, 1], [3, 3]]
    assert [weights.tolist() for _, weights in batches] == [[1, 1], [1, 1], [1, 0]]


def test_evaluation_does_not_depend_on_the_batch():
    dataset = toy()
    trainer = trainer_of("torch", dataset)
    one, _ = training.evaluate(trainer, dataset.test, 60)
    many, _ = training.evaluate(trainer, dataset.test, 7)
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


# Checkpoints


def test_a_trained_model_is_read_by_either_framework(tmp_path):
    dataset = toy(count=8)
    trained = training.fit(replace(SMALL, epochs=1), dataset, tmp_path).trainer
    expected, _ = trained.predict(*dataset.test[::2])
    for changes, tolerance in (({}, 0), ({"backend": "jax"}, 5e-6)):
        trainer, classes = training.load_model(tmp_path / training.MODEL, **changes)
        found, _ = trainer.predict(*dataset.test[::2])
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        assert classes == ["0", "1", "2"]
    with pytest.raises(ValueError, match=f"expected the {training.MODEL} of a run"):
        training.load_model(tmp_path / training.CHECKPOINT)
    with pytest.raises(ValueError, match="the model expects float32"):
        training.load_model(tmp_path / training.MODEL, state=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(config=dict(width=10**6)), "too few for the model"),
        (dict(config=dict(state=10**9)), "too few for the model"),
        (dict(config=dict(blocks=10**6)), "too few for the model"),
        (dict(channels=10**12), "too few for the model"),
        (dict(channels=0), "too few for the model"),
        (dict(channels=None), "no model's"),
        (dict(config=dict(command="rm")), "no model's"),
        (dict(config=[1]), "no model's"),
        (dict(classes=7), "no model's"),
    ],
)
def test_a_header_builds_nothing_the_file_does_not_hold(tmp_path, changes, message):
    training.fit(replace(SMALL, epochs=1), toy(count=8), tmp_path)
    arrays, header = training.read_checkpoint(tmp_path / training.MODEL)
    if isinstance(changes.get("config"), dict):
        changes = {"config": header["config"] | changes["config"]}
    training.write_checkpoint(tmp_path / "other", arrays, **(header | changes))
    with pytest.raises(ValueError, match=message):
        training.load_model(tmp_path / "other")


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    arrays = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "n": np.array(7)}
    training.write_checkpoint(tmp_path / "deep" / "c", arrays, history=[{"loss": 0.5}])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c"]
    found, header = training.read_checkpoint(tmp_path / "deep" / "c")
    assert header == {"history": [{"loss": 0.5}]}
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c"
    training.write_checkpoint(path, {"a": np.zeros(2)}, epoch=1)

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        training.write_checkpoint(path, {"a": np.ones(2)}, epoch=2)
    arrays, header = training.read_checkpoint(path)
    assert header == {"epoch": 1}
    assert (arrays["a"] == 0).all()


def test_files_that_are_no_checkpoint(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(FileNotFoundError, match="there is no file"):
        training.read_checkpoint(tmp_path / "none")
    training.write_checkpoint(tmp_path / "cut", {"a": np.zeros(100)})
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-8])
    save_file({"a": np.zeros(2)}, tmp_path / "foreign")
    for name in ("cut", "foreign"):
        with pytest.raises(ValueError, match=f"{name} is not a parnl checkpoint"):
            training.read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(2)}, "checkpoint: lacks b"),
        ({"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(1)}, "checkpoint: has unknown c"),
        (
            {"a": np.zeros(2), "b": np.zeros((3, 1))},
            r"b is float64 \(3, 1\), the model expects float64 \(3,\)",
        ),
        (
            {"a": np.zeros(2, np.float32), "b": np.zeros(3)},
            r"a is float32 \(2,\), the model expects float64 \(2,\)",
        ),
    ],
)
def test_arrays_that_do_not_fit(arrays, message):
    with pytest.raises(ValueError, match=message):
        training.check_arrays(arrays, {"a": np.zeros(2), "b": np.zeros(3)})


def test_resuming_with_other_options_or_other_data_is_refused(tmp_path):
    training.fit(replace(SMALL, epochs=1), toy(count=8), tmp_path)
    with pytest.raises(ValueError, match=r"width: got 5, the checkpoint .* trained with 6"):
        training.fit(replace(SMALL, width=5), toy(count=8), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"model.lift.weight is float32 \(6, 2\)"):
        training.fit(SMALL, toy(count=8, channels=3), tmp_path, resume=True)
