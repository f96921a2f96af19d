"""A traced step with everything derived from it: what a backend runs.

A program reads k state arrays and a list of *operands*: features, per-channel parameters, the time
step. Every operand is an array that broadcasts to (B, T, D): a feature is (B, T, D), a parameter
(1, 1, D), one dt per step (B, T, 1). To the solver they are all alike.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from functools import cache, cached_property, reduce
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

from parnl.graph import derivatives, serial
from parnl.graph.flatcode import absent, compile_function, fused_sums, source
from parnl.graph.nodes import Graph, Symbol, is_affine, reachable
from parnl.graph.operations import OPERATIONS


class Operand(NamedTuple):
    """Name of an operand.

    `kind` is "parameter", "feature", "factor" (of a feature, see `Product`), "dt", "mask", "reset",
    "initial" or "coefficient".
    """

    kind: str
    name: str


class Product(NamedTuple):
    """Names of a feature, and of what it is made from: inputs[0] rows[0] + inputs[1] rows[1] + ...

    inputs: arrays (..., T, 1); rows: of the matrix, (1, hidden); offset: of none or one, likewise.
    """

    feature: str
    inputs: tuple[str, ...]
    rows: tuple[str, ...]
    offset: tuple[str, ...] = ()


class Functions(Protocol):
    """What `Program.function` needs of a backend: its name and its elementwise operations."""

    name: str
    functions: dict[str, Any]


_shared: WeakValueDictionary[str, Program] = WeakValueDictionary()
# Those that were made from a text: whoever has it cannot keep them, and will ask again.
_read: dict[str, Program] = {}


class Program:
    """A step x' = f(x, operands) as an expression graph.

    `states` and `operands` name the inputs, `linear` tells whether the step is affine in the state
    with coefficients that do not depend on it, `cost` counts its operations, a transcendental
    function as about ten. `text` says all of the step (see `serial`), `key` is its digest.
    """

    def __init__(
        self,
        graph: Graph,
        states: Sequence[Symbol],
        operands: Sequence[Symbol],
        outputs: Sequence[Symbol],
    ) -> None:
        self.graph = graph
        self.state_symbols = list(states)
        self.operand_symbols = list(operands)
        self.outputs = list(outputs)
        self.states = tuple(s.value[1] for s in states)
        self.operands = tuple(Operand(*s.value) for s in operands)
        # which operand says where sequences begin anew
        self.reset = next((i for i, o in enumerate(self.operands) if o.kind == "reset"), None)
        self.linear = is_affine(self.outputs, self.state_symbols)
        self.text = self.key = ""
        self._made: dict[tuple, Any] = {}

    @classmethod
    def shared(
        cls,
        graph: Graph,
        states: Sequence[Symbol],
        operands: Sequence[Symbol],
        outputs: Sequence[Symbol],
    ) -> Program:
        """Return the program of a finished trace, the one that is there if an equal one is.

        Cells of equal steps then share their compiled functions, in whatever cache those are.
        """
        text = serial.write(states, operands, outputs)
        program = _shared.get(text)
        if program is None:
            program = _shared[text] = cls(graph, states, operands, outputs)
            program.text = text
            program.key = hashlib.sha256(text.encode()).hexdigest()
        return program

    @classmethod
    def of_text(cls, text: str) -> Program:
        """Return the program whose `text` this is, made anew if it is no longer in use.

        The text may have been written in another process: see `serial`.
        """
        program = _shared.get(text)
        if program is None:
            graph, groups = serial.read(text)
            program = cls.shared(graph, *groups)
            _read[text] = program
        return program

    def __repr__(self) -> str:
        equations = (f"{n}' = {o!r}" for n, o in zip(self.states, self.outputs, strict=True))
        return f"Program({'; '.join(equations)})"

    @cached_property
    def cost(self) -> int:
        """Operations of one step of one channel."""
        return self.costs("step")

    def costs(self, kind: str) -> int:
        """Operations of the derived function `kind`, see `signature`."""

        def count() -> int:
            nodes = reachable(self.signature(kind)[1])
            return sum(OPERATIONS[n.op].cost for n in nodes if n.op in OPERATIONS)

        return self.cached(("costs", kind), count)

    @cached_property
    def jacobian(self) -> list[Symbol]:
        """The k * k entries d outputs[i] / d states[j], row by row; zeros are constants."""
        rows = derivatives.jacobian(self.outputs, self.state_symbols)
        zero = self.graph.constant(0.0)
        return [zero if entry is None else entry for row in rows for entry in row]

    def vjp(self, wanted: Sequence[int], states: bool = False) -> tuple[list[Symbol], list[Symbol]]:
        """Return the cotangent leaves, one per output, and the cotangents of operands `wanted`.

        states: put the cotangents of the states first.
        """
        given = [self.graph.leaf("cotangent", name) for name in self.states]
        symbols = self.state_symbols if states else []
        symbols = [*symbols, *(self.operand_symbols[i] for i in wanted)]
        pulled = derivatives.vjp(self.outputs, given, symbols)
        zero = self.graph.constant(0.0)
        return given, [zero if p is None else p for p in pulled]

    @cached_property
    def fused_step(self) -> dict[int, tuple[Symbol, Symbol]]:
        """Which sums of the step itself take a fused multiply-add: see `fused`."""
        return fused_sums(self.outputs)

    def fused(self, results: Sequence[Symbol]) -> dict[int, tuple[Symbol, Symbol]]:
        """Return which sums of a derived function's `results` take a fused multiply-add.

        The step's own sums are fused alike in every function, so that all of them compute the same
        next state to the last bit.
        """
        step = {n.index for n in reachable(self.outputs)}
        rest = {i: s for i, s in fused_sums(results).items() if i not in step}
        return rest | self.fused_step

    def signature(self, kind: str, wanted: Sequence[int] = ()) -> tuple[list[Symbol], list[Symbol]]:
        """Return (arguments, results) of the derived function `kind`.

        "step":           states, operands -> next states
        "step_jacobian":  states, operands -> next states, Jacobian entries
        "jacobian":       states, operands -> Jacobian entries
        "vjp":            states, operands, cotangents -> cotangents of the operands `wanted`
        """
        arguments = [*self.state_symbols, *self.operand_symbols]
        match kind:
            case "step":
                return arguments, self.outputs
            case "step_jacobian":
                return arguments, [*self.outputs, *self.jacobian]
            case "jacobian":
                return arguments, self.jacobian
            case "vjp":
                given, pulled = self.vjp(wanted)
                return [*arguments, *given], pulled
        raise ValueError(f"kind: expected step, step_jacobian, jacobian or vjp, got {kind!r}")

    def function(
        self, kind: str, backend: Functions, wanted: tuple[int, ...] = ()
    ) -> Callable[..., tuple[Any, ...]]:
        """Return the derived function `kind` (see `signature`) over the backend's arrays."""

        def make() -> Callable[..., Any]:
            arguments, results = self.signature(kind, wanted)
            fused: dict[int, tuple[Symbol, Symbol]] = {}
            if "addcmul" in backend.functions:
                fused = self.fused(results)
            if missing := absent(results, backend.functions):
                raise NotImplementedError(f"{backend.name} has no form of {', '.join(missing)}")
            text = source(kind, arguments, results, fused)
            return compile_function(text, kind, backend.functions)

        return self.cached((kind, backend.name, wanted), make)

    def cached(self, key: tuple, make: Callable[[], Any]) -> Any:
        """Return what `make` returned when it was first asked for `key`; kept with the program."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def masked(self) -> Program:
        """The same step with one more operand, `mask`: where it is 0 the state stays as it is."""
        mask = self.graph.leaf("mask", "mask")
        pairs = zip(self.outputs, self.state_symbols, strict=True)
        held = [self.graph.apply("where", mask > 0.5, new, old) for new, old in pairs]
        return Program.shared(self.graph, self.state_symbols, [*self.operand_symbols, mask], held)

    @cached_property
    def restarting(self) -> Program:
        """The same step with an operand `reset` and an initial value of each state.

        Where `reset` is not 0 the step is taken from these, whatever the state is.
        """
        reset = self.graph.leaf("reset", "reset")
        initial = [self.graph.leaf("initial", name) for name in self.states]
        known = {
            old.index: self.graph.apply("where", reset > 0.5, first, old)
            for first, old in zip(initial, self.state_symbols, strict=True)
        }
        operands = [*self.operand_symbols, reset, *initial]
        return Program.shared(self.graph, self.state_symbols, operands, self._outputs_with(known))

    def multiplying(self, products: tuple[Product, ...]) -> Program:
        """The same step, which computes these features itself; what it reads for them is last."""

        def make() -> Program:
            leaves: dict[str, Symbol] = {}
            known = {}

            def leaf(name: str) -> Symbol:
                return leaves.setdefault(name, self.graph.leaf("factor", name))

            for feature, inputs, rows, offset in products:
                pairs = zip(map(leaf, inputs), map(leaf, rows), strict=True)
                place = self.operands.index(Operand("feature", feature))
                total = reduce(operator.add, [*(v * w for v, w in pairs), *map(leaf, offset)])
                known[self.operand_symbols[place].index] = total
            kept = [o for o in self.operand_symbols if o.index not in known]
            operands, outputs = [*kept, *leaves.values()], self._outputs_with(known)
            return Program.shared(self.graph, self.state_symbols, operands, outputs)

        return self.cached(("multiplying", products), make)

    def _outputs_with(self, known: dict[int, Symbol]) -> list[Symbol]:
        """Return the outputs with other symbols in the place of some, by the index of these."""
        known = dict(known)
        for node in reachable(self.outputs):
            if node.index not in known:
                args = [known[a.index] for a in node.args]
                known[node.index] = self.graph.apply(node.op, *args) if args else node
        return [known[o.index] for o in self.outputs]

    def resets(self, operands: Sequence[Any]) -> Any:
        """Return which of these arrays says where sequences begin anew, None if none does."""
        return None if self.reset is None else operands[self.reset]


def _coefficients(graph: Graph, name: str, count: int) -> list[Symbol]:
    return [graph.leaf("coefficient", f"{name}{i}") for i in range(count)]


def affine_program(k: int, restarting: bool = False) -> Program:
    """x' = A x + b for blocks of k; operands: the k * k entries of A row by row, then b.

    restarting: one more operand, `reset`; where it is not 0, A is 0, be x finite or not.
    """
    return _AFFINE[k] if k in _AFFINE and not restarting else _affine_program(k, restarting)


@cache
def _affine_program(k: int, restarting: bool = False) -> Program:
    g = Graph()
    x = [g.leaf("state", f"x{i}") for i in range(k)]
    a, b = _coefficients(g, "a", k * k), _coefficients(g, "b", k)
    outputs = []
    for i in range(k):
        total = b[i]
        for j in range(k):
            total = total + a[i * k + j] * x[j]
        outputs.append(total)
    return _program(g, x, [*a, *b], outputs, b, restarting)


def _program(
    g: Graph,
    states: list[Symbol],
    operands: list[Symbol],
    outputs: list[Symbol],
    anew: Sequence[Any],
    restarting: bool,
) -> Program:
    """Return the program, whose outputs, if `restarting`, are `anew` where `reset` is not 0."""
    if restarting:
        reset = g.leaf("reset", "reset")
        pairs = zip(anew, outputs, strict=True)
        outputs = [g.apply("where", reset > 0.5, new, output) for new, output in pairs]
        operands = [*operands, reset]
    return Program.shared(g, states, operands, outputs)


@cache
def complex_affine_program(k: int) -> Program:
    """x' = A x + b for blocks of k complex numbers, as 2 k real states: real parts, imaginary ones.

    Operands: the k * k real parts of A row by row, its imaginary ones, then those of b likewise.
    """
    g = Graph()
    re, im = ([g.leaf("state", f"{part}{i}") for i in range(k)] for part in ("re", "im"))
    a_re, a_im = (_coefficients(g, f"a_{part}", k * k) for part in ("re", "im"))
    b_re, b_im = (_coefficients(g, f"b_{part}", k) for part in ("re", "im"))
    real, imaginary = list(b_re), list(b_im)
    for i in range(k):
        for j in range(k):
            e = i * k + j
            real[i] = real[i] + a_re[e] * re[j] - a_im[e] * im[j]
            imaginary[i] = imaginary[i] + a_re[e] * im[j] + a_im[e] * re[j]
    return Program.shared(g, [*re, *im], [*a_re, *a_im, *b_re, *b_im], [*real, *imaginary])


@cache
def adjoint_program(k: int, restarting: bool = False) -> Program:
    """m' = J^T (g + m): the adjoint recurrence; operands: the entries of J row by row, then g.

    Run backward in time it gives m_t = J_t^T lambda_t, from which lambda_t = g_t + m_{t+1}: written
    so, J and g are read at the same step, and nothing is shifted in memory. restarting: as in
    `affine_program`.
    """
    g = Graph()
    m = [g.leaf("state", f"m{i}") for i in range(k)]
    jac, grad = _coefficients(g, "j", k * k), _coefficients(g, "g", k)
    lam = [gi + mi for gi, mi in zip(grad, m, strict=True)]
    outputs = []
    for j in range(k):
        total = jac[j] * lam[0]
        for i in range(1, k):
            total = total + jac[i * k + j] * lam[i]
        outputs.append(total)
    return _program(g, m, [*jac, *grad], outputs, [0.0] * k, restarting)


# Made here, with what is derived from them, for torch.compile cannot follow a trace.
_AFFINE = {k: _affine_program(k) for k in (1, 2)}
for _ready in _AFFINE.values():
    _ = _ready.cost, _ready.jacobian
