"""Checkpoints: whole or refused, the last two kept, and nothing that a crash can leave is taken for one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import tiny
from noscratch import checkpoint, train
from noscratch.checkpoint import CheckpointError

FILES = (checkpoint.STATE, checkpoint.TENSORS)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), float(step)), "steps": torch.tensor(step)}


def write(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, step, tensors(step), {"step": step, "value": 0.1 * step})


def loaded_step(folder: Path) -> int | None:
    saved = checkpoint.load(folder)
    if saved is None:
        return None
    assert set(saved.tensors) == set(tensors(0))
    assert all(torch.equal(saved.tensors[name], value) for name, value in tensors(saved.state["step"]).items())
    assert saved.state["value"] == 0.1 * saved.state["step"], "floats come back to the bit"
    step: int = saved.state["step"]
    return step


def newest(folder: Path) -> Path:
    return max(folder.glob("step-*"))


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "none") is None


def test_the_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 10)
    assert loaded_step(tmp_path) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000010"]


@pytest.mark.parametrize("name", FILES)
def test_a_corrupt_newest_gives_way_to_the_one_before(tmp_path: Path, name: str) -> None:
    write(tmp_path, 1, 2)
    content = bytearray((newest(tmp_path) / name).read_bytes())
    content[-1] ^= 1
    (newest(tmp_path) / name).write_bytes(content)
    with pytest.warns(UserWarning, match="step-000000002 is corrupt"):
        assert loaded_step(tmp_path) == 1
    write(tmp_path, 2)
    assert loaded_step(tmp_path) == 2, "the corrupt one is replaced"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_gives_way_to_the_one_before(tmp_path: Path, name: str) -> None:
    write(tmp_path, 1, 2)
    (newest(tmp_path) / name).unlink()
    with pytest.warns(UserWarning, match="step-000000002 cannot be read"):
        assert loaded_step(tmp_path) == 1


@pytest.mark.filterwarnings("ignore:Checkpoint")
def test_none_whole_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    for path in tmp_path.glob("step-*"):
        (path / checkpoint.STATE).write_text("")
    with pytest.raises(CheckpointError, match="Delete the folder"):
        checkpoint.load(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write(folder, 7)
    return newest(folder)


def mutations(own: bytes, other: bytes, chance: random.Random) -> dict[str, bytes]:
    """What a disk, a copy or an enemy may make of one of the two files."""
    at, few = chance.randrange(len(own)), chance.randbytes(chance.randrange(1, 64))
    return {
        "a bit flips": own[:at] + bytes([own[at] ^ (1 << chance.randrange(8))]) + own[at + 1 :],
        "bytes change": own[:at] + few + own[at + len(few) :],
        "the end is gone": own[:at],
        "the beginning is gone": own[at + 1 :],
        "bytes are put in": own[:at] + few + own[at:],
        "bytes are added": own + few,
        "a block is zero": own[:at] + bytes(len(own[at : at + 512])) + own[at + 512 :],
        "all is zero": bytes(len(own)),
        "it is there twice": own + own,
        "it is the other file": other,
        "it is noise": chance.randbytes(at),
        "its header is a lie": struct.pack("<Q", chance.choice([0, 1, 2**31, 2**63, 2**64 - 1])) + own[8:],
        "it is a pickle": pickle.dumps(Trap()),
        "it is a zip": b"PK\x03\x04" + own[4:],
        "a number is another": own.replace(b"1", b"-1e999", 1),
    }


class Trap:
    """Unpickling it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "exec",
    "compile",
    "import",
)
watching: list[str] = []
seen: list[str] = []


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Python tells of every event, until its end: a hook cannot be taken away."""
    if watching and event in FORBIDDEN:
        seen.append(f"{event} {arguments}")


def refused(whole: Path, folder: Path, times: int, seed: int) -> Counter[str]:
    """Mutate a checkpoint so often; each is refused with our error, and reading it runs nothing. How often each way."""
    chance, done = random.Random(seed), Counter[str]()
    shutil.copytree(whole, folder)
    originals = {name: (whole / name).read_bytes() for name in FILES}
    sys.addaudithook(hook)
    while done.total() < times:
        name, other = chance.sample(FILES, 2)
        kind, changed = chance.choice(list(mutations(originals[name], originals[other], chance).items()))
        if changed == originals[name]:
            continue
        (folder / name).write_bytes(changed)
        watching.append("now")
        try:
            with pytest.raises(CheckpointError):
                checkpoint.read(folder)
        finally:
            watching.clear()
        (folder / name).write_bytes(originals[name])
        done[kind] += 1
    assert checkpoint.read(folder).state == checkpoint.read(whole).state
    assert seen == []
    return done


def test_300_mutated_checkpoints_are_refused(whole: Path, tmp_path: Path) -> None:
    assert refused(whole, tmp_path / "step", 300, seed=0).keys() == mutations(b"1", b"2", random.Random(0)).keys()


def test_the_watch_for_code_sees_it() -> None:
    sys.addaudithook(hook)
    watching.append("now")
    try:
        pickle.loads(pickle.dumps(Trap()))
        assert any(event.startswith("os.system") for event in seen)
    finally:
        watching.clear()
        seen.clear()


@pytest.mark.slow
def test_10000_mutated_checkpoints_are_refused(tmp_path: Path) -> None:
    """Of a real run: model, moments, best weights."""
    prepared = tiny.write_task(tmp_path / "prepared", metrics=["accuracy"])
    (tmp_path / "out").mkdir()
    out, saved, settings = tmp_path / "out", tmp_path / "checkpoints", tiny.settings(evaluate_every=1)
    with pytest.raises(train.Interrupted):
        train.run(settings, prepared, out, saved, None, "cpu", stop_after=0.0)
    done = refused(next(saved.iterdir()), tmp_path / "step", 10_000, seed=1)
    assert done.total() == 10_000
    print(dict(done))


@pytest.mark.parametrize(
    "body", [b"[]", b"null", b"{}", b'{"tensors": 1}', b"[" * 100_000, b'{"tensors": "', b"\xff", b"9" * 5000]
)
def test_a_right_digest_over_a_wrong_state_is_refused(whole: Path, tmp_path: Path, body: bytes) -> None:
    shutil.copytree(whole, tmp_path / "step")
    (tmp_path / "step" / checkpoint.STATE).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path / "step")


@pytest.mark.parametrize("blob", [b"", b"\x80\x04N.", b"\xff" * 64, safetensors.torch.save(tensors(1))[:-3]])
def test_a_right_digest_over_wrong_tensors_is_refused(whole: Path, tmp_path: Path, blob: bytes) -> None:
    folder = tmp_path / "step"
    shutil.copytree(whole, folder)
    (folder / checkpoint.TENSORS).write_bytes(blob)
    body = json.dumps({"state": {}, "tensors": hashlib.sha256(blob).hexdigest()}).encode()
    (folder / checkpoint.STATE).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(CheckpointError):
        checkpoint.read(folder)


def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left.*Free space"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert loaded_step(tmp_path) == 1


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("moment", ["mkdir", "write", "rename", "discard"])
def test_a_crash_while_saving_leaves_whole_checkpoints_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write(tmp_path, 1, 2)

    def crash(*args: object, **options: object) -> None:
        raise Crash

    target = {
        "mkdir": (checkpoint, "_write"),
        "write": (checkpoint, "_sync"),
        "rename": (Path, "rename"),
        "discard": (shutil, "rmtree"),
    }[moment]
    monkeypatch.setattr(*target, crash)
    with pytest.raises(Crash):
        write(tmp_path, 3)
    monkeypatch.undo()
    assert loaded_step(tmp_path) == (3 if moment == "discard" else 2)
    write(tmp_path, 4)
    assert loaded_step(tmp_path) == 4
    assert len(list(tmp_path.iterdir())) == checkpoint.KEEP, "what the crash left is gone"
