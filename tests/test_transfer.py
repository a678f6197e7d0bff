"""Cells carried to a bare host and back: the bytes of a run made here, and nothing foreign comes in."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from checkout import Checkout, make_checkout
from noscratch import transfer

pytestmark = pytest.mark.xdist_group("transfer")  # one worker builds the shared checkouts

RUNS = "data/store"


def prepare(checkout: Checkout) -> None:
    """The data of ListOps, without the runs on it."""
    checkout.noscratch("run", address_of(checkout, "prepare", "listops"))


def address_of(checkout: Checkout, kind: str, label: str) -> str:
    lines = checkout.noscratch("plan", "--kind", kind).stdout.splitlines()
    return next(line.split()[0] for line in lines if line.split()[2] == label)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with the data of ListOps, and a pack of its three runs of S4D."""
    checkout = make_checkout(tmp_path_factory.mktemp("transfer") / "home")
    prepare(checkout)
    said = checkout.noscratch("pack", "--select", "listops,s4d", "--out", "cells.tar").stdout
    assert said.startswith("cells.tar: 3 runs")
    return checkout


@pytest.fixture(scope="module")
def away(home: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the pack, made in a folder outside any checkout."""
    host = tmp_path_factory.mktemp("host")
    shutil.copyfile(home.root / "cells.tar", host / "cells.tar")
    bare = Checkout(host)
    environment = {"PYTHONPATH": str(home.root / "src")}
    stopped = bare.run(
        *(sys.executable, "-m", "noscratch", "work", "cells.tar", "--stop-after", "0"), check=False, **environment
    )
    assert stopped.returncode == transfer.EXIT_AGAIN, stopped.stderr
    assert "0 runs are in cells.tar.results" in stopped.stdout
    done = bare.run(sys.executable, "-m", "noscratch", "work", "cells.tar", **environment)
    assert "3 runs are in cells.tar.results" in done.stdout
    return host / "cells.tar.results"


def test_runs_come_home_as_if_made_here(home: Checkout, away: Path, tmp_path: Path) -> None:
    here, there = home.clone(tmp_path / "here"), home.clone(tmp_path / "there")
    prepare(here)
    for line in here.noscratch("plan").stdout.splitlines():
        if "listops-s4d" in line:
            here.noscratch("run", line.split()[0])
    prepare(there)
    assert len(there.noscratch("import", str(away)).stdout.splitlines()) == 3
    assert there.noscratch("import", str(away)).stdout == "Every run was here already.\n"
    assert there.jobs() == here.jobs()
    varies = ("provenance.json", "SHA256SUMS")
    made, brought = ({k: v for k, v in c.files(RUNS).items() if not k.endswith(varies)} for c in (here, there))
    assert brought == made
    planned = [line for line in there.noscratch("plan").stdout.splitlines() if "planned" in line]
    assert planned
    assert not [line for line in planned if "s4d" in line]


def test_parts_are_small_and_listed(away: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(path.stat().st_size < 16 << 20 for path in away.iterdir())
    monkeypatch.setattr(transfer, "PART", 10_000)
    runs = tmp_path / "runs"
    runs.mkdir()
    done = []
    for name in ("a", "b"):
        (runs / name).mkdir()
        (runs / name / "weights.safetensors").write_bytes(bytes(25_000))
        (runs / name / "record.json").write_text("{}")
        done.append(runs / name)
    transfer._write_results(done, tmp_path / "out")
    listed = json.loads((tmp_path / "out/results.json").read_text())["files"]
    assert len(listed) >= 6
    assert all((tmp_path / "out" / name).stat().st_size <= 10_000 for name in listed)
    (tmp_path / "scratch").mkdir()
    found = list(transfer._runs(tmp_path / "out", tmp_path / "scratch"))
    assert [path.name for path in found] == ["a", "b"]
    assert (found[0] / "weights.safetensors").read_bytes() == bytes(25_000)


def unpacked(away: Path, target: Path) -> Path:
    """The runs of the results as folders."""
    target.mkdir()
    (target.parent / "scratch").mkdir()
    for run in list(transfer._runs(away, target.parent / "scratch")):
        shutil.copytree(run, target / run.name)
    return target


def refused(checkout: Checkout, folder: Path, says: str) -> None:
    before = checkout.files(RUNS)
    done = checkout.noscratch("import", str(folder), check=False)
    assert done.returncode == 1
    assert says in " ".join(done.stderr.split())
    assert checkout.files(RUNS) == before


def test_what_is_foreign_is_refused_whole(away: Path, tmp_path: Path) -> None:
    there = make_checkout(tmp_path / "there")
    prepare(there)
    folder = unpacked(away, tmp_path / "runs")
    run = next(path for path in sorted(folder.iterdir()) if "-finetune-" in path.name)
    record = json.loads((run / "record.json").read_text())

    def with_record(**changes: object) -> None:
        (run / "record.json").write_text(json.dumps({**record, **changes}))

    with_record(address="0123456789ab")
    refused(there, folder, "present plan; got 0123456789ab")
    with_record(settings={**record["settings"], "seed": 7})
    refused(there, folder, "its settings is that of job")
    with_record(inputs={"prepared": "0" * 64})
    refused(there, folder, "it started from the prepared that lies here")
    with_record(state="blocked")
    refused(there, folder, "its state is done, failed or diverged; got blocked")
    with_record()
    (run / "more.txt").write_text("more")
    refused(there, folder, "its folder holds what its record lists; got more.txt")
    (run / "more.txt").unlink()
    weights = run / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    refused(there, folder, "weights.safetensors")


def test_an_altered_part_is_refused(away: Path, tmp_path: Path) -> None:
    there = make_checkout(tmp_path / "there")
    folder = tmp_path / "results"
    shutil.copytree(away, folder)
    content = bytearray((folder / "results.000").read_bytes())
    content[2000] ^= 1
    (folder / "results.000").write_bytes(content)
    refused(there, folder, "results.000 differs. Copy it again.")
    refused(there, tmp_path / "absent", "there is none")
    (tmp_path / "empty").mkdir()
    refused(there, tmp_path / "empty", "holds no run")


def test_a_pack_says_what_it_lacks(home: Checkout, tmp_path: Path) -> None:
    done = home.noscratch("pack", "--select", "listops,s5", "--out", "no.tar", check=False)
    assert done.returncode == 1
    assert "'listops,s5'" in done.stderr
    fresh = make_checkout(tmp_path / "fresh")
    done = fresh.noscratch("pack", "--select", "s4d", "--out", "no.tar", check=False)
    assert done.returncode == 1
    assert f"noscratch run {address_of(fresh, 'prepare', 'listops')}" in " ".join(done.stderr.split())
    assert not (fresh.root / "no.tar").exists()


def test_an_altered_pack_is_refused(home: Checkout, tmp_path: Path) -> None:
    file = tmp_path / "cells.tar"
    with tarfile.open(home.root / "cells.tar") as archive, tarfile.open(file, "w") as altered:
        for member in archive.getmembers():
            stream = archive.extractfile(member)
            if member.name.endswith("train.arrow"):
                member.name = "src/noscratch/more.py"
            altered.addfile(member, stream)
    with pytest.raises(transfer.TransferError, match=r"differs\. Copy it again"):
        transfer.work(file)
    assert not (tmp_path / "cells.tar.work").exists()
