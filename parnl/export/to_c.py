"""`to_c`: a trained model as two C files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from parnl.cell import Cell


class Sizes(NamedTuple):
    """Bytes of the constants, of a state, and of the scratch on the stack of a step."""

    constants: int
    state: int
    scratch: int


def to_c(
    model: Any,
    params: Mapping[str, Any] | None = None,
    folder: str | PathLike[str] = ".",
    *,
    name: str = "model",
    input_size: int | None = None,
    variable_dt: bool = False,
) -> Sizes:
    """Write a trained recurrent model as plain C: `<name>.h` and `<name>.c`, which are overwritten.

    The files are C99, compute in float32, allocate nothing and need nothing but libm. They run a
    model one step at a time, so nothing in them is as long as a sequence:

        typedef struct { float ...; } model_state;
        void model_reset(model_state *state);
        void model_step(model_state *state, const float *input, float *output);

    Weights are `static const float` arrays, which stay in flash. The state is the caller's. All
    else that a step needs is on the stack. The header says how large each is.

    PyTorch must be installed, whatever the arrays are: it records the step.

    Args:
        model: a cell with its params, arrays of any framework; `RNN` or `Classifier` of
            `parnl.torch`, `parnl.flax` or `parnl.equinox`; or any module of PyTorch with a method
            `step(input_t, state) -> (output_t, state)`, in eval mode: input_t (input_size,), state
            a tensor, or a tuple, list, dict or named tuple of tensors; the C takes over its names.
            Before the first step the state is what `model.initial_state()` gives; without that
            method it is zeros, and `step(input_t, None)` must start from these.
        params: of a cell, name -> array; None for a module, which has its own.
        folder: where the files go; made if it is missing.
        name: of the files; all names in them begin with it.
        input_size: what a step reads, for a module without an attribute of that name.
        variable_dt: whether `model_step` takes the time step, `float dt` after the state; else the
            dt of the cell is a constant.

    Returns:
        The sizes in bytes of constants, state and scratch.

    Raises:
        NotImplementedError: names an operation which cannot be written in C.
        TypeError: the model is neither a cell with params nor a module without.
        ValueError: a name that is no C identifier, or a wrong `input_size`.

    >>> import tempfile, parnl
    >>> cell = parnl.get_cell("gru", input_size=3, hidden_size=8)
    >>> folder = tempfile.mkdtemp()
    >>> parnl.to_c(cell, cell.init(seed=0), folder, name="gru")
    Sizes(constants=512, state=32, scratch=96)
    >>> import pathlib
    >>> sorted(path.name for path in pathlib.Path(folder).iterdir())
    ['gru.c', 'gru.h']

    A module is given alone: `parnl.to_c(module, folder="board")`.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"name: expected a C identifier, a letter first, got {name!r}")
    files, sizes = _files(model, params, name, input_size, variable_dt)
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (where / file).write_text(text, encoding="ascii", newline="\n")
    return sizes


def _files(
    model: Any,
    params: Mapping[str, Any] | None,
    name: str,
    input_size: int | None,
    variable_dt: bool,
) -> tuple[dict[str, str], Sizes]:
    """Return file name -> text."""
    from parnl.frameworks import get_backend

    get_backend("torch")  # or an error that says how to install it
    from torch import nn

    from parnl.export import files, record

    if hasattr(model, "to_torch"):  # a module of Flax or Equinox
        model = model.to_torch()
    if isinstance(model, Cell):
        if params is None:
            raise TypeError("params: expected the parameters of the cell, got None")
        if input_size not in (None, model.input_size):
            raise ValueError(f"input_size: expected {model.input_size} or None, got {input_size}")
        recorded = record.record_cell(model, params, variable_dt)
    elif isinstance(model, nn.Module):
        if params is not None:
            raise TypeError("params: expected None, since a module has its own; say folder=...")
        recorded = record.record_module(model, input_size, variable_dt)
    else:
        raise TypeError(
            "model: expected a parnl.Cell, a torch.nn.Module, or RNN or Classifier of parnl.flax "
            f"or parnl.equinox, got {type(model).__name__}"
        )
    found, sizes = files.written(recorded, name, type(model).__name__)
    return found, Sizes(*sizes)
