"""The public function `solve`: arguments in, arrays out.

What is done here is the same for every backend: check what came, decide whether to solve all steps
at once or in stretches (`parnl.stretch`), and give the results the caller's shapes. The algorithm
itself is in `parnl.solver.newton`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal, NamedTuple

from parnl.cell import Cell
from parnl.check import (
    check_finite,
    check_parameters,
    check_residuals,
    require_values,
    states_before,
)
from parnl.dtypes import Array, dtype_name
from parnl.frameworks import lenient, telling
from parnl.inputs import (
    Packed,
    beginnings,
    check_params,
    given_time_step,
    initial_states,
    last_states,
    lengths_of,
    mask_of,
    packed,
    resets_of,
    time_array,
    times,
    wide_params,
)
from parnl.params import Values
from parnl.solver.cost import shortest_streamed, stretch_length
from parnl.solver.run import Info, Settings, check_chunks, is_free, positive, settings
from parnl.states import as_given
from parnl.stretch import Stretch, Task, solve_stretch, streamed


class Solution(NamedTuple, Generic[Array]):
    """Result of `solve`, in arrays of the inputs' framework.

    Attributes:
        outputs: (..., T, hidden).
        final_state: one array (..., hidden) for each state of the cell, in a tuple with the names
            of the states. Give it as `initial_state` to go on.
        info: `Info`.
        states: every state at every step, one array (..., T, hidden) each; None unless asked for.
    """

    outputs: Array
    final_state: tuple[Array, ...]
    info: Info
    states: tuple[Array, ...] | None = None


@lenient(2, "inputs")
def solve(
    cell: Cell,
    params: Mapping[str, Any],
    inputs: Array,
    initial_state: Array | Sequence[Array] | None = None,
    *,
    dt: Array | float | None = None,
    lengths: Any = None,
    resets: Any = None,
    reset_state: Array | Sequence[Array] | None = None,
    cu_seqlens: Any = None,
    reverse: bool = False,
    method: Literal["auto", "newton", "sequential"] = "auto",
    chunks: int | Literal["auto"] | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    check: bool = False,
    stretch: int | None = None,
    time_axis: Any = None,
    states: bool = False,
) -> Solution[Array]:
    """Run `cell` over whole sequences, in parallel over time, with the sequential answer.

    Args:
        cell: from `parnl.get_cell`, or an instance of your own class.
        params: name -> array, as `cell.init` returns them.
        inputs: (..., T, input), of NumPy, JAX, PyTorch or any other library of the array API
            standard, as CuPy; all arrays must be of the same one.
        initial_state: one array (..., hidden) for each state of the cell: a `final_state`, taken by
            name, or a plain tuple in the cell's order. If there is one state, the array itself will
            do. None: zeros.
        dt: time step of a time-aware cell: a number, or (..., T), one for each step. If None, the
            cell's own option.
        lengths: integers (...), the number of valid steps of each sequence. Later steps leave the
            state as it is, and their outputs are 0.
        resets: booleans that broadcast to (..., T), true at the first step of each episode. Before
            such a step the state is the initial state, so nothing earlier counts.
        reset_state: the state before the steps of `resets`, given as `initial_state` is. None:
            `initial_state`. Set it if `initial_state` is the last state of an earlier rollout. Not
            with `cu_seqlens`.
        cu_seqlens: integers (S + 1,) for S sequences that stand one after the other, without
            padding, in inputs (T, input) or (1, T, input): where each begins, and T.
            `initial_state` and `final_state` are then (S, hidden). Not with `lengths`.
        reverse: run from the last valid step to the first. With `resets` or `cu_seqlens`, each
            sequence is reversed by itself. Outputs stay beside their inputs.
        method: "newton" (parallel), "sequential" (the plain loop), or "auto": parallel where the
            device gains from it.
        chunks: number of pieces the T steps are cut into and solved in parallel, 1 to T. 1 is the
            plain loop, T is Newton over all steps at once. None or "auto": enough to fill the
            device, so 1 if sequences and channels fill it already; also 1 in an exported function
            that leaves the batch or T open.
        tolerance: largest gap accepted between the end of a chunk and the start of the next,
            relative to the size of the state. None: rounding level. 0: chunk starts equal the
            sequential run to the last bit.
        max_iterations: stop after so many Newton updates, converged or not. `chunks` updates are
            always enough. None: if Newton stalls, parnl stops it and runs the plain loop for the
            channels that have not converged, whatever the method. `info.sequential` counts them.
            With automatic chunks this is to cost at most 2.5 times the plain loop.
        stretch: number of steps whose features are in memory at a time. parnl solves such stretches
            one after the other, and computes the features again for a gradient. None: on a CPU,
            long sequences are cut so that features stay in its cache; elsewhere, and with `check`,
            all steps are one stretch. Not for cells whose features look along time, see
            `parnl.Cell`.
        time_axis: devices that share the axis of time, each with one part of it: in JAX the name of
            an axis of the mesh, within `jax.shard_map`; in PyTorch a `ProcessGroup`, or a
            `DeviceMesh` of one dimension. See below.
        states: return the states at every step as well; then nothing is solved in stretches.
        check: look at the answer, and raise `parnl.SolveError` if it is wrong: if a parameter,
            input, feature or state is not finite, or a state differs from what the cell's step
            makes of the state before it. The error names the first fault in time, with its
            sequence, step and channel, and says what to try. This costs about one step over all T
            in the framework's own operations. Not under jit, vmap or grad.

    Gradients (JAX, PyTorch) are exact, from the implicit function theorem: O(T D) memory, no
    matter how many iterations. They come in the dtype of each argument. NumPy and the other
    libraries have none.

    Dtypes: outputs have the dtype that NumPy promotes inputs and parameters to. `initial_state` and
    `dt` may be of any floating type. If outputs are float16 or bfloat16, parameters, features and
    states are still computed in float32, and `final_state` is float32, so a sequence may be cut and
    continued without loss. Only PyTorch takes products of matrices in the half type, as in
    `torch.autocast`, and accumulates them in float32.

    Exported functions: `jax.export` writes JAX's own operations, without parnl's kernels, so the
    result runs without parnl. Return `outputs`, and states as a plain tuple. Automatic chunks are
    those of the platform you export for, or 1 where sizes are left open. `info.chunks` and
    stretches are those of the platform you export on; `stretch=T` forbids stretches. For PyTorch
    see `parnl.torch.export_onnx`; the result of `torch.export` calls parnl.

    Several devices: `inputs`, `dt`, `resets` and `outputs` are each device's own part, in the order
    of the axis. Features must not look along time. In PyTorch, parts may differ in length or be
    empty. `initial_state`, `lengths` (of the whole) and `final_state` are the same on all devices.
    T and `chunks` are those of the whole, with as many chunks on each device. The loss is the sum
    of what the devices compute: sum the gradients of parameters and of `initial_state` over them,
    as JAX does by itself. Take a loss of `final_state` on one device, or divide it by their number.
    In PyTorch all devices go backward, or none.

    Time steps: with dt = 0 the state of a cell that discretises an ODE stays as it is. A negative
    dt is allowed, and goes into the cell's formula unchanged: a step back in time. If dt is NaN or
    infinite at a step, the states from that step on are NaN, and those before it are not touched.

    Returns:
        A `Solution`.

    Raises:
        ValueError: names the argument, what came, and what was expected.
        TypeError: likewise.
        SolveError: with `check`, if the answer is wrong.

    >>> import numpy as np, parnl
    >>> cell = parnl.get_cell("gru", input_size=3, hidden_size=8)
    >>> out = parnl.solve(cell, cell.init(seed=0), np.ones((2, 100, 3), dtype=np.float32))
    >>> out.outputs.shape, out.final_state[0].shape
    ((2, 100, 8), (2, 8))
    """
    checked = partial(
        _checked, cell, params, inputs, initial_state, dt, lengths, resets, reset_state, cu_seqlens,
        partial(settings, reverse, method, chunks, tolerance, max_iterations), check,
        {} if time_axis is None else {"stretch": stretch, "cu_seqlens": cu_seqlens},
    )  # fmt: skip
    given = checked() if time_axis is None else telling(time_axis, checked)
    backend, how, inputs, initial, pack = given[:5]
    xp = backend.xp
    *batch, steps, _ = inputs.shape
    several = tuple(batch) if pack is None else (pack.offsets.shape[0] - 1,)
    x0 = initial if pack is None else [xp.zeros_like(x[:1, ...]) for x in initial]
    line, total = None, steps
    if time_axis is not None:
        line = backend.line_of(time_axis, inputs, _alike(cell, given, initial_state, check))
        total = line.total()

    resets, anew = given.resets, given.anew
    number = given.dt if isinstance(given.dt, float) else None
    task = Task(
        cell, how, number, given.dtype, given.result, initial_state is None and anew is None, line
    )
    fixed: dict[str, Any] = {"params": given.params, "initial": anew or initial}
    along = {"inputs": inputs}
    mask = None if given.lengths is None else mask_of(backend, given.lengths, inputs, line)
    if given.dt is not None and number is None:
        along["dt"] = given.dt[..., None]
    if mask is not None:
        along["mask"] = mask[..., None]
    if resets is not None or pack is not None:
        along["begins"] = beginnings(
            backend, resets, pack, mask, inputs, how.reverse, line, anew is None
        )
    if pack is not None:
        fixed["offsets"] = pack.offsets
        along |= {"index": pack.index[:, None], "time": times(backend, inputs)[:, None]}

    length, name = total, "T"
    if line is None:
        if states and stretch is not None:
            raise ValueError("stretch: expected None with states=True")
        alone = check or states
        length = _stretch(cell, given, x0[0], stretch, alone)
        name = "T" if length == steps else "stretch"
    check_chunks(how, length, name)
    if length < total:
        outputs, x, ends, info = streamed(backend, task, fixed, x0, along, length)
        shaped = [
            xp.reshape(a, (*several, cell.hidden_size)) for a in (x if ends is None else ends)
        ]
        return Solution(outputs, as_given(cell.State, initial_state, shaped), info)

    found = solve_stretch(backend, task, fixed, x0, along)
    if check:
        look = partial(_check_answer, cell, given, found, mask)
        look() if line is None else line.together(look)
    ends = found.ends
    if pack is not None:
        pairs = zip(found.states, initial, strict=True)
        ends = [last_states(xp, pack.offsets, 0, s[0, ...], x, how.reverse) for s, x in pairs]
    ends = [xp.reshape(x, (*several, cell.hidden_size)) for x in ends]
    every = None
    if states:
        whole = (*batch, steps, cell.hidden_size)
        every = cell.State(*(xp.reshape(s, whole) for s in found.states))
    return Solution(found.outputs, as_given(cell.State, initial_state, ends), found.info, every)


class _Given(NamedTuple):
    """The arguments of `solve`, checked.

    initial: k arrays (B, D), or (S, D) of packed sequences; anew: `reset_state` likewise; params,
    dtype, result: as `inputs.wide_params` has them; dt: a number or an array; lengths and resets:
    as they came.
    """

    backend: Any
    how: Settings
    inputs: Any
    initial: list[Any]
    pack: Packed | None
    anew: list[Any] | None
    params: dict[str, Any]
    dtype: Any
    result: Any
    dt: Any
    lengths: Any
    resets: Any


def _checked(
    cell: Cell,
    params: Mapping[str, Any],
    inputs: Any,
    initial_state: Any,
    dt: Any,
    lengths: Any,
    resets: Any,
    reset_state: Any,
    cu_seqlens: Any,
    make: Callable[[], Settings],
    check: bool,
    alone: Mapping[str, Any],
) -> _Given:
    """Return the arguments; raise for one that is wrong, or is one of `alone` and not None."""
    how = make()
    for name, value in alone.items():
        if value is not None:
            raise ValueError(f"{name}: expected None with time_axis")
    backend, params, inputs = check_params(cell, params, inputs)
    *batch, steps, _ = inputs.shape
    if check:
        require_values(backend, [("inputs", inputs), *params.items()])
        check_parameters(backend, params)
    if lengths is not None:
        lengths = lengths_of(backend, lengths, inputs)
    pack = None if cu_seqlens is None else packed(backend, cu_seqlens, inputs)
    if pack is not None and lengths is not None:
        raise ValueError("lengths: expected None with cu_seqlens, which gives the lengths")
    dt = given_time_step(backend, cell, dt, inputs)
    if resets is not None:
        resets = resets_of(backend, "resets", resets, inputs, (*batch, steps))
    several = tuple(batch) if pack is None else (pack.offsets.shape[0] - 1,)
    p, dtype, result = wide_params(backend, params, inputs)
    shape = (math.prod(several), cell.hidden_size)
    initial = initial_states(backend, cell, initial_state, inputs, dtype, several)
    initial = [backend.xp.reshape(x, shape) for x in initial]
    anew = None
    if reset_state is not None:
        if resets is None or pack is not None:
            raise ValueError("reset_state: expected None without resets, or with cu_seqlens")
        anew = initial_states(backend, cell, reset_state, inputs, dtype, several, "reset_state")
        anew = [backend.xp.reshape(x, shape) for x in anew]
    wide = {n: getattr(p, n) for n in params}
    return _Given(
        backend, how, inputs, initial, pack, anew, wide, dtype, result, dt, lengths, resets
    )


def _check_answer(cell: Cell, given: _Given, found: Stretch, mask: Any) -> None:
    """Raise SolveError unless the answer is finite, converged and consistent; see `parnl.check`."""
    backend, states, how = given.backend, found.states, given.how
    # the initial state, dt or lengths may have been traced
    pairs = zip(cell.states, states, strict=True)
    require_values(backend, [(f"state {n}", s) for n, s in pairs])
    *batch, steps, _ = given.inputs.shape
    if not steps:
        return
    xp, width = backend.xp, cell.hidden_size
    named = [("inputs", given.inputs)]
    if given.dt is not None:
        dt = time_array(xp, given.dt, given.inputs, given.dtype)
        named.append(("dt", dt[..., None]))
    named += [(f"feature {n}", v) for n, v in vars(found.features).items() if n != "_kind"]
    first = given.initial if given.pack is not None else found.x0
    lead = tuple(batch) if given.pack is None else first[0].shape[:1]
    first = [xp.reshape(x, (*lead, width)) for x in first]
    whole = [xp.reshape(s, (*batch, steps, width)) for s in states]
    problem = backend, found.program, found.operands, found.x0, states
    before = partial(states_before, *problem, how.reverse)
    check_finite(backend, named, cell.states, first, whole, mask, how.reverse, before)
    tolerance, most = how.tolerance, how.max_iterations
    check_residuals(*problem, batch, how.reverse, found.info, tolerance, most)


def _alike(cell: Cell, given: _Given, initial_state: Any, check: bool) -> str:
    """Return the arguments, except arrays, that devices along the axis of time must agree on."""
    absent = [x is None for x in (initial_state, given.lengths, given.resets, given.anew)]
    dt = given.dt if isinstance(given.dt, float) else ""
    batch = given.inputs.shape[:-2]
    names = type(cell).__name__, cell.program.key, cell.hidden_size
    return repr((*names, *batch, str(given.dtype), given.how, absent, dt, check))


def _stretch(cell: Cell, given: _Given, like: Any, asked: Any, whole: bool) -> int:
    """Return how many steps are solved at a time; like: an initial state (B, D).

    whole: whether all states are to be looked at.
    """
    backend, inputs, steps = given.backend, given.inputs, given.inputs.shape[-2]
    if asked is not None:
        length = positive("stretch", asked)
    if whole:
        return steps
    if asked is None:
        channels = math.prod(like.shape)
        if is_free(channels) or is_free(steps):
            return steps
        if given.how.chunks is not None or steps < shortest_streamed(cell.program, channels):
            return steps  # as most are: before anything that takes time is asked
        arrays = [*given.params.values(), inputs, *given.initial]
        if not backend.streams(arrays):
            return steps
        p = Values("parameter", given.params)
        program, _ = backend.with_products(cell, p, inputs, given.dtype)
        where = program, backend.device(like), channels, steps
        length = stretch_length(*where, backend.followed(arrays))
    if length >= steps:
        return steps
    device = str(like.device) if backend.name == "torch" else None
    if cell.can_be_cut(backend.name, device, dtype_name(like.dtype), steps, length):
        return length
    if asked is not None:
        raise ValueError(
            f"stretch: expected None, since {type(cell).__name__} has features that look along "
            "time, are drawn at random or cannot be tried; if those of a step depend only on its "
            "inputs, set time_local = True in the class"
        )
    return steps
