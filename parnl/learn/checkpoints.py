"""Arrays in files: a cell's parameters, and the checkpoints of a training run.

The format is safetensors: names, shapes and numbers, no code. A file may come from anybody: what it
holds is compared with what is expected before it is read, and nothing in it is executed. Config and
history of a run travel in the file's own header, so that one rename replaces all of them together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from parnl.cell import Cell
from parnl.dtypes import dtype_name
from parnl.frameworks import backend_of, get_backend

# Of the header, in bytes: names and shapes, and the history of a run. Its entries take far more
# memory than their text, so a file must not bring as many as it likes.
HEADER = 1 << 24
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def save_params(path: str | Path, cell: Cell, params: Mapping[str, Any]) -> None:
    """Write the parameters of `cell`, arrays of any framework, to a safetensors file.

    The file is complete or not there at all: an older one is replaced in one step. Needs the
    package safetensors.

    Raises:
        TypeError: `cell` is no cell, or `params` no mapping.
        ValueError: `params` has not the names and shapes that the cell declares, or not one dtype:
            bfloat16, float16, float32 or float64.

    >>> import os, tempfile, parnl
    >>> cell = parnl.get_cell("gru", input_size=3, hidden_size=8)
    >>> path = os.path.join(tempfile.mkdtemp(), "gru.safetensors")
    >>> parnl.save_params(path, cell, cell.init(seed=0))
    >>> parnl.load_params(path, cell, backend="torch")["W_r"].shape
    torch.Size([3, 8])
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected a mapping name -> array, got {type(params).__name__}")
    found = {n: (_dtype(a), tuple(getattr(a, "shape", ()))) for n, a in params.items()}
    _check_params("params", cell, found)
    backend = backend_of((f"parameter {name}", array) for name, array in params.items())
    taken = {n: backend.take(f"parameter {n}", a) for n, a in params.items()}
    if backend.name == "torch":  # without ml_dtypes NumPy has no bfloat16
        arrays = {n: a.detach().cpu().contiguous().clone() for n, a in taken.items()}
    else:
        arrays = {n: backend.to_numpy(a) for n, a in taken.items()}
    write_checkpoint(Path(path), arrays, framework="torch" if backend.name == "torch" else "numpy")


def load_params(
    path: str | Path, cell: Cell, backend: str = "numpy", device: Any = None
) -> dict[str, Any]:
    """Return the parameters of `cell` that `save_params` wrote, bit for bit.

    Args:
        path: the file.
        cell: of the same class, sizes and options as the one that was saved.
        backend: where to put them, as in `cell.init`; their dtype is the file's.
        device: likewise.

    The file need not be trusted. Names, shapes and dtypes are compared with those that the cell
    declares before an array is made, so it takes no more memory than they do; values are not
    looked at: NaN and inf are read as they were written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file and what is wrong with it.
    """
    path, target = Path(path), get_backend(backend)
    with _opened(path, "torch" if target.name == "torch" else "numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {n: (str(s.get_dtype()), tuple(s.get_shape())) for n, s in slices.items()}
        found = {n: (DTYPES.get(dtype, dtype), shape) for n, (dtype, shape) in found.items()}
        _check_params(str(path), cell, found)
        arrays = {name: file.get_tensor(name) for name in cell.parameter_shapes}
    if target.name == "torch":  # its tensors are the file itself, mapped into memory
        arrays = {name: array.clone() for name, array in arrays.items()}
    return {n: target.asarray(a, _dtype(a), device) for n, a in arrays.items()}


def _dtype(array: Any) -> str:
    return dtype_name(getattr(array, "dtype", type(array).__name__))


def _check_params(where: str, cell: Cell, found: Mapping[str, tuple[str, tuple]]) -> None:
    """Raise ValueError unless `found`, name -> (dtype, shape), is what `cell` declares."""
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a parnl.Cell, see parnl.get_cell, got {cell!r}")
    shapes = cell.parameter_shapes
    missing = [name for name in shapes if name not in found]
    unknown = [name for name in found if name not in shapes]
    if missing or unknown:
        raise ValueError(
            f"{where}: missing {_few(missing)}, unknown {_few(unknown)}; "
            f"the parameters of {type(cell).__name__} are: {', '.join(shapes)}"
        )
    for name, expected in shapes.items():
        dtype, shape = found[name]
        if dtype not in DTYPES.values():
            raise ValueError(
                f"{where}: parameter {name}: expected {', '.join(DTYPES.values())}, got {dtype}"
            )
        if shape != expected:
            got = _short(shape)
            raise ValueError(f"{where}: parameter {name}: expected shape {expected}, got {got}")
    if len({dtype for dtype, _ in found.values()}) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, (dtype, _) in found.items())
        raise ValueError(f"{where}: expected parameters of one dtype, got {listed}")


def _few(names: list[str]) -> str:
    shown = [repr(_short(name)) for name in names[:3]]
    return f"[{', '.join(shown)}{f' and {len(names) - 3} more' if len(names) > 3 else ''}]"


def _short(value: Any, length: int = 60) -> str:
    """What a file says of itself may be long, and hold anything."""
    text = str(value)
    text = text if len(text) <= length else f"{text[:length]}..."
    return "".join(c if c.isprintable() else "?" for c in text)


def write_checkpoint(
    path: Path, arrays: Mapping[str, Any], *, framework: str = "numpy", **header: Any
) -> None:
    """Write arrays and a JSON header to `path`, which is at no moment half written.

    framework: of the arrays, "numpy" or "torch"; the latter row-major and on the CPU.
    """
    save = _safetensors(framework).save
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = dict(arrays)
    if framework == "numpy":
        contiguous = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    # a name of its own, for another process may be writing the same file
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}.new")
    try:
        with temporary.open("xb") as file:
            file.write(save(contiguous, {"parnl": json.dumps(header)}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header that `write_checkpoint` wrote."""
    with _opened(path) as file:
        try:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = json.loads(file.metadata()["parnl"])
            if not isinstance(header, dict):
                raise ValueError(f"its header is a {type(header).__name__}, expected an object")
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise _refused(path, error) from error
    return arrays, header


def check_arrays(arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless the names, shapes and dtypes are those of `expected`."""
    for problem, names in (
        ("lacks", sorted(expected.keys() - arrays.keys())),
        ("has unknown", sorted(arrays.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"checkpoint: {problem} {', '.join(names[:3])}{more}")
    for name, value in expected.items():
        got = arrays[name]
        if (got.shape, got.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"checkpoint: {name} is {got.dtype} {got.shape}, "
                f"the model expects {value.dtype} {value.shape}"
            )


@contextmanager
def _opened(path: Path, framework: str = "numpy") -> Iterator[Any]:
    """Open a safetensors file, to read it as arrays of `framework`; ValueError if it is none."""
    _safetensors(framework)
    safetensors = import_module("safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {path}")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > HEADER:
        raise _refused(path, f"its header is to have {size} bytes, expected at most {HEADER}")
    try:
        with safetensors.safe_open(path, framework=framework) as file:
            yield file
    except safetensors.SafetensorError as error:
        raise _refused(path, error) from error


def _refused(path: Path, reason: Any) -> ValueError:
    return ValueError(f"checkpoint: {path} is not a parnl checkpoint ({_short(reason, 300)})")


def _safetensors(framework: str) -> Any:
    """Return the module of safetensors for the arrays of `framework`."""
    try:
        return import_module(f"safetensors.{framework}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "parameters and checkpoints are files of the package safetensors: "
            "pip install 'parnl[checkpoint]'",
            name="safetensors",
        ) from error
