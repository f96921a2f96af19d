"""The folder where compiled kernels are kept: where it is, what lies in it, what goes first.

It is bounded: beyond `MOST_KERNELS` or `MOST_BYTES`, the kernels that were not used for the longest
time are removed. Other processes may build, load and remove beside this one. A library that is
loaded outlives its file, names appear by renaming, and a file that is gone is built again.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

# The test suite makes 2,400 kernels of 20 kB each. More names than these make each look-up slow.
MOST_KERNELS, MOST_BYTES = 4000, 200_000_000
TEMPORARY = "tmp-parnl-"  # how the name of a library begins while it is built
_PRUNED = "last-pruned"  # an empty file; its time says when
_OURS = re.compile(rf"[0-9a-f]{{40}}-[0-9a-f]{{16}}\.so|{TEMPORARY}\w+\.so|{_PRUNED}")
_MINUTE = 60.0
_HOUR = 60 * _MINUTE


class Library(NamedTuple):
    """A library in the cache. used: when it was last, within an hour, in seconds since 1970."""

    used: float
    size: int
    path: Path


def location() -> Path:
    """Return the absolute path of the cache, which need not exist.

    It is PARNL_CACHE, or `parnl` in XDG_CACHE_HOME or in ~/.cache. RuntimeError: there is no home.
    """
    names = ("PARNL_CACHE", "XDG_CACHE_HOME", "HOME")
    return _location(*(os.environ.get(name, "") for name in names))


@cache  # so that a relative path means the same folder after the process has gone elsewhere
def _location(own: str, xdg: str, home: str) -> Path:
    if own.strip():
        return Path(own).expanduser().absolute()
    if os.path.isabs(xdg):  # the XDG specification says to ignore a relative one
        return Path(xdg) / "parnl"
    return (Path(home).absolute() if home.strip() else _home_of_user()) / ".cache" / "parnl"


def _home_of_user() -> Path:
    """What the system's list of users says: an empty HOME is no home."""
    try:
        import pwd  # not on Windows

        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):
        if os.name == "nt":
            return Path.home()
        raise RuntimeError("there is no home folder") from None


def folder() -> tuple[Path | None, str]:
    """Return the cache, made if it was not there; None, and why, if it cannot be trusted.

    What lies there is loaded as code, so a folder that others may write is not used.
    """
    try:
        path = location()
    except RuntimeError as error:
        return None, str(error)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except FileExistsError:
        return None, f"{path} is a file, not a folder"
    except OSError as error:
        return None, f"{path}: {error.strerror}"
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        return None, f"{path} can be written by others"
    return path, ""


def kernels(path: Path) -> list[Library]:
    """Return the kernels in the folder `path`, the least recently used first."""
    return sorted(k for k in _files(path) if not k.path.name.startswith((TEMPORARY, _PRUNED)))


def _files(path: Path) -> Iterable[Library]:
    """Everything that parnl has written there, and nothing else."""
    try:
        with os.scandir(path) as found:
            for entry in found:
                if _OURS.fullmatch(entry.name):
                    # another process may have removed it
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield Library(status.st_mtime, status.st_size, Path(entry.path))
    except FileNotFoundError:
        return


def mark_used(path: Path) -> None:
    """Note that the kernel in the file `path` is used now, if that was not noted for an hour."""
    with contextlib.suppress(OSError):  # a cache that cannot be written serves as well
        if abs(time.time() - path.stat().st_mtime) > _HOUR:
            os.utime(path)


def prune_sometimes(path: Path) -> None:
    """Prune the folder `path`, unless some process has done so in the last five minutes."""
    note = path / _PRUNED
    with contextlib.suppress(OSError):  # no reason for a solve to fail
        if not note.exists() or abs(time.time() - note.stat().st_mtime) > 5 * _MINUTE:
            note.touch()
            prune(path)


def prune(path: Path) -> None:
    """Bring the folder `path` to three quarters of its bounds if it is beyond one of them."""
    _remove_leftovers(path)
    found = kernels(path)
    count, size = len(found), sum(k.size for k in found)
    if count <= MOST_KERNELS and size <= MOST_BYTES:
        return
    for kernel in found:
        if count <= 0.75 * MOST_KERNELS and size <= 0.75 * MOST_BYTES:
            break
        kernel.path.unlink(missing_ok=True)
        count, size = count - 1, size - kernel.size


def clear(path: Path) -> list[Library]:
    """Remove and return all kernels in the folder `path`. What is being built stays."""
    _remove_leftovers(path)
    found = kernels(path)
    for kernel in found:
        kernel.path.unlink(missing_ok=True)
    (path / _PRUNED).unlink(missing_ok=True)
    return found


def _remove_leftovers(path: Path) -> None:
    """Remove what builds that were killed have left. No build takes an hour."""
    for file in _files(path):
        if file.path.name.startswith(TEMPORARY) and time.time() - file.used > _HOUR:
            file.path.unlink(missing_ok=True)
