"""`pytest --parnl-cell`: an item for each property of a cell."""

import os
import subprocess
import sys

import pytest

from parnl.testing import PROPERTIES, find

pytest_plugins = "pytester"

MINE = """
import parnl
from parnl import ops
from parnl.params import matrix, vector

class Right(parnl.Cell):
    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))
    options = dict(gain=1.0)

    def features(self, p, u):
        return dict(z=self.gain * (u @ p.W))

    def step(self, p, x, f):
        return ops.tanh(p.a * x + f.z)

class Wrong(Right):
    def features(self, p, u):
        return dict(z=(u @ p.W) * u.shape[-2])
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A folder with cells in it; the options that keep a run short."""
    pytester.makepyfile(mine=MINE)
    monkeypatch.setenv("PARNL_KERNELS", "off")
    short = ("--parnl-backend", "numpy", "--parnl-examples", "2")
    return lambda *arguments: pytester.runpytest_subprocess(*arguments, *short, "-v")


@pytest.mark.long
def test_plugin_makes_an_item_for_each_property(project):
    result = project("--parnl-cell", "mine:Right", "--parnl-cell", "mine.py:Right(gain=0.5)")
    result.assert_outcomes(passed=2 * (len(PROPERTIES) - 3), skipped=2 * 3)
    for name in PROPERTIES:
        result.stdout.fnmatch_lines([f"mine:Right::{name}[[]numpy[]]*"])
    result.stdout.fnmatch_lines(["mine.py:Right(gain=0.5)::chunking[[]numpy[]] PASSED*"])


@pytest.mark.long
def test_plugin_shares_its_items_among_workers(project):
    result = project("--parnl-cell", "mine:Right", "-n", "2")
    result.assert_outcomes(passed=len(PROPERTIES) - 3, skipped=3)


@pytest.mark.long
def test_plugin_fails_a_wrong_cell_with_its_smallest_problem(project):
    result = project("--parnl-cell", "mine:Wrong")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*streaming[[]numpy[]]*FAILED*",
            "streaming: outputs: relative error*inputs (2, 1)*",
            "FAILED mine:Wrong::splitting[[]numpy[]]*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.long
def test_plugin_stands_beside_other_tests_and_obeys_k_and_m(project, pytester):
    pytester.makepyfile(test_other="def test_nothing(): pass")
    cell = ("--parnl-cell", "mine:Right")
    project(*cell, "-k", "chunking or nothing").assert_outcomes(
        passed=2, deselected=len(PROPERTIES) - 1
    )
    project(*cell, "-m", "parnl", "-k", "chunking", "--strict-markers").assert_outcomes(
        passed=1, deselected=len(PROPERTIES)
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mine:Absent", "expected a parnl.Cell named 'Absent' in 'mine', got None"),
        ("absent.py:Right", "there is no file absent.py"),
        ("mine:Right(gain", "expected options as in MODULE:CELL(dt=0.1)"),
    ],
)
def test_plugin_answers_a_mistake_with_a_message(project, target, message):
    result = project("--parnl-cell", target)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert message in result.stdout.str()
    result.stdout.no_fnmatch_line("*Traceback*")


def test_plugin_imports_no_framework_until_it_is_asked():
    code = (
        "import sys, pytest, parnl.pytest_plugin\n"
        "assert not {'torch', 'jax', 'hypothesis'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_options_of_a_cell_can_be_given(tmp_path, monkeypatch):
    (tmp_path / "mine_too.py").write_text(MINE)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    cell = find(f"{tmp_path}/mine_too.py:Right(gain=-0.5)")(2, 3)
    assert (cell.gain, type(cell).__name__) == (-0.5, "Right")
    with pytest.raises(ValueError, match="expected options"):
        find(f"{tmp_path}/mine_too.py:Right(0.5)")
