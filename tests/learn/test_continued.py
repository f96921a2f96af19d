"""Models of later steps at work: trained, asked for what follows, judged, resumed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from toy_runs import BACKENDS, SMALL, waves

from parnl.learn import ahead, continued, judging, tasks, trained, training

WAVES = replace(SMALL, width=8, epochs=2, dropout=0.0, data="waves")


def run(tmp_path, **changes):
    """A run on the waves: its config, data and model."""
    waves().to_csv(tmp_path / "waves.csv", index=False)
    config = replace(WAVES, data=str(tmp_path / "waves.csv"), **changes)
    dataset = training.dataset_of(config)
    result = training.fit(config, dataset, tmp_path / "run")
    return dataset, result, trained.load_run(tmp_path / "run")


FORECAST = dict(task="forecast", context=12, horizon=4)
NEXT = dict(task="next", context=16)


@pytest.mark.long
@pytest.mark.parametrize("patch", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_follows_a_series(backend, patch, tmp_path):
    dataset, result, model = run(tmp_path, **FORECAST, target=["y"], backend=backend, patch=patch)
    new = waves(60)
    new.to_csv(tmp_path / "new.csv", index=False)
    found = pd.DataFrame(continued.predicted(model, str(tmp_path / "new.csv")))
    assert list(found) == ["series", "step", "time", "y"]
    assert found.step.tolist() == [1, 2, 3, 4]
    assert found.time.tolist() == pd.date_range("2024-03-03 12:00", periods=4, freq="h").tolist()
    train = waves().iloc[:128]
    mean, deviation = train[["x", "y"]].mean(), train[["x", "y"]].std(ddof=0)
    read = ((new[["x", "y"]] - mean) / deviation).to_numpy()[-12:].astype(np.float32)
    last = read[-1, 1]
    read[:, 1] -= last
    answers, _ = result.trainer.predict(read.reshape(1, 12 // patch, -1), None)
    expected = (answers[0] + last) * deviation.y + mean.y
    np.testing.assert_allclose(found.y, expected, rtol=1e-5)
    assert len(dataset.test.labels) == 40 - 3


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_judged_by_every_window(backend, tmp_path):
    _, result, model = run(tmp_path, **FORECAST, backend=backend)
    metrics, count = continued.judged(model, str(tmp_path / "waves.csv"))
    assert count == 200 - 12 - 3
    train = waves().iloc[:128][["x", "y"]]
    every = ((waves()[["x", "y"]] - train.mean()) / train.std(ddof=0)).to_numpy().astype("f4")
    gaps, changes = [], []
    for first in range(12, 197):
        read = every[first - 12 : first] - every[first - 1]
        answers, _ = result.trainer.predict(read[None], None)
        changes.append(every[first : first + 4] - every[first - 1])
        gaps.append(answers.reshape(4, 2) - changes[-1])
    assert metrics == pytest.approx(
        {"mse": np.mean(np.square(gaps)), "mae": np.mean(np.abs(gaps)),
         "persistence": np.mean(np.square(changes))}, rel=1e-4,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_series_go_on_by_themselves(backend, tmp_path):
    """Step by step, against the model read out anew after each of its own answers."""
    _, result, model = run(tmp_path, **NEXT, backend=backend)
    parts = [waves(30).assign(id="long"), waves(9).assign(id="short")]
    pd.concat(parts).to_csv(tmp_path / "new.csv", index=False)
    found = pd.DataFrame(continued.continued(model, str(tmp_path / "new.csv"), 5))
    assert found.series.tolist() == ["long"] * 5 + ["short"] * 5
    one = continued.predicted(model, str(tmp_path / "new.csv"))
    np.testing.assert_allclose(one["x"], found.x[[0, 5]], rtol=1e-5)
    train = waves().iloc[:128][["x", "y"]]
    mean, deviation = train.mean().to_numpy(), train.std(ddof=0).to_numpy()
    for part in parts:
        known = ((part[["x", "y"]].to_numpy() - mean) / deviation).astype(np.float32)[-16:]
        for _ in range(5):
            answers, _ = result.trainer.predict(known[None], None)
            known = np.concatenate([known, answers[0, -1:]])
        own = found[found.series == part.id.iloc[0]][["x", "y"]].to_numpy()
        np.testing.assert_allclose(own, known[-5:] * deviation + mean, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_text_goes_on(backend, tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat and " * 40)
    config = replace(
        WAVES, **NEXT, data=str(tmp_path / "a.txt"), width=16, state=16, cell="gru", epochs=25,
        backend=backend, learning_rate=0.01,
    )  # fmt: skip
    result = training.fit(config, training.dataset_of(config), tmp_path / "run")
    assert result.best["validation_bits"] < 1.5
    model = trained.load_run(tmp_path / "run")
    prompt = b"the cat sat "
    found = continued.generated(model, prompt, 20, temperature=0)
    known = list(prompt)
    for _ in range(20):
        answers, _ = result.trainer.predict(np.array([known]), None)
        known.append(int(answers[0, -1].argmax()))
    assert found == bytes(known[len(prompt) :])
    first, again, other = (
        continued.generated(model, prompt, 20, temperature=3, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    metrics, count = continued.judged(model, str(tmp_path / "a.txt"))
    assert count == -(-(27 * 40 - 1) // 16)
    assert metrics["bits"] < 1.5


def test_what_is_drawn_follows_the_logits():
    logits = np.log(np.array([1.0, 2, 5, 0.1]))
    for temperature, power in ((1.0, 1), (0.5, 2)):
        generator = np.random.default_rng(0)
        found = [continued.drawn(logits, temperature, generator) for _ in range(4000)]
        odds = np.array([1.0, 2, 5, 0.1]) ** power
        shares = np.bincount(found, minlength=4) / 4000
        np.testing.assert_allclose(shares, odds / odds.sum(), atol=0.03)
    assert continued.drawn(logits, 0, np.random.default_rng(0)) == 2


@pytest.mark.long
@pytest.mark.parametrize("task", [FORECAST, NEXT])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_run_has_the_same_bits(backend, task, tmp_path):
    _, whole, _ = run(tmp_path, **task, backend=backend, epochs=3)
    config = replace(WAVES, data=str(tmp_path / "waves.csv"), **task, backend=backend)
    dataset = training.dataset_of(config)
    training.fit(replace(config, epochs=1), dataset, tmp_path / "parts")
    again = training.fit(replace(config, epochs=3), dataset, tmp_path / "parts", resume=True)
    one, other = whole.trainer.export_state(), again.trainer.export_state()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("kind", ["numbers", "tokens"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_of_every_step(backend, kind, tmp_path):
    """Against a loop: rows without weight, steps after the end and unknown targets do not count."""
    rng, tokens = np.random.default_rng(0), kind == "tokens"
    config = replace(WAVES, **NEXT, backend=backend)
    trainer = training.build(config, 5 if tokens else 2, 5 if tokens else 2, tokens=5 * tokens)
    lengths, weights = np.array([3, 7, 5]), np.array([1, 1, 0], np.float32)
    if tokens:
        inputs, targets = rng.integers(0, 5, (2, 3, 7))
    else:
        inputs, targets = rng.normal(size=(2, 3, 7, 2)).astype(np.float32)
        targets[0, 1, 0] = targets[1, 4] = np.nan
    loss, answers, _ = trainer.step(inputs, lengths, targets, weights)
    losses = []
    for n in range(2):
        for t in range(lengths[n]):
            if tokens:
                odds = np.exp(answers[n, t].astype(float))
                losses.append(-np.log(odds[targets[n, t]] / odds.sum()))
            else:
                losses += [
                    (float(a) - b) ** 2
                    for a, b in zip(answers[n, t], targets[n, t], strict=True) if not np.isnan(b)
                ]  # fmt: skip
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    tally = tasks.Tally(tasks.TOKENS if tokens else tasks.TASKS["next"], tasks.PLAIN)
    tally.add(answers[:1], targets[:1], lengths[:1])
    tally.add(answers[1:2], targets[1:2], lengths[1:2])
    assert tally.loss == pytest.approx(np.mean(losses), rel=1e-5)
    found = tally.metrics()
    if tokens:
        assert found["bits"] == pytest.approx(np.mean(losses) / np.log(2), rel=1e-5)
        hits = [
            answers[n, t].argmax() == targets[n, t] for n in range(2) for t in range(lengths[n])
        ]
        assert found["accuracy"] == pytest.approx(np.mean(hits))
    else:
        assert found["mse"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_several_batches_weighs_every_step_alike(backend):
    """Series of unequal lengths: two batches that share a step give what one batch of both does."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4, 7, 2)).astype(np.float32)
    labels = rng.normal(size=(4, 7, 2)).astype(np.float32)
    split = ahead.Split(inputs, labels, np.array([7, 2, 6, 1]))
    config = replace(WAVES, **NEXT, backend=backend, epochs=1)
    own = ahead.Ahead(16, 1, ("x", "y"))
    dataset = ahead.Dataset("toy", (), split, split, split, ahead=own)
    states = []
    for changes in (dict(batch=4), dict(batch=2, accumulate=2)):
        trainer = training.build(replace(config, **changes), 2, 2)
        record = training._epoch(
            trainer, replace(config, **changes), dataset, tasks.PLAIN, 0, lambda done, total: None
        )
        states.append((trainer.export_state(), record["loss"]))
    (one, loss), (other, same) = states
    assert loss == pytest.approx(same, rel=1e-6)
    for name, value in one.items():
        if name.startswith("optimizer.mean") or ".mu." in name:  # the gradient, but for a factor
            np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task="next", horizon=3), "horizon: got 3, expected none for the task 'next'"),
        (dict(context=3), "context: got 3, expected none for the task 'classify'"),
        (dict(task="regress", target=["x"]), "target: got .'x'., expected none for the task"),
        (dict(task="forecast", label="x"), "label: got x, expected none for the task 'forecast'"),
        (dict(task="forecast", context=0), "context: got 0, expected at least 1"),
        (dict(task="forecast", patch=5), "patch: got 5, expected a divisor of the context"),
        (dict(task="next", patch=2), "patch: got 2, expected 1 for the task 'next'"),
        (dict(task="next", pooled=True), "pooled: expected no such option for the task 'next'"),
        (dict(validation=3), "validation: got 3, expected a share between 0 and 1$"),
        (dict(task="next", test=2.5), "test: got 2.5, expected a share .* or a whole number"),
        (dict(task="next", test=0), "test: got 0, expected a share"),
        (dict(clock="wall"), "clock: got 'wall', expected 'channel' or 'cell'"),
        (dict(clock="cell", patch=2), "patch: got 2, expected 1 where the cell takes dt"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(training.Config(), **changes)


def test_mistakes_at_work(tmp_path):
    _, _, model = run(tmp_path, **FORECAST)
    for short, call, message in (
        (5, continued.predicted, "series 0 has 5 steps, expected at least the 12"),
        (14, continued.judged, "the whole part has no 12 steps with 4 after them"),
    ):
        waves(short).to_csv(tmp_path / "short.csv", index=False)
        with pytest.raises(ValueError, match=message):
            call(model, str(tmp_path / "short.csv"))
    with pytest.raises(ValueError, match="model: got one of the task 'forecast', expected 'next'"):
        continued.continued(model, str(tmp_path / "waves.csv"), 3)
    with pytest.raises(ValueError, match="model: expected a text model"):
        continued.generated(model, b"a", 3)
    waves()[["date", "x"]].to_csv(tmp_path / "less.csv", index=False)
    with pytest.raises(ValueError, match="lacks the columns 'y'"):
        continued.predicted(model, str(tmp_path / "less.csv"))


def test_of_a_file_from_a_stranger_targets_are_checked(tmp_path):
    run(tmp_path, **FORECAST)
    path = tmp_path / "run" / training.MODEL
    arrays, header = training.read_checkpoint(path)
    for change, message in (
        (dict(targets=["z"]), "targets 'z', expected columns"),
        (dict(horizon=10**9), "too few for the model"),
        (dict(horizon=0), "a horizon of 0"),
        (dict(more=1), "no model's"),
        (dict(tokens=7, targets=[]), "2 channels, 7 tokens"),
    ):
        broken = header | {"ahead": header["ahead"] | change}
        training.write_checkpoint(path, arrays, **broken)
        with pytest.raises(ValueError, match=message):
            trained.load_model(path)


def test_answers_are_judged_without_keeping_them():
    """Most numbers that a comparison returns, evenly chosen windows."""
    assert judging.evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert judging.evenly(3, 9, 5).tolist() == [0, 1, 2]
    assert judging.evenly(5, 0).tolist() == [0]
