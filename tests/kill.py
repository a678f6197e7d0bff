"""`python kill.py JOB`: run a training job, killing it at random instants, then let it end.

JOB is a JSON file: settings, prepared, folder (where "killed" and its checkpoints are made), init (or null), how many
kills, a seed. Prints JSON: how and at which step of the newest checkpoint each attempt ended, and what train.run
returned at last. Each attempt is a fork, so that the import of torch is paid once; each saves after every step, so that
many kills hit a checkpoint. An attempt dies by itself at a chosen point of a checkpoint's course, or is killed from
outside some steps after the last one, so the speed of the machine does not matter. After each death every checkpoint is
read.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noscratch import checkpoint, train

FULL = 3
"""Exit code of an attempt that met a full disk, said so and ended."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(after: int, act: Callable[[], None]) -> Callable[[], None]:
    """Does nothing `after` times, then acts."""
    calls = iter(range(after))
    return lambda: act() if next(calls, None) is None else None


def arm(moment: str, after: int) -> None:
    """Let this process end at the given point of the checkpoint that comes after so many."""
    write, rename, rmtree = checkpoint._write, Path.rename, shutil.rmtree

    def no_space() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    now = counted(after, no_space if moment == "full" else die)

    def writing(path: Path, content: bytes) -> None:
        if path.name == (checkpoint.TENSORS if after % 2 else checkpoint.STATE):
            path.write_bytes(content[: random.randrange(len(content))])
            now()
        write(path, content)

    def renaming(path: Path, target: Path) -> Path:
        publishes = path.name.startswith(".writing-")
        if publishes and moment == "written":
            now()
        result = rename(path, target)
        if publishes and moment == "renamed":
            now()
        return result

    def removing(path: Path, **options: Any) -> None:
        if Path(path).name.startswith(".removing-"):
            for file in list(Path(path).iterdir())[:1]:  # none: an earlier death was here too
                file.unlink()
            now()
        rmtree(path, **options)

    if moment in ("write", "full"):
        checkpoint._write = writing
    elif moment in ("written", "renamed"):
        Path.rename = renaming  # type: ignore[method-assign, assignment]
    elif moment == "removing":
        shutil.rmtree = removing  # type: ignore[assignment]


MOMENTS = ("outside", "write", "written", "renamed", "removing", "full")


def attempt(job: dict[str, Any], moment: str, after: int) -> int:
    """The pid of a child that runs the job into folder/killed, made afresh, and leaves the result beside it."""
    pid = os.fork()
    if pid:
        return pid
    folder = Path(job["folder"])
    arm(moment, after)
    shutil.rmtree(folder / "killed", ignore_errors=True)
    (folder / "killed").mkdir()
    try:
        result = train.run(
            job["settings"],
            Path(job["prepared"]),
            folder / "killed",
            folder / "killed-checkpoints",
            Path(job["init"]) if job["init"] else None,
            "cpu",
            checkpoint_seconds=0.0,
        )
    except checkpoint.CheckpointError as error:
        os._exit(FULL if "No space left" in str(error) else 1)
    (folder / "killed.json").write_text(json.dumps(result))
    os._exit(0)


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without any."""
    return max((int(p.name.removeprefix("step-")) for p in folder.glob("killed-checkpoints/step-*")), default=0)


def finish(pid: int) -> bool:
    """Whether the child ended too early, killed or on a full disk; any other failure ends the program."""
    _, status = os.waitpid(pid, 0)
    if status and not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != FULL:
        sys.exit(f"an attempt failed with status {status}")
    return bool(status)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    random.seed(job["seed"])
    ended: list[tuple[str, int]] = []
    while len(ended) < job["kills"]:
        moment, after = random.choice(MOMENTS), random.randint(0, 2)
        goal = newest(folder) + after
        pid = attempt(job, moment, after)
        if moment == "outside":
            while newest(folder) < goal and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.001)
            time.sleep(random.uniform(0.0, 0.02))
            os.kill(pid, signal.SIGKILL)
        if not finish(pid):
            break
        ended.append((moment, newest(folder)))
        for path in folder.glob("killed-checkpoints/step-*"):
            checkpoint.read(path)  # raises CheckpointError, which ends the program
    else:
        finish(attempt(job, "never", 0))
    print(json.dumps({"ended": ended, "result": json.loads((folder / "killed.json").read_text())}))


main()
