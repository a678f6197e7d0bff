"""Pictures of kernels: what each convolution answers to one impulse, as initialized and after training.

    python -m bench.impulse --out FOLDER [--trained RUN ...]

Heads are those of the first block with the shortest, the middle and the longest step, each divided by its largest
value; SGConv has no step, and its heads are the first ones. RUN is the folder of a finished fine-tuning, with its
record.json and weights.safetensors: data/store/ADDRESS-finetune-TIER-TASK-BACKBONE-PROTOCOL-seedN, made by `noscratch
repro` at that tier. Writes FOLDER/impulse.parquet and its record, which names the addresses of the runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from noscratch import backbones
from noscratch.record import Stopwatch, write_bench

BACKBONES = ("s4", "s4d", "sgconv")
MODULES = tuple(f"noscratch.backbones.{name}" for name in BACKBONES)
WIDTH, LENGTH, HEADS, SEED = 64, 256, 3, 0
INITIAL = "as initialized"
SCHEMA = pa.schema(
    [
        ("backbone", pa.string()),
        ("weights", pa.string()),
        ("head", pa.int64()),
        ("step", pa.float64()),
        ("position", pa.int64()),
        ("value", pa.float64()),
    ]
)


def rows(backbone: str, weights: str, mixer: Any) -> Iterator[dict[str, Any]]:
    """The kernels of some heads, (position, value), value relative to the head's largest."""
    with torch.no_grad():
        kernels = mixer.kernel(LENGTH).reshape(-1, mixer.D.shape[-1], LENGTH)[0].double()
    if hasattr(mixer, "log_dt"):
        steps, order = mixer.log_dt.detach().exp().tolist(), mixer.log_dt.argsort().tolist()
    else:
        steps, order = [None] * kernels.shape[0], list(range(HEADS))
    for head in (order[round(k * (len(order) - 1) / (HEADS - 1))] for k in range(HEADS)):
        kernel = kernels[head] / kernels[head].abs().max()
        about = {"backbone": backbone, "weights": weights, "head": head, "step": steps[head]}
        for position, value in enumerate(kernel.tolist()):
            yield {**about, "position": position, "value": value}


def initial(backbone: str) -> Any:
    """The mixer of a block with the backbone's own defaults."""
    torch.manual_seed(SEED)
    module = backbones.load(backbone)
    return module.build(module.Config(), WIDTH, LENGTH, causal=True).mixer


def trained(run: Path, record: Mapping[str, Any]) -> tuple[str, str, Any]:
    """(backbone, name, mixer of the first block) of a finished run."""
    settings, cell = record["settings"], record["cell"]
    module = backbones.load(cell["backbone"])
    config = module.Config(**settings["backbone_config"])
    causal = settings["protocol"] == "spt-causal"
    block = module.build(config, settings["model"]["d_model"], LENGTH, causal=causal)
    weights = load_file(run / "weights.safetensors")
    prefix = "blocks.0."
    block.load_state_dict({key.removeprefix(prefix): v for key, v in weights.items() if key.startswith(prefix)})
    return cell["backbone"], f"after {cell['task']}, {cell['protocol']}, tier {cell['tier']}", block.mixer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of impulse.parquet")
    parser.add_argument("--trained", type=Path, nargs="*", default=[], help="folders of finished fine-tunings")
    asked = parser.parse_args()
    watch = Stopwatch(Path(__file__).parents[1], "cpu")
    found = [row for name in BACKBONES for row in rows(name, INITIAL, initial(name))]
    records = [json.loads((run / "record.json").read_text(encoding="utf-8")) for run in asked.trained]
    for run, record in zip(asked.trained, records, strict=True):
        found += rows(*trained(run, record))
    asked.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(found, SCHEMA), asked.out / "impulse.parquet")
    settings = {"width": WIDTH, "length": LENGTH, "seed": SEED, "trained": [record["address"] for record in records]}
    write_bench(asked.out, "impulse", settings, MODULES, watch)


if __name__ == "__main__":
    main()
