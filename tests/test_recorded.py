"""The note of what DVC recorded last: it stands for these very files, and for nothing that DVC would call changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from noscratch.recorded import NOTE, is_recorded, note_recorded

STAGES = """
stages:
  collect:
    cmd: collect
    deps: [src/a.py, data/runs]
    outs:
      - reports/results.parquet
    metrics:
      - reports/metrics.json:
          cache: false
    plots:
      - reports/curves.csv: {x: step}
"""
FILES = (
    *("src/a.py", "data/runs/seed0/finetune/record.json", "reports/results.parquet", "reports/metrics.json"),
    *("reports/curves.csv", "params.yaml", "dvc.lock", ".dvc/config", ".dvc/cache/files/md5/ab/cdef"),
)
YEAR = 365 * 86400 * 10**9


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A recorded checkout of one stage; its files are a year old."""
    (tmp_path / "dvc.yaml").write_text(STAGES)
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for path in tmp_path.rglob("*"):
        os.utime(path, ns=(time.time_ns() - YEAR,) * 2)
    note_recorded(tmp_path, time.time_ns())
    assert is_recorded(tmp_path)
    return tmp_path


def _replaced(path: Path) -> None:
    """Another file of the same name, size and time."""
    times, content = path.stat(), path.read_bytes()
    path.rename(path.with_name("aside"))
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    path.with_name("aside").unlink()


@pytest.mark.parametrize("name", [*FILES[:-1], "dvc.yaml"])
@pytest.mark.parametrize(
    "change", [lambda path: path.write_text(path.read_text() + "\n"), os.utime, _replaced, Path.unlink]
)
def test_whatever_moves_is_seen(root: Path, name: str, change: Callable[[Path], object]) -> None:
    if name == "dvc.yaml" and change is Path.unlink:
        return
    if change is _replaced:  # a file system gives a number again as soon as it is free: hold it meanwhile
        os.link(root / name, root / "held")
    change(root / name)
    assert not is_recorded(root)


@pytest.mark.parametrize("name", ["data/runs/seed0/finetune/weights", "data/runs/seed1/record.json", ".dvcignore"])
def test_what_comes_is_seen(root: Path, name: str) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).touch()
    assert not is_recorded(root)


def test_an_object_that_leaves_the_cache_is_seen(root: Path) -> None:
    (root / FILES[-1]).unlink()
    assert not is_recorded(root)


def test_what_no_stage_names_does_not_count(root: Path) -> None:
    for name in ("README.md", "data/runs/__pycache__/a.pyc", "data/store/record.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "data/runs/link").symlink_to("nowhere")  # as editors leave them
    assert is_recorded(root)


def test_what_changed_meanwhile_is_not_noted(root: Path) -> None:
    """DVC may have read it before: the note of before stands, and is not of these files."""
    asked, before = time.time_ns() - 10**9, (root / NOTE).read_bytes()
    (root / "dvc.lock").write_text("what DVC itself wrote")
    (root / "src/a.py").write_text("edited while DVC was at work")
    note_recorded(root, asked)
    assert (root / NOTE).read_bytes() == before
    assert not is_recorded(root)
    os.utime(root / "src/a.py", ns=(asked - YEAR,) * 2)
    note_recorded(root, asked)
    assert is_recorded(root)
