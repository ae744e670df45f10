"""How the C library frees memory, which decides how much more than its tensors a step needs."""

import ctypes
import os
import sys

from neo_peft.system.hardware import SMALL

M_MMAP_THRESHOLD = -3  # of the C library's malloc.h
BLOCK = 512 * 1024  # bytes


def return_large_blocks(parameters: int) -> None:
    """Let the C library return each freed block of 512 KB or more to the system at once.

    Otherwise glibc keeps it. torch's blocks are aligned, so a new one often does not fit into the
    hole of a freed one of the same size, and the memory of a step is 1.4 to 1.9 times that of its
    tensors. Only for a model that is not small: it costs 1 % of a step of GPT-Neo 125M, and 15 % of
    neo-mini's. If the environment has MALLOC_MMAP_THRESHOLD_, its value stays.
    """
    if parameters < SMALL or sys.platform != "linux" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # other C libraries have none
        library.mallopt(M_MMAP_THRESHOLD, BLOCK)
