"""What the command `parnl` prints, on any terminal and in any encoding; its help; the cache."""

import os
import re
import subprocess
import sys
import time

import pytest

import parnl
from parnl import cells

COMMAND = [sys.executable, "-c", "from parnl.learn.commands import main; main()"]
COMMANDS = ["cells", "train", "predict", "evaluate", "export", "check", "diagnose", "cache"]
COLOUR = re.compile(rb"\x1b\[(\d+;)*[349]\d")  # bold print is none
SMALL = ["diagnose", "gru", "--input", "1", "--hidden", "1", "--steps", "9", "--budget", "3"]


@pytest.fixture
def command(tmp_path):
    """Run the command as a program of its own: (exit status, output, errors), in bytes."""

    def run(*arguments, **environment):
        inherited = {n: v for n, v in os.environ.items() if n not in ("COLUMNS", "NO_COLOR")}
        where = {"PARNL_CACHE": str(tmp_path / "cache"), "PARNL_KERNELS": "off"}
        done = subprocess.run(
            [*COMMAND, *arguments], env={**inherited, **where, **environment}, capture_output=True
        )
        return done.returncode, done.stdout, done.stderr

    return run


ENCODINGS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "c": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


PRINTED = {
    "cells": (["cells"], 0),
    "cache": (["cache"], 0),
    "help": (["--help"], 0),
    "train-help": (["train", "--help"], 0),
    "diagnose": (SMALL, 0),
    "unknown-cell": (["diagnose", "grü"], 1),
    "unknown-data": (["train", "--data", "Größe→"], 1),
    "unknown-class": (["check", f"{__file__}:Größe→"], 1),
}


@pytest.mark.long
@pytest.mark.turns("printed")
@pytest.mark.parametrize("printed", PRINTED)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_output_in_any_encoding(command, encoding, printed):
    arguments, status = PRINTED[printed]
    found, out, err = command(*arguments, **ENCODINGS[encoding])
    assert found == status, err
    assert b"Error" not in err, err
    assert b"Traceback" not in err
    (out + err).decode("latin-1" if encoding == "latin-1" else "ascii")


@pytest.mark.long
def test_characters_that_cannot_be_shown_become_question_marks(command, tmp_path):
    folder = str(tmp_path / "Größe→")
    for encoding, expected in (("latin-1", "Größe?"), ("ascii", "Gr??e?"), ("utf-8", "Größe→")):
        status, out, _ = command("cache", PARNL_CACHE=folder, PYTHONIOENCODING=encoding)
        assert status == 0
        assert out.decode(encoding).splitlines()[0] == f"folder      {tmp_path / expected}"
    # a name of bytes that are no UTF-8
    status, out, err = command("cache", PARNL_CACHE=b"/nowhere/\xff", PYTHONIOENCODING="utf-8")
    assert (status, out.splitlines()[0]) == (0, b"folder      /nowhere/?"), err


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
def test_cells_are_named_and_described_on_any_width(command, columns):
    status, out, _ = command("cells", COLUMNS=str(columns))
    assert status == 0
    text = out.decode()
    assert "…" not in text  # nothing is cut
    assert all(len(line) <= columns for line in text.splitlines())
    for name in cells.__all__:
        assert f"{name}: " in text if columns < 80 else f"│ {name} " in text, name
    assert "16,896" in text


def test_no_color(command):
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    for arguments in (["cells"], ["--help"]):
        out = command(*arguments, **forced, NO_COLOR="1")[1]
        assert not COLOUR.search(out)
    assert COLOUR.search(command("--help", **forced)[1])


@pytest.mark.parametrize("arguments", [["cells"], ["cache"], ["train", "--help"], SMALL])
def test_a_reader_that_leaves(arguments, tmp_path):
    """As `head` does: no traceback."""
    environment = {**os.environ, "PARNL_CACHE": str(tmp_path), "PARNL_KERNELS": "off"}
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_the_version(command):
    assert command("--version")[:2] == (0, f"parnl {parnl.__version__}\n".encode())


@pytest.mark.long
def test_every_help_has_an_example_and_whole_phrases(command):
    for name in ([], *([c] for c in COMMANDS)):
        status, out, _ = command(*name, "--help", COLUMNS="160")
        text = out.decode()
        assert status == 0
        assert f"Example: parnl {' '.join(name)}" in text
        for fragment in ("  Of ", "  For ", "  In ", "  Or ", "  One that"):
            assert fragment not in text


@pytest.mark.long
def test_the_cache_is_shown_and_emptied(command, tmp_path):
    folder = tmp_path / "cache"
    status, out, _ = command("cache")
    assert status == 0
    assert out.decode().splitlines() == [
        f"folder      {folder}",
        "kernels     0 of at most 4000",
        "size        0.0 MB of at most 200 MB",
    ]
    assert not folder.exists()  # to look makes nothing
    folder.mkdir()
    for i in range(3):
        path = folder / f"{i:040x}-{i:016x}.so"
        path.write_bytes(b"\0" * 100_000)
        then = time.mktime((2024, 5, i + 1, 12, 30, 0, 0, 0, -1))
        os.utime(path, (then, then))
    (folder / "notes").write_text("of the user")
    lines = command("cache")[1].decode().splitlines()
    assert lines[1:] == [
        "kernels     3 of at most 4000",
        "size        0.3 MB of at most 200 MB",
        "last used   from 2024-05-01 12:30 to 2024-05-03 12:30",
    ]
    status, out, _ = command("cache", "--clear")
    assert (status, out.decode()) == (0, f"removed 3 kernels, 0.3 MB, from {folder}\n")
    assert [path.name for path in folder.iterdir()] == ["notes"]
    assert command("cache", "--clear")[1].decode().startswith("removed 0 kernels")


def test_a_cache_that_is_no_folder(command, tmp_path):
    (tmp_path / "cache").write_text("")
    status, _, err = command("cache")
    assert (status, err.decode().startswith("parnl: ")) == (1, True)
    status, _, err = command("cache", PARNL_CACHE="~no-such-user/x")
    assert status == 1
    assert b"Traceback" not in err
    assert b"set PARNL_CACHE to a folder of your own" in err
