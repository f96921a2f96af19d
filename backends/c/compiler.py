"""The C compiler of the system: which one it is, how it is run, and in one line why it failed."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Of AVX-512 machines GCC takes some for ones that prefer vectors of 256 bits, and calls the vector
# functions of either width, whose last bits differ, as it pleases: a step's bits would depend on
# how its lanes are grouped. One width also is faster: measured, 1.0 to 1.6 times.
X86_FLAGS = ("-march=native", "-mprefer-vector-width=512")


class BuildError(RuntimeError):
    """There is no compiler, it does not take the text, or what it made cannot be loaded.

    remedy: what the user can do about it, the beginning of a sentence.
    """

    def __init__(self, reason: str = "", remedy: str = "Set CC to a C compiler that works") -> None:
        super().__init__(reason)
        self.remedy = remedy


class Compiler(NamedTuple):
    """A compiler. command: the words that run it; version: all that it says of itself."""

    command: tuple[str, ...]
    version: str

    @property
    def name(self) -> str:
        """As a user would type it."""
        return shlex.join(self.command)

    @property
    def gnu(self) -> bool:
        """Whether it is GCC, under whatever name."""
        return "Free Software Foundation" in self.version

    def run(self, arguments: list[str], text: str) -> str:
        """Compile the C `text`; return "" or, in one line, what went wrong."""
        done = _run([*self.command, *arguments], text)
        return "" if done.returncode == 0 else told(done)


def find() -> Compiler:
    """Return the compiler that CC names, else `cc`. BuildError: there is none that runs."""
    return _find(os.environ.get("CC", ""))


@cache
def _find(asked: str) -> Compiler:
    if os.name != "posix":
        raise BuildError(
            "parnl compiles C on Linux and macOS only", "Run it in WSL, the Linux in Windows"
        )
    words = _words(asked) or ["cc"]
    if shutil.which(words[0]) is None:
        raise BuildError(*_missing(words[0], asked))
    done = _run([*words, "--version"])
    if done.returncode:
        raise BuildError(f"{shlex.join(words)} --version failed: {told(done)}", _remedy(told(done)))
    return Compiler(tuple(words), done.stdout)


def _words(asked: str) -> list[str]:
    """CC may have arguments, `gcc -pthread` or `ccache gcc`, and blanks in a path."""
    if asked.strip() and shutil.which(asked):
        return [asked]
    try:
        return shlex.split(asked)
    except ValueError as error:
        remedy = "Write a path with blanks in quotation marks"
        raise BuildError(f"CC is {asked!r}: {str(error).lower()}", remedy) from None


def _missing(name: str, asked: str) -> tuple[str, str]:
    if Path(name).exists():
        return f"CC names {name!r}, which cannot be executed", "Set CC to a C compiler"
    if asked.strip():
        return f"there is no C compiler {name!r}, which CC names", "Set CC to one or unset it"
    return f"there is no C compiler {name!r}", _install()


def _install() -> str:
    if platform.system() == "Darwin":
        return "Install Apple's compiler by `xcode-select --install`"
    return "Install a C compiler, for instance gcc"


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a compiler, in English. Its output may be in any encoding."""
    try:
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from None


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that tells most about why `done` failed."""
    if done.returncode < 0:
        return f"it was ended by signal {-done.returncode}"
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines()]
    lines = [line for line in lines if line and "warning:" not in line]
    telling = re.compile("error|fatal|fail|cannot|not found|no such|no space", re.IGNORECASE)
    first = next(filter(telling.search, lines), lines[0] if lines else "")
    return first[:200].rstrip(".") or f"exit status {done.returncode}"


def failed(compiler: Compiler, reason: str) -> BuildError:
    """Return the error that says that `compiler` does not compile, because of `reason`."""
    return BuildError(f"{compiler.name} failed: {reason}", _remedy(reason))


def _remedy(reason: str) -> str:
    """What helps against it, as far as one line tells."""
    missing_file = re.search(r"No such file|file not found|cannot find (-l|\S*crt)", reason)
    if missing_file or "xcrun" in reason or "developer path" in reason:
        if platform.system() == "Darwin":
            return _install()
        return "Install the C library's headers (libc6-dev, glibc-devel or musl-dev)"
    if re.search("No space left|quota|File too large", reason):
        return "Make room on the disk"
    return "Set CC to a C compiler that works"


def native_flags() -> tuple[str, ...]:
    """Return the flags that let a compiler use all that this processor can do."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return X86_FLAGS if x86 else ("-mcpu=native",)


@cache
def processor() -> str:
    """Return what those flags depend on: a cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))})
    )
