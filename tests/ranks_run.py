"""`python ranks_run.py JOB RANK`: one of several processes that train together; see test_train_ranks.py.

JOB is a JSON file: settings, prepared, folder (one for each rank is made in it), checkpoints, world, sharded, and how
many seconds to run (null: to the end). Leaves result.json, or nothing where the run was stopped.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from noscratch import train
from noscratch.distributed import Together


def main() -> None:
    job, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    folder = Path(job["folder"])
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(folder / "store"), job["world"]),
        rank=rank,
        world_size=job["world"],
        timeout=timedelta(minutes=10),
    )
    out = folder / f"rank{rank}"
    out.mkdir()
    try:
        result = train.run(
            job["settings"],
            Path(job["prepared"]),
            out,
            Path(job["checkpoints"]),
            None,
            "cpu",
            stop_after=job["stop_after"],
            ranks=Together(torch.device("cpu"), job["sharded"]),
        )
        (folder / f"rank{rank}.json").write_text(json.dumps(result))
    except train.Interrupted:
        pass
    dist.destroy_process_group()


main()
