"""The command `parnl`, run as a user runs it."""

import json
import subprocess
import sys

import pytest

from parnl import list_cells
from parnl.learn import commands
from parnl.testing import PROPERTIES, installed

SMALL = [
    *("--data", "UnitTest", "--blocks", "1", "--width", "4", "--state", "5"),
    *("--batch", "8", "--patience", "9"),
]


def test_cells_lists_every_cell(parnl):
    status, text = parnl("cells")
    assert status == 0
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert set(list_cells()) <= rows.keys()
    assert "c, h" in rows["lstm"]
    assert "16,896" in rows["lstm"]  # 4 * (64 * 64 + 2 * 64)
    assert "liquid-resistance" in rows["lrc"]


def test_listing_cells_imports_no_framework():
    code = (
        "import sys; from parnl.learn import commands; sys.argv = ['parnl', 'cells']\n"
        "try: commands.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'jax', 'aeon', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_diagnose(parnl, tmp_path):
    small = ["--input", 2, "--hidden", 3, "--steps", 40, "--budget", 20]
    status, text = parnl("diagnose", "gru", *small, "--out", tmp_path / "gru.png")
    assert status == 0, text
    assert "in 3 channels" in text
    assert "solving 40 steps" in text
    assert (tmp_path / "gru.png").read_bytes().startswith(b"\x89PNG")
    assert parnl("diagnose", "gru", *small, "--seed", 1)[1] != text
    status, text = parnl("diagnose", "gruu")
    assert (status, "did you mean 'gru'" in " ".join(text.split())) == (1, True)
    status, text = parnl("diagnose", "gru", "--steps", 0)
    assert (status, "inputs: expected at least one step" in text) == (1, True)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_train_and_resume(parnl, backend, tmp_path):
    out = tmp_path / "run"
    epochs = 2 if backend == "torch" else 1
    status, text = parnl("train", *SMALL, "--backend", backend, "--epochs", epochs, "--out", out)
    assert status == 0, text
    assert "UnitTest: 16 series to train on, 4 to validate, 22 to test; 1 channel, 24 steps" in text
    assert "test accuracy" in text
    assert "from the sequential one at most" in text
    assert "24 chunks, Newton iterations of the blocks:" in text
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")

    if backend == "torch":  # compiling JAX's steps a second time would only take longer
        epochs += 1
        status, text = parnl("train", "--resume", "--epochs", epochs, "--out", out)
        assert status == 0, text
    report = json.loads((out / "report.json").read_text())
    assert [record["epoch"] for record in report["history"]] == list(range(1, epochs + 1))
    assert (report["config"]["width"], report["config"]["backend"]) == (4, backend)
    assert 0 <= report["test"]["gap"] < 1e-5


def test_resume_finds_the_default_folder_and_refuses_other_options(parnl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, text = parnl("train", *SMALL, "--epochs", 1)
    assert status == 0, text
    assert (tmp_path / "runs" / "UnitTest-lrc-torch" / "checkpoint.safetensors").is_file()
    status, text = parnl("train", "--data", "UnitTest", "--resume", "--width", 5)
    assert status == 1
    assert "width: got 5, the checkpoint" in text
    status, text = parnl("train", *SMALL, "--epochs", 1)
    assert status == 1
    assert "out: runs/UnitTest-lrc-torch holds a run" in text
    status, text = parnl("train", *SMALL, "--epochs", 1, "--overwrite")
    assert status == 0, text


def test_a_run_that_blows_up_is_told_and_not_kept(parnl, tmp_path):
    status, text = parnl("train", *SMALL, "--batch", 32, "--lr", 1e30, "--out", tmp_path / "run")
    assert status == 1
    assert "parnl: model: its answer to series 0 is not finite" in text
    assert "learning rate" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cell", "lcr"], "parnl: cell: unknown name 'lcr'; did you mean"),
        (["--data", "JapanesVowels"], "did you mean 'JapaneseVowels'?"),
        (["--backend", "tf"], "parnl: backend: got 'tf', expected 'torch' or 'jax'"),
        (["--epochs", "0"], "parnl: epochs: got 0, expected at least 1"),
        (["--chunks", "999"], "chunks: expected 1 <= chunks <= T = 24, got 999"),
        (["--resume"], "parnl: checkpoint: there is no file"),
    ],
)
def test_mistakes_get_a_message(parnl, tmp_path, arguments, message):
    status, text = parnl("train", *SMALL, *arguments, "--out", tmp_path)
    assert status == 1
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("typer", ["cells"], "train"),
        ("rich.table", ["cells"], "train"),
        ("aeon.datasets", ["train"], "train"),
        ("safetensors", ["train", "--resume", "--out", "x"], "train"),
        ("tensorboard.summary", ["train", "--data", "UnitTest", "--tensorboard"], "tensorboard"),
        ("hypothesis", ["check", "x:Y"], "testing"),
    ],
)
def test_missing_packages_are_named_with_their_extra(parnl, monkeypatch, module, arguments, extra):
    monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    for name in [n for n in sys.modules if n.startswith("parnl.testing")]:
        monkeypatch.delitem(sys.modules, name)
    status, text = parnl(*arguments)
    assert status == 1
    package = module.partition(".")[0]
    assert f"parnl: {package} is not installed: pip install 'parnl[{extra}]'" in text


def test_a_missing_module_of_the_user_is_no_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "numbers_of_mine", None)

    def build():
        import numbers_of_mine  # noqa: F401

    monkeypatch.setattr(commands, "build", build)
    with pytest.raises(ModuleNotFoundError):
        commands.main()


CELLS = """
import parnl
from parnl import ops
from parnl.params import matrix, vector

class Right(parnl.Cell):
    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(z=u @ p.W)

    def step(self, p, x, f):
        return ops.tanh(p.a * x + f.z)

class Wrong(Right):
    def features(self, p, u):
        return dict(z=(u @ p.W) * u.shape[-2])      # a step must not know how many there are

class Mixing(Right):
    def step(self, p, x, f):
        return x[0]
"""


def test_check(parnl, tmp_path, monkeypatch):
    (tmp_path / "my_cells.py").write_text(CELLS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    checked = []
    monkeypatch.setattr("parnl.testing.check_property", lambda *given: checked.append(given))
    for target in ("my_cells.py:Right", "my_cells:Right", f"{tmp_path}/my_cells.py:Right"):
        status, text = parnl("check", target)
        assert status == 0
        assert text.endswith(f"\n{target} passes\n")
        assert "numpy: same_on_numpy\n" in text
        kinds = len(PROPERTIES) * len(installed())
        assert len(checked) == kinds
        assert {cell.__name__ for _, cell, _ in checked} == {"Right"}
        checked.clear()


@pytest.mark.usefixtures("own_cells")
def test_cells_of_ones_own_are_imported(parnl, tmp_path, monkeypatch):
    registered = CELLS.replace("class Right(", '@parnl.register("from-a-file")\nclass Right(', 1)
    (tmp_path / "registering.py").write_text(registered)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    status, text = parnl("diagnose", "from-a-file", "--steps", "8")
    assert status == 1
    assert "to use a cell of your own, import its module first" in text
    status, text = parnl("--import", "registering.py", "diagnose", "from-a-file", "--steps", "8")
    assert status == 0, text
    status, text = parnl("--import", "absent.py", "cells")
    assert (status, text) == (1, "parnl: import: there is no file absent.py")


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_cells.py:Wrong", "parnl: my_cells.py:Wrong fails: streaming"),
        ("my_cells.py:Mixing", "parnl: my_cells.py:Mixing cannot be made: StepError: step: "),
        ("my_cells.py:ops", "expected a parnl.Cell named 'ops' in 'my_cells', got <module"),
        ("my_cells.py:Absent", "expected a parnl.Cell named 'Absent' in 'my_cells', got None"),
        ("my_cells.py", "expected MODULE:CELL or FILE.py:CELL"),
        ("no_file.py:Right", "there is no file no_file.py"),
        ("no_module:Right", "there is no module 'no_module'"),
    ],
)
def test_check_fails(parnl, tmp_path, monkeypatch, target, message):
    (tmp_path / "my_cells.py").write_text(CELLS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "my_cells", raising=False)
    status, text = parnl("check", target)
    assert status == 1
    assert message in text
