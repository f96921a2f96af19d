"""Memory that is kept is not fetched again: counted in page faults, each process for itself."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
from parnl.memory import keep_memory

if "keep" in sys.argv and not keep_memory():
    sys.exit("glibc takes no settings")
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def use(size):
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(ctypes.c_void_p(block))

use(1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use(1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_memory_is_kept():
    def faults(*arguments):
        call = [sys.executable, "-c", SCRIPT, *arguments]
        # what the environment tells the allocator is not what is tested
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD"))
        }
        done = subprocess.run(call, capture_output=True, text=True, env=clean)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert faults() > 64  # four times 64 MiB, in huge pages at the least
    assert faults("keep") < 16
