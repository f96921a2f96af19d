"""`Cell`: what a user writes, and what parnl reads from it."""

from __future__ import annotations

import inspect
import keyword
import re
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import numpy as np

from parnl import locality, ops
from parnl.dtypes import is_half
from parnl.frameworks import constant, get_backend, name_of
from parnl.graph.nodes import Graph, StepError, Symbol
from parnl.graph.program import Program
from parnl.params import Parameter
from parnl.states import state_type

if TYPE_CHECKING:
    import jax
    import torch

_BIAS = re.compile("b(_|$)")
# Attributes of a cell that follow from its class and the others.
_DERIVED = ("specs", "parameter_shapes", "time_aware", "program", "State", "_remembered")


class Cell:
    """A recurrent cell x_t = step(x_{t-1}, features(u)_t) whose channels do not mix in the step.

    A subclass declares

    - `parameters`: name -> `parnl.params.matrix` or `vector` (a dict, or a property that returns
      one, where the parameters depend on the options);
    - `states`: names of the state's parts, one number per channel each; ("x",) if not given;
    - `options`: keyword arguments of the constructor and their defaults; read as `self.name`;

    and defines

    - `features(self, p, u)`: arrays (..., T, hidden) by name, computed for all time steps at once
      from the inputs u (..., T, input). All that reads only u belongs here;
    - `step(self, p, x, f)`: the next state of one channel, elementwise: p and f give its parameters
      and features. With several states, `step` takes one value for each, and returns as many. A
      time-aware cell adds a last argument named `dt`;
    - `output(self, p, x, f)`, optional: outputs from states, for all time steps at once, with one
      argument for each state; else the last state is the output.

    If the features of a step depend only on that step's inputs, parnl solves a long sequence in
    stretches and computes the features of each apart. To say whether they do, set `time_local` to
    True or False in the class that defines features and output. Else parnl tries it out, once for
    each cell.

    `step` is called once, with symbols. It may use arithmetic, `parnl.ops`, and comparisons inside
    `ops.where`; all else raises `StepError`.

    Args:
        input_size: channels of the inputs, at least 1.
        hidden_size: channels of the states and outputs, at least 1.
        **options: those of the cell. `dt`, if the cell has it, is the time step used when
            `parnl.solve` is given none.

    Raises:
        StepError: `step` does something that cannot be traced.
        TypeError: the cell does not know an option.
        ValueError: a size is not a positive integer, or a name is not an identifier.

    The constructor sets `parameter_shapes`, name -> shape in the order of declaration,
    `time_aware`, whether the step reads `dt`, and `State`, the named tuple of the cell's states.
    """

    states: ClassVar[tuple[str, ...]] = ("x",)
    options: ClassVar[Mapping[str, Any]] = {}
    parameters: Any = {}  # a dict, or a property

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size!r}")
        unknown = [name for name in options if name not in self.options]
        if unknown:
            known = ", ".join(f"{n}={v!r}" for n, v in self.options.items()) or "none"
            name = type(self).__name__
            raise TypeError(f"{name} has no option {', '.join(unknown)}; its options are: {known}")
        self.input_size, self.hidden_size = int(input_size), int(hidden_size)
        self.chosen = {**self.options, **options}
        self.__dict__.update(self.chosen)
        self._derive()

    def _derive(self) -> None:
        """Set what follows from the class, the sizes and the options."""
        self.specs: dict[str, Parameter] = dict(self.parameters)
        for kind, names in (("parameters", self.specs), ("states", self.states)):
            for name in names:
                _check_name(kind, name)
        if not self.states or len(set(self.states)) < len(self.states):
            raise ValueError(f"states: expected one name or more, each once, got {self.states!r}")
        # looked up in every solve, hence once
        self.parameter_shapes: dict[str, tuple[int, ...]] = {
            name: spec.shape(self.sizes) for name, spec in self.specs.items()
        }
        self.State = state_type(tuple(self.states))
        self.time_aware = "dt" in inspect.signature(self.step).parameters
        self.program = self._trace()
        # what backends know of steps they have made, see `parnl.backends.c.steps`
        self._remembered: dict[tuple, Any] = {}
        # here, for torch.compile cannot follow these
        for program in (self.program, self.program.restarting):
            for form in (program, program.masked):
                _ = form.cost, form.jacobian, form.fused_step

    def __eq__(self, other: object) -> bool:
        """Cells of one class, with equal sizes, options and other attributes, are equal.

        So a cell made anew is the same static argument to `jax.jit`, which need not compile again.
        """
        return isinstance(other, Cell) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        options = {name: getattr(self, name) for name in self.chosen}
        given = {"input_size": self.input_size, "hidden_size": self.hidden_size} | options
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in given.items())})"

    def __getstate__(self) -> dict[str, Any]:
        # what is derived is not copied but derived again: it holds functions, and compiled kernels
        return {n: v for n, v in vars(self).items() if n not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._derive()

    def _identity(self) -> object:
        # specs may hold functions, which equal nothing but themselves; the others are dicts; all
        # of them follow from the class and the other attributes
        repeated = ("specs", "chosen", "parameter_shapes", "State", "_remembered")
        rest = [item for item in vars(self).items() if item[0] not in repeated]
        try:
            return type(self), frozenset(rest)
        except TypeError:  # an attribute that cannot be hashed
            return id(self)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Options are attributes."""

    def features(self, p: Any, u: Any) -> Mapping[str, Any]:
        """Return what the step reads besides the state: name -> array (..., T, hidden)."""
        raise NotImplementedError(f"{type(self).__name__} must define features(self, p, u)")

    def step(self, *args: Any, **kwargs: Any) -> Any:  # so that any step may override it
        """Return the next state of one channel."""
        raise NotImplementedError(f"{type(self).__name__} must define step(self, p, x, f)")

    @property
    def sizes(self) -> dict[str, int]:
        """Dimension name -> size."""
        return {"input": self.input_size, "hidden": self.hidden_size}

    @property
    def biases(self) -> tuple[str, ...]:
        """The parameters that a layer without biases leaves at 0: vectors called b or b_...."""
        return tuple(n for n, spec in self.specs.items() if spec.per_channel and _BIAS.match(n))

    @property
    def linear(self) -> bool:
        """Whether the step is affine in the state: then one scan solves it, with no iteration."""
        return self.program.linear

    @property
    def cost(self) -> int:
        """Operations of one step of one channel; a transcendental function counts about ten."""
        return self.program.cost

    @overload
    def init(
        self, seed: Any = 0, *, backend: Literal["numpy"], dtype: str = ..., device: Any = None
    ) -> dict[str, np.ndarray]: ...

    @overload
    def init(
        self, seed: Any = 0, *, backend: Literal["torch"], dtype: str = ..., device: Any = None
    ) -> dict[str, torch.Tensor]: ...

    @overload
    def init(
        self, seed: Any = 0, *, backend: Literal["jax"], dtype: str = ..., device: Any = None
    ) -> dict[str, jax.Array]: ...

    @overload
    def init(
        self, seed: int = 0, backend: None = None, dtype: str = ...
    ) -> dict[str, np.ndarray]: ...

    @overload
    def init(
        self, seed: Any = 0, backend: str | None = None, dtype: str = ..., device: Any = None
    ) -> dict[str, Any]: ...

    def init(
        self,
        seed: Any = 0,
        backend: str | None = None,
        dtype: str = "float32",
        device: Any = None,
    ) -> dict[str, Any]:
        """Return fresh parameters, name -> array.

        Args:
            seed: an integer, or a JAX PRNG key, old or new style. A seed gives the same values on
                every backend, and in JAX inside and outside of `jit` and `vmap`, where it may be
                traced. `jax.random.key(0)` and 0 give different values. NumPy draws them; under a
                trace, through `jax.pure_callback`.
            backend: "numpy", "jax", "torch", or the name of another module of the array API
                standard ("cupy", "array_api_strict"). None: NumPy, or JAX if the seed is a JAX
                array.
            dtype: "float32" and so on, "float16" or "bfloat16". In NumPy, "bfloat16" needs
                ml_dtypes.
            device: where the arrays are to be, as the framework names it.

        >>> import parnl
        >>> params = parnl.get_cell("mgu", input_size=3, hidden_size=8).init(seed=0)
        >>> {name: array.shape for name, array in params.items()}["W_f"]
        (3, 8)
        """
        name = dtype if is_half(dtype) else np.dtype(dtype).name
        if not is_half(name) and np.dtype(name).kind != "f":
            raise TypeError(f"dtype: expected a floating point type, got {dtype!r}")
        of_jax = name_of(seed) == "jax"
        target = get_backend(backend or ("jax" if of_jax else "numpy"))
        if of_jax:
            jax: Any = get_backend("jax")
            key, seed = seed, jax.seed_of_key(seed)
            if seed is None:
                if target.name != jax.name:
                    raise TypeError(f"seed: a traced key needs backend='jax', got {backend!r}")
                return jax.draw_traced(self, key, name, device)
        drawn = self.draw(np.random.default_rng(seed))
        return {n: target.asarray(v, name, device) for n, v in drawn.items()}

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw every parameter, in float64. Extend it where one depends on another's draw."""
        return {name: spec.draw(rng, self.sizes) for name, spec in self.specs.items()}

    @constant
    def can_be_cut(
        self, framework: str, device: str | None, dtype: str, steps: int, length: int
    ) -> bool:
        """Return whether features can be computed `length` of `steps` at a time: `time_local`."""
        known = locality.said(type(self))
        if known is not None:
            return known
        return locality.tried(self, framework, device, dtype, steps, length)

    def _trace(self) -> Program:
        """Call `step` once with symbols and return its graph."""
        graph = Graph()
        parameters, features = _Parameters(graph, self), _Features(graph)
        states = [graph.leaf("state", name) for name in self.states]
        time = {"dt": graph.leaf("dt", "dt")} if self.time_aware else {}
        signature = inspect.signature(self.step)
        try:
            signature.bind(parameters, *states, features, **time)
        except TypeError as error:
            expected = ", ".join(("p", *self.states, "f", *time))
            raise StepError(
                f"step: expected the arguments ({expected}), with one for each of the states "
                f"{', '.join(self.states)}, got {signature}"
            ) from error
        try:
            result = self.step(parameters, *states, features, **time)
        except TypeError as error:
            if isinstance(error, StepError) or Symbol.__name__ not in str(error):
                raise
            raise _explained(error) from error
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        if any(o is None for o in outputs):
            raise StepError(
                f"step: expected a value for each of the states {', '.join(self.states)}, "
                "got None; does the method end in `return`?"
            )
        if len(outputs) != len(states):
            raise StepError(
                f"step: expected {len(states)} value(s) for the states {', '.join(self.states)}, "
                f"got {len(outputs)}"
            )
        # adding 0 changes nothing, but refuses what is no number: comparisons, arrays, None
        numbers = [graph.apply("add", o, 0.0) for o in outputs]
        operands = [*parameters._used.values(), *features._used.values(), *time.values()]
        return Program.shared(graph, states, operands, numbers)


def _explained(error: TypeError) -> StepError:
    """Return what a user can do about a framework's function that refused a symbol.

    JAX and PyTorch ask a symbol nothing: they only say that its type is wrong.
    """
    lines = [
        frame.line or ""
        for frame, (f, _) in zip(
            traceback.extract_tb(error.__traceback__),
            traceback.walk_tb(error.__traceback__),
            strict=True,
        )
        if str(f.f_globals.get("__name__")).partition(".")[0] not in ("jax", "torch", "numpy")
    ]
    called = [name for name in re.findall(r"\.(\w+)\(", lines[-1]) if name in ops.__all__]
    instead = " and ".join(f"ops.{name}" for name in dict.fromkeys(called)) or "parnl.ops"
    return StepError(
        f"step: `{lines[-1]}` gives a symbol to a function that expects arrays; use {instead}: "
        "parnl's functions take symbols, and arrays of every framework"
    )


def _check_name(kind: str, name: Any) -> None:
    """Raise ValueError unless `p.name` can be written, and is no attribute of Python's own.

    Names stay out of generated code, which numbers its variables; they are keys of files and of
    `torch.nn.ParameterDict`, and part of messages.
    """
    fits = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
    if not fits or keyword.iskeyword(name):
        raise ValueError(
            f"{kind}: expected Python identifiers without a leading underscore, got {name!r}"
        )


class _Parameters:
    """Parameters as a step sees them while it is traced: a symbol for each that is read."""

    def __init__(self, graph: Graph, cell: Cell) -> None:
        self._graph, self._cell = graph, cell
        self._used: dict[str, Symbol] = {}

    def __getattr__(self, name: str) -> Symbol:
        if name.startswith("__"):
            raise AttributeError(name)
        specs = self._cell.specs
        if name not in specs:
            raise AttributeError(
                f"step: parameter {name!r} is not declared; there are: {', '.join(specs)}"
            )
        if not specs[name].per_channel:
            raise StepError(
                f"step: parameter {name!r} has dimensions {specs[name].dims}, but a step sees one "
                'channel: only vector("hidden") may be read here; multiply the inputs by it in '
                "features(). A state cannot be multiplied by a matrix: that mixes channels"
            )
        return self._used.setdefault(name, self._graph.leaf("parameter", name))


class _Features:
    """Features as a step sees them while it is traced: any name, resolved when it is run."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._used: dict[str, Symbol] = {}

    def __getattr__(self, name: str) -> Symbol:
        if name.startswith("__"):
            raise AttributeError(name)
        _check_name("features", name)
        return self._used.setdefault(name, self._graph.leaf("feature", name))
