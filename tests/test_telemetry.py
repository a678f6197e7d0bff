"""What a running job tells: its file, the summary in its provenance, the watch, and joules from counters."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from noscratch import energy, telemetry, train
from noscratch.telemetry import FILE, Telemetry, lines, summary, watched


def follow(folder: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    if not (tmp_path / "prepared").exists():
        tiny.write_task(tmp_path / "prepared", metrics=["accuracy"])
    with Telemetry(folder, "cpu", progress=False) as report:
        return train.run(tiny.settings(), tmp_path / "prepared", out, folder, None, "cpu", report=report, **more)


def test_a_run_is_the_same_with_and_without_it(tmp_path: Path) -> None:
    told = follow(tmp_path / "job", tmp_path)
    weights = (tmp_path / "out" / train.WEIGHTS).read_bytes()
    untold = train.run(tiny.settings(), tmp_path / "prepared", tmp_path / "out", tmp_path / "other", None, "cpu")
    assert told == untold
    assert (tmp_path / "out" / train.WEIGHTS).read_bytes() == weights


def test_the_summary_is_over_all_calls(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    for _ in range(2):
        with pytest.raises(train.Interrupted):
            follow(folder, tmp_path, stop_after=0.0)
    result = follow(folder, tmp_path)
    written = lines(folder / FILE)
    assert [line["step"] for line in written[:3]] == [1, 2, 3], "each call's first step is told at once"
    assert written[-1]["step"] == written[-1]["steps"] == result["counts"]["steps"]
    assert written[-1]["tokens"] == result["counts"]["tokens_real"]
    found = summary(folder)
    assert found["calls"] == 3 == len({line["call"] for line in written})
    assert found["training_seconds"] >= written[-1]["seconds"]
    assert found["tokens_per_second"] > 0
    assert found["peak_memory"] > 10**7, "a process with PyTorch"
    assert found["pieces"] == 1
    assert [len(values) for values in found["telemetry"].values()] == [len(written)] * 4
    assert json.loads(json.dumps(found)) == found


def test_a_long_run_keeps_so_many_points(tmp_path: Path) -> None:
    line = {"host": "h", "pid": 1, "call": 0.0, "loss": 1.0, "pieces": 1, "memory": 5, "joules": None, "steps": 999}
    rows = [line | {"step": step, "tokens": 10 * step, "seconds": 0.5 * step} for step in range(1, 1000)]
    (tmp_path / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = summary(tmp_path)
    assert len(found["telemetry"]["step"]) == telemetry.POINTS
    assert (found["telemetry"]["step"][0], found["telemetry"]["step"][-1]) == (1, 999)
    assert found["tokens_per_second"] == 20.0
    assert found["energy_joules"] is None


@given(st.integers(0, 400))
def test_a_line_that_was_cut_short_is_left_out(tmp_path_factory: pytest.TempPathFactory, end: int) -> None:
    line = {"host": "h", "pid": 1, "call": 0.0, "step": 3}
    path = tmp_path_factory.mktemp("job") / FILE
    content = 3 * (json.dumps(line) + "\n")
    path.write_text(content[:end])
    assert lines(path) == [line] * content[:end].count("}")
    assert all(found == line for found in lines(path, tail=end // 2))


def test_nothing_written_is_nothing_to_say(tmp_path: Path) -> None:
    assert summary(tmp_path) == {}
    assert watched(tmp_path) == []


def test_a_disk_that_refuses_does_not_stop_the_run(tmp_path: Path) -> None:
    tiny.write_task(tmp_path / "prepared", metrics=["accuracy"])
    (tmp_path / "file").touch()
    (tmp_path / "out").mkdir()
    with Telemetry(tmp_path / "file" / "job", "cpu", progress=False) as report:
        folders = tmp_path / "prepared", tmp_path / "out", tmp_path / "checkpoints"
        train.run(tiny.settings(), *folders, None, "cpu", report=report)


# Watching


def write(folder: Path, age: float = 0.0, **changes: Any) -> None:
    folder.mkdir(parents=True)
    line = {"host": platform.node(), "pid": os.getpid(), "call": 1.0, "loss": 2.5, "steps": 100, "memory": 2**20}
    rows = [line | {"step": step, "tokens": 50 * step, "seconds": 2.0 * step} | changes for step in (10, 20)]
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(folder / FILE, (time.time() - age,) * 2)


def test_who_runs_and_who_has_stopped(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    write(tmp_path / "checkpoints" / "b-here")
    write(tmp_path / "checkpoints" / "a-dead", pid=int(dead.stdout))
    write(tmp_path / "checkpoints" / "c-elsewhere", host="elsewhere")
    write(tmp_path / "checkpoints" / "d-silent", host="elsewhere", age=300)
    found = watched(tmp_path)
    assert [(job.job, job.running) for job in found] == [
        ("b-here", True),
        ("c-elsewhere", True),
        ("a-dead", False),
        ("d-silent", False),
    ]
    assert found[0].tokens_per_second == 25.0
    assert found[0].seconds_left == 160.0
    assert found[3].age == pytest.approx(300, abs=60)


def test_a_new_call_has_a_speed_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "job"
    write(folder)
    with (folder / FILE).open("a") as file:
        row = lines(folder / FILE)[-1] | {"call": 2.0, "seconds": 0.1, "step": 21}
        file.write(json.dumps(row) + "\n")
    (found,) = watched(tmp_path)
    assert found.line["step"] == 21
    assert found.tokens_per_second is None
    assert found.seconds_left is None


def test_the_command_shows_a_table_once(tmp_path: Path) -> None:
    write(tmp_path / "data" / "checkpoints" / "0123-finetune-smoke")
    shutil.copyfile(Path(__file__).parent / "tiny/params.yaml", tmp_path / "params.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "noscratch", "watch", "--once"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    heading, row = done.stdout.splitlines()
    assert heading.split() == ["job", "step", "loss", "tokens/s", "left", "memory", "said"]
    assert row.split()[:6] == ["0123-finetune-smoke", "runs", "20/100", "2.5000", "25", "3"]


# Energy


def package(folder: Path, name: str, joules: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    (folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    return folder / "energy_uj"


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    one = package(tmp_path / "intel-rapl:0", "package-0", 5)
    two = package(tmp_path / "intel-rapl:1", "package-1", 990)
    package(tmp_path / "intel-rapl:0:0", "core", 1)
    meter = energy.Meter("cpu", tmp_path)
    assert meter.joules() == 0.0
    one.write_text("8000000\n")
    assert meter.joules() == pytest.approx(3)
    two.write_text("10000000\n")  # it has started again from 0 at 1000 J
    assert meter.joules() == pytest.approx(3 + 20)


def test_no_counter_is_no_number(tmp_path: Path) -> None:
    assert energy.Meter("cpu", tmp_path).joules() is None
    package(tmp_path / "intel-rapl:0", "package-0", 5).write_text("")
    assert energy.Meter("cpu", tmp_path).joules() is None, "what cannot be read is not there"


class Driver:
    """NVML with one GPU."""

    millijoules = 7000
    fails = False

    def nvmlInit_v2(self) -> int:  # noqa: N802 (the driver's name)
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: N802
        assert uuid == b"GPU-1234"
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:  # noqa: N802
        value._obj.value = self.millijoules
        return 3 if self.fails else 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    import torch

    made = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: made)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"uuid": "1234"}))
    return made


def test_a_gpu_is_asked_for_its_own_energy(driver: Driver) -> None:
    meter = energy.Meter("cuda")
    driver.millijoules += 2500
    assert meter.joules() == pytest.approx(2.5)


def test_a_gpu_without_the_counter_gives_no_number(driver: Driver) -> None:
    meter = energy.Meter("cuda")
    driver.fails = True
    assert energy.Meter("cuda").joules() is None
    assert meter.joules() is None, "nor one that has lost it on the way"
