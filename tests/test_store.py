"""The store and the views: what is published is whole, what is killed is nothing, views show exactly the plan."""

from __future__ import annotations

import errno
import json
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
from noscratch.record import blocked_record, write_record
from noscratch.store import RECORD, Store, difference, expected, make_view, read_record, sha256_of, sync


def job(kind: str, label: str, needs: Mapping[str, str] | None = None, **settings: object) -> Job:
    return Job(kind, label, {"name": label, **settings}, ("noscratch.errors",), needs or {}, f"folder/{label}")


class FakePlan:
    """As much of a plan as store and views ask for."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {j.address: j for j in jobs}

    def in_view(self, view: str) -> list[Job]:
        return [j for j in self.jobs.values() if j.kind in VIEWS[view]]


def publish(store: Store, what: Job, content: str = "bytes") -> None:
    with store.building(what) as folder:
        (folder / "artifact.txt").write_text(content)
        write_record(what, folder, "done", {}, {})
        (folder / "provenance.json").write_text("{}")


def show(store: Store, *jobs: Job, blocked: Mapping[str, bytes] | None = None) -> bool:
    """Make the view `raw` of these jobs; whether it changed."""
    return make_view(store, "raw", expected(store, FakePlan(*jobs), "raw", blocked or {}))  # type: ignore[arg-type]


def wrong(store: Store, *jobs: Job) -> str | None:
    """What is wrong with the view `raw`, if it is to show these jobs."""
    return difference(store.data / "raw", expected(store, FakePlan(*jobs), "raw", {}))  # type: ignore[arg-type]


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


def test_an_entry_lists_its_digests(store: Store) -> None:
    """In the form of sha256sum, over every file of the entry, also those that no view shows."""
    what = job("fetch", "a")
    publish(store, what)
    folder = store.path(what)
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert {name: digest for digest, name in lines} == {
        name: sha256_of(folder / name) for name in ("artifact.txt", "provenance.json", RECORD)
    }
    assert show(store, what)
    assert sorted(contents(store.data / "raw")) == ["folder/a/artifact.txt", f"folder/a/{RECORD}"]


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


@pytest.mark.proves("kills")
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


def _make_view_for_ever(root: Path, *jobs: Job) -> None:
    store, rename = Store(root), os.rename

    def first_only(source: Path, target: Path) -> None:
        rename(source, target)
        (root / "ready").touch()
        time.sleep(60)

    os.rename = first_only  # type: ignore[assignment]
    show(store, *jobs)


@pytest.mark.proves("kills")
def test_a_view_killed_between_its_renames_is_made_again(store: Store) -> None:
    a, b = job("fetch", "a"), job("fetch", "b")
    publish(store, a)
    publish(store, b)
    show(store, a)
    child = multiprocessing.get_context("fork").Process(target=_make_view_for_ever, args=(store.root, a, b))
    child.start()
    deadline = time.monotonic() + 60
    while not (store.root / "ready").exists():
        assert time.monotonic() < deadline, "the child did not get to its rename"
        time.sleep(0.01)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    assert wrong(store, a, b) == "data/raw is not there"
    assert {path.name.rpartition("-")[0] for path in store.leftovers()} == {".tmp-aside-raw", ".tmp-view-raw"}
    assert show(store, a, b)
    assert wrong(store, a, b) is None


def test_what_no_plan_names_is_found(store: Store) -> None:
    a, b, c = job("fetch", "a"), job("fetch", "b"), job("fetch", "c")
    for what in (a, b, c):
        publish(store, what)
    for what in (a, c):
        (store.data / "checkpoints" / what.name).mkdir(parents=True)
    plans = [FakePlan(a), FakePlan(b)]
    assert store.unnamed(plans) == [store.data / "checkpoints" / c.name, store.path(c)]  # type: ignore[arg-type]


def test_a_damaged_record_is_explained(store: Store) -> None:
    a = job("fetch", "a")
    publish(store, a)
    record = store.path(a) / RECORD
    record.chmod(0o644)
    record.write_bytes(record.read_bytes()[:40])
    with pytest.raises(NoscratchError, match=r"record.json: .* damaged .*Remove its folder"):
        read_record(store.path(a))


def test_blocked_is_shown_and_kept_nowhere(store: Store) -> None:
    a, b = job("fetch", "a"), job("fetch", "b")
    publish(store, a)
    assert show(store, a, b, blocked={b.address: blocked_record(b, "b: not asked for")})
    shown = contents(store.data / "raw")
    assert set(shown) == {"folder/a/artifact.txt", "folder/a/record.json", "folder/b/record.json"}
    assert json.loads(shown["folder/b/record.json"])["reason"] == "b: not asked for"
    assert not store.has(b)
    publish(store, b)
    assert show(store, a, b, blocked={b.address: blocked_record(b, "b: not asked for")}), (
        "a result stands before a block"
    )
    assert json.loads(contents(store.data / "raw")["folder/b/record.json"])["state"] == "done"


def test_views_hold_exactly_the_plan(store: Store) -> None:
    a, b = job("fetch", "a"), job("fetch", "b")
    publish(store, a)
    publish(store, b)
    assert show(store, a, b)
    assert not show(store, a, b), "nothing changed"
    inode = (store.data / "raw/folder/a/artifact.txt").stat().st_ino
    assert inode == (store.path(a) / "artifact.txt").stat().st_ino, "a hard link, no second copy"
    assert show(store, a)
    assert set(contents(store.data / "raw")) == {"folder/a/artifact.txt", "folder/a/record.json"}
    assert store.has(b), "what leaves the plan stays in the store"


def test_a_view_of_something_missing_is_refused(store: Store) -> None:
    with pytest.raises(NoscratchError, match="is not there"):
        show(store, job("fetch", "a"))
    assert not (store.data / "raw").exists()


def test_differences_are_found(store: Store) -> None:
    a = job("fetch", "a")
    publish(store, a)
    assert wrong(store, a) == "data/raw is not there"
    show(store, a)
    assert wrong(store, a) is None
    changed = job("fetch", "a", setting=2)
    publish(store, changed)
    assert wrong(store, changed) == "data/raw/folder/a/record.json is not the plan's"
    stray = store.data / "raw/folder/a/stray"
    stray.write_text("x")
    assert wrong(store, a) == "data/raw holds folder/a/stray, which the plan does not name"
    stray.unlink()
    artifact = store.data / "raw/folder/a/artifact.txt"
    artifact.unlink()
    assert wrong(store, a) == "data/raw lacks folder/a/artifact.txt"
    artifact.write_text("BYTES")
    assert wrong(store, a) == "data/raw/folder/a/artifact.txt is not the plan's"


def test_views_are_adopted_after_a_pull(store: Store, tmp_path: Path) -> None:
    a = job("fetch", "a")
    plan = FakePlan(a)
    publish(store, a)
    show(store, a)
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
    show(store, a)
    shutil.rmtree(store.path(a))
    artifact = store.data / "raw/folder/a/artifact.txt"
    artifact.chmod(0o644)
    artifact.write_text("BYTES")
    with pytest.raises(NoscratchError, match=r"artifact.txt: bytes must match their record"):
        sync(store, plan)  # type: ignore[arg-type]
    assert not store.has(a)
