"""Cells carried to a bare host and back: the bytes of a run made here, and nothing foreign comes in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkout import ROOT, Checkout, make_checkout
from noscratch import transfer
from noscratch.atomic import temporary_in
from noscratch.errors import NoscratchError
from noscratch.plan import read_plan
from noscratch.store import RECORD, SUMS, Store, as_json, sha256_of, sync

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
    found = transfer._runs(tmp_path / "out", tmp_path / "scratch")
    assert [path.name for path in found] == ["a", "b"]
    assert (found[0] / "weights.safetensors").read_bytes() == bytes(25_000)


def unpacked(away: Path, target: Path) -> Path:
    """The runs of the results as folders."""
    target.mkdir()
    (target.parent / "scratch").mkdir()
    for run in transfer._runs(away, target.parent / "scratch"):
        shutil.copytree(run, target / run.name)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def seal(run: Path, record: Any = None) -> None:
    """Make the digests anew from what lies there, as one who covers his traces would."""
    if record is not None:
        (run / RECORD).write_bytes(as_json(record))
    files = sorted(path for path in run.iterdir() if path.name != SUMS)
    (run / SUMS).write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in files))


def refused(checkout: Checkout, folder: Path, says: str) -> None:
    before = checkout.files("data")
    done = checkout.noscratch("import", str(folder), check=False)
    assert done.returncode == 1
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert checkout.files("data") == before


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with the data of ListOps, where nothing may ever come in."""
    checkout = make_checkout(tmp_path_factory.mktemp("there") / "checkout")
    prepare(checkout)
    return checkout


@pytest.fixture(scope="module")
def runs(away: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(away, tmp_path_factory.mktemp("runs") / "runs")


def finetuned(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if "-finetune-" in path.name and "spt" in path.name)


def test_what_is_foreign_is_refused_whole(there: Checkout, runs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    run = finetuned(folder)
    record = json.loads((run / RECORD).read_text())

    def with_record(**changes: object) -> None:
        seal(run, {**record, **changes})

    with_record(address="0123456789ab")
    refused(there, folder, "present plan; got 0123456789ab")
    with_record(settings={**record["settings"], "seed": 7})
    refused(there, folder, "its settings is that of job")
    with_record(cell={**record["cell"], "backbone": "transformer"})
    refused(there, folder, "its cell is that of job")
    with_record(inputs={**record["inputs"], "prepared": "0" * 64})
    refused(there, folder, "it started from the prepared that lies here")
    with_record(inputs={**record["inputs"], "more": "0" * 64})
    refused(there, folder, "it read what it needs")
    with_record(state="blocked", reason="offline", result={})
    refused(there, folder, "its state is done, failed or diverged; got blocked")
    metrics = record["result"]["metrics"]
    better = {**metrics, "test": {**metrics["test"], "accuracy": 0.99}}
    with_record(result={**record["result"], "metrics": better})
    refused(there, folder, "test accuracy is 0.99 in the record")
    with_record()
    (run / "more.txt").write_text("more")
    seal(run)
    refused(there, folder, "more.txt: a file has the size and sha256 that its record states")
    (run / "more.txt").unlink()
    (run / "provenance.json").write_text("{}\n")
    seal(run)
    refused(there, folder, "provenance.json: a run names the commit")
    shutil.copyfile(runs / run.name / "provenance.json", run / "provenance.json")
    (run / SUMS).unlink()
    refused(there, folder, "SHA256SUMS; got: it is missing")
    seal(run)
    weights = run / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    seal(run)
    refused(there, folder, "weights.safetensors")
    shutil.copyfile(runs / run.name / weights.name, weights)
    seal(run)
    shutil.copytree(run, folder / "again")
    other = {**record, "result": {**record["result"], "counts": {**record["result"]["counts"], "flops": 1}}}
    seal(folder / "again", other)
    refused(there, folder, "one address has one result; got two in this folder")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"7",
        b"{",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"address": ' + b"[" * 100_000,
        b'{"schema": NaN}',
        b'{"address": "\\ud800"}',
    ],
    ids=repr,
)
def test_what_is_no_record_is_one_message(there: Checkout, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one" / RECORD).write_bytes(content)
    with pytest.raises(NoscratchError, match="a record is what its job wrote"):
        transfer.adopt(Store(there.root), [read_plan(there.root)], tmp_path / "runs")
    for view in ("runs", "prepared"):  # and so it is for what a view brings
        job = read_plan(there.root).in_view(view)[0]
        place = there.root / "data" / view / job.view
        place.mkdir(parents=True)
        (place / RECORD).write_bytes(content)
        store = Store(there.root)
        store.folder = tmp_path / "store"  # where nothing is adopted yet
        try:
            with pytest.raises(NoscratchError, match="a record is what its job wrote"):
                sync(store, read_plan(there.root))
        finally:
            shutil.rmtree(there.root / "data" / view)


def adopted(checkout: Checkout, folder: Path) -> str | None:
    """What was said when a folder was refused; None when it was taken."""
    before = sorted((checkout.root / "data").rglob("*"))
    try:
        transfer.adopt(Store(checkout.root), [read_plan(checkout.root)], folder)
    except NoscratchError as error:
        assert sorted((checkout.root / "data").rglob("*")) == before, "half adopted"
        return str(error)
    return None


SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(data=st.data())
def test_any_altered_byte_of_exported_results_is_refused(there: Checkout, away: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(away, Path(folder) / "results"))
        path = data.draw(st.sampled_from(sorted(copy.iterdir())))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        assert adopted(there, copy)


@SETTINGS
@given(data=st.data())
def test_any_altered_byte_of_a_run_is_refused(there: Checkout, runs: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(runs, Path(folder) / "runs"))
        path = data.draw(st.sampled_from(sorted(path for path in copy.rglob("*") if path.is_file())))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        assert adopted(there, copy)


def pointers(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every field inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (*place, key)
        yield from pointers(inside, (*place, key))


# What nothing but another run can tell (`noscratch redo`): here only another kind of value is refused.
UNPROVEN = (
    ("result", "counts", "parameters"),
    ("result", "counts", "tokens_real"),
    ("result", "counts", "tokens_computed"),
    ("result", "counts", "flops"),
    ("result", "kernels"),
    ("result", "metrics", "test", "loss"),
)
VALUES: list[Any] = [None, True, 99, -1, 0.5, "x", [], {}, ["x"], {"x": 1}]


@SETTINGS
@given(data=st.data())
def test_any_altered_field_of_a_record_is_refused(there: Checkout, runs: Path, data: st.DataObject) -> None:
    """Whatever digests are made anew after it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(runs, Path(folder) / "runs"))
        run = data.draw(st.sampled_from(sorted(copy.iterdir())))
        record = json.loads((run / RECORD).read_text())
        *place, last = data.draw(st.sampled_from(list(pointers(record))))
        inside = record
        for key in place:
            inside = inside[key]
        before = inside.pop(last)
        if any((*place, last)[: len(each)] == each for each in UNPROVEN):
            like = (int, float) if isinstance(before, float) else type(before)
            inside[last] = data.draw(st.sampled_from([each for each in VALUES if not isinstance(each, like)]))
        elif data.draw(st.booleans()):
            changed = [each for each in VALUES if (type(each), each) != (type(before), before)]
            put = inside.insert if isinstance(inside, list) else inside.__setitem__
            put(last, data.draw(st.sampled_from(changed)))
        if data.draw(st.booleans()):
            seal(run, record)
        else:
            (run / RECORD).write_bytes(as_json(record))
        assert adopted(there, copy), (*place, last)


def test_an_altered_part_is_refused(there: Checkout, away: Path, tmp_path: Path) -> None:
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


def test_a_pack_that_cannot_be_written_is_one_message(home: Checkout, tmp_path: Path) -> None:
    for out in (tmp_path / "nowhere/cells.tar", tmp_path):
        done = home.noscratch("pack", "--select", "listops,s4d", "--out", str(out), check=False)
        assert done.returncode == 1
        assert "A pack is written to a file in a folder that is there" in done.stderr
        assert "Traceback" not in done.stderr


MAIN = """
import os, pathlib, signal, sys, time
assert sys.argv[1] == "run"
here = pathlib.Path("said")
here.write_text(os.environ["PYTHONPATH"] + "\\n" + str(os.getpid()))
signal.signal(signal.{signal}, lambda *_: sys.exit(75))
pathlib.Path("ready").touch()
time.sleep(60)
"""
MAIN_FILE, FIRST, SECOND = "src/noscratch/__main__.py", "0123456789ab", "0123456789ac"


def small_pack(folder: Path, main: str, **other: Any) -> Path:
    """A pack of two jobs whose program is `main`; `other` replaces entries of its list (None: takes them away)."""
    files = {MAIN_FILE: main.encode(), "src/noscratch/__init__.py": b""}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    listed = {"addresses": [FIRST, SECOND], "files": digests} | other
    manifest = as_json({key: value for key, value in listed.items() if value is not None})
    with tarfile.open(folder / "small.tar", "w") as archive:
        for name, content in {transfer.PACK: manifest, **files}.items():
            transfer._add(archive, name, content)
    return folder / "small.tar"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_who_stops_the_work_stops_its_training(number: signal.Signals, tmp_path: Path) -> None:
    """The signal comes to `work` alone; what trains below it saves and ends, and the user's own path stays."""
    pack = small_pack(tmp_path, MAIN.format(signal=number.name))
    environment = Checkout(tmp_path).environment(PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{tmp_path}")
    command = [sys.executable, "-m", "noscratch", "work", str(pack)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    folder = tmp_path / "small.tar.work"
    while not (folder / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    path, child = (folder / "said").read_text().splitlines()
    assert path.split(os.pathsep) == [str(folder / "src"), str(ROOT / "src"), str(tmp_path)]
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "0 runs are in" in said
    assert not Path(f"/proc/{child}").exists()
    assert [log.stem for log in (folder / "logs").iterdir()] == [FIRST], "and no other is begun"


@pytest.mark.parametrize("other", [{"addresses": None}, {"addresses": ["x"]}, {"files": {MAIN_FILE: 5}}, {"more": 1}])
def test_a_pack_with_a_broken_list_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    pack = small_pack(tmp_path, MAIN, **other)
    with pytest.raises(transfer.TransferError, match=r"pack\.json lists what a transfer holds; here it is .*Copy it"):
        transfer.work(pack)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.tar"]


def test_what_killed_calls_left_goes_with_the_next(home: Checkout, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    pack = small_pack(tmp_path, "raise SystemExit(1)")
    left = [temporary_in(tmp_path, name) for name in ("small.tar.work", "small.tar.results", "cells.tar")]
    left = [path.with_name(path.name.replace(f".{os.getpid()}.", f".{dead.pid}.")) for path in left]
    for path in left:
        path.mkdir()
    mine, other = temporary_in(tmp_path, "small.tar.work"), tmp_path / left[0].name.replace("small", "other")
    mine.mkdir()
    other.mkdir()
    assert transfer.work(pack)[2] == 1
    home.noscratch("pack", "--select", "listops,s4d", "--out", str(tmp_path / "cells.tar"))
    assert not [path for path in left if path.exists()]
    assert mine.exists(), "its maker lives"
    assert other.exists(), "it belongs to another pack"


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
