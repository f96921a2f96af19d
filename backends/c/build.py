"""Compile C text with the system's compiler, once: the result is kept in the user's cache.

A library is named by the hash of all that decides it (text, flags, compiler, processor) and the
hash of its own bytes, written under another name and renamed, so that processes that build the same
one at the same time, or die while they do, leave nothing half written. Its bytes are looked at
before it is loaded: a library that was cut short can be loaded, and kills the process when it is
called. Where the cache cannot be written, libraries last as long as the process.
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

from parnl.backends.c import vecmath

# No -ffast-math: NaN and inf are values here. These two let the compiler vectorise all the same.
# -O3 makes the same loops, measured, in twice the time.
FLAGS = ("-O2", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC")
# Of AVX-512 machines GCC takes some for ones that prefer vectors of 256 bits, and calls the vector
# functions of either width, whose last bits differ, as it pleases: a step's bits would depend on
# how its lanes are grouped. One width also is faster: measured, 1.0 to 1.6 times.
X86_FLAGS = ("-march=native", "-mprefer-vector-width=512")
CHOICES = ("off", "c", "triton", "pallas")


class BuildError(RuntimeError):
    """No compiler, or one that does not take the text."""


def wanted() -> bool:
    """Whether compiled kernels may be used: PARNL_KERNELS is not "off"."""
    return choice() != "off"


def load(text: str) -> Any:
    """Return the function `kernel` of C `text`, None if it cannot be had: see `library`."""
    found = library(text)
    if found is None:
        return None
    found.kernel.argtypes, found.kernel.restype = [ctypes.c_void_p], None
    return found.kernel


def library(text: str, include: str = "", release: str = "") -> ctypes.CDLL | None:
    """Return the library made of C `text`, None if it cannot be had: that is said once.

    include: a folder of headers; release: what stands for their contents. With PARNL_KERNELS=c,
    BuildError is raised instead.
    """
    found = _library(text, include, release)
    if found is None and choice() == "c":
        raise BuildError("a kernel could not be compiled, as an earlier warning said")
    return found


@cache
def _library(text: str, include: str, release: str) -> ctypes.CDLL | None:
    try:
        return _found_or_built(text, include, release)
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


_said: dict[str, object] = {}


def notice(reason: str, remedy: str) -> None:
    """Say, once for each remedy, that there are no compiled kernels."""
    _say(
        remedy,
        f"parnl runs without compiled kernels, several times slower: {reason}. "
        f"{remedy}, or set PARNL_KERNELS=off to say that this is meant.",
    )


def _say(topic: str, text: str) -> None:
    """Warn once of each topic, whichever thread comes first."""
    mine = object()
    if _said.setdefault(topic, mine) is mine:
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _found_or_built(text: str, include: str, release: str) -> ctypes.CDLL:
    compiler, version = _compiler()
    options = list(FLAGS)
    if "Free Software Foundation" in version and vecmath.FLOAT32 in text:
        options += vecmath.GCC_FLAGS
    key = "\n".join([text, *options, *X86_FLAGS, version, release, _processor()])
    name = hashlib.sha256(key.encode()).hexdigest()[:40]
    options += ["-I", include] if include else []
    folder, reason = _folder()
    if folder is not None:
        try:
            for path in folder.glob(f"{name}-*.so"):
                if path.name != _named(name, path):
                    path.unlink(missing_ok=True)
                elif _loads(path):  # else it is of another system with the same home
                    return ctypes.CDLL(str(path))
            return ctypes.CDLL(str(_build(compiler, text, folder, name, options)))
        except (BuildError, OSError) as error:  # a full disk, for the compiler, is one of these
            reason = f"{folder}: {error}"
    with tempfile.TemporaryDirectory(prefix="parnl-") as own:  # what is loaded outlives its file
        found = ctypes.CDLL(str(_build(compiler, text, Path(own), name, options)))
    _say(
        "cache",
        f"parnl cannot keep compiled kernels, and compiles them in every process: {reason}. "
        "Set PARNL_CACHE to a folder of your own that can be written.",
    )
    return found


def _named(name: str, path: Path) -> str:
    """Return the name that a library of these bytes has, "" if another process has removed it."""
    try:
        return f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.so"
    except FileNotFoundError:
        return ""


def _build(compiler: str, text: str, folder: Path, name: str, options: list[str]) -> Path:
    """Compile, with the vector mathematics of the platform where it links, else without."""
    descriptor, made = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(descriptor)
    temporary = Path(made)
    try:
        native = X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)
        for extra in (["-DPARNL_VECTOR_MATH", "-lmvec"], []):
            command = [compiler, *options, *native, "-x", "c", "-", "-o", made]
            done = subprocess.run(
                [*command, *extra, "-lm", "-lpthread"],
                input=text,
                capture_output=True,
                text=True,
                errors="replace",
            )
            # a missing vector function shows when the library is loaded, not when it is linked
            if done.returncode == 0 and _loads(temporary):
                path = folder / _named(name, temporary)
                temporary.replace(path)
                return path
        reason = done.stderr.strip()[:500] or f"a library in {folder} cannot be loaded"
        raise BuildError(f"{compiler} failed: {reason}")
    finally:
        temporary.unlink(missing_ok=True)


def _loads(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path), mode=os.RTLD_NOW)
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
def _folder() -> tuple[Path | None, str]:
    """The user's cache, readable by nobody else; None, and why, if there can be none.

    What lies there is loaded as code, so a folder that others may write is not used.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        folder = Path(os.environ.get("PARNL_CACHE") or Path(base) / "parnl")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        return None, str(error)
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        return None, f"{folder} can be written by others"
    return folder, ""
