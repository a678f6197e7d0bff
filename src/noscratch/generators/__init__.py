"""Seeded generators of ListOps and Pathfinder: example i of a seed is a pure function of (seed, i).

Each example owns a random stream, so any range of examples can be made alone, in any order, by any number of threads,
with the same bytes. The streams are SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators", figure 14), and everything is drawn as an integer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numba import njit

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)

Int = int | np.int64  # what compiled functions take for an integer
T = TypeVar("T")


@njit(nogil=True)
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@njit(nogil=True)
def stream(seed: np.uint64, index: np.uint64) -> np.ndarray:
    """The random stream of example `index` under `seed`: its state, one uint64 in an array."""
    state = np.empty(1, np.uint64)
    state[0] = _mix(_mix(seed + _GAMMA) + index)
    return state


@njit(nogil=True)
def bits(state: np.ndarray) -> np.uint64:
    """The next 64 random bits of a stream."""
    state[0] += _GAMMA
    return _mix(state[0])


@njit(nogil=True)
def below(state: np.ndarray, n: int) -> np.int64:
    """The next integer uniform on 0..n-1 (n up to 2^32: the bias of the modulus is under 2^-32)."""
    return np.int64(bits(state) % np.uint64(n))


def in_parts(make: Callable[[int, int], T], start: int, stop: int, size: int, workers: int = 1) -> Iterator[T]:
    """`make(first, last)` over start..stop in parts of `size`, in order, on `workers` threads.

    The parts do not depend on the number of workers; at most that many are held at once.
    """
    edges = [(first, min(first + size, stop)) for first in range(start, stop, size)]
    with ThreadPoolExecutor(workers) as pool:
        for group in range(0, len(edges), workers):
            yield from pool.map(lambda edge: make(*edge), edges[group : group + workers])
