"""Which processes live."""

from __future__ import annotations

from pathlib import Path

PF_EXITING = 0x4  # of a process's flags, include/linux/sched.h


def session_of(pid: int | str) -> int | None:
    """The session of a living process, else None. A killed one that waits for its parent is not alive, nor is one on
    its way out: the kernel has freed its locks before it says "Z"."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # proc(5), from field 3 on
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, session, flags = found[0], int(found[3]), int(found[6])
    return None if state == "Z" or flags & PF_EXITING else session


def living_in(session: int) -> list[str]:
    """The living processes of a session."""
    return [path.name for path in Path("/proc").glob("[0-9]*") if session_of(path.name) == session]
