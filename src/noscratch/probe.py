"""A few steps of the real training loop, timed, in a process of its own: what noscratch.estimate is made from.

    python -m noscratch.probe FOLDER

FOLDER holds told.json (settings, device, passports) and prepared/, a task of few examples; init/ where training starts
from weights. The times of every step, the peak of memory, the files' sizes and the joules go to found.json beside them.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

TOLD, FOUND = "told.json", "found.json"


def main(folder: Path) -> None:
    """Run the probe that `folder` describes."""
    started, processor = time.perf_counter(), time.process_time()
    told = json.loads((folder / TOLD).read_text(encoding="utf-8"))
    memory = _host_memory()
    if told["device"] == "cpu":  # what does not fit is refused by the allocator, not by killing some process
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    def clock() -> dict[str, float]:
        return {"wall": time.perf_counter() - started, "cpu": time.process_time() - processor}

    from noscratch import passport, telemetry, train  # a job's own imports are part of its time
    from noscratch.energy import Meter

    passport.check(told["device"], Path(told["passports"]))
    steps: list[dict[str, Any]] = []
    meter = Meter(told["device"])
    joules: list[float | None] = []
    pieces = [1]

    def report(_: int, state: train.State) -> None:
        steps.append({**clock(), "lengths": len(state.shapes), "resident": _resident()})
        joules.append(meter.joules())
        pieces[0] = state.split

    out = folder / "out"
    out.mkdir()
    result = train.run(
        told["settings"],
        prepared=folder / "prepared",
        out=out,
        checkpoints=folder / "checkpoints",
        init=folder / "init" if (folder / "init").is_dir() else None,
        device=told["device"],
        report=report,
    )
    found = {
        "steps": steps,
        "end": clock(),
        "memory": telemetry.peak_memory(told["device"]),
        "host": told["device"] == "cpu",
        "device_memory": memory if told["device"] == "cpu" else _gpu_memory(),
        "pieces": pieces[0],
        "joules": None if None in joules else [joules[0], joules[-1]],
        "files": {path.name: path.stat().st_size for path in out.iterdir()},
        "counts": result["counts"],
    }
    (folder / FOUND).write_text(json.dumps(found), encoding="utf-8")


def _resident() -> int:
    """Bytes of this process in memory now; Linux."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _host_memory() -> int:
    """Bytes that the host has, or what a control group leaves of them."""
    words = Path("/proc/meminfo").read_text(encoding="ascii").split()
    memory = 1024 * int(words[words.index("MemTotal:") + 1])
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        memory = min(memory, int(text))
    return memory


def _gpu_memory() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory


if __name__ == "__main__":
    main(Path(sys.argv[1]))
