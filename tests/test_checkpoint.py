"""Checkpoints: whole or refused, the last two kept, and nothing that a crash can leave is taken for one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from noscratch import checkpoint
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


@given(
    name=st.sampled_from(FILES),
    where=st.floats(0, 1, exclude_max=True),
    what=st.sampled_from(("flip", "cut", "insert", "append")),
    content=st.binary(min_size=1, max_size=9),
)
def test_any_change_is_refused(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, name: str, where: float, what: str, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("changed") / "step"
    shutil.copytree(whole, folder)
    original = (folder / name).read_bytes()
    at = int(where * len(original))
    changed = {
        "flip": original[:at] + bytes([original[at] ^ (1 + content[0] % 255)]) + original[at + 1 :],
        "cut": original[:at],
        "insert": original[:at] + content + original[at:],
        "append": original + content,
    }[what]
    (folder / name).write_bytes(changed)
    if changed != original:
        with pytest.raises(CheckpointError):
            checkpoint.read(folder)


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
