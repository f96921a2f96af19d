"""`step`: one time step, for streaming.

The first call of a kind is checked and laid out as `solve` does it. In PyTorch and NumPy the cell
remembers the result. The next call like it only looks at its arrays, computes the features and
calls one kernel: see `parnl.backends.c.steps`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from parnl.cell import Cell
from parnl.dtypes import Array
from parnl.frameworks import lenient
from parnl.inputs import (
    check_params,
    computed_features,
    feature_operands,
    given_time_step,
    initial_states,
    remembered,
    resets_of,
    time_step,
)
from parnl.params import Values
from parnl.states import as_given
from parnl.stretch import outputs_of


def step(
    cell: Cell,
    params: Mapping[str, Any],
    input_t: Array,
    state: Array | Sequence[Array] | None = None,
    *,
    dt: Array | float | None = None,
    reset: Any = None,
    reset_state: Array | Sequence[Array] | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Run one time step: streaming, in O(1) memory.

    Differentiable by the framework's own autodiff. States are float32 where outputs are of half
    precision, so that what a state gathers over many steps is not lost to rounding; see `solve`.

    Args:
        cell: from `parnl.get_cell`, or an instance of your own class.
        params: name -> array, as `cell.init` returns them.
        input_t: (..., input), of any framework.
        state: as `initial_state` of `solve`, and as this function returned it; zeros if None.
        dt: time step of a time-aware cell: a number or (...). If None, the cell's own option.
        reset: booleans that broadcast to (...). Where true, the state before this step is
            `reset_state` instead of `state`.
        reset_state: as `state`; zeros if None.

    Returns:
        (output (..., hidden), state): one array (..., hidden) for each state of the cell, by name;
        a plain tuple, if one was given.

    Raises:
        ValueError: names the argument, what came, and what was expected.
        TypeError: likewise.

    >>> import numpy as np, parnl
    >>> cell = parnl.get_cell("gru", input_size=3, hidden_size=8)
    >>> params, u, state = cell.init(seed=0), np.ones((2, 100, 3), dtype=np.float32), None
    >>> for t in range(100):
    ...     output, state = parnl.step(cell, params, u[:, t], state)
    >>> bool(np.allclose(output, parnl.solve(cell, params, u).outputs[:, -1], atol=1e-6))
    True
    """
    found = None
    ready = remembered(cell, input_t) if reset is None else None
    looked = None if ready is None else ready.look(params, input_t, state)
    if ready is not None and looked is not None:
        p, inputs = Values("parameter", params), input_t[..., None, :]
        found = cell.features(p, inputs)
        now = given_time_step(ready.kernels, cell, dt, inputs, time_axis=False)
        new = ready.run(looked, state, found, now)
        if new is not None:
            *new, output = new
            if hasattr(cell, "output"):
                whole = [x[..., None, :] for x in new]
                features = Values("feature", found)
                output = outputs_of(ready.kernels, cell, p, whole, features, ready.dtype)
                output = output[..., 0, :]
            return output, as_given(cell.State, state, new)
    return _step(cell, params, input_t, state, dt, reset, reset_state, found)


@lenient(2, "input_t")
def _step(
    cell: Cell,
    params: Mapping[str, Any],
    input_t: Any,
    state: Any,
    dt: Any,
    reset: Any,
    reset_state: Any,
    found: Mapping[str, Any] | None,
) -> tuple[Any, tuple[Any, ...]]:
    """Run one time step that is not remembered; found: its features, if they are known."""
    backend, params, input_t = check_params(cell, params, input_t, time_axis=False)
    xp = backend.xp
    inputs = input_t[..., None, :]
    p, features, dtype, result = computed_features(backend, cell, params, inputs, found)
    dt = time_step(backend, cell, dt, inputs, dtype, time_axis=False)
    operands = feature_operands(backend, cell, p, features, dt, inputs)
    given = initial_states(backend, cell, state, inputs, dtype, inputs.shape[:-2])
    if reset is not None:
        anew = resets_of(backend, "reset", reset, inputs, tuple(inputs.shape[:-2]))[..., None]
        fresh = initial_states(
            backend, cell, reset_state, inputs, dtype, inputs.shape[:-2], "reset_state"
        )
        given = [xp.where(anew, n, x) for n, x in zip(fresh, given, strict=True)]
    rows, channels = math.prod(given[0].shape[:-1]), cell.hidden_size
    start = [xp.astype(xp.reshape(x, (rows, 1, channels)), dtype) for x in given]
    operands = [xp.astype(a, dtype) for a in operands]
    new = backend.step_by_kernel(cell.program, operands, start)
    if new is None:
        # overflow and NaN are answers here, not warnings; Dynamo cannot follow NumPy's context
        with nullcontext() if backend.name == "torch" else np.errstate(all="ignore"):
            results = backend.step(cell.program)(*start, *operands)
        # a step may return a number, or an array that has yet to be broadcast
        new = [xp.zeros_like(x) + n for n, x in zip(results, start, strict=True)]
    elif result == dtype == input_t.dtype:
        backend.remember(cell, tuple(input_t.shape), dtype, vars(features))
    whole = [xp.reshape(n, (*inputs.shape[:-1], cell.hidden_size)) for n in new]
    output = outputs_of(backend, cell, p, whole, features, result)[..., 0, :]
    return output, as_given(cell.State, state, [x[..., 0, :] for x in whole])
