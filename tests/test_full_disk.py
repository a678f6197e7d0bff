"""A disk that fills up in any stage: one clear error, nothing half written, and the next run goes on to the same bytes.

The checkout lies on a small file system of its own, in memory, which is filled to the last block before each command.
Downloads, archives and checkpoints meet a full disk in test_download, test_unpack and test_train_kills.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkout import Checkout
from noscratch import recorded

SPARE = 64 << 20
LEFT = 4096
"""Bytes that are free when a command starts: enough to begin a file, too few to end one."""


@pytest.fixture(scope="module")
def small_disk(by_dvc: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A copy of the finished checkout on a file system of its own."""
    folder = tmp_path_factory.mktemp("disk")
    size = sum(path.stat().st_size + 4096 for path in by_dvc.root.rglob("*") if not path.is_symlink()) + SPARE
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount a file system in memory")
    try:
        dead = shutil.ignore_patterns(
            ".lock"
        )  # of a process that another test has killed; the next command takes it away
        yield Checkout(Path(shutil.copytree(by_dvc.root, folder / "checkout", symlinks=True, ignore=dead)))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def everything(checkout: Checkout) -> dict[str, bytes]:
    """Every file that a command of the project could leave half written."""
    found = checkout.files("data", "reports", "site/docs", "public")
    found["dvc.lock"] = (checkout.root / "dvc.lock").read_bytes()
    return {name: content for name, content in found.items() if "/.locks/" not in name and "/logs/" not in name}


def repeatable(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without what differs from run to run."""
    differs = ("provenance.json", "SHA256SUMS", recorded.NOTE.name)
    return {name: content for name, content in files.items() if not name.endswith(differs)}


@contextmanager
def full(checkout: Checkout, left: int = LEFT) -> Iterator[None]:
    """Fill the disk but for `left` bytes."""
    filler = checkout.root.parent / "filler"
    status = os.statvfs(checkout.root)
    try:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - left)
        yield
    finally:
        filler.unlink()


def remove(checkout: Checkout, *names: str) -> None:
    for name in names:
        for path in checkout.root.glob(name):
            if path.is_dir():
                for each in (path, *path.rglob("*")):
                    if not each.is_symlink() and each.is_dir():
                        each.chmod(0o755)
                shutil.rmtree(path)
            else:
                path.unlink()


def address(checkout: Checkout, kind: str, label: str) -> str:
    (found,) = checkout.root.glob(f"data/store/*-{kind}-{label}")
    return found.name.partition("-")[0]


# Python itself leaves byte code cut short on a full disk, which it cannot read afterwards.
NO_BYTE_CODE = {"PYTHONDONTWRITEBYTECODE": "1"}
RUN = "smoke-listops-s4d-spt-masked-seed0"
STAGES = {
    "sources": ("sources --refresh", "data/availability.json"),
    "count": ("count", "reports/records/architecture/record.json"),
    "prepare": ("run", "data/store/*-prepare-listops"),
    "pretrain": ("run", f"data/store/*-pretrain-{RUN}"),
    "finetune": ("run", f"data/store/*-finetune-{RUN}"),
    "view": ("view raw prepared runs", "data/runs"),
    "collect": ("collect", "reports/results.parquet", "reports/metrics.json", "reports/curves.*"),
    "judge": ("judge", "reports/*.parquet"),
    "publish": ("publish", "site/docs/generated"),
    "site": ("site", "public"),
    "repro": ("repro", "public"),  # stops before DVC would rewrite dvc.lock in place
    "commit": ("commit", "reports/verdicts.parquet"),
    "pack": (f"pack --select {RUN.split('-')[2]},scratch --out cells.tar", "data/store/*-s4d-scratch-seed0"),
}
SMALL = ("sources", "count")  # what they write fits into a block


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_said_and_leaves_nothing_half_written(small_disk: Checkout, stage: str) -> None:
    before = everything(small_disk)
    line, *gone = STAGES[stage]
    arguments = line.split()
    if line == "run":
        kind, _, label = gone[0].partition("*-")[2].partition("-")
        arguments = ["run", address(small_disk, kind, label)]
    if stage == "judge":
        gone = ["reports/cells.parquet", "reports/compute.parquet", "reports/flags.parquet", "reports/verdicts.parquet"]
    remove(small_disk, *gone)
    start = everything(small_disk)
    with full(small_disk, 0 if stage in SMALL else LEFT):
        done = small_disk.noscratch(*arguments, check=False, **NO_BYTE_CODE)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert "No space left on device" in said
    assert stage == "site" or "Traceback" not in said  # there MkDocs speaks
    assert not [path for path in small_disk.root.rglob(".tmp-*") if ".dvc" not in path.parts]
    after = everything(small_disk)
    whole = {name: content for name, content in after.items() if name in start or before.get(name) == content}
    whole |= {name: content for name, content in after.items() if name.startswith("data/checkpoints/")}  # to go on from
    assert whole == after, f"half written: {sorted(after.keys() - whole.keys())}"
    small_disk.noscratch(*arguments, **NO_BYTE_CODE)
    remove(small_disk, "cells.tar")
    if stage != "pack":
        assert repeatable(everything(small_disk)) == repeatable(before)


def test_an_import_into_a_full_disk_takes_nothing(small_disk: Checkout, tmp_path: Path) -> None:
    before = everything(small_disk)
    (entry,) = small_disk.root.glob(f"data/store/*-finetune-{RUN}")
    shutil.copytree(entry, tmp_path / "runs" / entry.name)
    remove(small_disk, entry.relative_to(small_disk.root).as_posix())
    start = everything(small_disk)
    with full(small_disk):
        done = small_disk.noscratch("import", str(tmp_path / "runs"), check=False, **NO_BYTE_CODE)
    said = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert "Importing runs needs disk space" in said
    assert "Traceback" not in said
    assert everything(small_disk) == start
    small_disk.noscratch("import", str(tmp_path / "runs"), **NO_BYTE_CODE)
    assert everything(small_disk) == before


def test_work_on_a_full_disk_unpacks_nothing(small_disk: Checkout) -> None:
    remove(small_disk, "data/store/*-finetune-smoke-listops-s4d-scratch-seed0")
    folder = small_disk.root.parent / "host"
    folder.mkdir()
    small_disk.noscratch("pack", "--select", "s4d,scratch", "--out", str(folder / "cells.tar"))
    here, path = Checkout(folder), str(small_disk.root / "src")
    with full(small_disk):
        done = here.noscratch("work", "cells.tar", check=False, PYTHONPATH=path, **NO_BYTE_CODE)
    assert done.returncode == 1
    assert "Unpacking cells.tar needs disk space" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert [path.name for path in folder.iterdir()] == ["cells.tar"]
    here.noscratch("work", "cells.tar", PYTHONPATH=path, **NO_BYTE_CODE)
    small_disk.noscratch("import", str(folder / "cells.tar.results"))
