"""Models: the stored weights, loaded again, give the stored predictions on the prepared examples.

Whoever edits predictions, metrics and every digest consistently has still to find weights that predict so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from noscratch.audit.case import PREDICTIONS, UNREADABLE, WEIGHTS, Case, Entry, Finding
from noscratch.data import Split, evaluation_batches, read_meta
from noscratch.model import Model, build_model
from noscratch.objectives import classify
from noscratch.plan import BASELINES
from noscratch.train import WIDTHS

RERUN = "Remove the folder and run the job again."
# How far, relative to the largest output, rounding may move what decides: other batches, another device, bfloat16.
ROUNDING = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 3e-2}


def check(case: Case) -> Iterator[Finding]:
    """Every finished fine-tuning of the view but the baselines (`noscratch redo` fits those again in no time)."""
    before = torch.get_num_threads()
    try:
        for entry in case.in_place("runs"):
            if entry.done and entry.kind == "finetune" and entry.cell[2] not in BASELINES:
                try:
                    yield from _model(case, entry)
                except (*UNREADABLE, RuntimeError) as error:
                    got = f"they do not fit the model: {type(error).__name__} {error}"
                    yield Finding(entry.at(WEIGHTS), "models", got, RERUN)
    finally:
        torch.set_num_threads(before)


def _model(case: Case, entry: Entry) -> Iterator[Finding]:
    settings, result = dict(entry.record["settings"]), entry.record["result"]
    prepared = case.needed(entry.record["needs"]["prepared"])
    if prepared is None:
        return
    torch.set_num_threads(settings["threads"])
    meta = read_meta(prepared.folder)
    model = build_model(meta, settings, 0).to("cpu", WIDTHS[settings["dtype"]])
    model.load_state_dict(safetensors.torch.load_file(entry.folder / WEIGHTS))
    steps, selected = result["counts"]["steps"], result["selection"]["step"]
    for split, at in (("validation", selected), ("test", steps)):
        # A model that changes in the course of its training was evaluated in the state of that step.
        model.set_progress(1.0 if "pretrained" in entry.record["needs"] else (at - 1) / steps)
        stored = case.predictions(entry)[split]
        of = dict(zip(stored.ids, stored.prediction.tolist(), strict=True))
        otherwise = examples = 0
        for ids, output in _outputs(model, Split(prepared.folder, split), meta, settings):
            wanted = np.array([of[name] for name in ids])
            if meta["kind"] == "classification":
                behind = output.max(axis=1) - output[np.arange(len(ids)), wanted.astype(np.int64)]
            else:
                behind = np.abs(output[:, 0] - wanted)
            otherwise += int(np.sum(behind > ROUNDING[settings["dtype"]] * max(1.0, float(np.abs(output).max()))))
            examples += len(ids)
        if otherwise:
            got = f"the stored weights predict otherwise for {otherwise} of {examples} examples of {split}"
            yield Finding(entry.at(PREDICTIONS), "models", got, RERUN)


def _outputs(
    model: Model, split: Split, meta: dict[str, Any], settings: dict[str, Any]
) -> Iterator[tuple[list[str], NDArray[np.float64]]]:
    """Ids and outputs (examples, classes or 1) of a split, batch by batch."""
    model.eval()
    ids = split.ids().to_pylist()
    mixed = settings["dtype"] == "bfloat16"
    for index in evaluation_batches(split.lengths, settings["train"]["batch_tokens"]):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = classify(model, split.batch(index), meta["kind"]).output
        yield [ids[row] for row in index.tolist()], output.double().numpy()
