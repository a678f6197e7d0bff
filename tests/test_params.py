"""params.yaml: what is accepted, and that each mistake is one message naming place, rule and next step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noscratch import params, yaml_reader
from noscratch.params import ParamsError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings() -> dict[str, Any]:
    return json.loads(json.dumps(yaml_reader.read(ROOT / params.FILE).data))  # without the aliases of anchors


def test_the_committed_file_is_valid() -> None:
    loaded = params.load(ROOT)
    assert loaded.run.tier == "smoke"
    assert set(loaded.tiers) == {"smoke", "mini", "paper"}
    assert not loaded.tiers["smoke"].network


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        params.load(ROOT).run.tier = "mini"  # type: ignore[misc]


def test_files_and_keys_are_the_same_set() -> None:
    from noscratch import code

    loaded = params.load(ROOT)
    assert {name.partition("-")[0] for name in loaded.backbones} == set(code.names_in("noscratch.backbones"))
    assert {name.partition("-")[0] for name in loaded.tasks} == set(code.names_in("noscratch.tasks"))
    assert {name.partition("-")[0] for name in loaded.corpora} == set(code.names_in("noscratch.corpora"))


def put(*path: str | int) -> Callable[[dict[str, Any], Any], None]:
    def change(data: dict[str, Any], value: Any) -> None:
        for key in path[:-1]:
            data = data[key]  # type: ignore[assignment, index]
        data[path[-1]] = value  # type: ignore[index]

    return change


MISTAKES: list[tuple[Callable[[dict[str, Any], Any], None], Any, list[str]]] = [
    (put("run", "teir"), "smoke", ["run.teir", "'teir'", "Did you mean 'tier'?"]),
    (put("run", "tier"), "tiny", ["run.tier", "'tiny'", "smoke"]),
    (put("run", "threads"), 0, ["run.threads", "greater than 0", "got 0"]),
    (put("run", "threads"), "two", ["run.threads", "got 'two'"]),
    (
        put("backbones", "transfomer"),
        {},
        ["backbones.transfomer", "'transfomer'", "s4d", "Did you mean 'transformer'?"],
    ),
    (put("backbones", "s4d"), {"initt": "inv"}, ["backbones.s4d.initt", "Did you mean 'init'?"]),
    (put("tasks", "listop"), {}, ["tasks.listop", "Did you mean 'listops'?"]),
    (put("tasks", "cola"), {"lenght": 3}, ["tasks.cola.lenght", "Did you mean 'length'?"]),
    (put("tiers", "smoke", "data", "cola"), {"lenght": 3}, ["tiers.smoke.data.cola.lenght", "'length'"]),
    (
        put("tiers", "smoke", "finetune", "batch_tokens"),
        -1,
        ["tiers.smoke.finetune.batch_tokens", "greater than 0", "got -1"],
    ),
    (put("tiers", "smoke", "finetune", "warmpu"), 1, ["tiers.smoke.finetune.warmpu", "Did you mean 'warmup'?"]),
    (put("tiers", "smoke", "grid", 0, "protocols"), ["spt"], ["tiers.smoke.grid[0].protocols", "'spt'", "spt-masked"]),
    (
        put("tiers", "smoke", "grid", 0, "backbones"),
        ["transfomer"],
        ["grid[0].backbones", "Did you mean 'transformer'?"],
    ),
    (put("tiers", "smoke", "seeds"), [], ["tiers.smoke.seeds", "at least 1"]),
    (
        put("tiers", "paper", "overrides", 0, "finetune"),
        {"lr": -1.0},
        ["tiers.paper.overrides.0.finetune.lr", "greater than 0", "got -1.0"],
    ),
    (put("tiers", "paper", "overrides", 0, "model"), {"width": 3}, ["overrides.0.model.width", "d_model"]),
    (
        put("tiers", "paper", "overrides", 0),
        {"tasks": ["listops"], "backbones": ["s4"], "config": {"heads": 4}},
        ["tiers.paper.overrides[0].config.heads", "no setting of s4 'heads'", "n_ssm"],
    ),
    (
        put("tiers", "paper", "overrides", 0),
        {"backbones": ["lru", "s4", "s4-random"], "config": {"dt_min": 0.1}},
        ["tiers.paper.overrides[0].config.dt_min", "no setting of lru 'dt_min'", "Did you mean 'r_min'?"],
    ),
    (
        put("tiers", "paper", "overrides", 0),
        {"backbones": ["s4"], "config": {"normalization": "group"}},
        ["tiers.paper.overrides[0].config.normalization", "'batch'", "got 'group'"],
    ),
    (
        put("tiers", "smoke", "model", "readout"),
        "first",
        ["tiers.smoke.model.readout", "'mean', 'last' or 'max'", "got 'first'"],
    ),
    (put("run", "backend"), "triton", ["run.backend", "no kernel backend 'triton'", "auto, fast, reference"]),
    (put("run", "backend"), "compiled", ["run.backend", "'compiled'", "valid: auto"]),
    (put("tasks", "listops"), {"train": "many"}, ["tasks.listops.train", "expected int", "got 'many'"]),
    (put("backbones", "s4d"), {"init": "legz"}, ["backbones.s4d.init", "'legs'", "got 'legz'"]),
    (put("extra"), 1, ["extra", "'extra'", "tiers"]),
    (put("corpora", "imbd"), {}, ["corpora.imbd", "Did you mean 'imdb'?"]),
    (put("corpora", "imdb"), {"lenght": 3}, ["corpora.imdb.lenght", "Did you mean 'length'?"]),
    (put("tiers", "smoke", "corpus"), "wikitext", ["tiers.smoke.corpus", "Did you mean 'wikitext103'?"]),
    (put("tiers", "smoke", "corpus"), None, ["tiers.smoke.corpus", "corpus-masked", "got none"]),
    (put("tiers", "smoke", "data", "imdb"), {"words": 3}, ["tiers.smoke.data.imdb.words", "documents"]),
    (put("tiers", "smoke", "data", "imdbs"), {}, ["tiers.smoke.data.imdbs", "Did you mean 'imdb'?"]),
    (put("tiers", "smoke", "grid", 0, "tasks"), ["imdb"], ["tiers.smoke.grid[0].tasks", "no task 'imdb'"]),
    (put("tasks", "cola"), {"tokens": "words"}, ["tasks.cola.tokens", "'unigram'", "got 'words'"]),
    (put("tasks", "text"), {"tokens": "corpus"}, ["tasks.text.tokens", "'characters'", "got 'corpus'"]),
    (put("tiers", "mini", "seeds"), [0, 1, 0], ["tiers.mini.seeds", "each seed stands once", "[0, 1, 0]"]),
    (put("backbones", "s4d-LegS"), {}, ["backbones.s4d-LegS", "lower-case", "'s4d-LegS'"]),
    (put("tasks", "listops-my_way"), {}, ["tasks.listops-my_way", "joined by hyphens"]),
    (put("tiers", "smoke", "finetune", "lr"), float("inf"), ["tiers.smoke.finetune.lr", "finite", "got inf"]),
    (put("backbones", "s4d"), {"dt_max": float("nan")}, ["backbones.s4d.dt_max", "finite", "got nan"]),
]


@pytest.mark.parametrize(("change", "value", "said"), MISTAKES, ids=[" ".join(said[:2]) for _, _, said in MISTAKES])
def test_mistakes_are_explained(
    settings: dict[str, Any], change: Callable[[dict[str, Any], Any], None], value: Any, said: list[str]
) -> None:
    change(settings, value)
    with pytest.raises(ParamsError) as error:
        params.parse(settings)
    message = str(error.value)
    assert all(part in message for part in said), message
    assert message.count("\n") == 0, f"one mistake, one line: {message}"


def test_a_missing_key_is_named(settings: dict[str, Any]) -> None:
    del settings["run"]["tier"]
    with pytest.raises(ParamsError, match=r"run\.tier: this key is needed and missing"):
        params.parse(settings)


def test_no_checkout_here(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"there is none here"):
        params.load(tmp_path)
