"""Intensive care: the data against plain loops, padding that counts for nothing, a run."""

import json
import math
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

NAMES = ["Age", "Gender", "Height", "ICUType", "Weight", *(f"x{i}" for i in range(36))]
COLUMNS = ["SAPS-I", "In-hospital_death"]


@pytest.fixture
def care(experiment, tmp_path, monkeypatch):
    module = experiment("intensive_care")
    monkeypatch.setattr(module.RESULTS, "path", tmp_path / "results" / "care.jsonl")
    sizes = module.SIZES._replace(units=6, width=4, block_width=4)
    for name, value in dict(SIZES=sizes, BATCH=6, EPOCHS=2, ROUNDS=2, SEEDS=(0, 1)).items():
        monkeypatch.setattr(module, name, value)
    yield module
    torch.set_flush_denormal(False)  # `main` has set it


def stays_of(rng, number):
    """For each stay a list of (minute, variable, value), in order of time; some at one time."""
    for _ in range(number):
        first = [(0, i, rng.choice([-1.0, 0.0, 1.0])) for i in (1, 2)]
        first += [(0, 0, float(rng.integers(20, 90)))]
        first += [(0, 3, float(rng.integers(1, 5))), (0, 4, rng.choice([-1.0, 70.0]))]
        minutes = np.sort(rng.integers(0, 40, size=rng.integers(0, 30)) * 75)
        rest = [(int(m), int(rng.integers(4, 41)), float(rng.normal(-1.0, 3.0))) for m in minutes]
        yield first + rest


@pytest.fixture
def sets():
    """Events of both sets, and who died: set a has 40 stays, set b 20."""
    rng = np.random.default_rng(0)
    made = {letter: list(stays_of(rng, n)) for letter, n in (("a", 40), ("b", 20))}
    return made, dict(a=np.arange(40) % 4 == 0, b=np.arange(20) % 4 == 0)


@pytest.fixture
def folder(sets, tmp_path):
    return save(tmp_path, *sets)


def save(folder, made, died):
    arrays = dict(varnames=np.array(NAMES), outcome_cols=np.array(COLUMNS))
    for letter, stays in made.items():
        minutes, variables, values = zip(*(event for stay in stays for event in stay), strict=True)
        arrays[f"t_min_{letter}"] = np.array(minutes, np.int16)
        arrays[f"var_{letter}"] = np.array(variables, np.int8)
        arrays[f"val_{letter}"] = np.array(values, np.float32)
        arrays[f"n_{letter}"] = np.array([len(stay) for stay in stays])
        outcomes = np.stack([np.full(len(stays), 9), died[letter]], axis=1)
        arrays[f"outcomes_{letter}"] = outcomes.astype(np.int64)
    np.savez(folder / "PhysioNet2012.npz", **arrays)
    return folder


def test_events_become_steps_by_their_times(care, sets, folder):
    (made, died), (events, names) = sets, care.read(folder, "b")
    assert names == NAMES
    np.testing.assert_array_equal(events.died, died["b"])
    at = 0
    for stay, length in zip(made["b"], events.lengths, strict=True):
        times = sorted({minute for minute, _, _ in stay})
        assert length == len(times)
        for minute in times:
            assert events.hours[at] == pytest.approx(minute / 60)
            for column in range(41):
                found = [v for m, c, v in stay if (m, c) == (minute, column)]
                if column in (1, 2, 3, 4):
                    found = [v for v in found if v != -1]  # unknown
                wanted = np.mean(found) if found else np.nan
                np.testing.assert_allclose(events.values[at, column], wanted, rtol=1e-5)
            at += 1
    assert at == len(events.values) == len(events.hours)


def test_values_are_scaled_within_the_limits_of_what_is_known(care):
    known = np.array([[0.0, 5.0], [1.0, np.nan], [2.0, 5.0], [1000.0, 5.0]])
    low, high, mean, deviation = care.scaling(np.repeat(known, 100, axis=0))
    assert (low[0], high[0]) == (0.0, 1000.0)
    assert mean[0] == pytest.approx(250.75)
    assert (mean[1], deviation[1]) == (5.0, 1.0)  # no division by 0
    assert care.scaling(np.r_[np.zeros((999, 1)), [[1e6]]])[1][0] == 0.0


def test_channels_are_values_carried_forward_masks_constants_and_dt(care, folder):
    events, names = care.read(folder, "b")
    scale = care.scaling(events.values)
    low, high, mean, deviation = scale
    found = care.inputs_of(events, names, scale)
    assert [len(steps) for steps in found] == events.lengths.tolist()
    at = 0
    for steps in found:
        assert steps.shape[1] == care.CHANNELS == 82
        last, first = np.zeros(37), events.values[at]
        for t, step in enumerate(steps.numpy()):
            new = events.values[at, 4:]
            for i in range(37):
                if not math.isnan(new[i]):
                    inside = min(max(new[i], low[4 + i]), high[4 + i])
                    last[i] = (inside - mean[4 + i]) / deviation[4 + i]
            np.testing.assert_allclose(step[:37], last, atol=1e-5)
            np.testing.assert_array_equal(step[37:74], ~np.isnan(new))
            constants = (np.clip(first[:3], low[:3], high[:3]) - mean[:3]) / deviation[:3]
            np.testing.assert_allclose(step[74:77], np.nan_to_num(constants), atol=1e-5)
            np.testing.assert_array_equal(step[77:81], first[3] == np.arange(1, 5))
            ends = events.hours[at + 1] if t < len(steps) - 1 else max(48.0, events.hours[at])
            assert step[81] == pytest.approx(ends - events.hours[at], abs=1e-5)
            at += 1


def test_a_fifth_of_each_outcome_validates(care, sets, folder):
    train, validation, test = care.load(folder)
    assert [len(p.died) for p in (train, validation, test)] == [32, 8, 20]
    assert [int(p.died.sum()) for p in (train, validation, test)] == [8, 2, 5]
    assert [len(p.inputs) for p in (train, validation, test)] == [32, 8, 20]


def test_only_the_training_part_is_looked_at_for_the_scale(care, sets, tmp_path):
    made, died = sets
    before = care.load(save(tmp_path, made, died))
    held = care.held_out(died["a"], care.HELD)
    made["a"] = [
        [(m, c, v * 50 if c > 4 and h else v) for m, c, v in stay]
        for stay, h in zip(made["a"], held, strict=True)
    ]
    made["b"] = [[(m, c, v * 50 if c > 4 else v) for m, c, v in s] for s in made["b"]]
    after = care.load(save(tmp_path, made, died))
    for one, two in zip(before[0].inputs, after[0].inputs, strict=True):
        assert torch.equal(one, two)
    changed = [torch.equal(*pair) for pair in zip(before[1].inputs, after[1].inputs, strict=True)]
    assert not all(changed)


@pytest.mark.parametrize("seed", [None, 0])
def test_batches_hold_each_stay_once_with_those_of_similar_length(care, folder, seed):
    train = care.load(folder)[0]
    rng = None if seed is None else np.random.default_rng(seed)
    batches = list(care.batches(train, True, rng))
    chosen = torch.cat([b.chosen for b in batches])
    assert sorted(chosen.tolist()) == list(range(32))
    assert torch.equal(torch.cat([b.died for b in batches]), train.died[chosen])
    shares = []
    for batch in batches:
        shares.append(float(batch.lengths.sum() / (len(batch.lengths) * batch.lengths.max())))
        for row, n, i in zip(batch.inputs, batch.lengths, batch.chosen, strict=True):
            assert torch.equal(row[:n], train.inputs[i])
            assert (row[n:] == 0).all()
    assert np.mean(shares) > 0.75  # in random order 0.6
    shortest = [int(b.lengths.min()) for b in batches]
    assert (shortest == sorted(shortest)) == (seed is None)


def test_missing_values_are_zero_where_nothing_is_carried_forward(care, folder):
    train = care.load(folder)[0]
    batches = (care.batches(train, carried) for carried in (True, False))
    for with_last, without in zip(*batches, strict=True):
        masks = with_last.inputs[..., 37:74]
        assert torch.equal(without.inputs[..., :37], with_last.inputs[..., :37] * masks)
        assert torch.equal(without.inputs[..., 37:], with_last.inputs[..., 37:])
        assert (with_last.inputs[..., :37][masks == 0] != 0).any()


@pytest.mark.parametrize("readout", ["mean", "last"])
def test_padding_counts_for_nothing(care, experiment, folder, readout):
    task = care.Care(care.load(folder), readout=readout)
    *_, batch = task.batches(np.random.default_rng(0))
    batch = batch._replace(inputs=batch.inputs.double(), died=batch.died.double())
    beyond = torch.arange(batch.inputs.shape[1]) >= batch.lengths[:, None]
    assert beyond.any()
    padded = batch._replace(inputs=torch.where(beyond[..., None], 3.0, batch.inputs))
    build, sizes = experiment("contenders").build, care.SIZES
    for name in care.TRIED:
        if name.startswith("ncps"):
            pytest.importorskip("ncps")
        model = build(name, 5, sizes, 0).double()
        alone = []
        for i, n in enumerate(batch.lengths.tolist()):
            row = care.Batch(batch.inputs[i : i + 1, :n], *(a[i : i + 1] for a in batch[1:]))
            alone.append(task.logits(model, row))
        wanted = torch.cat(alone)
        assert (wanted[1:] - wanted[:-1]).abs().min() > 0
        for given in (batch, padded):
            torch.testing.assert_close(task.logits(model, given), wanted, msg=name)
        # nor for what is learned
        gradients = []
        for given in (batch, padded):
            model.zero_grad()
            task.loss(model, given).backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        torch.testing.assert_close(*gradients, msg=name)


def test_outcomes_weigh_the_same_where_the_loss_is_weighted(care, folder, monkeypatch):
    parts = care.load(folder)
    died = parts[0].died
    logits = torch.randn(32, generator=torch.Generator().manual_seed(0))
    batch = care.Batch(None, None, died, None)
    for weighted in (False, True):
        task = care.Care(parts, weighted=weighted)
        monkeypatch.setattr(task, "logits", lambda model, batch: logits)
        surprise = -torch.where(died == 1, logits.sigmoid(), 1 - logits.sigmoid()).log()
        each = torch.where(died == 1, (died == 0).sum() / died.sum(), 1.0) if weighted else 1.0
        torch.testing.assert_close(task.loss(None, batch), (surprise * each).mean())


def test_scores_are_those_of_the_stays_they_belong_to(care, folder):
    task = care.Care(care.load(folder))

    def model(inputs, lengths):
        # the hours that the steps have lasted, at each
        return inputs[..., -1:].cumsum(dim=1)

    stays = task.held_out
    scores = [float(steps[:, -1].cumsum(0).mean()) for steps in stays.inputs]
    pairs = [
        (x > y) + 0.5 * (x == y)
        for x, d in zip(scores, stays.died, strict=True)
        for y, e in zip(scores, stays.died, strict=True)
        if d and not e
    ]
    assert task.test(model)["auroc"] == pytest.approx(np.mean(pairs))
    order = np.argsort(scores)[::-1]
    hits = stays.died.numpy()[order]
    precision = [hits[: i + 1].mean() for i in range(20) if hits[i]]
    assert task.test(model)["auprc"] == pytest.approx(np.mean(precision))
    held = [float(steps[:, -1].cumsum(0).mean()) for steps in task.validation.inputs]
    other = care.judged(task.validation.died, held)
    assert task.error(model) == pytest.approx(1 - other["auroc"])


def test_a_summary_is_of_what_was_measured(care, folder):
    for steps in care.load(folder)[0].inputs:
        found = care.summary(steps).numpy()
        mean, least, most, last, number = found[:185].reshape(5, 37)
        for i in range(37):
            known = [float(s[i]) for s in steps if s[37 + i]]
            wanted = [np.mean(known), min(known), max(known), known[-1]] if known else [0.0] * 4
            np.testing.assert_allclose([mean[i], least[i], most[i], last[i]], wanted, atol=1e-6)
            assert number[i] == pytest.approx(math.log1p(len(known)))
        np.testing.assert_array_equal(found[185:], steps[0, 74:81])


def test_ltc_has_the_settings_of_cfc(care):
    assert care.choices("ltc") == care.CHOICES
    settings = dict(rate=1e-3, carried=False, readout="last", weighted=True)
    care.RESULTS.add(kind="run", model="cfc", seed=0, **settings, validation=0.2)
    assert care.choices("ltc") == {key: (value,) for key, value in settings.items()}
    assert care.choices("gru") == care.CHOICES


@pytest.mark.long
def test_runs_are_kept_and_drawn(care, folder, command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ncps", None)  # nothing here needs it
    few = dict(rate=(3e-3,), carried=(True,), readout=("mean", "last"), weighted=(True,))
    monkeypatch.setattr(care, "CHOICES", few)
    for what in ("run", "run", "time"):
        command(care, what, "--data", folder, "--models", "cfc", "nn.GRU")
    lines = [json.loads(line) for line in care.RESULTS.path.read_text().splitlines()]
    models = ["logistic regression"] + ["cfc"] * 3 + ["nn.GRU"] * 3 + ["cfc", "nn.GRU"]
    assert [r["model"] for r in lines] == models
    assert [r["kind"] for r in lines] == ["run"] * 7 + ["time"] * 2
    assert all(0 <= r[key] <= 1 for r in lines[:7] for key in ("auroc", "auprc", "validation"))
    assert float(torch.tensor(1e-38) * torch.tensor(1e-3)) == 0.0  # and no denormal number
    capsys.readouterr()

    command(care, "show")
    shown = capsys.readouterr().out
    assert "| cfc, blocks |" in shown
    assert "| logistic regression of summaries |" in shown
