"""`keep_memory`, for programs that do the same again and again."""

from __future__ import annotations

import ctypes

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Let freed memory stay with this process, to be used again; return whether glibc does so.

    Call this first, before a framework starts its threads. glibc gives most large blocks back to
    the system when they are freed, and the system clears them page by page when they are asked for
    again. In a training step on long sequences, that takes a tenth to a third of the time, in every
    framework. After this call the process keeps, until it ends, all memory that it once used.
    Other allocators are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # not glibc; not even POSIX
        return False
    # never trimmed; no block by mmap; one heap, for those of threads are given back
    settings = ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1))
    taken = [mallopt(name, value) for name, value in settings]
    return all(taken)
