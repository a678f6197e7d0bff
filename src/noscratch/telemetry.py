"""How far a running job is: a line on the terminal, and a file beside its checkpoints that `noscratch watch` reads.

Nothing here reaches a result: records are the same with and without it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noscratch.train import State


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere, on standard error; nothing unless asked for."""

    SECONDS = 10.0

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._bar: Any = None
        self._first: tuple[float, int, int] | None = None
        self._said = time.monotonic()
        self._say: Callable[[str], object] | None = sys.stderr.write if wanted else None
        if wanted and sys.stderr.isatty():
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

    def __call__(self, steps: int, state: State) -> None:
        """A step is done."""
        if self._say is None:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, state.step, state.tokens_real
        if self._bar is None and now - self._said < self.SECONDS and state.step < steps:
            return
        seconds, done = now - self._first[0], state.step - self._first[1]
        text = f"loss {state.loss_total / max(state.loss_terms, 1):.4f}"
        if done:
            text += f", {(state.tokens_real - self._first[2]) / seconds:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, total=steps, completed=state.step, description=text)
        else:
            left = f", {seconds / done * (steps - state.step):.0f} s left" if done else ""
            self._say(f"step {state.step}/{steps}, {text}{left}\n")
            self._said = now

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
