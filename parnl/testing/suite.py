"""All properties on a cell, and one on one: what the pytest plugin and `parnl check` call."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, given, settings

from parnl.cell import Cell
from parnl.testing.problems import Problem, installed, problems
from parnl.testing.properties import PROPERTIES, NotApplicable


def check_cell(
    cell: Any, *, backends: Sequence[str] | None = None, examples: int = 10, max_steps: int = 24
) -> None:
    """Check on random problems that `cell` is solved right: all of `PROPERTIES`.

    Args:
        cell: a registered name, an instance, or a class or function of (input_size, hidden_size),
            such as functools.partial(MyCell, dt=0.1).
        backends: to check on; by default all that are installed. Agreement with NumPy is checked
            if it is among them.
        examples: problems for each property and backend; a fifth of them in JAX, which compiles.
        max_steps: of the longest sequence.

    Raises AssertionError, with the smallest failing problem hypothesis can find. In JAX, float64
    needs `jax_enable_x64`; without it the comparison there is as coarse as float32.
    """
    for backend, name in items(backends):
        with suppress(NotApplicable):
            check_property(name, cell, backend, examples=examples, max_steps=max_steps)


def items(backends: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield what is checked, a backend and the name of a property."""
    chosen = tuple(backends or installed())
    for backend in chosen:
        for name in PROPERTIES:
            if name != "same_on_numpy" or "numpy" in chosen:
                yield backend, name


def check_property(
    name: str, cell: Any, backend: str, *, examples: int = 10, max_steps: int = 24
) -> None:
    """Check one of `PROPERTIES` on one backend; arguments as those of `check_cell`.

    Raises NotApplicable if it says nothing about any of the problems drawn.
    """
    wanted = PROPERTIES[name]
    share = wanted.share * (0.2 if backend == "jax" else 1.0)
    reasons: list[str] = []
    applied = 0

    @settings(
        max_examples=max(1, round(examples * share)),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,  # one AssertionError, of the smallest problem
    )
    @given(problems(cell, [backend], max_steps=max_steps, **wanted.draws))
    def check(problem: Problem) -> None:
        nonlocal applied
        try:
            wanted.check(problem)
        except NotApplicable as reason:
            reasons.append(str(reason))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        else:
            applied += 1

    check()
    if not applied:
        raise NotApplicable(reasons[0])


def imported(source: str) -> ModuleType:
    """Return the module `package.module` or `path/to/file.py`, whose folder is importable then."""
    if source.endswith(".py"):
        file = Path(source)
        if not file.is_file():
            raise FileNotFoundError(f"import: there is no file {source}")
        sys.path.insert(0, str(file.resolve().parent))
        source = file.stem
    else:
        sys.path.insert(0, str(Path.cwd()))
        if importlib.util.find_spec(source.partition(".")[0]) is None:
            raise ValueError(f"import: there is no module {source!r}")
    return importlib.import_module(source)


def find(target: str) -> Any:
    """Return what `check_cell` takes for `package.module:Name` or `path/to/file.py:Name`.

    Options of the cell's constructor may follow: `module:Name(dt=0.1, symmetric=True)`.
    """
    path, options = _options(target)
    source, _, name = path.rpartition(":")
    if not source or not name:
        raise ValueError(f"target: got {target!r}, expected MODULE:CELL or FILE.py:CELL")
    module = imported(source)
    source, cell = module.__name__, getattr(module, name, None)
    if isinstance(cell, type) and issubclass(cell, Cell):
        return partial(cell, **options) if options else cell
    if isinstance(cell, Cell) and not options:
        return cell
    raise ValueError(
        f"target: expected a parnl.Cell named {name!r} in {source!r}, got {cell!r}"
        + (f" and the options {options}" if options else "")
    )


def _options(target: str) -> tuple[str, dict[str, Any]]:
    """Split `path(name=value, ...)`."""
    path, opened, rest = target.partition("(")
    if not opened:
        return target, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("expected options by name")
        return path, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"target: expected options as in MODULE:CELL(dt=0.1), got {target!r}"
        ) from error
