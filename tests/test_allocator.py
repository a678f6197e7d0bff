"""Freed memory is kept: what is taken again costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

TAKE = """
import resource, sys
import torch
from noscratch.allocator import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    blocks = [torch.ones(2**20) for _ in range(20)]  # 4 MiB each
step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""
PAGES = 5 * 20 * 2**22 // 4096


def faults(*arguments: str) -> int:
    found = subprocess.run([sys.executable, "-c", TAKE, *arguments], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_taken_again_without_faults() -> None:
    lost = faults()
    assert lost > PAGES // 10  # glibc gives a part of them back by itself
    assert faults("keep") < lost // 2
