"""Every public name stands in the reference; the examples of its docstrings are true."""

import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
PAGES = "\n".join(page.read_text("utf-8") for page in sorted(REFERENCE.glob("*.md")))
SHOWN = set(re.findall(r"^::: (\S+)$", PAGES, re.MULTILINE))
WHOLE = {"parnl.ops", "parnl.params"}  # shown with all that is in them
MODULES = {
    "parnl": [], "parnl.torch": ["torch"], "parnl.flax": ["flax"], "parnl.equinox": ["equinox"],
    "parnl.testing": ["hypothesis"], "parnl.interop": [], "parnl.ops": [], "parnl.params": [],
}  # fmt: skip


def public(module):
    """Return the public names of a module: `__all__`, or what it defines."""
    if hasattr(module, "__all__"):
        return module.__all__
    own = vars(module).items()
    return [n for n, v in own if n[0] != "_" and getattr(v, "__module__", "") == module.__name__]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_in_the_reference(name):
    for needed in MODULES[name]:
        pytest.importorskip(needed)
    missing = []
    for item in public(import_module(name)):
        whole = f"{name}.{item}"
        same = {whole, f"{whole}.{item}"}  # parnl.solve is a module, too
        values = f"`{item}`" in PAGES and item.isupper()
        if name not in WHOLE and not same & (SHOWN | WHOLE) and not values:
            missing.append(whole)
    assert not missing


def test_what_is_in_the_reference_exists_and_is_documented():
    for path in ("torch", "flax", "equinox", "hypothesis"):
        pytest.importorskip(path)
    for path in SHOWN - {"parnl.testing", "parnl.interop"} - WHOLE:
        module, _, name = path.rpartition(".")
        thing = getattr(import_module(module), name)
        assert inspect.getdoc(thing), path
    assert {"parnl.ops", "parnl.params"} <= SHOWN


WITH_EXAMPLES = [
    "parnl", "parnl.solve", "parnl.step", "parnl.affine", "parnl.registry", "parnl.cell",
    "parnl.params", "parnl.ops", "parnl.torch", "parnl.interop", "parnl.stability.reports",
    "parnl.stability.certificates", "parnl.learn.checkpoints",
]  # fmt: skip


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_docstrings_are_true(name):
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    import_module(name)
    module = import_module("sys").modules[name]  # parnl.solve is a function, too
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_options_of_every_command_are_in_the_reference():
    pytest.importorskip("typer")
    pytest.importorskip("mkdocs")
    import runpy

    page = runpy.run_path(str(REFERENCE.parent / "generated.py"))["commands"]()
    assert "## parnl train" in page
    assert "| `--weight-decay` |" in page
    assert "parnl predict [OPTIONS] {RUN}" in page
    (out,) = re.findall(r"\| `--out` \|[^|]+\| *([^|]*?) \|", page.split("## parnl predict")[1])[:1]
    assert out == "required"
