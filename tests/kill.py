"""`python kill.py JOB`: run a training job, killing it at random instants, then let it end.

JOB is a JSON file: settings, prepared and folder (where "killed" and its checkpoints are made), how many kills, a seed.
Prints JSON: the step of the newest checkpoint at each kill, and what train.run returned at last. Each attempt is
a fork, so that the import of torch is paid once; each saves after every step, so that many kills hit a checkpoint. An
attempt is killed some steps after the last one, so the speed of the machine does not matter.
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
from typing import Any

from noscratch import train


def attempt(job: dict[str, Any], name: str) -> int:
    """The pid of a child that runs the job into folder/name, made afresh, and leaves the result beside it."""
    pid = os.fork()
    if pid:
        return pid
    folder = Path(job["folder"])
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()
    result = train.run(
        job["settings"],
        Path(job["prepared"]),
        folder / name,
        folder / f"{name}-checkpoints",
        None,
        "cpu",
        checkpoint_seconds=0.0,
    )
    (folder / f"{name}.json").write_text(json.dumps(result))
    os._exit(0)


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without any."""
    return max((int(p.name.removeprefix("step-")) for p in folder.glob("killed-checkpoints/step-*")), default=0)


def finish(pid: int) -> bool:
    """Whether the child was killed; any other failure ends the program."""
    _, status = os.waitpid(pid, 0)
    if status and not os.WIFSIGNALED(status):
        sys.exit(f"an attempt failed with status {status}")
    return bool(status)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    random.seed(job["seed"])
    killed_at = [0]
    for _ in range(job["kills"]):
        goal = killed_at[-1] + random.randint(0, 2)
        pid = attempt(job, "killed")
        while newest(folder) < goal and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
        time.sleep(random.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        if not finish(pid):
            break
        killed_at.append(newest(folder))
    finish(attempt(job, "killed"))
    print(json.dumps({"killed_at": killed_at[1:], "result": json.loads((folder / "killed.json").read_text())}))


main()
