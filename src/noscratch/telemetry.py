"""How far a training job is: a line on the terminal, and a file beside its checkpoints that `noscratch watch` reads.

    data/checkpoints/<job>/telemetry.jsonl   a line now and then: step, loss, real tokens, memory, joules, who and when

Lines are only ever added, also by the calls after a stop. When the job is done, its provenance keeps a summary. Nothing
here reaches a record: results are the same with and without it.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from noscratch.energy import Meter

if TYPE_CHECKING:
    from noscratch.train import State

FILE = "telemetry.jsonl"
POINTS = 50
"""At most so many points are kept in the provenance."""
TAIL = 2**14
"""Bytes at the end of the file that tell how fast it goes now."""
SILENT = 60.0
"""Seconds without a line after which a job of another host is taken for stopped."""


class Telemetry:
    """Called after each step. On a terminal it draws a bar, elsewhere it says a line every ten seconds; nothing unless
    `progress` is wanted."""

    SECONDS = 10.0

    def __init__(self, folder: Path, device: str, progress: bool) -> None:
        """folder: of the job's checkpoints. Make it after the device is chosen: the energy counts from here."""
        self._path, self._device, self._progress = folder / FILE, device, progress
        self._meter = Meter(device)
        self._start = self._written = self._said = time.monotonic()
        self._first: tuple[float, int, int] | None = None
        self._whose = {"host": platform.node(), "pid": os.getpid(), "call": time.time()}
        self._bar: Any = None

    def __call__(self, steps: int, state: State) -> None:
        """A step is done."""
        now = time.monotonic()
        # Often at first, where there is little to wait for.
        if self._first is None or now - self._written >= min(10.0, (now - self._start) / 10) or state.step == steps:
            self._write(now, steps, state)
        self._first = self._first or (now, state.step, state.tokens_real)
        if self._progress:
            self._tell(now, steps, state)

    def _write(self, now: float, steps: int, state: State) -> None:
        line = {
            **self._whose,
            "seconds": round(now - self._start, 3),
            "step": state.step,
            "steps": steps,
            "loss": float(f"{_mean_loss(state):.6g}"),
            "tokens": state.tokens_real,
            "pieces": state.split,
            "memory": peak_memory(self._device),
            "joules": self._meter.joules(),
        }
        # A full disk stops the next checkpoint, which says so.
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self._written = now

    def _tell(self, now: float, steps: int, state: State) -> None:
        assert self._first is not None
        if self._bar is None and now - self._said < self.SECONDS and state.step < steps:
            return
        seconds, done = now - self._first[0], state.step - self._first[1]
        text = f"loss {_mean_loss(state):.4f}"
        if done:
            text += f", {(state.tokens_real - self._first[2]) / seconds:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, total=steps, completed=state.step, description=text)
        else:
            left = f", {seconds / done * (steps - state.step):.0f} s left" if done else ""
            sys.stderr.write(f"step {state.step}/{steps}, {text}{left}\n")
            self._said = now

    def __enter__(self) -> Telemetry:
        if self._progress and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _mean_loss(state: State) -> float:
    """Since the last point of the curve, or at it."""
    return state.loss_total / state.loss_terms if state.loss_terms else state.curve[-1][3]


def peak_memory(device: str) -> int:
    """The most that this process has held so far, in bytes: of the GPU, or of the host."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def lines(path: Path, tail: int | None = None) -> list[dict[str, Any]]:
    """The lines of a file, or those in its last bytes; a line that a kill or a full disk cut short is left out."""
    with path.open("rb") as file:
        if tail is not None:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - tail))
        content = file.read()
    found = []
    for line in content.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and value.keys() >= {"host", "pid", "call", "step"}:
                found.append(value)
    return found


def summary(folder: Path) -> dict[str, Any]:
    """What the provenance of a finished job keeps; empty where nothing was written.

    Times, tokens and joules are sums over all calls; tokens per second leave out each call's time up to its first step.
    """
    try:
        found = lines(folder / FILE)
    except FileNotFoundError:
        return {}
    calls = [list(call) for _, call in groupby(found, key=lambda line: line["call"])]
    if not calls:
        return {}
    joules = [call[-1]["joules"] for call in calls]
    stepping = sum(call[-1]["seconds"] - call[0]["seconds"] for call in calls)
    tokens = sum(call[-1]["tokens"] - call[0]["tokens"] for call in calls)
    wanted = {round(i * (len(found) - 1) / (POINTS - 1)) for i in range(POINTS)}
    return {
        "calls": len(calls),
        "training_seconds": round(sum(call[-1]["seconds"] for call in calls), 3),
        "tokens_per_second": round(tokens / stepping, 1) if stepping else None,
        "peak_memory": max(line["memory"] for line in found),
        "energy_joules": None if None in joules else round(sum(joules), 3),
        "pieces": found[-1]["pieces"],
        "telemetry": {key: [found[i][key] for i in sorted(wanted)] for key in ("step", "loss", "seconds", "tokens")},
    }


@dataclass(frozen=True)
class Progress:
    """Where a training job stood when it last said so."""

    job: str
    running: bool
    line: Mapping[str, Any]
    tokens_per_second: float | None
    seconds_left: float | None
    age: float
    """Seconds since."""


def watched(data: Path) -> list[Progress]:
    """Every training job that has begun and not ended, those that run first."""
    found = list(_watched(data / "checkpoints"))
    return sorted(found, key=lambda progress: (not progress.running, progress.job))


def _watched(checkpoints: Path) -> Iterator[Progress]:
    for path in checkpoints.glob(f"*/{FILE}"):
        try:
            recent, age = lines(path, TAIL), time.time() - path.stat().st_mtime
        except FileNotFoundError:  # it has just ended
            continue
        if not recent:
            continue
        last = recent[-1]
        first = next(line for line in recent if line["call"] == last["call"])
        seconds, steps = last["seconds"] - first["seconds"], last["step"] - first["step"]
        here = last["host"] == platform.node()
        yield Progress(
            job=path.parent.name,
            running=Path(f"/proc/{last['pid']}").exists() if here else age < SILENT,
            line=last,
            tokens_per_second=(last["tokens"] - first["tokens"]) / seconds if seconds else None,
            seconds_left=seconds / steps * (last["steps"] - last["step"]) if steps else None,
            age=age,
        )
