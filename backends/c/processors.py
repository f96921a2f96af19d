"""What the processor has: how many threads may run at once, and how much cache."""

from __future__ import annotations

import math
import os
import re
from functools import cache
from pathlib import Path

from parnl.backends.c import build

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_GROUPS = Path("/sys/fs/cgroup")
_GROUP_OF_PROCESS = Path("/proc/self/cgroup")


def processors() -> int:
    """Return how many threads may run at once: OMP_NUM_THREADS, else the processors allowed.

    The process may run on the allowed ones, at most as many as its control group has time for.
    """
    asked = os.environ.get("OMP_NUM_THREADS")
    return (asked and _asked(asked)) or min(_allowed(), _granted())


@cache
def _asked(text: str) -> int | None:
    """OpenMP's own rules: the first number of a list counts, and it is at least 1."""
    found = re.match(r"\s*\+?([0-9]+)\s*(,|$)", text)
    if found and int(found[1]):
        return int(found[1])
    if text.strip():
        build.say_once(
            f"OMP_NUM_THREADS {text}",
            f"OMP_NUM_THREADS: expected a whole number of at least 1, got {text!r}. "
            "parnl ignores it and uses a thread for each processor.",
        )
    return None


def _allowed() -> int:
    """The processors that the process may run on: from Python 3.13 on, PYTHON_CPU_COUNT as well."""
    count = getattr(os, "process_cpu_count", None)
    if count is None and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return (count or os.cpu_count)() or 1


@cache
def _granted() -> int:
    """How many processors' time a container or a service is given, in control groups version 2."""
    least = float(1 << 30)
    try:
        lines = _GROUP_OF_PROCESS.read_text().splitlines()
        path = next(line[4:] for line in lines if line.startswith("0::/"))
        own = _GROUPS / path
        groups = [own, *own.parents][: len(own.parts) - len(_GROUPS.parts) + 1]
    except (OSError, StopIteration):
        return int(least)
    for group in groups:  # the limits of all groups around it hold as well
        try:
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                least = min(least, int(quota) / int(period))
        except (OSError, ValueError):
            continue
    return max(1, math.ceil(least))


@cache
def last_cache() -> int:
    """Return the bytes of the last level of cache, 32 MiB where the system does not tell."""
    found = [(0, 1 << 25)]
    for index in _CACHES.glob("index*"):
        try:
            size = re.fullmatch(r"(\d+)([KM])\s*", (index / "size").read_text())
            level = int((index / "level").read_text())
        except (OSError, ValueError):
            continue
        if size:
            found.append((level, int(size[1]) << (10 if size[2] == "K" else 20)))
    return max(found)[1]
