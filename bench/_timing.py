"""How measurements are made: in a fresh process, candidates in turn, minimum and median over the rounds."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from noscratch.device import processor

P = ParamSpec("P")
R = TypeVar("R")

LEAST_ROUNDS, MOST_ROUNDS = 3, 100
STATUS = Path("/proc/self/status")


class Timing(NamedTuple):
    best: float  # seconds
    median: float
    rounds: int


def alone(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of `function` called in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def clock(threads: int) -> Callable[[], float]:
    """One thread: its processor time, which other processes hardly change. More: elapsed time."""
    return time.thread_time if threads == 1 else time.perf_counter


def round_robin(
    calls: Mapping[str, Callable[[], object]], seconds: float, threads: int, elapsed: bool = False
) -> dict[str, Timing]:
    """Times of each call, called in turn for about `seconds` after one round that does not count, by `clock` or, if
    asked, elapsed."""
    tell = time.perf_counter if elapsed else clock(threads)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    gc.collect()
    end = time.perf_counter() + seconds
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start = tell()
            call()
            times[name].append(tell() - start)
    return {name: Timing(min(found), statistics.median(found), len(found)) for name, found in times.items()}


def takes(take: Callable[[], dict[str, Timing]], seconds: float) -> dict[str, Timing]:
    """Of as many takes as start within `seconds`: the best of all, the median of their medians, rounds added up.

    Each take is a process of its own: what its heap and caches happen to look like holds for all of its rounds.
    """
    end = time.perf_counter() + seconds
    found = [take()]
    while time.perf_counter() < end:
        found.append(take())
    return {name: _joined([timings[name] for timings in found]) for name in found[0]}


def _joined(timings: Sequence[Timing]) -> Timing:
    bests, medians, rounds = zip(*timings, strict=True)
    return Timing(min(bests), statistics.median(medians), sum(rounds))


def peak_bytes(call: Callable[[], None]) -> int:
    """How far the resident memory of this process rises above its level while `call` runs; Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def device() -> str:
    """The processor and how many of its threads there are."""
    return f"{processor()}, {multiprocessing.cpu_count()} logical processors"
