"""The page that `parnl report` writes: its numbers, its HTML, and hostile text in it."""

import ast
import base64
import json
import re
import shlex
import sys
from dataclasses import asdict, fields, replace
from xml.etree import ElementTree

import numpy as np
import pytest
from report_pages import Page, run_in, written
from toy_runs import BACKENDS, SMALL, toy, walks, waves

import parnl as package
from parnl.learn import (
    actions,
    charts,
    commands,
    inside,
    judging,
    kept,
    report,
    report_tasks,
    tasks,
    trained,
    training,
)

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that no test changes."""
    folder = tmp_path_factory.mktemp("made") / "run"
    return folder, run_in(folder)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_command_on_a_classifier(parnl, backend, tmp_path):
    told = ["--data", "UnitTest", "--blocks", 1, "--width", 4, "--state", 5, "--batch", 8]
    folder, out = tmp_path / "run", tmp_path / "pages" / "page.html"
    made = parnl("train", *told, "--backend", backend, "--epochs", 2, "--out", folder)
    assert made[0] == 0, made[1]
    assert parnl("report", folder, "--out", out) == (0, f"written {out}\n")
    page = Page(out.read_text("utf-8"))

    model = trained.load_run(folder)
    test = training.dataset_of(model.config).test
    answers, _ = judging.evaluate(model.trainer, test, 8, method="sequential")
    found = answers.argmax(axis=1)
    hits = np.mean(found == test.labels)
    assert dict(page.table("metric", "test"))["accuracy"] == f"{hits:.1%}"
    rows = page.table("truth \\ answer", *model.classes)
    pairs = [[int(np.sum((test.labels == i) & (found == j))) for j in (0, 1)] for i in (0, 1)]
    assert [[int(cell) for cell in row[1:]] for row in rows] == pairs
    for k, row in enumerate(page.table("class", "precision", "recall", "F1", "series")):
        right, said = pairs[k][k], pairs[0][k] + pairs[1][k]
        precision, recall = right / max(1, said), right / sum(pairs[k])
        f1 = 2 * precision * recall / (precision + recall) if right else 0
        expected = [*(f"{share:.1%}" for share in (precision, recall, f1)), str(sum(pairs[k]))]
        assert row == [model.classes[k], *expected]

    assert f"classify: UnitTest, lrc in {backend}" in page.text
    assert [row[:3] for row in page.table("part", "series", "steps")] == [
        ["train", "16", "24"], ["validation", "4", "24"], ["test", "22", "24"],
    ]  # fmt: skip
    arrays, _ = training.read_checkpoint(folder / training.MODEL)
    about = dict(page.tables[-2][1:])
    assert about["parameters"] == f"{sum(array.size for array in arrays.values()):,}"
    assert about["parnl"] == package.__version__
    # the module may also tell how it was built: 2.15.0+cu132
    assert about[backend].partition("+")[0] == sys.modules[backend].__version__.partition("+")[0]
    options = dict(page.table("option", "value"))
    assert len(options) == len(asdict(model.config))
    assert (options["--width"], options["--backend"]) == ("4", backend)  # as they are typed
    assert {"--lr", "--weight-decay", "clip"} < options.keys()


def test_the_page_is_whole_and_needs_no_other_file(made):
    source, page = written(made[0])
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    addresses = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert len(addresses) == 3
    for address in addresses:
        kind, _, data = address.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert "://" not in re.sub(r"base64,[^\"]*", "", source)
    assert ("meta", "name", "viewport") in page.attributes
    assert "default-src 'none'" in source
    assert written(made[0])[0] == source


def test_curves_and_the_best_epoch(made, monkeypatch):
    folder, (_, result, test) = made
    drawn = []
    monkeypatch.setattr(charts, "curves", lambda *given: drawn.append(given) or "data:,")
    monkeypatch.setattr(charts, "iterations", lambda *given: drawn.append(given) or "data:,")
    _, page = written(folder)
    history, best = result.history, result.best["epoch"]
    epochs = [1, 2]
    for name, given in zip(("loss", "accuracy"), drawn, strict=False):
        own = [[record[f"{part}{name}"] for record in history] for part in ("", "validation_")]
        assert given == (epochs, *own, best)
    assert drawn[2] == (epochs, [tuple(r["iterations"][0] for r in history)], ["block 1"], best)
    assert f"with the weights of epoch {best}" in page.text
    exact = dict(page.table("", "test"))
    assert exact["gap"].startswith(f"{test.gap:.1e}")
    assert exact["chunks"] == "12"
    assert exact["Newton iterations of each block, at most"] == str(test.iterations[0])


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers(parnl, backend, tmp_path):
    walks().to_csv(tmp_path / "walks.csv", index=False)
    told = ["--task", "regress", "--data", tmp_path / "walks.csv", "--id", "walk", "--time", "t"]
    told += ["--label", "speed", "--columns", "x,y", "--blocks", 1, "--width", 4, "--state", 3]
    folder = tmp_path / "run"
    done = parnl("train", *told, "--backend", backend, "--epochs", 2, "--out", folder)
    assert done[0] == 0, done[1]
    _, page = written(folder)
    model = trained.load_run(folder)
    data = training.dataset_of(model.config)
    answers, _ = judging.evaluate(model.trainer, data.test, 8, method="sequential")
    mean, deviation = data.train.labels.mean(), data.train.labels.std()
    gap = (answers * deviation + mean - data.test.labels)[:, 0]
    (row,) = page.table("number", "mean error", "mean |error|", "root mean square", "largest", "R2")
    assert row[0] == "speed"
    share = 1 - np.mean(gap**2) / np.var(data.test.labels)
    expected = [gap.mean(), abs(gap).mean(), np.sqrt(np.mean(gap**2)), abs(gap).max(), share]
    np.testing.assert_allclose([float(cell) for cell in row[1:]], expected, rtol=2e-3)
    (scale,) = page.table("number to learn", "mean", "deviation")
    np.testing.assert_allclose([float(cell) for cell in scale[1:]], [mean, deviation], rtol=1e-5)
    channels = page.table("channel", "mean", "deviation")
    assert [name for name, *_ in channels] == ["x", "y"]
    held = model.preparation
    assert [row[1] for row in channels] == [f"{value:.6g}" for value in held.mean]
    assert "values are missing: interpolated" in page.text
    assert page.tags.count("img") == 5


def test_points_are_where_they_should_be(monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "_picture", figures.append)
    truth, answers = np.array([1.0, 2, 4]), np.array([2.0, 2, 3])
    charts.against(truth, answers)
    charts.residuals(truth, answers)
    charts.curves([1, 2, 3], [3.0, 2, 1], [4.0, 1, 2], 2)
    points = [line.get_xydata().tolist() for figure in figures for line in figure.axes[0].lines]
    assert points[1] == [[1, 2], [2, 2], [4, 3]]
    assert points[3] == [[1, 1], [2, 0], [4, -1]]
    assert points[4:6] == [[[1, 3], [2, 2], [3, 1]], [[1, 4], [2, 1], [3, 2]]]
    assert points[7] == [[2, 1]]


def test_text_of_a_run_is_inert(tmp_path):
    names = (EVIL, '"><img src=x onerror=alert(1)>', "$\\frac$ & \x1b[31m\u202e")
    dataset = toy()._replace(classes=names, name=EVIL, notes=(f"a note {EVIL}",))
    run_in(tmp_path, dataset, data=EVIL)
    path = tmp_path / kept.REPORT
    held = json.loads(path.read_text())
    held["versions"] = {EVIL: EVIL}
    held["test"]["metrics"][EVIL] = 1.0
    path.write_text(json.dumps(held))
    source, page = written(tmp_path)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.tags.count("img") == 3
    assert page.text.count(EVIL) >= 8
    assert [row[0] for row in page.table("class", *kept.PARTS)][:2] == list(names[:2])
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert page.text.count("parnl train --task classify") == 0
    assert shlex.split(page.text.partition("such a run: ")[2].splitlines()[0])[3] == EVIL


def arguments_of(line, monkeypatch):
    """What the command line makes of a command."""
    seen = []
    monkeypatch.setattr(actions, "run_training", lambda *given: seen.append(given))
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit):
        commands.main()
    folder, resume, overwrite = seen[0][1:]
    assert (folder.parent.name, resume, overwrite) == ("runs", False, False)
    return training.Config(**seen[0][0])


OTHER = dict(
    task="regress", best="mae", cell="gru", options={"dt": 0.5}, data="a b/$(rm *)'s.csv",
    pooled=True, channels=[1], standardise=False, id="-id", time="t", label="l", columns=["x", "y"],
    layout="long", missing="mask", patch=2, backend="jax", blocks=3, loops=2, width=5, state=6,
    dropout=0.25, epochs=7, batch=8, learning_rate=0.5, clip=2.0, patience=9, seed=10, chunks=11,
    validation=0.1, test=0.3, schedule="cosine", warmup=2, weight_decay=0.1, accumulate=2,
    precision="bfloat16", tensorboard=True,
)  # fmt: skip
# Options of some tasks alone, and what they need.
LATER = {
    "context": dict(task="next", context=8),
    "horizon": dict(task="forecast", horizon=8),
    "target": dict(task="forecast", target=["x", "y"], validation=100.0),
    "clock": dict(clock="cell"),
    "class_weights": dict(class_weights="balanced"),
}


def test_the_command_makes_the_same_config(monkeypatch):
    known = {name: OTHER.get(name) for name in (field.name for field in fields(training.Config))}
    whole = training.Config(**{name: value for name, value in known.items() if name in OTHER})
    line, lacking = report.command_line(whole)
    without = {name: getattr(training.Config(), name) for name in ("clip", "pooled", "channels")}
    assert arguments_of(line, monkeypatch) == replace(whole, options={}, **without)
    assert [said.partition(" ")[0] for said in lacking] == [
        "options", "pooled", "channels", "clip",
    ]  # fmt: skip
    assert report.command_line(training.Config())[0] == "parnl train --data JapaneseVowels"
    assert "channels = [1]" in report.command(whole)


@pytest.mark.parametrize("name", [field.name for field in fields(training.Config)])
def test_every_option_is_told(name, monkeypatch):
    """Also one that is new: it has an option of the command, or is said to have none."""
    changes = LATER.get(name) or {name: OTHER[name]}
    config = replace(training.Config(), **changes)
    line, lacking = report.command_line(config)
    if lacking:
        assert name in report.NO_OPTIONS
    else:
        assert arguments_of(line, monkeypatch) == config


def test_a_command_that_could_harm_a_terminal_is_not_shown():
    said = report.command(replace(training.Config(), data="a\x1b[201~\nrm b"))
    assert "cannot be shown" in said
    assert "\x1b" not in said
    assert "<pre>" not in said


def test_many_series_are_chosen_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "MOST_ANSWERS", 5)
    dataset, _, test = run_in(tmp_path)
    arrays, _ = training.read_checkpoint(tmp_path / kept.TEST)
    rows = [0, 15, 30, 44, 59]
    np.testing.assert_array_equal(arrays["targets"], dataset.test.labels[rows])
    np.testing.assert_array_equal(test.rows, rows)
    every, _ = judging.evaluate(
        trained.load_run(tmp_path).trainer, dataset.test, 8, method="newton", chunks=12
    )
    np.testing.assert_allclose(arrays["answers"], every[rows], atol=1e-6)
    _, page = written(tmp_path)
    assert "5 of the 60 series of the test part, chosen evenly" in page.text
    assert "does not keep more answers" in page.text
    counts = page.table("truth \\ answer", *dataset.classes)
    assert sum(int(cell) for row in counts for cell in row[1:]) == 5


def test_many_classes_are_a_list(made, monkeypatch):
    folder, (dataset, _, test) = made
    monkeypatch.setattr(report_tasks, "MATRIX", 2)
    _, page = written(folder)
    found = test.answers.argmax(axis=1)
    pairs = {
        (i, j): int(np.sum((dataset.test.labels == i) & (found == j)))
        for i in range(3) for j in range(3) if i != j
    }  # fmt: skip
    largest = sorted((n for n in pairs.values() if n), reverse=True)[:2]
    rows = page.table("truth", "answer", "series")
    assert [int(row[2]) for row in rows] == largest
    assert all(pairs[int(i), int(j)] == int(n) for i, j, n in rows)


def test_inputs_that_are_kept_have_no_padding(tmp_path):
    dataset, _, _ = run_in(tmp_path)
    inputs = kept.read(tmp_path).inputs
    assert len(inputs) == kept.SAMPLE
    assert inputs.shape[1] == np.sort(dataset.test.lengths)[-kept.SAMPLE]
    assert inputs.any(axis=2).all()


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_blocks_read_is_what_the_model_gives_them(backend, monkeypatch, tmp_path):
    dataset = toy(lengths=False)
    changes = dict(blocks=2, loops=2, cell="gru", backend=backend)
    config = replace(SMALL, **changes)
    trainer = training.build(config, 2, 3)
    module = sys.modules[f"parnl.learn.{'torch_model' if backend == 'torch' else 'jax_blocks'}"]
    seen, solve = [], module.solve

    def recorded(cell, params, x, **how):
        seen.append(x)
        return solve(cell, params, x, **how)

    monkeypatch.setattr(module, "solve", recorded)
    inputs = dataset.test.inputs[:3]
    if backend == "torch":
        trainer.model.eval()
        trainer.model(sys.modules["torch"].from_numpy(inputs))
        seen = [x.detach().numpy() for x in seen]
    else:
        trainer.model(inputs)
    arrays = training.model_of(trainer.export_state())
    found = inside.block_inputs(arrays, config, inputs)
    assert len(seen) == 4
    for block, read in enumerate(found):
        own = np.concatenate([np.asarray(x) for x in seen[block::2]])
        np.testing.assert_allclose(read, own, atol=2e-5)


def test_stability_is_what_certify_and_lyapunov_say(made):
    folder, _ = made
    _, page = written(folder)
    run = kept.read(folder)
    arrays = training.model_of(run.model.trainer.export_state())
    (read,) = inside.block_inputs(arrays, run.model.config, run.inputs)
    cell = package.get_cell("lrc", input_size=6, hidden_size=4)
    params = inside.recurrence(arrays, 0)
    bound = package.certify(cell, params, inputs=read)  # from zero, with more boxes
    found = package.lyapunov(cell, params, read)
    (row,) = page.table("", "proved bound", "measured", "Lyapunov exponent a step", "states")
    assert float(row[1]) == pytest.approx(bound.bound, rel=0.02)
    assert float(row[2]) == pytest.approx(found.rho.max(), rel=1e-3)
    assert float(row[3].partition(":")[0]) == pytest.approx(found.largest, rel=1e-3)
    assert bound.stable
    assert "Block 1: stable. This is proved for 4 channels" in page.text
    assert (
        f"{kept.SAMPLE} series of the test part reach in {run.inputs.shape[1]} steps each"
        in page.text
    )


def stability_of(folder, scale, cell="indrnn", **changes):
    """The stability of a run whose cell's `a` is set."""
    config = replace(SMALL, cell=cell, **changes)
    trainer = training.build(config, 2, 3)
    state = trainer.export_state()
    state["model.blocks.0.recurrence.a"][:] = scale
    trainer.import_state(state)
    model = trained.Trained(trainer, config, ("0", "1", "2"), tasks.PLAIN, None, None)
    inputs = toy(lengths=False).test.inputs[:3]
    return inside.stability(model, inputs), model, inputs


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (0.5, "stable. This is proved"),
        (3.0, "In 4, changes do not shrink"),
        (np.nan, "nothing can be proved"),
    ],
)
def test_the_verdict(scale, said, made, tmp_path):
    (block,), model, inputs = stability_of(tmp_path, scale, options={"activation": "tanh"})
    run = kept.read(made[0])._replace(model=model, inputs=inputs)
    page = Page(report.steadiness(run, [block]))
    assert said in page.text
    if scale == 0.5:
        assert block.certificate.bound == pytest.approx(0.5, abs=0.01)
    assert (block.certificate is None) == np.isnan(scale)


def test_a_model_without_a_cell(tmp_path):
    run_in(tmp_path, cell="attention", width=8)
    _, page = written(tmp_path)
    assert "The model has no recurrent cell" in page.text
    assert page.tags.count("img") == 2


@pytest.mark.long
def test_forecasts(tmp_path, parnl):
    """The errors by step ahead and by column, of numbers computed anew."""
    waves().to_csv(tmp_path / "waves.csv", index=False)
    told = ["--task", "forecast", "--data", tmp_path / "waves.csv", "--context", 8]
    told += ["--horizon", 3, "--width", 4, "--state", 3, "--epochs", 1]
    done = parnl("train", *told, "--out", tmp_path / "run")
    assert done[0] == 0, done[1]
    _, page = written(tmp_path / "run")
    model = trained.load_run(tmp_path / "run")
    data = training.dataset_of(model.config)
    answers, _ = judging.evaluate(model.trainer, data.test, 8, method="sequential")
    truth = data.test.labels[:].reshape(-1, 3, 2)
    gap = answers.reshape(-1, 3, 2) - truth
    rows = page.table("steps ahead", "mean squared error", "if the last value stays")
    expected = [[k + 1, np.mean(gap[:, k] ** 2), np.mean(truth[:, k] ** 2)] for k in range(3)]
    np.testing.assert_allclose(np.array(rows, float), expected, rtol=2e-3)
    heads = "column", "mean squared error", "mean |error|", "root mean square, in its unit"
    for c, row in enumerate(page.table(*heads)):
        own = gap[..., c]
        unit = np.sqrt(np.mean(own**2)) * data.preparation.deviation[c]
        wanted = [np.mean(own**2), np.mean(abs(own)), unit]
        assert row[0] == "xy"[c]
        np.testing.assert_allclose([float(cell) for cell in row[1:]], wanted, rtol=2e-3)
    assert f"All {len(truth)} windows of the test part" in page.text


@pytest.mark.long
def test_texts(tmp_path, parnl):
    (tmp_path / "a.txt").write_text("a<b>c&d " * 60)
    told = ["--task", "next", "--data", tmp_path / "a.txt", "--context", 8, "--epochs", 1]
    done = parnl("train", *told, "--width", 4, "--state", 3, "--out", tmp_path / "run")
    assert done[0] == 0, done[1]
    _, page = written(tmp_path / "run")
    model = trained.load_run(tmp_path / "run")
    test = training.dataset_of(model.config).test
    answers, _ = judging.evaluate(model.trainer, test, 8, method="sequential")
    bits, times = {}, {}
    for n, length in enumerate(test.lengths):
        for t in range(length):
            token = chr(test.labels[n][t])
            odds = np.exp(answers[n, t].astype(float))
            own = -np.log2(odds[ord(token)] / odds.sum())
            bits[token], times[token] = bits.get(token, 0) + own, times.get(token, 0) + 1
    rows = page.table("token", "times", "bits each", "found likeliest")
    assert {row[0] for row in rows} == {repr(token) for token in bits}
    for text, count, each, _ in rows:
        token = ast.literal_eval(text)
        assert int(count) == times[token]
        assert float(each) == pytest.approx(bits[token] / times[token], abs=2e-3)
    mean = sum(bits.values()) / sum(times.values())
    assert f"In all {mean:.4g} bits per byte" in page.text


def test_every_task_has_its_section():
    assert report_tasks.SECTIONS.keys() == tasks.TASKS.keys()
