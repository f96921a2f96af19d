"""What JAX does not promise to keep is used in one file, and is there in the JAX installed."""

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

import parnl

ROOT = Path(parnl.__file__).parents[1]
FILE = ROOT / "backends" / "jax" / "private.py"
PRIVATE = ("jax._src", "jax.core", "jax.experimental", "jax.extend", "jax.interpreters")
PRIVATE += ("jaxlib.gpu_triton",)
# modules of JAX whose attributes parnl uses by these names
MODULES = {"ad": "jax.interpreters.ad", "batching": "jax.interpreters.batching"}
MODULES |= {"mlir": "jax.interpreters.mlir", "gpu_triton": "jaxlib.gpu_triton"}
PLUGIN = any(find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))


def trees():
    folders = (ROOT / "parnl", ROOT / "backends", ROOT / "cells")
    files = [f for folder in folders for f in sorted(folder.rglob("*.py"))]
    return {f: ast.parse(f.read_text()) for f in files}


def imported(tree):
    """Every (module, name) of `from module import name`, and (module, "") of `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, n.name) for n in node.names)
        elif isinstance(node, ast.Import):
            yield from ((n.name, "") for n in node.names)


def attributes():
    """Every attribute of a module in `MODULES` that parnl uses."""
    found = set()
    for file, tree in trees().items():
        names = {name for module, name in imported(tree) if module.endswith("jax.private")}
        names = {"gpu_triton"} if file == FILE else names
        found |= {
            (MODULES[node.value.id], node.attr)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in names & {*MODULES}
        }
    return found


USED = {x for x in imported(ast.parse(FILE.read_text())) if x[0].startswith("jax")} | attributes()


def test_the_search_finds_what_is_used():
    assert ("jax.core", "ShapedArray") in USED
    assert ("jax.interpreters.ad", "primitive_transposes") in USED
    assert ("jaxlib.gpu_triton", "TritonKernelCall") in USED
    assert len(USED) > 15


@pytest.mark.parametrize(("module", "name"), sorted(USED))
def test_it_is_where_it_was(module, name):
    """If this fails, JAX has moved a name: see the table at the top of backends/jax/private.py."""
    found = importlib.import_module(module)
    if module == "jaxlib.gpu_triton" and not PLUGIN:
        pytest.skip("JAX's CUDA plugin is not installed")
    if name and not hasattr(found, name):
        importlib.import_module(f"{module}.{name}")


@pytest.mark.long
def test_only_one_file_uses_it():
    for file, tree in trees().items():
        if file == FILE:
            continue
        names = [f"{module}.{name}" for module, name in imported(tree)]
        names += [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        assert not [n for n in names if n.startswith(PRIVATE)], file
        # nor is the release asked for elsewhere
        asked = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert not [a for a in asked if a.startswith(("hasattr(jax", "hasattr(lax"))], file
