"""`keep_memory`, for programs that do the same again and again."""

from __future__ import annotations

import ctypes

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Let freed memory stay with this process, to be used again; return whether glibc took that.

    glibc gives most large blocks back to the system when they are freed, and the system clears them
    page by page when they are asked for again. For a training step on long sequences that is a
    tenth to a third of the time, whatever the framework. Call this first, before a framework has
    started its threads. What the process once used it then keeps to its end. Other allocators are
    left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # not glibc; not even POSIX
        return False
    # never trimmed; no block by mmap; one heap, for those of threads are given back
    settings = ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1))
    taken = [mallopt(name, value) for name, value in settings]
    return all(taken)
