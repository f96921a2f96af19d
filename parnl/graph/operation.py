"""What an elementwise operation is; `operations.py` has the table of all.

An entry says what a function is: its value in NumPy, which also folds constants; its derivative;
bounds of its values over intervals; its cost; and how each target computes it. `array_api` is any
library that follows that standard, `xp` its namespace; JavaScript is what a page of the
documentation runs. A target's form is

    a name         "torch.tanh", of a function of that target; in C it takes the type's suffix, and
                   may be computed for a whole vector; ONNX has only names, those of operators
    an expression  "tl.where({x}, {y}, {z})", where {x}, {y}, {z} stand for the arguments, and in C
                   {f} for the suffix of its functions: "f" for float, nothing for double
    left out       then the target computes the entry's `definition`, written once in terms of other
                   operations; without one it has no such operation, which is an error
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parnl.graph.intervals import Interval

# (t, f, arguments) -> t times the derivative by one argument; f is the operation's own value
Rule = Callable[..., Any]

TARGETS = ("torch", "jax", "array_api", "c", "triton", "onnx", "javascript")
DEFINED = "by definition"  # a form: the target has none of its own, or none that serves


@dataclass(frozen=True, eq=False, kw_only=True)
class Operation:
    """An elementwise function.

    numpy: the function on arrays; enclosure: the same on `Interval`s, where a comparison gets a
    third argument, whether both sides are the same number; cost: in additions; derivative: a rule
    for each argument, none where the function is constant between its jumps; definition: the
    function by other operations; syntax: how every target but ONNX writes it, as in "{x} + {y}",
    and `python` how those of arrays do, if not as a call; c_float32: the form for float, where C
    has another for it; conditions: positions of the arguments that are conditions; is_condition:
    whether the value is one; jumps: where the function may jump, given intervals; example: for
    random tests, an expression in x and y that is moderate everywhere, "" for the plain call;
    smooth: whether the example has derivatives everywhere.
    """

    name: str
    numpy: Callable[..., Any]
    enclosure: Callable[..., Interval]
    arity: int = 1
    cost: int = 1
    derivative: tuple[Rule, ...] = ()
    definition: Callable[..., Any] | None = None
    syntax: str = ""
    python: str = ""
    torch: str = ""
    jax: str = ""
    array_api: str = ""
    c: str = ""
    c_float32: str = ""
    triton: str = ""
    onnx: str = ""
    javascript: str = ""
    conditions: tuple[int, ...] = ()
    is_condition: bool = False
    jumps: Callable[..., Any] | None = None
    example: str = ""
    smooth: bool = True

    def __call__(self, *args: Any) -> Any:
        """Return the symbol of this operation on symbols of one graph, and numbers."""
        graph = next(a.graph for a in args if hasattr(a, "graph"))
        return graph.apply(self.name, *args)

    @property
    def inline(self) -> str:
        """How Python code over arrays writes it, "" for a call."""
        return self.python or self.syntax

    def form(self, target: str) -> str:
        """Return how `target` writes it, `DEFINED` if by its definition."""
        given = getattr(self, target) if target == "onnx" else self.syntax or getattr(self, target)
        if given:
            return given
        if self.definition is None:
            raise NotImplementedError(f"{target} has no form of {self.name}")
        return DEFINED

    def text(self, form: str, *args: str, **more: str) -> str:
        """Return `form` with its arguments put in; of a definition, the call of its function."""
        if is_name(form):
            return f"{form}({', '.join(args)})"
        return form.format(**dict(zip("xyz", args, strict=False)), **more)


def is_name(form: str) -> bool:
    """Whether a form is the name of a function."""
    return re.fullmatch(r"[\w.]+", form) is not None


def slope(*rules: Callable[..., Any]) -> tuple[Rule, ...]:
    """Return rules from derivatives (f, arguments), one for each argument."""

    def chained(rule: Callable[..., Any]) -> Rule:
        def scaled(t: Any, f: Any, *args: Any) -> Any:
            derivative = rule(f, *args)
            return derivative if t.op == "constant" and t.value == 1.0 else t * derivative

        return scaled

    return tuple(chained(rule) for rule in rules)
