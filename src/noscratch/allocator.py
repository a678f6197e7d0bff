"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import sys

KEPT = 2**30  # bytes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, and take blocks below 1 GiB from there, in all of this process. False: no glibc.

    Left alone it gives the blocks of a training step back to the system after each step, and every page of the next
    one costs a fault, up to a quarter of the time of a small model. No number depends on it.
    """
    tell = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return tell is not None and all(tell(option, KEPT) == 1 for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))
