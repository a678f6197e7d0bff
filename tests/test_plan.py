"""The plan: which jobs there are, and exactly which edits move their addresses."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from noscratch import backbones, code, params, yaml_reader
from noscratch.errors import NoscratchError
from noscratch.plan import (
    BASELINES,
    PRETRAINING,
    SEEDED_BASELINES,
    Job,
    Plan,
    baseline_cells,
    cells,
    grid,
    plans_of_all_tiers,
    read_plan,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that a test may edit; the plan reads it instead of the real one."""
    folder = tmp_path / "noscratch"
    shutil.copytree(code.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", folder)
    code.forget()
    yield folder
    code.forget()


@pytest.fixture
def settings() -> dict[str, Any]:
    data = copy.deepcopy(yaml_reader.read(ROOT / params.FILE).data)
    data["backbones"] = {"transformer": {}, "s4d": {}}
    data["tasks"] = {"listops": {}, "cola": {}}
    return data


def jobs(settings: dict[str, Any]) -> dict[str, Job]:
    """The plan's jobs by kind and label, which stay the same when addresses move."""
    code.forget()
    return {f"{job.kind} {job.label}": job for job in Plan(params.parse(settings)).jobs.values()}


def moved(before: dict[str, Job], after: dict[str, Job]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name].address != after[name].address}


def trains(job: Job) -> bool:
    """Is it a run of the training loop (a baseline is none)?"""
    return "noscratch.train" in job.modules


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_every_pair_on_one_task_and_everything_at_least_once() -> None:
    loaded = params.load(ROOT)
    grid = cells(loaded)
    assert len(grid) == len(set(grid)) <= 90
    assert {c.task for c in grid} == set(loaded.tasks)
    assert {c.backbone for c in grid} == set(loaded.backbones)
    plain = [name for name in loaded.backbones if "-" not in name]
    pairs = {(c.backbone, c.protocol) for c in grid if c.task == "listops" and c.backbone in plain}
    impossible = {(b, "spt-causal") for b in plain if not backbones.load(b).CAUSAL_OK}
    impossible |= {(b, params.ON_CORPUS) for b in plain}
    assert {c.task for c in grid if c.protocol == params.ON_CORPUS} == {"cola", "rte"}
    # A structured feedforward under every protocol of the task, too.
    structured = {c.protocol for c in grid if c.task == "listops" and c.backbone == "transformer-lowrank"}
    assert structured == set(params.PROTOCOLS) - {params.ON_CORPUS}
    assert pairs == {(b, p) for b in plain for p in params.PROTOCOLS} - impossible


def test_jobs_stand_after_what_they_need(settings: dict[str, Any], package: Path) -> None:
    seen: set[str] = set()
    for job in jobs(settings).values():
        assert set(job.needs.values()) <= seen
        seen.add(job.address)


def test_pretraining_goes_through_the_graph(settings: dict[str, Any], package: Path) -> None:
    plan = jobs(settings)
    for job in (job for job in plan.values() if job.kind == "finetune"):
        assert job.cell is not None
        assert ("pretrained" in job.needs) == (job.cell.protocol in PRETRAINING)


def test_comments_docstrings_and_layout_move_nothing(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    for path in package.rglob("*.py"):
        path.write_text("# a comment\n\n" + path.read_text())
    assert moved(before, jobs(settings)) == set()


def test_a_backbone_file_moves_only_its_jobs(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    with (package / "backbones" / "s4d.py").open("a") as file:
        file.write("\nEDITED = True\n")
    expected = {name for name, job in before.items() if job.cell and job.cell.backbone == "s4d"}
    assert expected
    assert moved(before, jobs(settings)) == expected


def test_the_loop_moves_every_training_job(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    with (package / "train.py").open("a") as file:
        file.write("\nEDITED = True\n")
    assert moved(before, jobs(settings)) == {name for name, job in before.items() if trains(job)}


def test_a_task_file_moves_its_data_and_runs(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    with (package / "tasks" / "cola.py").open("a") as file:
        file.write("\nEDITED = True\n")
    assert moved(before, jobs(settings)) == {
        name for name, job in before.items() if "cola" in name and job.kind != "fetch"
    }


@pytest.mark.parametrize(
    "path",
    ["sources/registry.py", "sources/download.py", "cli.py", "plan.py", "store.py", "stages.py", "results/publish.py"],
)
def test_plumbing_moves_nothing(settings: dict[str, Any], package: Path, path: str) -> None:
    before = jobs(settings)
    with (package / path).open("a") as file:
        file.write("\nEDITED = True\n")
    assert moved(before, jobs(settings)) == set()


def test_one_setting_moves_what_depends_on_it(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    settings["tiers"]["smoke"]["finetune"] = {**settings["tiers"]["smoke"]["finetune"], "lr": 0.5}
    expected = {name for name, job in before.items() if job.kind == "finetune" and trains(job)}
    assert moved(before, jobs(settings)) == expected


def test_going_back_gives_the_old_addresses(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    settings["run"]["threads"] = 2
    assert moved(before, jobs(settings)) == {name for name, job in before.items() if job.cell}
    settings["run"]["threads"] = 1
    assert moved(before, jobs(settings)) == set()


@pytest.mark.parametrize(("key", "value"), [("device", "cpu"), ("checkpoint_seconds", 7)])
def test_what_changes_no_result_moves_nothing(settings: dict[str, Any], package: Path, key: str, value: object) -> None:
    before = jobs(settings)
    settings["run"][key] = value
    assert moved(before, jobs(settings)) == set()


def test_adding_a_backbone_adds_only_its_jobs(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    shutil.copy(package / "backbones" / "s4d.py", package / "backbones" / "mine.py")
    code.forget()
    settings["backbones"]["mine"] = {}
    after = jobs(settings)
    added = after.keys() - before.keys()
    assert added
    assert all(after[name].cell and after[name].cell.backbone == "mine" for name in added)
    assert moved(before, {name: after[name] for name in before}) == set()


def test_a_variant_shares_its_file(settings: dict[str, Any], package: Path) -> None:
    settings["backbones"]["s4d-inv"] = {"init": "inv"}
    after = jobs(settings)
    variant = after["finetune smoke-listops-s4d-inv-spt-masked-seed0"]
    assert "noscratch.backbones.s4d" in variant.modules
    assert variant.address != after["finetune smoke-listops-s4d-spt-masked-seed0"].address


def test_the_grid_of_all_tiers_is_that_of_their_plans(settings: dict[str, Any], package: Path) -> None:
    loaded = params.parse(settings)
    runs = [job.cell for plan in plans_of_all_tiers(loaded) for job in plan.of("finetune") if job.cell]
    assert grid(loaded) == {(cell.task, cell.backbone, cell.protocol) for cell in runs} != set()


def test_tiers_share_raw_data_and_nothing_else(settings: dict[str, Any], package: Path) -> None:
    smoke = jobs(settings)
    settings["run"]["tier"] = "mini"
    mini = jobs(settings)
    shared = {job.address for job in smoke.values()} & {job.address for job in mini.values()}
    fetched = {job.address for job in smoke.values() if job.kind == "fetch"}
    assert shared == fetched & {job.address for job in mini.values()}
    assert smoke["fetch cola"].address in shared


def test_a_bidirectional_backbone_has_no_causal_cells(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    edit(package / "backbones" / "s4d.py", "CAUSAL_OK = True", "CAUSAL_OK = False")
    assert before.keys() - jobs(settings).keys() == {name for name in before if "-s4d-spt-causal-" in name} != set()


def test_overrides_reach_the_cells_that_they_select(settings: dict[str, Any], package: Path) -> None:
    settings["tiers"]["smoke"]["overrides"] = [
        {"backbones": ["s4d"], "protocols": ["spt-causal"], "pretrain": {"lr": 0.25}, "model": {"layers": 3}}
    ]
    for name, job in jobs(settings).items():
        if trains(job):
            assert job.cell is not None
            selected = job.cell.backbone == "s4d" and job.cell.protocol == "spt-causal"
            assert (job.settings["model"]["layers"] == 3) == selected, name
            assert (job.settings["train"]["lr"] == 0.25) == (selected and job.kind == "pretrain"), name


def test_settings_of_a_backbone_may_differ_by_task(settings: dict[str, Any], package: Path) -> None:
    settings["backbones"]["s4d-inv"] = {"init": "inv"}
    before = jobs(settings)
    settings["tiers"]["smoke"]["overrides"] = [
        {"tasks": ["listops"], "backbones": ["s4d", "s4d-inv"], "config": {"norm": "post", "init": "lin"}},
        {"tasks": ["listops"], "backbones": ["s4d-inv"], "config": {"init": "inv"}},
        {"tasks": ["imdb"], "backbones": ["s4d"], "config": {"d_state": 8}},
    ]
    after = jobs(settings)
    for name, job in after.items():
        if trains(job):
            assert job.cell is not None
            own = {"init": "inv"} if job.cell.backbone == "s4d-inv" else {}
            if job.cell.task == "listops" and job.cell.backbone != "transformer":
                own = {"norm": "post", "init": "lin"} | own
            if job.cell.backbone == "s4d" and job.cell.protocol == params.ON_CORPUS:
                own = {"d_state": 8}  # in both phases: the model is the one that was pretrained
            assert job.settings["backbone_config"] == own, name
    of_corpus = {name for name in before if "-s4d-corpus-masked-" in name}
    of_listops = {name for name in before if "-listops-s4d-" in name and trains(before[name])}
    assert moved(before, after) == of_corpus | of_listops


def test_a_default_of_the_model_said_aloud_moves_nothing(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    model = settings["tiers"]["smoke"]["model"]
    assert all(job.settings["model"] == model for job in before.values() if trains(job))
    settings["tiers"]["smoke"]["model"] = {**model, "readout": None, "head": "linear"}
    assert moved(before, jobs(settings)) == set()
    settings["tiers"]["smoke"]["model"] = {**model, "readout": "max"}
    assert moved(before, jobs(settings)) == {name for name, job in before.items() if trains(job)}


def test_a_backend_that_any_kernel_has_may_be_asked_for(settings: dict[str, Any], package: Path) -> None:
    assert params.backends() == ("auto", "fast", "reference")
    edit(package / "kernels" / "scan.py", '("reference", "fast")', '("reference", "fast", "triton")')
    code.forget()
    settings["run"]["backend"] = "triton"
    assert params.parse(settings).run.backend == "triton"


@pytest.mark.parametrize("tier", ["smoke", "mini", "paper"])
def test_the_models_of_every_tier_can_be_built(tier: str) -> None:
    """Rules that join settings, such as heads that divide a width, are the blocks' own."""
    import torch

    loaded = params.load(ROOT)
    plan = Plan(loaded.model_copy(update={"run": loaded.run.model_copy(update={"tier": tier})}))
    found = {
        json.dumps([j.settings["backbone"].partition("-")[0], j.settings["backbone_config"], j.settings["model"]])
        for j in plan.jobs.values()
        if trains(j)
    }
    for backbone, config, model in map(json.loads, sorted(found)):
        module = backbones.load(backbone)
        with torch.device("meta"):
            module.build(backbones.configure(module, config), model["d_model"], 64, module.CAUSAL_OK)


def test_every_task_has_its_baselines(settings: dict[str, Any], package: Path) -> None:
    settings["tasks"]["pathfinder"] = {}
    settings["tiers"]["smoke"]["seeds"] = [0, 1]
    rows = {(j.cell.task, j.cell.backbone, j.cell.seed) for j in jobs(settings).values() if j.cell and not trains(j)}
    plain = {(task, name, 0) for task in settings["tasks"] for name in ("majority", "bag")}
    assert rows == plain | {("pathfinder", "cnn", 0), ("pathfinder", "cnn", 1)}


@pytest.mark.parametrize("tier", ["mini", "paper"])
def test_the_tiers_of_evidence_plan_everything_with_five_seeds(tier: str) -> None:
    loaded = params.load(ROOT)
    planned = cells(loaded.model_copy(update={"run": loaded.run.model_copy(update={"tier": tier})}))
    assert {cell.task for cell in planned} == set(loaded.tasks)
    assert {cell.backbone for cell in planned} == set(loaded.backbones)
    assert {cell.protocol for cell in planned} == set(params.PROTOCOLS)
    assert len({cell.seed for cell in planned}) >= 5
    assert len(planned) > 5000


@pytest.mark.parametrize("tier", ["smoke", "mini", "paper"])
def test_every_tier_has_the_baselines_of_every_task(tier: str) -> None:
    loaded = params.load(ROOT)
    loaded = loaded.model_copy(update={"run": loaded.run.model_copy(update={"tier": tier})})
    rows = {(cell.task, cell.backbone) for cell in baseline_cells(loaded)}
    tasks = {cell.task for cell in cells(loaded)}
    assert rows >= {(task, name) for task in tasks for name in ("majority", "bag")}
    images = {task for task in tasks if task.startswith(("image", "scifar", "pathfinder"))}
    assert {task for task, name in rows if name == "cnn"} == images


def test_the_baselines_are_those_of_their_module() -> None:
    from noscratch import baselines

    assert baselines.names() == BASELINES
    assert tuple(name for name in BASELINES if baselines.seeded(name)) == SEEDED_BASELINES


def test_one_pretraining_on_a_corpus_serves_every_task(settings: dict[str, Any], package: Path) -> None:
    settings["tasks"] |= {"rte": {}, "cola-bytes": {"tokens": "bytes"}, "text": {}}
    smoke = settings["tiers"]["smoke"]
    smoke["grid"] = [{"tasks": "all", "backbones": "all", "protocols": ["scratch", "corpus-masked"]}]
    smoke["overrides"] = [
        {"tasks": ["imdb"], "model": {"layers": 3}, "pretrain": {"lr": 0.5}},
        {"tasks": ["rte"], "model": {"layers": 5}, "finetune": {"lr": 0.25}},
    ]
    plan = jobs(settings)
    corpus = plan["prepare imdb"]
    assert corpus.needs == {"imdb": plan["fetch imdb"].address}
    assert corpus.settings == {"corpus": "imdb", "data": smoke["data"]["imdb"]}
    on_corpus = {name for name in plan if "-corpus-masked-" in name}
    assert on_corpus == {
        *(f"pretrain smoke-imdb-{b}-corpus-masked-seed0" for b in settings["backbones"]),
        *(f"finetune smoke-{t}-{b}-corpus-masked-seed0" for b in settings["backbones"] for t in ("cola", "rte")),
    }, "not on tasks that are read otherwise"
    for backbone in settings["backbones"]:
        first = plan[f"pretrain smoke-imdb-{backbone}-corpus-masked-seed0"]
        assert first.needs == {"prepared": corpus.address}
        assert (first.settings["objective"], first.settings["train"]["lr"]) == ("masked", 0.5)
        for task, rate in (("cola", smoke["finetune"]["lr"]), ("rte", 0.25)):
            run = plan[f"finetune smoke-{task}-{backbone}-corpus-masked-seed0"]
            data = plan[f"prepare {task}-imdb"]
            assert run.needs == {"prepared": data.address, "pretrained": first.address}
            assert data.needs["corpus"] == corpus.address
            assert data.settings["data"]["tokens"] == "corpus"
            assert run.settings["model"]["layers"] == 3, "the model is the one that was pretrained"
            assert run.settings["train"]["lr"] == rate
    budgets = {json.dumps(plan[name].settings["train"]) for name in on_corpus if name.startswith("pretrain")}
    assert len(budgets) == 1, "equal token budgets"
    views = [(job.kind, job.view) for job in plan.values()]
    assert len(views) == len(set(views))


def test_a_corpus_moves_what_was_pretrained_on_it(settings: dict[str, Any], package: Path) -> None:
    before = jobs(settings)
    with (package / "corpora" / "imdb.py").open("a") as file:
        file.write("\nEDITED = True\n")
    after = jobs(settings)
    expected = {name for name in before if "corpus-masked" in name or name in ("prepare imdb", "prepare cola-imdb")}
    assert moved(before, after) == expected
    settings["tiers"]["smoke"]["corpus"] = "wikitext103"
    assert {"fetch wikitext103", "prepare wikitext103", "prepare cola-wikitext103"} <= jobs(settings).keys()


def test_a_task_may_be_read_in_the_pieces_of_the_corpus_without_pretraining(
    settings: dict[str, Any], package: Path
) -> None:
    settings["tasks"] = {"cola-corpus": {"tokens": "corpus"}}
    settings["tiers"]["smoke"]["grid"] = [{"tasks": "all", "backbones": "all", "protocols": "all"}]
    plan = jobs(settings)
    assert plan["prepare cola-corpus"].needs["corpus"] == plan["prepare imdb"].address
    both = {plan[f"finetune smoke-cola-corpus-s4d-{p}-seed0"].needs["prepared"] for p in ("scratch", "corpus-masked")}
    assert len(both) == 1, "the same data"
    del settings["tiers"]["smoke"]["corpus"]
    with pytest.raises(NoscratchError, match="read the corpus of the tier; smoke names none"):
        jobs(settings)


def test_a_variant_names_its_source_and_may_take_a_part(settings: dict[str, Any], package: Path) -> None:
    settings["tasks"] |= {"image-6102": {"partial": True}, "image-jpeg": {"source": "cifar10-jpeg"}}
    plan = jobs(settings)
    assert plan["prepare image-6102"].needs == {"cifar10": plan["fetch cifar10-partial"].address}
    assert plan["prepare image-jpeg"].needs == {"cifar10-jpeg": plan["fetch cifar10-jpeg"].address}
    settings["tasks"]["image-jpeg"] = {"source": "cifar11"}
    with pytest.raises(NoscratchError, match="'cifar11'"):
        jobs(settings)


def test_an_override_gives_what_the_section_would(settings: dict[str, Any], package: Path) -> None:
    settings["tiers"]["smoke"]["finetune"] = {**settings["tiers"]["smoke"]["finetune"], "steps": 100, "lr": 1}
    before = jobs(settings)
    settings["tiers"]["smoke"]["overrides"] = [{"finetune": {"steps": 1e2, "lr": 1}}]
    assert moved(before, jobs(settings)) == set()


def test_a_plan_without_cells_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "tests/tiny/params.yaml").read_text()
    (tmp_path / params.FILE).write_text(text.replace("  listops: {}\n  cola: {}\n", "  sst2: {}\n"))
    with pytest.raises(NoscratchError, match=r"at least one cell; in params.yaml the grid of tier smoke"):
        read_plan(tmp_path)


def test_the_plan_imports_no_torch() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from pathlib import Path; from noscratch.plan import read_plan; "
        "read_plan(Path.cwd()).digest; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_stages_depend_on_all_the_code_that_they_reach() -> None:
    """Code that moves an address but starts no stage would leave results of the old code in the views."""
    plan = Plan(params.load(ROOT))
    reached = {stage: (f"noscratch.results.{stage}",) for stage in ("collect", "judge", "publish")}
    reached["judge"] += ("noscratch.results.compute", "noscratch.results.flags", "noscratch.params")
    reached["count"] = ("noscratch.results.architecture",)
    for stage, view in (("fetch", "raw"), ("prepare", "prepared"), ("runs", "runs")):
        reached[stage] = tuple({module for job in plan.in_view(view) for module in job.modules})
    stages = yaml_reader.read(ROOT / "dvc.yaml").data["stages"]
    for stage, modules in reached.items():
        for module in code.closure(modules):
            path = code.path_of(module)
            assert path is not None
            file = path.relative_to(ROOT)
            assert {str(place) for place in (file, *file.parents)} & set(stages[stage]["deps"]), f"{stage}: {file}"
