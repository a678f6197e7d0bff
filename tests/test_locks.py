"""Locks: one holder at a time, freed however it dies; and who has started whom."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from noscratch import locks
from noscratch.errors import NoscratchError

RULE = "One process at a time"


def test_a_second_holder_is_told_who_is_at_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "job.lock"
    with locks.hold(path, RULE):
        with pytest.raises(NoscratchError, match=rf"{RULE}; process {os.getpid()} on .* is at it. Wait"):
            locks.hold(path, RULE).__enter__()
        assert path.is_file(), "the one who was refused takes nothing away"
    assert not path.exists()
    with locks.hold(path, RULE):
        pass


def _hold_for_ever(path: Path, ready: Path) -> None:
    with locks.hold(path, RULE):
        ready.touch()
        threading.Event().wait()


def test_a_killed_holder_frees_it(tmp_path: Path) -> None:
    path, ready = tmp_path / "job.lock", tmp_path / "ready"
    child = multiprocessing.get_context("spawn").Process(target=_hold_for_ever, args=(path, ready))
    child.start()
    while not ready.exists():
        assert child.is_alive()
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    with locks.hold(path, RULE):
        assert path.read_text().startswith(f"{os.getpid()} on ")


def test_a_file_that_its_holder_has_just_removed_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, the holder before may have removed it."""
    path, original, opened = tmp_path / "job.lock", os.open, []

    def late(target: Path, *arguments: int) -> int:
        opened.append(original(target, *arguments))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    monkeypatch.setattr(os, "open", late)
    with locks.hold(path, RULE):
        assert len(opened) == 2
        assert path.is_file()


def test_descendants_are_found_at_any_depth() -> None:
    sleep = "import sys, subprocess; p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=sys.stdin); "
    program = f"{sleep} print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert {child.pid, grandchild} <= set(locks.descendants(os.getpid()))
        assert locks.descendants(child.pid) == [grandchild]
        assert locks.descendants(grandchild) == []


def test_a_file_that_was_removed_or_replaced_is_no_longer_at_its_name(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as file:
        assert locks.is_at(file.fileno(), path)
        path.unlink()
        assert not locks.is_at(file.fileno(), path)
        path.touch()
        assert not locks.is_at(file.fileno(), path)
