"""`python kill.py JOB KILLS SEED`: run a training job again and again, killing it at random instants, then let it end.

JOB is a JSON file with the arguments of train.run. Prints how many times the job was really killed while running. Each
attempt is a fork, so that the import of torch is paid once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from noscratch import train


def attempt(job: dict[str, object]) -> int:
    """The pid of a child that runs the job into a fresh folder and exits 0."""
    pid = os.fork()
    if pid:
        return pid
    out = Path(str(job["out"]))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    init = Path(str(job["init"])) if job["init"] else None
    train.run(
        dict(job["settings"]),  # type: ignore[call-overload]
        Path(str(job["prepared"])),
        out,
        Path(str(job["checkpoints"])),
        init,
        "cpu",
        checkpoint_seconds=0.0,
    )
    os._exit(0)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    random.seed(int(sys.argv[3]))
    killed, longest = 0, 0.05
    while killed < int(sys.argv[2]):
        pid = attempt(job)
        time.sleep(random.uniform(0.0, longest))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        elif status:
            sys.exit(f"an attempt failed with status {status}")
        else:
            break
    pid = attempt(job)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"the last attempt failed with status {status}")
    print(killed)


main()
