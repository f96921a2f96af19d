"""The table of operations: all that parnl knows of an elementwise function, in one entry each.

To add a function, write its entry in `elementary.py` and a public function in `parnl.ops`. The
tests go through the table by themselves. What an entry says is explained in `operation.py`. Names
in the forms are those of a target's framework or language, and of its own small library:
`backends/c/vecmath.py`, `backends/triton/mathematics.py`, `backends/jax/elementwise.py`.
"""

from parnl.graph import arithmetic, elementary
from parnl.graph.operation import Operation

OPERATIONS = {
    entry.name: entry
    for entry in [*vars(arithmetic).values(), *vars(elementary).values()]
    if isinstance(entry, Operation)
}
CONDITIONS = frozenset(o.name for o in OPERATIONS.values() if o.is_condition)
COMPARISONS = frozenset(name for name in CONDITIONS if not OPERATIONS[name].conditions)
