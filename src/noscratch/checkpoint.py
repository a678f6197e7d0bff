"""Checkpoints that survive a kill at any instant: written aside, synced, renamed; the last two are kept.

    <folder>/step-000000123/tensors.safetensors   model, optimizer, best weights
                            state.json            a line with the sha256 of the rest; JSON with the tensors' sha256

Nothing is parsed before its digest is checked, and neither format can carry code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from noscratch.errors import NoscratchError

KEEP = 2
TENSORS, STATE = "tensors.safetensors", "state.json"


class CheckpointError(NoscratchError):
    """A checkpoint that cannot be written, or none that can be read."""


class Checkpoint(NamedTuple):
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """Plain JSON values, the step among them."""


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Publish a checkpoint of `step`. Raises CheckpointError, leaving the earlier ones, when the disk refuses."""
    temporary, final = folder / f".writing-{step:09d}", _path(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*ing-*"):
            shutil.rmtree(leftover)
        temporary.mkdir()
        blob = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
        _write(temporary / TENSORS, blob)
        body = json.dumps({"state": dict(state), "tensors": hashlib.sha256(blob).hexdigest()}, sort_keys=True).encode()
        _write(temporary / STATE, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        _sync(temporary)
        if final.exists():  # this step again, after the earlier copy was found corrupt
            _discard(final)
        temporary.rename(final)
        _sync(folder)
        for old in _published(folder)[:-KEEP]:
            _discard(old)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"A checkpoint must reach the disk; writing {final} gave: {error}. Free space or mend the disk, "
            "then run the same command: it goes on from the checkpoint before."
        ) from error


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, with a warning for each newer one that is not; None where there is none.

    Raises CheckpointError when checkpoints are there and none is whole: starting over is for the user to decide.
    """
    published = _published(folder)
    for path in reversed(published):
        try:
            return read(path)
        except CheckpointError as error:
            warnings.warn(f"{error} Trying the one before.", stacklevel=2)
    if published:
        raise CheckpointError(
            f"No checkpoint of {folder} can be read. Delete the folder to start the run from its beginning."
        )
    return None


def read(path: Path) -> Checkpoint:
    """One checkpoint. Raises CheckpointError for anything but the very bytes that `save` wrote."""
    try:
        digest, _, body = (path / STATE).read_bytes().partition(b"\n")
        _require(path, hashlib.sha256(body).hexdigest().encode() == digest, "its state is not what was written")
        content = json.loads(body)
        blob = (path / TENSORS).read_bytes()
        _require(path, hashlib.sha256(blob).hexdigest() == content["tensors"], "its tensors are not what was written")
        return Checkpoint(safetensors.torch.load(blob), content["state"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"Checkpoint {path} cannot be read: {error}.") from error


def _require(path: Path, rule: bool, what: str) -> None:
    if not rule:
        raise CheckpointError(f"Checkpoint {path} is corrupt: {what}.")


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}"


def _published(folder: Path) -> list[Path]:
    """Oldest first; names have a fixed width."""
    return sorted(folder.glob("step-*"))


def _discard(path: Path) -> None:
    """Remove a checkpoint so that no half of it is ever seen."""
    aside = path.parent / f".removing-{path.name}"
    path.rename(aside)
    shutil.rmtree(aside)


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
