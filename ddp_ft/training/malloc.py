"""How the C library returns freed memory to the system."""

import ctypes
import sys

# From glibc's malloc.h. The largest threshold it takes is 32 MiB (HEAP_MAX_SIZE / 2).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether the C library can do that.

    Training on a CPU allocates and frees the same large activations in every step. By default glibc hands them back to
    the kernel each time, and their return costs page faults: up to 12 % of a step, with one round of five that showed
    no gain (docs/measurements.md). Peak memory stays as it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return all((mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), mallopt(_M_TRIM_THRESHOLD, _NEVER)))
