"""Checkpoints: named arrays and a JSON header in one safetensors file.

Config and history travel in the file's own header, so that one rename replaces all of them
together.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_checkpoint(path: Path, arrays: dict[str, np.ndarray], **header: Any) -> None:
    """Write arrays and a JSON header to `path`, which is at no moment half written."""
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        contiguous = {name: np.asarray(value, order="C") for name, value in arrays.items()}
        file.write(save(contiguous, {"parnl": json.dumps(header)}))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header that `write_checkpoint` wrote."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = json.loads(file.metadata()["parnl"])
    except (SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint: {path} is not a parnl checkpoint ({error})") from error
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
