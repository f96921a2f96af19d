"""Every message that users can meet is on the page that tells the way out, and no other is.

A message is the text of a `raise` in the source, with `#` for what is computed; on the page it
stands with `...` for that. What is not for users is listed here.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
INTERNAL = {
    "parnl/graph/program.py", "parnl/graph/operation.py", "parnl/graph/serial.py",
    "parnl/graph/flatcode.py", "parnl/export/aten.py", "backends/plain.py",
    # of files that parnl itself writes; the callers say `report:` and `checkpoint:` before them
    "parnl/learn/kept.py", "parnl/learn/preparation.py", "parnl/testing/properties.py",
    "parnl/learn/tasks.py",
}  # fmt: skip

# What follows a colon in another message.
REASONS = {
    "it changes what the numbers are", "a graph ends in its output", "a conversion to #",
    "a step of #", "complex numbers", "a context of #, a horizon of #", "#: got #",
    "targets #, expected columns of #", "expected either targets or tokens",
    "its header is a #, expected an object", "# channels, # prepared, # joined",
    "# channels, # tokens", "expected options by name", "parnl: #", "module # has no attribute #",
}  # fmt: skip


def text(node):
    """Return the text of an expression, `#` where it is not known before it is run."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text, node.values))
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    return "#"


def message(node):
    """Return the message of a `raise`, or of a call that makes or says one."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        node, name = node.exc, ast.unparse(node.exc.func)
        if name == "wrong":  # of parnl.learn.readers.collection
            return f"data: #: #: got #, expected {text(node.args[3])}"
        return text(node.args[0]) if re.search(r"Error$|Stopped", name) else None
    if isinstance(node, ast.Call) and node.args:
        name = ast.unparse(node.func)
        if name.endswith("say_once"):
            return text(node.args[1])
        return text(node.args[0]) if name in ("sys.exit", "StepError", "ValueError") else None
    return None


def messages():
    """Return file -> messages in it."""
    found = {}
    for room in ("parnl", "backends", "cells"):
        for file in sorted((ROOT / room).rglob("*.py")):
            nodes = ast.walk(ast.parse(file.read_text("utf-8")))
            told = {m for m in map(message, nodes) if m and m.strip("#: ")}
            found[file.relative_to(ROOT).as_posix()] = told
    return found


@pytest.fixture(scope="module")
def entries():
    lines = PAGE.read_text("utf-8").split("\n")
    cells = [re.match(r"\| `(.+?)` \| \S", line) for line in lines]
    found = [cell[1].replace("\\|", "|") for cell in cells if cell]
    assert len(found) > 150
    return {e: re.compile(".*".join(map(re.escape, e.split("..."))), re.DOTALL) for e in found}


def plain(told):
    return told.replace("`", "'")


def test_every_message_is_on_the_page(entries):
    missing = []
    for file, told in messages().items():
        if file in INTERNAL or not told:
            continue
        for one in told:
            if one not in REASONS and not any(e.fullmatch(plain(one)) for e in entries.values()):
                missing.append(f"{file}: {one}")
    assert not missing, "\n".join(missing)


def test_every_entry_is_a_message(entries):
    told = [plain(m) for found in messages().values() for m in found]
    stale = [e for e, pattern in entries.items() if not any(map(pattern.fullmatch, told))]
    assert not stale, "\n".join(stale)
