"""Compile C text with the system's compiler, once: the result is kept in the user's cache.

A library is named by the hash of all that decides it (text, flags, compiler, processor) and the
hash of its own bytes. It is written under another name, then renamed: processes that build the same
one at the same time, or die while they do, leave nothing half written. Its bytes are checked before
it is loaded: a library that was cut short can be loaded, and kills the process when it is called.
Where the cache cannot be written, libraries last as long as the process.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from parnl import kernel_cache
from parnl.backends.c import compiler, vecmath
from parnl.backends.c.compiler import BuildError

# No -ffast-math: NaN and inf are values here. These two let the compiler vectorise all the same.
# -O3 makes the same loops, measured, in twice the time.
FLAGS: tuple[str, ...] = ("-O2", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd")
FLAGS += ("-ffp-contract=off", "-shared", "-fPIC")  # see FMA in lanes.h
OWN_FOLDER = "Set PARNL_CACHE to a folder of your own that can be written"
CHOICES = ("off", "c", "triton")


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
        if isinstance(error, BuildError):
            notice(str(error), error.remedy)
        else:  # not even a temporary folder
            notice(error.strerror or str(error), OWN_FOLDER)
        return None


def available() -> bool:
    """Whether anything at all can be compiled here; if not, that is said once."""
    return load("#include <stdint.h>\nvoid kernel(const int64_t *a) { (void)a; }\n") is not None


_none = ContextVar("_none", default=False)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Return a context in which there are none, whatever PARNL_KERNELS says."""
    token = _none.set(True)
    try:
        yield
    finally:
        _none.reset(token)


def choice() -> str:
    """Return the value of PARNL_KERNELS, in small letters: one of `CHOICES`, or nothing."""
    if _none.get():
        return "off"
    given = os.environ.get("PARNL_KERNELS", "")
    found = given.strip().lower()
    if found and found not in CHOICES:
        raise ValueError(f"PARNL_KERNELS: expected one of {', '.join(CHOICES)}, got {given!r}")
    return found


_said: dict[str, object] = {}


def notice(reason: str, remedy: str) -> None:
    """Say, once for each remedy, that there are no compiled kernels."""
    say_once(
        remedy,
        f"parnl runs without compiled kernels, several times slower: {reason}. "
        f"{remedy}, or set PARNL_KERNELS=off if this is intended.",
    )


def say_once(topic: str, text: str) -> None:
    """Warn once of each topic, whichever thread comes first."""
    mine = object()
    if _said.setdefault(topic, mine) is mine:
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _found_or_built(text: str, include: str, release: str) -> ctypes.CDLL:
    cc = compiler.find()
    options = list(FLAGS)
    if cc.gnu and vecmath.FLOAT32 in text:
        options += vecmath.GCC_FLAGS
    made_by = [*cc.command[1:], *compiler.native_flags(), cc.version, compiler.processor()]
    key = "\n".join([text, *options, release, *made_by])
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:40]
    options += ["-I", include] if include else []
    folder, reason = kernel_cache.folder()
    if folder is not None:
        try:
            return _found(folder, name) or _kept(cc, text, folder, name, options)
        except (BuildError, OSError) as error:  # a full disk, for the compiler, is one of these
            reason = f"{folder}: {error}"
    with tempfile.TemporaryDirectory(prefix="parnl-") as own:  # what is loaded outlives its file
        found = _built(cc, text, Path(own), name, options)
    say_once(
        "cache",
        f"parnl cannot keep compiled kernels, and compiles them in every process: {reason}. "
        f"{OWN_FOLDER}.",
    )
    return found


def _found(folder: Path, name: str) -> ctypes.CDLL | None:
    """Load what an earlier process has built, if it is there and undamaged."""
    for path in folder.glob(f"{name}-*.so"):
        if path.name != _named(name, path):
            path.unlink(missing_ok=True)
            continue
        try:
            found = ctypes.CDLL(str(path))
        except OSError:  # of another system with the same home; or just removed
            continue
        kernel_cache.mark_used(path)
        return found
    return None


def _kept(
    cc: compiler.Compiler, text: str, folder: Path, name: str, options: list[str]
) -> ctypes.CDLL:
    found = _built(cc, text, folder, name, options)
    kernel_cache.prune_sometimes(folder)
    return found


def _named(name: str, path: Path) -> str:
    """Return the name that a library of these bytes has, "" if another process has removed it."""
    try:
        return f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.so"
    except FileNotFoundError:
        return ""


def _built(
    cc: compiler.Compiler, text: str, folder: Path, name: str, options: list[str]
) -> ctypes.CDLL:
    """Compile with all that the platform and the processor have; where that fails, with less."""
    descriptor, made = tempfile.mkstemp(prefix=kernel_cache.TEMPORARY, suffix=".so", dir=folder)
    os.close(descriptor)
    temporary = Path(made)
    native = compiler.native_flags()
    mathematics = ("-DPARNL_VECTOR_MATH", "-lmvec")  # glibc's
    try:
        for flags, libraries in ((native, mathematics), (native, ()), ((), ())):
            arguments = [*options, *flags, "-x", "c", "-", "-o", made, *libraries]
            reason = cc.run([*arguments, "-lm", "-lpthread"], text)
            if reason:
                error = compiler.failed(cc, reason)
                continue
            try:  # a missing vector function shows only now
                found = ctypes.CDLL(made)
            except OSError as trouble:
                error = _unloadable(cc, folder, trouble)
                continue
            # Loaded before it gets its name: from then on, another process may remove it.
            temporary.replace(folder / _named(name, temporary))
            return found
        raise error
    finally:
        temporary.unlink(missing_ok=True)


def _unloadable(cc: compiler.Compiler, folder: Path, trouble: OSError) -> BuildError:
    """The error of a library that was compiled and cannot be loaded."""
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        variable = "PARNL_CACHE" if folder == kernel_cache.folder()[0] else "TMPDIR"
        reason = f"nothing in {folder} may be executed, for it is mounted noexec"
        return BuildError(reason, f"Set {variable} to a folder that is not")
    reason = str(trouble).partition(": ")[2] or str(trouble)
    return BuildError(f"a library that {cc.name} made cannot be loaded: {reason.splitlines()[0]}")
