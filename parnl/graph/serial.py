"""A step as text: what a saved graph carries, to be run where nobody has made its cell.

It is data, in JSON, not code: the nodes of the graph that the step needs, each as [operation,
value, numbers of its arguments], arguments first; then which nodes are states, operands and the
next states. Equal steps have equal texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from parnl.graph.nodes import Graph, Symbol, reachable
from parnl.graph.operations import OPERATIONS

_FORMAT = "parnl step 1"
_LEAVES = ("leaf", "constant")

Groups = tuple[list[Symbol], list[Symbol], list[Symbol]]


def write(states: Sequence[Symbol], operands: Sequence[Symbol], outputs: Sequence[Symbol]) -> str:
    """Return the text of the step that leads from `states` and `operands` to `outputs`."""
    used = {n.index: n for n in [*reachable([*outputs]), *states, *operands]}
    place = {index: at for at, index in enumerate(sorted(used))}
    nodes = [
        [used[i].op, used[i].value, *(place[a.index] for a in used[i].args)] for i in sorted(used)
    ]
    groups = [[place[n.index] for n in group] for group in (states, operands, outputs)]
    return json.dumps([_FORMAT, nodes, groups], separators=(",", ":"))


def read(text: str) -> tuple[Graph, Groups]:
    """Return the graph of a text and its states, operands and outputs.

    Raises ValueError for a text that a newer parnl wrote, or that is not of a step.
    """
    try:
        form, entries, groups = json.loads(text)
        unknown = {op for op, *_ in entries} - {*OPERATIONS, *_LEAVES}
    except (TypeError, ValueError) as error:
        raise ValueError(f"step: expected the text of a step, got {text[:80]!r}") from error
    if form != _FORMAT or unknown:
        what = f"operations {', '.join(sorted(unknown))}" if unknown else f"format {form!r}"
        raise ValueError(f"step: this release of parnl has no {what}: a newer one wrote the text")
    graph, nodes = Graph(), list[Symbol]()
    for op, value, *args in entries:
        # as it was: a graph that is finished is not to be simplified again
        value = tuple(value) if op == "leaf" else value
        nodes.append(graph.node(op, tuple(nodes[a] for a in args), value))
    states, operands, outputs = ([nodes[i] for i in group] for group in groups)
    return graph, (states, operands, outputs)
