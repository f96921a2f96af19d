"""pytest --parnl-cell my_module:MyCell: the suite of `parnl.testing`, one item for each property.

    pytest --parnl-cell my_module:MyCell -m parnl              only these items
    pytest --parnl-cell "my_module:MyCell(dt=0.1)"             with options of its constructor
    pytest --parnl-cell cells.py:A --parnl-cell cells.py:B     several cells, from files

The items stand beside whatever else pytest collects, marked `parnl`; with pytest-xdist they are
spread over its workers. Without the option, neither hypothesis nor a framework is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("numpy", "jax", "torch")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("parnl", "property tests of recurrent cells")
    group.addoption(
        "--parnl-cell",
        action="append",
        default=[],
        metavar="MODULE:CELL",
        help="test this cell with parnl.testing; MODULE:CELL(option=value) or FILE.py:CELL. "
        "May be given several times",
    )
    group.addoption(
        "--parnl-examples",
        type=int,
        default=10,
        metavar="N",
        help="random problems for each property and backend (10); a fifth of them in JAX",
    )
    group.addoption(
        "--parnl-backend",
        action="append",
        default=[],
        choices=NAMES,
        help="test on this backend, by default on all that are installed. May be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and have JAX compute in float64, which tells mistakes from rounding."""
    config.addinivalue_line("markers", "parnl: a property of a cell given by --parnl-cell")
    if config.getoption("--parnl-cell"):
        if config.getoption("--parnl-examples") < 1:
            raise pytest.UsageError("--parnl-examples: expected at least 1")
        os.environ.setdefault("JAX_ENABLE_X64", "1")


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the items of each cell."""
    for target in config.getoption("--parnl-cell"):
        collector = CellCollector.from_parent(session, name=target, nodeid=target)
        report = collector.ihook.pytest_make_collect_report(collector=collector)
        collector.ihook.pytest_collectreport(report=report)
        if report.passed:
            items.extend(report.result)


class CellCollector(pytest.Collector):
    """All properties of one cell."""

    def collect(self) -> Iterator[pytest.Item]:
        """Import the cell; yield an item for each property and backend."""
        from parnl.testing import PROPERTIES, find, installed

        try:
            cell = find(self.name)
        except (ValueError, OSError) as error:
            raise self.CollectError(f"--parnl-cell: {error}") from error
        for backend in self.config.getoption("--parnl-backend") or installed():
            for name in PROPERTIES:
                yield PropertyItem.from_parent(
                    self, name=f"{name}[{backend}]", wanted=name, cell=cell, backend=backend
                )


class PropertyItem(pytest.Item):
    """One property on one backend."""

    def __init__(self, *, wanted: str, cell: Any, backend: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.wanted, self.cell, self.backend = wanted, cell, backend
        self.add_marker("parnl")

    def runtest(self) -> None:
        """Check the property on random problems."""
        from parnl.testing import NotApplicable, check_property

        examples = self.config.getoption("--parnl-examples")
        try:
            check_property(self.wanted, self.cell, self.backend, examples=examples)
        except NotApplicable as reason:
            pytest.skip(f"{self.wanted}: {reason}")

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """Report a failed property by its message, which has the problem, without a traceback."""
        if isinstance(excinfo.value, AssertionError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, None, str]:
        """Return the heading of a report."""
        return self.path, None, self.name
