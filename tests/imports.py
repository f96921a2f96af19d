"""Which file imports which: `python tests/imports.py` prints the rooms of the house and its arrows.

Imports within functions count, those for type checkers do not, nor does what is looked up by name,
as `parnl.frameworks` finds a backend and `parnl.registry` the cells.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# From the ground up: a file may import from its own room and from those below.
ROOMS = {
    "graph": "a step becomes a graph, its derivatives, flat code",
    "solver": "the algorithm and what it costs",
    "core": "what a user writes with; the public functions",
    "kernels": "the runs over chunks: composed, in generated C, in Triton; arrays they take",
    "backends": "what is a framework's own",
    "stability": "certificates, exponents, reports",
    "learn": "data, models, training, the command line",
    "export": "trained models in other forms: plain C; what a run has trained",
    "package": "parnl/__init__.py, what users import",
    "testing": "property tests for any cell",
    "doors": "parnl.torch, and its like for other frameworks; parnl.interop; the command line",
    "cells": "one file a cell, written as a user writes one",
}
_DOORS = {
    "parnl.torch",
    "parnl.flax",
    "parnl.equinox",
    "parnl.learn.actions",
    "parnl.learn.commands",
}
_BY_NAME = {"parnl.frameworks": "parnl.backends"}  # who -> what is looked up, by statements


def files() -> dict[str, Path]:
    """Return module name -> file of all that is installed."""
    found = {}
    for folder, package in (("parnl", "parnl"), ("backends", "parnl.backends"),
                            ("cells", "parnl.cells")):  # fmt: skip
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(p for p in parts if p != "__init__")])
            found[name] = path
    return found


def room(module: str) -> str:
    """Return the room that a module stands in."""
    _, first, *rest = (*module.split("."), "")
    if first == "backends":
        return (
            "kernels" if rest[0] in ("c", "triton", "composed", "plain", "arrays") else "backends"
        )
    if module == "parnl":
        return "package"
    if module in _DOORS or first == "interop":
        return "doors"
    if module == "parnl.pytest_plugin":
        return "testing"
    return first if first in ROOMS else "core"


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the names of all modules and attributes that a file imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node)


def arrows() -> dict[str, set[str]]:
    """Return module -> the modules of parnl that it imports."""
    known, graph = files(), {}
    for module, path in known.items():
        graph[module] = set()
        for name in imported(ast.parse(path.read_text())):
            # the attribute of a module is the module's
            target = name if name in known else name.rpartition(".")[0]
            by_name = target.startswith(_BY_NAME.get(module, "?"))
            if target in known and target != module and not by_name:
                graph[module].add(target)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the circles of a graph, each as the modules in it."""
    found, path, done = [], [], set()

    def visit(module: str) -> None:
        if module in path:
            found.append(path[path.index(module) :])
        elif module not in done:
            path.append(module)
            for target in sorted(graph[module]):
                visit(target)
            done.add(path.pop())

    for module in graph:
        visit(module)
    return found


def upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports of a room that stands above the importer's own."""
    height = {name: i for i, name in enumerate(ROOMS)}
    pairs = ((a, b) for a, targets in graph.items() for b in sorted(targets))
    return [(a, b) for a, b in pairs if height[room(b)] > height[room(a)]]


def main() -> None:
    """Print the rooms from the top down, with lines of code and arrows; then what is wrong."""
    graph, known = arrows(), files()
    lines = {m: len(p.read_text().splitlines()) for m, p in known.items()}
    for name, what in reversed(ROOMS.items()):
        inside = [m for m in known if room(m) == name]
        targets = Counter(room(b) for a in inside for b in graph[a])
        below = ", ".join(f"{t} {n}" for t, n in targets.items() if t != name) or "nothing"
        print(f"{name:10} {sum(lines[m] for m in inside):5} lines  {what}\n{'':19}imports {below}")
    for circle in circles(graph):
        print("circle:", " -> ".join([*circle, circle[0]]))
    for a, b in upward(graph):
        print(f"upward: {a} -> {b}")
    print(f"{len(circles(graph))} circles, {len(upward(graph))} arrows upward")


if __name__ == "__main__":
    main()
