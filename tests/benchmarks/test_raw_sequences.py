"""Raw sequences: the data against plain loops, padding that counts for nothing, a run."""

import json
import math

import numpy as np
import pytest
import torch


@pytest.fixture
def raw(experiment, tmp_path, monkeypatch):
    module = experiment("raw_sequences")
    for task, results in module.RESULTS.items():
        monkeypatch.setattr(results, "path", tmp_path / "results" / f"{task}.jsonl")
        small = module.TASKS[task]._replace(batch=4, epochs=2)
        monkeypatch.setitem(module.TASKS, task, small)
    monkeypatch.setattr(module, "MNIST", 30)
    monkeypatch.setattr(module, "SEEDS", (0, 1))
    return module


@pytest.fixture
def files():
    """What the files of the experiment hold, smaller."""
    rng = np.random.default_rng(0)
    made = {}
    for name, classes in (("EOGVerticalSignal", 12), ("Worms", 5)):
        arrays = made[name] = {}
        for part, n in (("train", 10 * classes), ("test", 2 * classes)):
            arrays[f"X_{part}"] = rng.normal(3.0, 2.0, size=(n, 21)).astype(np.float32)
            arrays[f"y_{part}"] = 1 + np.arange(n) % classes
    lengths = rng.integers(20, 90, size=100).astype(np.int32)
    speech = rng.integers(-3000, 3000, size=lengths.sum()).astype(np.int16)
    order = dict(y=np.arange(100) % 10, take=np.arange(100) // 10 * 2)
    made["SpokenDigits"] = dict(X=speech, lengths=lengths, **order)
    images = rng.integers(0, 256, size=(40, 4, 5)).astype(np.uint8)
    made["MNIST"] = dict(X=images, y=np.arange(40) % 3)
    return made


@pytest.fixture
def folder(files, tmp_path):
    for name, arrays in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    return tmp_path


def plain(samples, size):
    """Steps of `size` samples, of which each series has mean 0 and deviation 1."""
    numbers = [float(x) for x in samples]
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / len(numbers))
    scaled = [(x - mean) / deviation for x in numbers]
    scaled += [0.0] * (-len(scaled) % size)
    return np.array([scaled[i : i + size] for i in range(0, len(scaled), size)])


def test_recordings_keep_the_archives_parts(raw, files, folder):
    arrays = files["Worms"]
    train, validation, test = raw.load(folder, "Worms")
    assert test.lengths is None
    for steps, label, x, y in zip(*test[:2], arrays["X_test"], arrays["y_test"], strict=True):
        np.testing.assert_allclose(steps, plain(x, 8), atol=1e-5)
        assert label == y - 1
    wanted = [plain(x, 8) for x in arrays["X_train"]]
    rows = np.concatenate([train.inputs, validation.inputs])
    labels = np.concatenate([train.labels, validation.labels])
    distance = np.abs(rows[:, None] - np.array(wanted)[None]).max(axis=(2, 3))
    assert sorted(distance.argmin(axis=1)) == list(range(50))
    assert distance.min(axis=1).max() < 1e-5
    np.testing.assert_array_equal(arrays["y_train"][distance.argmin(axis=1)] - 1, labels)


def test_a_fifth_of_each_class_validates(raw, folder):
    for task, classes in (("EOGVerticalSignal", 12), ("Worms", 5)):
        train, validation, _ = raw.load(folder, task)
        assert np.bincount(train.labels).tolist() == [8] * classes
        assert np.bincount(validation.labels).tolist() == [2] * classes


def test_clips_are_scaled_without_their_padding_and_early_takes_test(raw, files, folder):
    speech = files["SpokenDigits"]
    _, _, test = raw.load(folder, "SpokenDigits")
    begins = np.cumsum(speech["lengths"]) - speech["lengths"]
    at = 0
    for i, (begin, length) in enumerate(zip(begins, speech["lengths"], strict=True)):
        if speech["take"][i] > 4:
            continue
        steps = plain(speech["X"][begin : begin + length], 8)
        assert test.lengths[at] == len(steps)
        np.testing.assert_allclose(test.inputs[at, : len(steps)], steps, atol=1e-5)
        assert (test.inputs[at, len(steps) :] == 0).all()
        assert test.labels[at] == speech["y"][i]
        at += 1
    assert at == len(test.labels) == 30


def test_pixels_come_row_after_row_or_all_in_one_other_order(raw, files, folder):
    ordered, permuted = (raw.load(folder, task) for task in ("MNIST", "MNIST permuted"))
    for steps, image in zip(ordered[2].inputs, files["MNIST"]["X"][30:], strict=True):
        line = [image[r, c] / 255 for r in range(4) for c in range(5)]
        np.testing.assert_allclose(steps[:, 0], line, rtol=1e-6)
    orders = []
    for one, other in zip(ordered, permuted, strict=True):
        # which step of the other a pixel of every image is
        same = (one.inputs == other.inputs.swapaxes(1, 2)).all(axis=0)
        assert same.sum() == 20
        orders.append(same.argmax(axis=1).tolist())
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] != sorted(orders[0]) == list(range(20))


def test_batches_hold_each_sequence_once_and_no_more_padding_than_needed(raw, folder):
    train, *_ = parts = raw.load(folder, "SpokenDigits")
    known = {steps.tobytes(): i for i, steps in enumerate(train.inputs)}  # no two are the same
    for rng in (None, np.random.default_rng(0)):
        seen = []
        for inputs, labels, lengths in raw.Classes(parts, 4).batches(rng):
            assert inputs.shape[1] == lengths.max()
            whole = np.zeros((len(labels), *train.inputs.shape[1:]), np.float32)
            whole[:, : inputs.shape[1]] = inputs
            rows = [known[steps.tobytes()] for steps in whole]
            assert labels.tolist() == train.labels[rows].tolist()
            assert lengths.tolist() == train.lengths[rows].tolist()
            seen += rows
        assert sorted(seen) == list(range(len(train.labels)))


def test_padding_counts_for_nothing(raw, folder):
    task = raw.Classes(raw.load(folder, "SpokenDigits"), 4)
    *_, batch = task.batches(np.random.default_rng(0))
    inputs = batch.inputs.double()
    beyond = torch.arange(inputs.shape[1]) >= batch.lengths[:, None]
    assert beyond.any()
    padded = torch.where(beyond[..., None], 3.0, inputs)
    sizes = raw.Sizes(8, 10, block_width=8)
    for name in ("gru", "attention"):
        model = raw.built(name, 16, sizes, 0).double()
        alone = [model(inputs[i : i + 1, :n])[0] for i, n in enumerate(batch.lengths)]
        torch.testing.assert_close(model(padded, batch.lengths)[0], torch.cat(alone), msg=name)


def test_models_have_as_many_parameters(raw):
    sizes = raw.Sizes(4, 12, blocks=1)
    goal = raw.count(raw.built("attention", 32, sizes, 0))
    for name in raw.SHOWN:
        found = raw.count(raw.built(name, raw.matched(name, sizes), sizes, 0))
        assert abs(found / goal - 1) <= 0.1, name


def test_accuracy_is_the_share_of_right_answers_and_the_loss_breaks_ties(raw, folder):
    parts = raw.load(folder, "Worms")
    task = raw.Classes(parts, 4)

    def model(confidence):
        def answers(inputs, lengths):
            # always the third class
            return confidence * torch.eye(5)[torch.full((len(inputs),), 2)], []

        return answers

    _, validation, test = parts
    assert task.test(model(1.0))["accuracy"] == pytest.approx(100 * np.mean(test.labels == 2))
    sure, unsure = (task.error(model(c)) for c in (5.0, 1.0))
    wrong = 100 * np.mean(validation.labels != 2)
    assert wrong < unsure < sure < wrong + 0.01
    loss = math.log(math.exp(1.0) + 4) - np.mean(validation.labels == 2)
    assert task.judge(model(1.0), validation)[1] == pytest.approx(loss, rel=1e-5)
    assert math.isnan(task.error(model(math.nan)))


@pytest.mark.long
def test_runs_are_kept_and_drawn(raw, folder, command, capsys):
    tasks = ("Worms", "SpokenDigits")
    for _ in range(2):
        command(raw, "run", "--data", folder, "--tasks", *tasks, "--models", "gru", "attention")
    for task in tasks:
        lines = [json.loads(line) for line in raw.RESULTS[task].path.read_text().splitlines()]
        assert [r["model"] for r in lines] == ["gru"] * 3 + ["attention"] * 3
        assert [r["seed"] for r in lines] == [0, 0, 1] * 2
        assert all(0 <= r[key] <= 100 for r in lines for key in ("accuracy", "learned"))
    capsys.readouterr()

    command(raw, "show")
    shown = capsys.readouterr().out
    assert (raw.RESULTS["Worms"].path.parent / "tables.md").read_text() == shown[:-1]
    assert "EOGVerticalSignal: not run yet" in shown
    assert "Worms, 8 samples a step:" in shown
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows[:6]}) == 1
    assert sum(row.startswith("| ROCKET, published | 74.0") for row in rows) == 1
    assert sum(row.startswith("| attention |") for row in rows) == 2
