"""What the engine would do in every situation that a checkout meets: exactly these jobs, and no other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkout import Checkout
from noscratch.atomic import is_left, temporary_in

RUN = "smoke-listops-s4d-{}-seed0"
PREPARE = {"prepare listops"}
BASELINES = {f"finetune smoke-listops-{name}-scratch-seed0" for name in ("majority", "bag")}
SCRATCH = {f"finetune {RUN.format('scratch')}"}
TUNED = {f"finetune {RUN.format('spt-masked')}"}
PRETRAINED = {f"pretrain {RUN.format('spt-masked')}"}
S4D = SCRATCH | PRETRAINED | TUNED
ALL = PREPARE | BASELINES | S4D


def planned(checkout: Checkout) -> set[str]:
    """Kind and label of every job that `snakemake all` would run."""
    done = checkout.snakemake("--dry-run", "--quiet", "host", "--", "all")
    said = done.stdout + done.stderr
    outputs = re.findall(r"output: data/store/[0-9a-f]{12}-([a-z]+)-([a-z0-9-]+)/record\.json", said)
    return {f"{kind} {label}" for kind, label in outputs}


@pytest.fixture
def built(by_dvc: Checkout, tmp_path: Path) -> Checkout:
    """A copy of a finished, committed checkout."""
    return Checkout(Path(shutil.copytree(by_dvc.root, tmp_path / "copy", symlinks=True)))


def entry(checkout: Checkout, name: str) -> Path:
    """The store's folder of a job, given as kind and label."""
    kind, label = name.split()
    (found,) = (checkout.root / "data/store").glob(f"*-{kind}-{label}")
    return found


def unlocked(folder: Path) -> Path:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def nothing(checkout: Checkout) -> None:
    """A second run."""


def touched(checkout: Checkout) -> None:
    for path in checkout.root.rglob("*"):
        if path.is_file() and ".git" not in path.parts:
            os.utime(path)


def whitespace(checkout: Checkout) -> None:
    checkout.edit("src/noscratch/train.py", "\n\n\ndef run(", "\n\n\n# A comment.\n\n\ndef run(")


def one_setting(checkout: Checkout) -> None:
    checkout.edit("params.yaml", "    finetune: *tiny\n  mini:", "    finetune: {<<: *tiny, steps: 5}\n  mini:")


def one_backbone(checkout: Checkout) -> None:
    file = checkout.root / "src/noscratch/backbones/s4d.py"
    file.write_text(file.read_text() + "\n\nMORE = 1\n")


def left_by_a_dead_process(folder: Path) -> Path:
    """The name under which a process that is no more was building a result."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    path = temporary_in(folder.parent, folder.name)
    path = path.with_name(path.name.replace(f".{os.getpid()}.", f".{dead.pid}."))
    assert is_left(path.name)
    return path


def killed_in_mid_cell(checkout: Checkout) -> None:
    """Its temporary folder and a checkpoint are left, and its result is not."""
    folder = entry(checkout, f"pretrain {RUN.format('spt-masked')}")
    folder.rename(left_by_a_dead_process(folder))
    (checkout.root / "data/checkpoints" / folder.name).mkdir(parents=True)


def killed_in_mid_rename(checkout: Checkout) -> None:
    """The engine's empty folder stands, and the temporary one was not moved yet."""
    folder = entry(checkout, f"finetune {RUN.format('scratch')}")
    folder.rename(left_by_a_dead_process(folder))
    folder.mkdir()


def cell_deleted(checkout: Checkout) -> None:
    shutil.rmtree(unlocked(entry(checkout, f"finetune {RUN.format('spt-masked')}")))


def pretraining_deleted(checkout: Checkout) -> None:
    """What started from it is made again too, to the same bytes."""
    shutil.rmtree(unlocked(entry(checkout, f"pretrain {RUN.format('spt-masked')}")))


def seed_added(checkout: Checkout) -> None:
    start = "    grid:\n      - {tasks: [listops], backbones: [s4d]"
    checkout.edit("params.yaml", f"    seeds: [0]\n{start}", f"    seeds: [0, 1]\n{start}")


def claim_edited(checkout: Checkout) -> None:
    file = checkout.root / "claims/s4.yaml"
    file.write_text(file.read_text() + "# A comment.\n")


def data_setting(checkout: Checkout) -> None:
    checkout.edit("params.yaml", "listops: {train: 48", "listops: {train: 47")


def views_lost(checkout: Checkout) -> None:
    for view in ("raw", "prepared", "runs"):
        shutil.rmtree(unlocked(checkout.root / "data" / view))


def checked_out(checkout: Checkout) -> None:
    views_lost(checkout)
    checkout.dvc("checkout")


def corrupted(checkout: Checkout) -> None:
    """The engine looks at names, not bytes: `noscratch audit` finds this one (tests of the audit)."""
    weights = unlocked(entry(checkout, f"finetune {RUN.format('scratch')}")) / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


SEED_1 = {name.replace("seed0", "seed1") for name in S4D}


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (nothing, set()),
        (touched, set()),
        (whitespace, set()),
        (one_setting, SCRATCH | TUNED),
        (one_backbone, S4D),
        (killed_in_mid_cell, PRETRAINED | TUNED),
        (killed_in_mid_rename, SCRATCH),
        (cell_deleted, TUNED),
        (pretraining_deleted, PRETRAINED | TUNED),
        (seed_added, SEED_1),
        (claim_edited, set()),
        (data_setting, ALL),
        (views_lost, set()),
        (checked_out, set()),
        (corrupted, set()),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_exactly_these_jobs_run(built: Checkout, happens: Callable[[Checkout], None], expected: set[str]) -> None:
    happens(built)
    assert planned(built) == expected


def test_a_drawing_shows_what_is_done_too(built: Checkout) -> None:
    done = built.run(sys.executable, "-m", "snakemake", "--rulegraph", "--", "all")
    assert all(f'label = "{kind}"' in done.stdout for kind in ("prepare", "pretrain", "finetune", "all")), done.stdout


def test_a_fresh_clone_runs_everything_and_a_pulled_one_nothing(by_dvc: Checkout, tmp_path: Path) -> None:
    clone = by_dvc.clone(tmp_path / "clone")
    clone.noscratch("sources", "--refresh")
    assert planned(clone) == ALL
    by_dvc.dvc("remote", "add", "--force", "--local", "shared", str(tmp_path / "remote"))
    by_dvc.dvc("push", "--remote", "shared")
    clone.dvc("remote", "add", "--local", "shared", str(tmp_path / "remote"))
    clone.dvc("pull", "--remote", "shared")
    clone.noscratch("sync")
    assert planned(clone) == set()


def test_the_lock_of_a_dead_process_holds_nobody_up(built: Checkout) -> None:
    """Ours is freed by the kernel; DVC's list of readers and writers names processes, and dead ones do not count."""
    (built.root / "data/.lock").write_text("999999")
    held = {"write": {str(built.root / "data/runs"): {"pid": 999999, "cmd": "dvc repro"}}, "read": {}}
    (built.root / ".dvc/tmp").mkdir(exist_ok=True)
    (built.root / ".dvc/tmp/rwlock").write_text(json.dumps(held))
    assert "7 cells" in built.noscratch("repro").stdout
