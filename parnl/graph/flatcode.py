"""Turn expressions into the source of a flat Python function over arrays.

The function calls nothing but the backend's elementwise operations, so it costs no graph walking
and no autodiff machinery at run time, and it runs unchanged under `jax.jit` and torch's autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parnl.graph.nodes import Graph, Symbol, reachable
from parnl.graph.operation import DEFINED, Operation, is_name
from parnl.graph.operations import OPERATIONS

_SINGLE = 3.4028234663852886e38  # the largest float32


def fused_sums(outputs: Sequence[Symbol]) -> dict[int, tuple[Symbol, Symbol]]:
    """Return the sums and differences of `outputs` that contain a product: index -> (sum, product).

    A backend with a fused multiply-add computes each of them in one call. Functions that must
    agree bit for bit (a step, and the same step beside its Jacobian) share one such choice.
    """
    nodes = reachable(list(outputs))
    uses: dict[int, int] = {}
    for node in [*outputs, *(a for n in nodes for a in n.args)]:
        uses[node.index] = uses.get(node.index, 0) + 1
    chosen = {}
    for node in nodes:
        if node.op not in ("add", "sub") or any(a.op == "constant" for a in node.args):
            continue
        for product in reversed(node.args):
            is_product = product.op == "mul" and not any(a.op == "constant" for a in product.args)
            subtracted_from = node.op == "sub" and product is node.args[0]
            if is_product and uses[product.index] == 1 and not subtracted_from:
                chosen[node.index] = (node, product)
                break
    return chosen


def source(
    name: str,
    arguments: Sequence[Symbol],
    outputs: Sequence[Symbol],
    fused: Mapping[int, tuple[Symbol, Symbol]] | None = None,
) -> str:
    """Return the text of `def name(a0, a1, ...)` that computes `outputs` from `arguments`.

    A variable is used again once its value has been read for the last time, so at most the live
    values are held in memory.
    """
    fused = fused or {}
    names = {a.index: f"a{i}" for i, a in enumerate(arguments)}

    nodes = needed(outputs, fused)
    last_use: dict[int, int] = {}
    for node in nodes:
        for a in operands_of(node, fused):
            last_use[a.index] = node.index
    kept = {o.index for o in outputs}
    free: list[str] = []
    made = 0
    lines = [f"def {name}({', '.join(names.values())}):"]
    for node in nodes:
        if node.index in names or node.op == "constant":
            continue
        if node.op == "leaf":
            raise KeyError(f"{name}: the leaf {node!r} is not among the arguments")
        operands = operands_of(node, fused)
        text = _expression(node, operands, names, node.index in fused)
        for a in {a.index: a for a in operands}.values():
            variable = names.get(a.index, "a")
            if last_use[a.index] == node.index and a.index not in kept and variable[0] == "t":
                free.append(variable)
        if free:
            names[node.index] = free.pop()
        else:
            names[node.index] = f"t{made}"
            made += 1
        lines.append(f"    {names[node.index]} = {text}")
    lines.append(f"    return ({''.join(_name(o, names) + ', ' for o in outputs)})")
    return "\n".join(lines) + "\n"


def operands_of(node: Symbol, fused: Mapping[int, tuple[Symbol, Symbol]]) -> tuple[Symbol, ...]:
    """Return what `node` is computed from; for a fused sum: (other summand, factor, factor)."""
    if node.index not in fused:
        return node.args
    product = fused[node.index][1]
    other = node.args[0] if product is node.args[1] else node.args[1]
    return (other, *product.args)


def needed(outputs: Sequence[Symbol], fused: Mapping[int, tuple[Symbol, Symbol]]) -> list[Symbol]:
    """Return what must be computed, in order: a product that was fused everywhere is left out."""
    wanted = {o.index for o in outputs}
    nodes = reachable(list(outputs))
    for node in reversed(nodes):
        if node.index in wanted:
            wanted.update(a.index for a in operands_of(node, fused))
    return [n for n in nodes if n.index in wanted]


def _name(node: Symbol, names: Mapping[int, str]) -> str:
    if node.op != "constant":
        return names[node.index]
    text = repr(node.value)  # inf and nan are names of the function's globals
    if _SINGLE < abs(node.value) < math.inf:
        return f"number({text}, a0)"  # inf in float32, where PyTorch would refuse it
    return f"({text})" if text.startswith("-") else text


def _expression(
    node: Symbol, operands: tuple[Symbol, ...], names: Mapping[int, str], is_fused: bool
) -> str:
    args = [_name(a, names) for a in operands]
    if is_fused:
        return f"addcmul({', '.join(args)}{', value=-1.0' if node.op == 'sub' else ''})"
    if node.op == "where" and all(a.op == "constant" for a in operands[1:]):
        # two numbers have no dtype of their own, and must not be rounded to a default one
        first = args[1] if args[1].startswith("number") else f"number({args[1]}, a0)"
        return f"where({args[0]}, {first}, {args[2]})"
    operation = OPERATIONS[node.op]
    return operation.text(operation.inline or node.op, *args)


def compile_function(text: str, name: str, functions: Mapping[str, Any]) -> Callable[..., Any]:
    """Execute `text` (made by `source`, from a graph only) and return the function it defines."""
    scope: dict[str, Any] = {"inf": float("inf"), "nan": float("nan")}
    scope.update(functions)
    exec(compile(text, f"<parnl {name}>", "exec"), scope)
    return scope[name]


def absent(outputs: Sequence[Symbol], functions: Mapping[str, Any]) -> list[str]:
    """Return the names of the operations of `outputs` that are not in `functions`."""
    called = {n.op for n in reachable(list(outputs)) if n.op in OPERATIONS}
    return sorted(name for name in called - functions.keys() if not OPERATIONS[name].inline)


def definition(operation: Operation) -> tuple[list[Symbol], Symbol]:
    """Return (arguments, value) of an operation's definition, as a graph of other operations."""
    if operation.definition is None:
        raise NotImplementedError(f"{operation.name} is not defined by other operations")
    graph = Graph()
    arguments = [graph.leaf("argument", name) for name in "xyz"[: operation.arity]]
    return arguments, operation.definition(*arguments)


def array_functions(target: str, scope: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Return all operations of a framework of arrays, by name; `scope` holds what forms name.

    Its `number(x, like)` makes the number x of the dtype of the array `like`. One that the target
    lacks is left out.
    """
    functions: dict[str, Callable[..., Any]] = {}
    for name, operation in OPERATIONS.items():
        if operation.inline:
            continue
        try:
            form = operation.form(target)
        except NotImplementedError:
            continue
        if form == DEFINED:
            arguments, value = definition(operation)
            text = source(name, arguments, [value])
            whole = compile_function(text, name, {**functions, "number": scope["number"]})
            functions[name] = lambda *args, whole=whole: whole(*args)[0]
        else:
            names = ", ".join("xyz"[: operation.arity])
            text = form if is_name(form) else f"lambda {names}: {form.format(x='x', y='y', z='z')}"
            functions[name] = eval(text, dict(scope))
    return functions
