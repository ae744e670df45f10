"""Keep freed memory in the process, for programs that only predict; or give it back.

glibc returns the memory of a large tensor to the system as soon as it is freed. The next tensor
gets new pages, which the system clears one by one at their first use: a sixth of the seconds of a
prediction with neo-mini. In training the peak memory matters more, so nothing is kept there.
"""

import ctypes
import gc
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # the names and numbers of glibc's malloc.h


def return_freed_memory() -> None:
    """Give freed memory back to the system, so that what is used next can be measured. Has no
    effect without glibc."""
    gc.collect()
    with suppress(AttributeError, TypeError, OSError):  # another C library, macOS, Windows
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed memory. Has no effect without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # another C library, macOS, Windows
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
    mallopt(M_TRIM_THRESHOLD, 1 << 30)
