"""Two commits: what moved, whether beyond noise, and the one thing that was planted as the cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from noscratch.audit.compare import Change, Score, compare, grouped, page, ranges, summary
from noscratch.audit.git import GitError, commit_of, git
from noscratch.audit.honest import commit, small
from noscratch.cli import app
from noscratch.errors import NoscratchError

ROOT = Path(__file__).parents[1]
LOCK = {"stages": {"prepare": {"outs": [{"path": "data/prepared", "md5": "0" * 32 + ".dir"}]}}}
Edit = Callable[[Path], None]


def write_scores(root: Path, shift: float, cells: Callable[[str, str], bool], seeds: tuple[int, ...]) -> None:
    """metrics.json of the tiny plan, where the cells (backbone, protocol) that are chosen score `shift` more."""
    listops: dict[str, Any] = {}
    for backbone, protocol in (("s4d", "scratch"), ("s4d", "spt-masked"), ("transformer", "scratch")):
        extra = shift if cells(backbone, protocol) else 0.0
        values = {str(seed): round(0.3 + 0.01 * seed + extra, 6) for seed in seeds}
        mean = sum(values.values()) / len(values)
        listops.setdefault(backbone, {})[protocol] = {"accuracy": mean, "n": len(values), "seeds": values}
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports/metrics.json").write_text(json.dumps({"smoke": {"listops": listops}}))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit: the package, the tiny plan, pins, scores."""
    root = tmp_path_factory.mktemp("compare") / "first"
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (root / "params.yaml").write_text(json.dumps(small(ROOT), indent=1))
    (root / "requirements.lock").write_text("numpy==2.4.6 \\\n    --hash=sha256:00\nrich==1.0\n")
    (root / "Makefile").write_text("install:\n\t@pip install --quiet torch==2.13.0\n")
    (root / "dvc.lock").write_text(json.dumps(LOCK))
    write_scores(root, 0.0, lambda *_: False, (0, 1, 2))
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "start")
    return root


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "copy"))


def setting(*keys: str | int, to: Any) -> Edit:
    """Change one place of params.yaml."""

    def edit(root: Path) -> None:
        params = json.loads((root / "params.yaml").read_text())
        place = params
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to
        (root / "params.yaml").write_text(json.dumps(params, indent=1))

    return edit


def code(module: str) -> Edit:
    """Add a statement to a module."""

    def edit(root: Path) -> None:
        path = root / "src/noscratch" / f"{module.replace('.', '/')}.py"
        path.write_text(path.read_text() + "\nPLANTED = 1\n")

    return edit


def text(path: str, before: str, after: str) -> Edit:
    def edit(root: Path) -> None:
        content = (root / path).read_text()
        assert before in content
        (root / path).write_text(content.replace(before, after))

    return edit


def nothing(root: Path) -> None:
    """Only the scores change."""


EVERY = lambda backbone, protocol: True  # noqa: E731
S4D = lambda backbone, protocol: backbone == "s4d"  # noqa: E731
SPT = lambda backbone, protocol: protocol == "spt-masked"  # noqa: E731
SMOKE = ("tiers", "smoke")
# What is planted, the cells that it moves, the kind of its cause and a word of it. (The plan overrides the tier's rate
# for the Transformer.)
PLANTED = {
    "learning rate": (setting(*SMOKE, "finetune", "lr", to=0.5), S4D, "settings", "fine-tuning, train.lr"),
    "pretraining steps": (setting(*SMOKE, "pretrain", "steps", to=6), SPT, "settings", "self-pretraining, train.steps"),
    "width": (setting(*SMOKE, "model", "d_model", to=16), EVERY, "settings", "model.d_model: 8 -> 16"),
    "backbone": (setting("backbones", "s4d", "d_state", to=8), S4D, "settings", "backbone_config.d_state: 4 -> 8"),
    "threads": (setting("run", "threads", to=2), EVERY, "settings", "threads: 1 -> 2"),
    "dtype": (setting("run", "dtype", to="bfloat16"), EVERY, "settings", 'dtype: "float32" -> "bfloat16"'),
    "override": (
        setting(*SMOKE, "overrides", 0, "finetune", "clip", to=1.0),
        lambda backbone, protocol: backbone == "transformer",
        "settings",
        "train.clip",
    ),
    "examples": (setting(*SMOKE, "data", "listops", "train", to=64), EVERY, "data", "train: 48 -> 64"),
    "length": (setting(*SMOKE, "data", "listops", "max_length", to=50), EVERY, "data", "max_length: 40 -> 50"),
    "shortest": (setting(*SMOKE, "data", "listops", "min_length", to=5), EVERY, "data", "min_length: 10 -> 5"),
    "bytes": (text("dvc.lock", "0" * 32, "1" * 32), EVERY, "data", "other bytes"),
    "optimizer": (code("optim"), EVERY, "code", "noscratch.optim"),
    "backbone file": (code("backbones.s4d"), S4D, "code", "noscratch.backbones.s4d"),
    "kernel": (code("kernels.ssm"), S4D, "code", "noscratch.kernels.ssm"),
    "task file": (code("tasks.listops"), EVERY, "code", "noscratch.tasks.listops"),
    "metric": (code("metrics"), EVERY, "code", "noscratch.metrics"),
    "summary": (code("results.collect"), EVERY, "code", "noscratch.results.collect"),
    "torch": (text("Makefile", "2.13.0", "2.14.0"), EVERY, "environment", "torch 2.13.0 -> 2.14.0"),
    "numpy": (text("requirements.lock", "2.4.6", "2.4.7"), EVERY, "environment", "numpy 2.4.6 -> 2.4.7"),
    "device": (nothing, EVERY, "environment", "equal addresses and pins"),
}


# Each takes seconds, as two commits make their plans: every change tries one of each kind, `make proof` all.
TRIED = ("learning rate", "examples", "kernel", "torch", "device")


@pytest.mark.proves("causes")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in TRIED else pytest.mark.slow) for n in PLANTED])
def test_a_single_cause_is_found(copy: Path, name: str) -> None:
    """Every cell that moved moved for the one planted reason, and no other cell has one of that kind."""
    edit, cells, kind, said = PLANTED[name]
    edit(copy)
    write_scores(copy, 0.2, cells, (0, 1, 2))
    commit(copy, "planted")
    found = compare(copy, "HEAD~1", "HEAD")
    moved = {change.cell[2:]: change for change in found.moved}
    assert set(moved) == {
        cell for cell in (("s4d", "scratch"), ("s4d", "spt-masked"), ("transformer", "scratch")) if cells(*cell)
    }
    for change in moved.values():
        assert {cause.kind for cause in change.causes} == {kind}, change.causes
        assert any(said in cause.what for cause in change.causes), change.causes
        assert change.noise == "beyond noise"
    assert {cause.kind for cause in found.causes} == {kind}


@pytest.mark.parametrize(("seeds", "said"), [((0, 1, 2, 3), "0, 1, 2 -> 0, 1, 2, 3"), ((0, 1), "0, 1, 2 -> 0, 1")])
def test_seeds_are_a_cause_of_their_own(copy: Path, seeds: tuple[int, ...], said: str) -> None:
    setting(*SMOKE, "seeds", to=list(seeds))(copy)
    write_scores(copy, 0.0, EVERY, seeds)
    commit(copy, "seeds")
    found = compare(copy, "HEAD~1", "HEAD")
    assert len(found.moved) == 3
    assert [str(cause) for cause in found.causes] == [f"seeds: {said}"]
    assert {change.noise for change in found.moved} == {"within noise"}


def test_white_space_and_comments_are_no_cause(copy: Path) -> None:
    for path in ("src/noscratch/optim.py", "src/noscratch/tasks/listops.py", "src/noscratch/results/collect.py"):
        (copy / path).write_text("# A comment.\n\n" + (copy / path).read_text() + "\n\n")
    params = json.loads((copy / "params.yaml").read_text())
    (copy / "params.yaml").write_text(json.dumps(params, indent=4, sort_keys=True))
    commit(copy, "layout")
    found = compare(copy, "HEAD~1", "HEAD")
    assert (found.changes, found.unchanged, found.verdicts) == ([], 3, {})
    assert summary(found) == "0 of 3 cells moved."


def test_code_that_changed_no_score_is_told_apart(copy: Path) -> None:
    code("backbones.s4d")(copy)
    commit(copy, "no effect")
    found = compare(copy, "HEAD~1", "HEAD")
    assert found.moved == []
    assert [change.cell[2:] for change in found.changes] == [("s4d", "scratch"), ("s4d", "spt-masked")]
    assert "2 were made by other settings or code and kept their scores" in summary(found)


def test_cells_that_come_and_go(copy: Path) -> None:
    params = json.loads((copy / "params.yaml").read_text())
    params["tiers"]["smoke"]["grid"] = [
        {"tasks": ["listops"], "backbones": ["s4d"], "protocols": ["scratch", "spt-causal"]}
    ]
    (copy / "params.yaml").write_text(json.dumps(params))
    scores = json.loads((copy / "reports/metrics.json").read_text())
    listops = scores["smoke"]["listops"]
    listops["s4d"]["spt-causal"] = listops["s4d"].pop("spt-masked")
    del listops["transformer"]
    (copy / "reports/metrics.json").write_text(json.dumps(scores))
    commit(copy, "other cells")
    found = {change.cell[2:]: change for change in compare(copy, "HEAD~1", "HEAD").moved}
    assert {name: change.noise for name, change in found.items()} == {
        ("s4d", "spt-causal"): "new",
        ("s4d", "spt-masked"): "gone",
        ("transformer", "scratch"): "gone",
    }
    assert [str(cause) for cause in found["s4d", "spt-causal"].causes] == ["settings: the cell is planned since"]
    assert [str(cause) for cause in found["transformer", "scratch"].causes] == [
        "settings: the cell is planned no longer"
    ]


def test_the_page_and_the_command(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting(*SMOKE, "finetune", "lr", to=0.5)(copy)
    write_scores(copy, 0.2, S4D, (0, 1, 2))
    line = {"claim": "demo-a", "verdict": "supported", "date": "2026-11-20", "version": 1}
    (copy / "reports/verdicts.jsonl").write_text(json.dumps(line) + "\n")
    commit(copy, "planted")
    written = page(compare(copy, "HEAD~1", "HEAD"), [("dvc diff", "| a |\n<b>")])
    cell = "| smoke/listops/s4d/scratch | 0.3100 (n = 3) | 0.5100 (n = 3) | +0.2000 [+0.2000, +0.2000] |"
    assert f"{cell} beyond noise | 1 |" in written
    assert "| 1 | settings: fine-tuning, train.lr: 0.001 -> 0.5 | 2 |" in written
    assert "| demo-a | none | supported |" in written
    assert "## dvc diff\n\n```\n| a |\n<b>\n```" in written
    monkeypatch.chdir(copy)
    done = CliRunner().invoke(
        app, ["compare", "HEAD~1", "HEAD", "--no-beside", "--page", "page.md"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "2 of 3 cells moved (2 beyond noise)" in done.output
    assert "2 because of settings: fine-tuning, train.lr: 0.001 -> 0.5" in done.output
    assert "verdict of demo-a: none -> supported" in done.output
    assert (copy / "page.md").read_text() == page(compare(copy, "HEAD~1", "HEAD"))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([], ""), ([4], "4"), ([1, 2, 3, 7], "1-3, 7"), ([2, 4, 5], "2, 4-5"), ([1, 3, 5], "1, 3, 5")],
)
def test_neighbouring_numbers_of_causes_are_joined(numbers: list[int], words: str) -> None:
    assert ranges(numbers) == words


def test_what_dvc_says_of_thousands_of_files_is_a_line_for_each_cell() -> None:
    def runs(task: str, seeds: int) -> list[dict[str, str]]:
        folders = [f"data/runs/smoke/{task}/s4d/scratch/seed{seed}/finetune" for seed in range(seeds)]
        return [{"path": f"{folder}/{name}"} for folder in folders for name in ("record.json", "curves.csv")]

    said = grouped(
        {
            "added": runs("text", 2),
            "deleted": [],
            "modified": [{"path": "data/runs/"}, *runs("listops", 700), {"path": "reports/results.parquet"}],
            "renamed": [{"path": {"old": "data/raw/a/x", "new": "data/raw/b/x"}}],  # type: ignore[dict-item]
        }
    )
    assert [line.split() for line in said.splitlines()] == [
        ["added", "4", "data/runs/smoke/text/s4d/scratch"],
        ["modified", "1400", "data/runs/smoke/listops/s4d/scratch"],
        ["modified", "1", "reports/results.parquet"],
        ["renamed", "1", "data/raw/b"],
    ]


def test_mistakes(copy: Path) -> None:
    with pytest.raises(GitError, match="rev-parse"):
        compare(copy, "nothing", "HEAD")
    (copy / "params.yaml").write_text("run: {}\n")
    commit(copy, "broken")
    with pytest.raises(NoscratchError, match="needed and missing"):
        compare(copy, "HEAD~1", "HEAD")
    (copy / "reports/metrics.json").unlink()
    commit(copy, "no scores")
    commit(copy, "none again")
    with pytest.raises(NoscratchError, match="neither HEAD~1 nor HEAD has a score"):
        compare(copy, "HEAD~1", "HEAD")
    assert len(commit_of(copy)) == 40


SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=5)


@given(SCORES, st.floats(-1, 1))
def test_noise_is_what_the_seeds_say(values: list[float], shift: float) -> None:
    """The same shift of every seed is beyond noise however small; swapping the commits mirrors the difference."""
    before = Score("accuracy", dict(enumerate(values)))
    after = Score("accuracy", {seed: value + shift for seed, value in before.seeds.items()})
    change = Change(("smoke", "a", "b", "c"), before, after, [])
    back = Change(change.cell, after, before, [])
    assert change.difference is not None
    assert back.difference is not None
    value, low, high = change.difference
    assert low <= value <= high
    assert value == pytest.approx(shift, abs=1e-9)
    assert back.difference == pytest.approx((-value, -high, -low), abs=1e-9)
    assert change.noise == ("beyond noise" if not low <= 0 <= high else "within noise")
    if abs(shift) > 1e-6:
        assert change.noise == "beyond noise"
