"""Property tests that parallel equals sequential, for your cells as for parnl's own.

    from parnl.testing import check_cell

    def test_my_cell():
        check_cell(MyCell)

or, one test item for each property and backend: `pytest --parnl-cell my_module:MyCell`; or from the
shell: `parnl check my_module:MyCell`. Needs hypothesis: pip install 'parnl[testing]'.

Each property (`PROPERTIES` lists them) is a function in `parnl.testing.properties`, checked on
random problems. The reference is `loop`, a plain Python loop that calls the cell's own `features`
and `step` on arrays, differentiated by the framework's own autodiff, in float64.

Strategies for tests of your own: `problems` (whole solves of a cell), `cells` (random cells, with
their source), `shapes`, `hostile` (inputs with NaN, inf, huge, tiny and subnormal numbers).
"""

from parnl.testing.expressions import cells
from parnl.testing.problems import HOSTILE, Problem, Shape, hostile, installed, problems, shapes
from parnl.testing.properties import PROPERTIES, NotApplicable, Property
from parnl.testing.reference import TOLERANCES, loop
from parnl.testing.suite import check_cell, check_property, find

__all__ = [
    "HOSTILE",
    "PROPERTIES",
    "TOLERANCES",
    "NotApplicable",
    "Problem",
    "Property",
    "Shape",
    "cells",
    "check_cell",
    "check_property",
    "find",
    "hostile",
    "installed",
    "loop",
    "problems",
    "shapes",
]
