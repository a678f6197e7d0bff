"""The terminal: where commands write, and what their exit codes mean to a script or a scheduler."""

from __future__ import annotations

import sys

from rich.console import Console

# 0: done, and nothing was found to be wrong. 2: the command line itself was wrong (typer).
EXIT_ERROR = 1  # an error, or a check that found something: audit, verify, redo
EXIT_AGAIN = 75  # EX_TEMPFAIL: stopped at a checkpoint; the same command goes on from there

# A pipe has no width of its own: tables keep one line per row there.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
err = Console(stderr=True, highlight=False, soft_wrap=True)
