"""`python ranks_run.py JOB RANK`: one of several processes that train together; see test_train_ranks.py.

JOB is a JSON file: settings, prepared, folder, checkpoints, world, sharded, and how many seconds to run (null: to the
end). Leaves in rank<RANK>.json of the folder: what train.run returned (null where it was stopped), how many numbers of
the blocks this rank kept, and how many examples it took of each batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from noscratch import train
from noscratch.distributed import Together
from noscratch.ranks import local


class Watched(Together):
    """Notes what the loop asks of it."""

    kept = 0
    taken: list[int]

    def wrap(self, model: nn.Module) -> None:
        super().wrap(model)
        self.kept, self.taken = sum(local(p).numel() for p in model.get_submodule("blocks").parameters()), []

    def shares(self, index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        found = super().shares(index)
        self.taken.append(len(found[self.rank]))
        return found

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        super().add_gradients(parameters)
        dist.barrier()


def main() -> None:
    job, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    folder = Path(job["folder"])
    store = dist.FileStore(str(folder / "store"), job["world"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=job["world"])
    ranks = Watched(torch.device("cpu"), job["sharded"])
    out = folder / f"rank{rank}"
    out.mkdir()
    result: dict[str, Any] | None = None
    with suppress(train.Interrupted):
        result = train.run(
            job["settings"],
            Path(job["prepared"]),
            out,
            Path(job["checkpoints"]),
            None,
            "cpu",
            stop_after=job["stop_after"],
            ranks=ranks,
        )
    (folder / f"rank{rank}.json").write_text(json.dumps({"result": result, "kept": ranks.kept, "taken": ranks.taken}))
    dist.destroy_process_group()


main()
