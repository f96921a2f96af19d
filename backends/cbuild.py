"""Compile C text with the system's compiler, once: the result is kept in the user's cache.

A library is named by the hash of all that decides it (text, flags, compiler, processor), written
beside its final name and renamed, so that processes that build the same one at the same time, or
die while they do, leave nothing half written. One that cannot be loaded is built again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

# No -ffast-math: NaN and inf are values here. These two let the compiler vectorise all the same.
# -O3 makes the same loops, measured, in twice the time.
FLAGS = ("-O2", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC")
CHOICES = ("off", "c", "triton", "pallas")


class BuildError(RuntimeError):
    """No compiler, or one that does not take the text."""


def wanted() -> bool:
    """Whether compiled kernels may be used: PARNL_KERNELS is not "off"."""
    return choice() != "off"


@cache
def load(text: str, symbol: str = "kernel", include: str = "", release: str = "") -> Any:
    """Return the function `symbol` of C `text`, None if it cannot be had: that is said once.

    include: a folder of headers; release: what stands for their contents. With PARNL_KERNELS=c,
    BuildError is raised instead.
    """
    try:
        return _function(text, symbol, include, release)
    except (BuildError, OSError) as error:
        if choice() == "c":
            raise
        notice(str(error), "Install a C compiler")
        return None


def available() -> bool:
    """Whether anything at all can be compiled here; if not, that is said once."""
    return load("#include <stdint.h>\nvoid kernel(const int64_t *a) { (void)a; }\n") is not None


def choice() -> str:
    """Return the value of PARNL_KERNELS: one of `CHOICES`, or nothing."""
    found = os.environ.get("PARNL_KERNELS", "")
    if found and found not in CHOICES:
        raise ValueError(f"PARNL_KERNELS: expected one of {', '.join(CHOICES)}, got {found!r}")
    return found


@cache
def notice(reason: str, remedy: str) -> None:
    """Say, once for each reason, that there are no compiled kernels."""
    warnings.warn(
        f"parnl runs without compiled kernels, several times slower: {reason}. "
        f"{remedy}, or set PARNL_KERNELS=off to say that this is meant.",
        RuntimeWarning,
        stacklevel=2,
    )


def _function(text: str, symbol: str, include: str, release: str) -> Any:
    compiler, version = _compiler()
    key = "\n".join([text, *FLAGS, version, release, _processor()])
    name = hashlib.sha256(key.encode()).hexdigest()[:40] + ".so"
    path = _folder() / name
    for attempt in range(2):
        if attempt or not path.is_file():
            _build(compiler, text, path, ["-I", include] if include else [])
        try:
            function = getattr(ctypes.CDLL(str(path)), symbol)
        except (OSError, AttributeError) as error:
            if attempt:
                raise BuildError(f"{path} cannot be loaded: {error}") from error
            continue
        function.argtypes, function.restype = [ctypes.c_void_p], None
        return function
    raise AssertionError("unreachable")


def _build(compiler: str, text: str, path: Path, options: list[str]) -> None:
    """Compile, with the vector mathematics of the platform where it links, else without."""
    descriptor, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(descriptor)
    try:
        native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
        for extra in (["-DPARNL_VECTOR_MATH", "-lmvec"], []):
            command = [compiler, *FLAGS, native, *options, "-x", "c", "-", "-o", temporary]
            done = subprocess.run(
                [*command, *extra, "-lm", "-lpthread"], input=text, capture_output=True, text=True
            )
            # a missing vector function shows when the library is loaded, not when it is linked
            if done.returncode == 0 and _loads(temporary):
                Path(temporary).replace(path)
                return
        raise BuildError(f"{compiler} failed: {done.stderr.strip()[:500]}")
    finally:
        Path(temporary).unlink(missing_ok=True)


def _loads(path: str) -> bool:
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOW)
    except OSError:
        return False
    return True


@cache
def _compiler() -> tuple[str, str]:
    if os.name != "posix":
        raise BuildError("generated C needs a POSIX system")
    name = os.environ.get("CC") or "cc"
    path = shutil.which(name)
    if path is None:
        raise BuildError(f"there is no C compiler {name!r}")
    found = subprocess.run([path, "--version"], capture_output=True, text=True)
    if found.returncode:
        raise BuildError(f"{path} --version failed")
    return path, found.stdout


@cache
def _processor() -> str:
    """What -march=native depends on: a cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))})
    )


@cache
def _folder() -> Path:
    """The user's cache, readable by nobody else; a folder of this process if it cannot be written.

    What lies there is loaded as code, so a folder that others may write is not used.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(os.environ.get("PARNL_CACHE") or Path(base) / "parnl")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        private = status.st_uid == os.getuid() and not status.st_mode & 0o022
        if private and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="parnl-"))
