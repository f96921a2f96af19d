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


# What says itself what to do and is not on the page: whole messages, so that none hides another.
PLAIN = {
    "#: expected #, got #", "method: expected one of #, got #", "scheme: expected one of #, got #",
    "activation: expected relu or tanh, got #", "positive: expected softplus or clip, got #",
    "dropout: expected a number, 0 <= dropout < 1, got #", "expected at least one array, got none",
    "step: **: expected a finite exponent, got #",
    "step: expected the model in eval mode: model.eval()",
    "#: expected #, the dtype of the module, got #; convert it by #.to(#), or the module by "
    ".double()",
    "#: expected a torch.Tensor, got #; convert it by #(#)",
    "#: expected a jax.Array, got #; convert it by jnp.asarray(#)",
    "#: expected one of #, got #; convert it by .to(torch.float32)",
    "dtype: NumPy has bfloat16 from the package ml_dtypes: pip install ml_dtypes",
    "TRITON_INTERPRET is set, so Triton compiles nothing for a GPU: unset it",
    "parnl.torch.RNN: torch.jit.script cannot compile it; use torch.export.export",
    "parnl.solve: torch.jit.trace and torch.onnx.export(dynamo=False) cannot record it; use "
    "torch.export.export, or parnl.torch.export_onnx",
    "parnl.solve: is_grads_batched=True is not supported; use torch.func.vmap of torch.func.vjp, "
    "or torch.func.jacrev",
    "parnl.solve: forward mode of forward mode is not supported; use torch.func.jacfwd of "
    "torch.func.jacrev, as torch.func.hessian does",
    "parnl.solve: forward mode is not supported in what is being compiled or recorded "
    "(torch.compile, torch.func.linearize); use torch.func.jvp outside of it",
    "out: # holds a run; give --resume to go on with it, --overwrite to lose it, or name another "
    "folder",
    "out: # holds runs of several seeds; give --resume to go on with them, --overwrite to lose "
    "them, or name another folder",
    "out: expected a name that ends in #",
    "data: #: got #, expected #", "data: #: got #, expected #, one for each series",
}  # fmt: skip

# An option of a command has another value than expected, and the message says which.
COMMANDS = ("parnl/learn/", "parnl/export/runs.py")
OPTION = re.compile("[a-z_#]+: got .*, expected .*", re.DOTALL)


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
            if one in REASONS | PLAIN or (file.startswith(COMMANDS) and OPTION.match(one)):
                continue
            if not any(e.fullmatch(plain(one)) for e in entries.values()):
                missing.append(f"{file}: {one}")
    assert not missing, "\n".join(missing)


def test_every_entry_is_a_message(entries):
    every = {m for found in messages().values() for m in found}
    told = [plain(m) for m in every]
    stale = [e for e, pattern in entries.items() if not any(map(pattern.fullmatch, told))]
    assert not stale, "\n".join(stale)
    assert not PLAIN - every
