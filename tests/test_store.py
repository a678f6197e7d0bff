"""The store and the views: what is published is whole, what is killed is nothing, views show exactly the plan."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from noscratch.errors import NoscratchError
from noscratch.plan import VIEWS, Job
from noscratch.record import write_record
from noscratch.store import BLOCKED, RECORD, Store, make_view, sha256_of, sync, view_differs


def job(kind: str, label: str, needs: Mapping[str, str] | None = None, **settings: object) -> Job:
    return Job(kind, label, {"name": label, **settings}, ("noscratch.errors",), needs or {}, f"folder/{label}")


class FakePlan:
    """As much of a plan as store and views ask for."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {j.address: j for j in jobs}

    def in_view(self, view: str) -> list[Job]:
        return [j for j in self.jobs.values() if j.kind in VIEWS[view]]


def publish(store: Store, what: Job, content: str = "bytes", state: str = "done") -> None:
    with store.building(what) as folder:
        if state != "blocked":
            (folder / "artifact.txt").write_text(content)
        write_record(what, folder, state, {}, {})
        (folder / "provenance.json").write_text("{}")
        if state == "blocked":
            (folder / BLOCKED).touch()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_published_whole_and_read_only(store: Store) -> None:
    what = job("fetch", "a")
    assert not store.has(what)
    publish(store, what)
    assert store.has(what)
    assert all(p.stat().st_mode & 0o777 == 0o444 for p in store.path(what).iterdir())
    assert store.leftovers() == []


def build_and_fail(store: Store, error: Exception) -> None:
    with store.building(job("fetch", "a")) as folder:
        (folder / "half").write_text("half")
        raise error


def test_an_error_publishes_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        build_and_fail(store, ZeroDivisionError())
    assert not store.has(job("fetch", "a"))
    assert list(store.folder.iterdir()) == []


def test_a_full_disk_is_explained_and_leaves_nothing(store: Store) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(NoscratchError, match=r"needs disk space and there is none left.*run the same command again"):
        build_and_fail(store, full)
    assert list(store.folder.iterdir()) == []


def test_the_first_result_stands(store: Store) -> None:
    what = job("fetch", "a")
    publish(store, what, "first")
    publish(store, what, "second")
    assert (store.path(what) / "artifact.txt").read_text() == "first"
    assert store.leftovers() == []


def test_the_empty_folder_of_the_engine_is_replaced(store: Store) -> None:
    what = job("fetch", "a")
    store.path(what).mkdir(parents=True)
    assert not store.has(what)
    publish(store, what)
    assert store.has(what)


def _build_for_ever(root: Path, when: str) -> None:
    store, what = Store(root), job("fetch", "a")
    if when == "rename":
        os.rename = lambda *_: time.sleep(60)  # type: ignore[assignment]
    with store.building(what) as folder:
        (folder / "artifact.txt").write_text("bytes")
        write_record(what, folder, "done", {}, {})
        (root / "ready").touch()
        if when == "work":
            time.sleep(60)


@pytest.mark.parametrize("when", ["work", "rename"])
def test_killed_is_never_mistaken_for_done(store: Store, when: str) -> None:
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_build_for_ever, args=(store.root, when))
    child.start()
    deadline = time.monotonic() + 60
    while not (store.root / "ready").exists():
        assert time.monotonic() < deadline, "the child did not get to its work"
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    what = job("fetch", "a")
    assert not store.has(what)
    assert len(store.leftovers()) == 1
    publish(store, what)
    assert store.has(what)


def test_blocked_results_are_dropped_and_shown(store: Store) -> None:
    a, b = job("fetch", "a"), job("fetch", "b")
    plan = FakePlan(a, b)
    publish(store, a)
    publish(store, b, state="blocked")
    make_view(store, plan, "raw")  # type: ignore[arg-type]
    assert store.drop_blocked() == [b.name]
    assert store.has(a)
    assert not store.has(b)
    shown = contents(store.data / "raw")
    assert "folder/b/record.json" in shown
    assert not any(name.endswith((BLOCKED, "provenance.json")) for name in shown)
    assert view_differs(store, plan, "raw") is None  # type: ignore[arg-type]


def test_views_hold_exactly_the_plan(store: Store) -> None:
    a, b = job("fetch", "a"), job("fetch", "b")
    publish(store, a)
    publish(store, b)
    both, one = FakePlan(a, b), FakePlan(a)
    assert make_view(store, both, "raw")  # type: ignore[arg-type]
    assert not make_view(store, both, "raw"), "nothing changed"  # type: ignore[arg-type]
    inode = (store.data / "raw/folder/a/artifact.txt").stat().st_ino
    assert inode == (store.path(a) / "artifact.txt").stat().st_ino, "a hard link, no second copy"
    assert make_view(store, one, "raw")  # type: ignore[arg-type]
    assert set(contents(store.data / "raw")) == {"folder/a/artifact.txt", "folder/a/record.json"}
    assert store.has(b), "what leaves the plan stays in the store"


def test_a_view_of_something_missing_is_refused(store: Store) -> None:
    with pytest.raises(NoscratchError, match="is not there"):
        make_view(store, FakePlan(job("fetch", "a")), "raw")  # type: ignore[arg-type]
    assert not (store.data / "raw").exists()


def test_differences_are_found(store: Store) -> None:
    a = job("fetch", "a")
    plan = FakePlan(a)
    assert "is not there" in (view_differs(store, plan, "raw") or "")  # type: ignore[arg-type]
    publish(store, a)
    make_view(store, plan, "raw")  # type: ignore[arg-type]
    assert view_differs(store, plan, "raw") is None  # type: ignore[arg-type]
    changed = job("fetch", "a", setting=2)
    assert "the plan's is" in (view_differs(store, FakePlan(changed), "raw") or "")  # type: ignore[arg-type]
    stray = store.data / "raw/folder/a/stray"
    stray.write_text("x")
    assert "does not name" in (view_differs(store, plan, "raw") or "")  # type: ignore[arg-type]
    stray.unlink()
    artifact = store.data / "raw/folder/a/artifact.txt"
    artifact.unlink()
    artifact.write_text("BYTES")
    assert "differs from the store" in (view_differs(store, plan, "raw") or "")  # type: ignore[arg-type]


def test_views_are_adopted_after_a_pull(store: Store, tmp_path: Path) -> None:
    a = job("fetch", "a")
    plan = FakePlan(a)
    publish(store, a)
    make_view(store, plan, "raw")  # type: ignore[arg-type]
    clone = Store(tmp_path / "clone")
    clone.data.mkdir(parents=True)
    shutil.copytree(store.data / "raw", clone.data / "raw")
    assert sync(clone, plan) == [a.name]  # type: ignore[arg-type]
    assert clone.has(a)
    assert sha256_of(clone.path(a) / RECORD) == sha256_of(store.path(a) / RECORD)
    assert sync(clone, plan) == []  # type: ignore[arg-type]


def test_altered_bytes_are_not_adopted(store: Store, tmp_path: Path) -> None:
    a = job("fetch", "a")
    plan = FakePlan(a)
    publish(store, a)
    make_view(store, plan, "raw")  # type: ignore[arg-type]
    shutil.rmtree(store.path(a))
    artifact = store.data / "raw/folder/a/artifact.txt"
    artifact.chmod(0o644)
    artifact.write_text("BYTES")
    with pytest.raises(NoscratchError, match=r"artifact.txt: bytes must match their record"):
        sync(store, plan)  # type: ignore[arg-type]
    assert not store.has(a)
