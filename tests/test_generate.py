"""Generation: carried state gives what the whole sequence gives, at a price that is stated; draws follow the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from checkout import ROOT, make_checkout
from noscratch import backbones, data, generate, model, params, tokenize
from noscratch.subwords import train_wordpiece
from noscratch.tasks import write_json
from tolerances import assert_close, tolerance

LENGTH = 24
CONDITION = 100.0  # as in the contract: a dozen operations, norms that may divide by a tenth of the scale
CAUSAL = [name for name in params.load(ROOT).backbones if backbones.load(name).CAUSAL_OK]
INPUTS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "pixels": {"inputs": "pixels", "loss": "l1"},
    "colours": {"inputs": "pixels", "channels": 3, "loss": "cross-entropy"},
}


def built(folder: Path, backbone: str = "s4d", seed: int = 0, **task: Any) -> tuple[model.Model, dict[str, Any]]:
    meta = data.read_meta(tiny.write_task(folder, **task))
    small = {"heads": 2} if backbone.startswith("transformer") else {}
    config = {**params.load(ROOT).backbones[backbone], **small}
    settings = tiny.settings(
        "pretrain", "causal", backbone, protocol="spt-causal", backbone_config=config, dropout=0.1, layers=2
    )
    made = model.build_model(meta, settings, seed)
    made.set_progress(1.0)
    return made, meta


def elements(meta: dict[str, Any], rows: int, length: int, seed: int = 0) -> torch.Tensor:
    shape = (rows, length, meta["channels"]) if meta["channels"] > 1 else (rows, length)
    return torch.from_numpy(np.random.default_rng(seed).integers(1, meta["vocabulary"] - 1, shape))


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("backbone", CAUSAL)
def test_step_by_step_is_all_at_once(tmp_path: Path, backbone: str, inputs: str) -> None:
    made, meta = built(tmp_path, backbone, **INPUTS[inputs])
    made = made.double().eval()
    tokens = elements(meta, 3, LENGTH)
    with torch.no_grad():
        whole = made.head(made(tokens, torch.ones(3, LENGTH, dtype=torch.bool)))
    carried = generate.Carried(made, 3, LENGTH)
    steps = torch.stack([carried.step(tokens[:, position]) for position in range(LENGTH)], dim=1)
    assert carried.position == LENGTH
    # The embedding of pixels and absolute positions are float32 in any model: both sides share them.
    assert_close(steps, whole, tolerance(torch.float64, LENGTH, LENGTH * CONDITION))


class Work(TorchDispatchMode):
    """The number of operations and of the elements that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        self.made += sum(part.numel() for part in torch.utils._pytree.tree_leaves(result) if hasattr(part, "numel"))
        return result


def work_at(made: model.Model, meta: dict[str, Any], positions: list[int]) -> list[tuple[int, int]]:
    carried, found = generate.Carried(made, 1, 64), []
    tokens = elements(meta, 1, 64)
    for position in range(max(positions) + 1):
        with Work() as work:
            carried.step(tokens[:, position])
        if position in positions:
            found.append((work.calls, work.made))
    return found


@pytest.mark.parametrize("backbone", ["s4", "s4-random", "s4d", "dss", "dlr", "dlr-random", "lru"])
def test_a_step_of_a_state_space_costs_the_same_everywhere(tmp_path: Path, backbone: str) -> None:
    made, meta = built(tmp_path, backbone, length=64)
    early, later, last = work_at(made, meta, [0, 5, 50])
    assert early == later == last


def test_the_cache_of_attention_grows_by_one_key_and_value_a_step(tmp_path: Path) -> None:
    made, meta = built(tmp_path, "transformer", length=64)
    # Within the positions that one table of rotations serves.
    (_, early), (_, later), (_, last) = work_at(made, meta, [9, 10, 15])
    assert later > early
    assert last - early == 6 * (later - early)
    carried = generate.Carried(made, 2, 64)
    for position in range(3):
        assert {part.shape for state in carried.states for part in state} == {(2, 2, position, 8)}
        carried.step(elements(meta, 2, 1)[:, 0])


@pytest.mark.parametrize("backbone", ["transformer-selfguided", "s4d"])
def test_a_run_is_loaded_as_it_was_trained(tmp_path: Path, backbone: str) -> None:
    made, meta = built(tmp_path, backbone, seed=1)
    safetensors.torch.save_file(made.state_dict(), tmp_path / "weights.safetensors")
    config = {**params.load(ROOT).backbones[backbone], **({"heads": 2} if backbone != "s4d" else {})}
    settings = tiny.settings("pretrain", "causal", backbone, protocol="spt-causal", backbone_config=config, layers=2)
    loaded, read = generate.load_model(tmp_path, tmp_path, settings)
    assert read == meta
    tokens, mask = elements(meta, 2, LENGTH), torch.ones(2, LENGTH, dtype=torch.bool)
    with torch.no_grad():
        want, got = (model.head(model(tokens, mask)) for model in (made.eval(), loaded))
    assert_close(got, want, tolerance(torch.float32, LENGTH, CONDITION))


def test_a_model_that_looks_ahead_does_not_generate(tmp_path: Path) -> None:
    meta = data.read_meta(tiny.write_task(tmp_path))
    made = model.build_model(meta, tiny.settings("pretrain", "masked", "s4d", protocol="spt-masked"), 0)
    with pytest.raises(generate.GenerateError, match="looks ahead"):
        generate.Carried(made, 1, 4)


# What is drawn


def test_the_likeliest_elements_are_those_of_the_whole_sequence(tmp_path: Path) -> None:
    made, meta = built(tmp_path)
    prompt = np.array([3, 1, 4])
    got = generate.generate(made, meta, prompt, 6, temperature=0.0)
    want = prompt.tolist()
    for _ in range(6):
        with torch.no_grad():
            logits = made.head(made(torch.tensor([want]), torch.ones(1, len(want), dtype=torch.bool)))[0, -1]
        logits[[meta["pad"], meta["mask"]]] = -torch.inf
        want.append(int(logits.argmax()))
    assert got.tolist() == want
    assert not made.training


def test_the_same_seed_draws_the_same_and_another_does_not(tmp_path: Path) -> None:
    made, meta = built(tmp_path)
    drawn = [generate.generate(made, meta, np.array([3]), 20, seed=seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    meta = {"pretraining": {"loss": "cross-entropy"}, "channels": 1, "inputs": "tokens", "pad": 0, "mask": 5}
    logits = torch.tensor([9.0, 0.0, 1.0, -1.0, 0.5, 9.0])
    draws = [int(generate._next(logits, meta, temperature, seed, 7)) for seed in range(4000)]
    wanted = torch.softmax(logits[1:5].double() / temperature, 0).numpy()
    counts = np.bincount(draws, minlength=6)
    assert counts[0] == counts[5] == 0
    # Five standard deviations of a binomial count.
    assert (np.abs(counts[1:5] - 4000 * wanted) < 5 * np.sqrt(4000 * wanted * (1 - wanted))).all()


def test_a_text_ends_where_its_end_is_drawn(tmp_path: Path) -> None:
    made, meta = built(tmp_path, eos=4)
    with torch.no_grad():
        made.head.bias[4] = 1e4
    assert generate.generate(made, meta, np.array([3, 2]), 10).tolist() == [3, 2]


@pytest.mark.parametrize("inputs", ["pixels", "colours"])
def test_pixels_are_generated_as_the_task_has_them(tmp_path: Path, inputs: str) -> None:
    made, meta = built(tmp_path, **INPUTS[inputs])
    prompt = elements(meta, 1, 2)[0].numpy()
    made_pixels = generate.generate(made, meta, prompt, 5)
    assert made_pixels.shape == (7, *prompt.shape[1:])
    assert np.array_equal(made_pixels[:2], prompt)
    assert made_pixels.min() >= 0
    assert made_pixels.max() <= 255


def test_a_predicted_value_is_rounded_to_a_pixel() -> None:
    meta = {"pretraining": {"loss": "l1"}, "channels": 3, "inputs": "pixels"}
    values = model.pixel_value(torch.tensor([0, 17, 255])) + torch.tensor([-0.5, 1e-4, 0.5])
    assert generate._next(values, meta, 1.0, 0, 0).tolist() == [0, 17, 255]


@pytest.mark.parametrize(
    ("prompt", "count", "temperature", "said"),
    [
        ([], 3, None, "at least one element"),
        ([1], 0, None, "at least one element"),
        ([1] * 20, 5, None, "together at most 24"),
        ([1, 12], 3, None, "from 0 to 11"),
        ([-1], 3, None, "from 0 to 11"),
        ([1], 3, -1.0, "0 or more"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    tmp_path: Path, prompt: list[int], count: int, temperature: float | None, said: str
) -> None:
    made, meta = built(tmp_path)
    with pytest.raises(generate.GenerateError, match=said):
        generate.generate(made, meta, np.array(prompt, np.int64), count, temperature)


def test_values_take_no_temperature(tmp_path: Path) -> None:
    made, meta = built(tmp_path, inputs="pixels", loss="l1")
    with pytest.raises(generate.GenerateError, match="the loss is l1"):
        generate.generate(made, meta, np.array([1]), 3, 1.0)


# Prompts


@given(text=st.text(max_size=40))
@pytest.mark.parametrize("vocabulary", [tokenize.BYTES_VOCABULARY, tokenize.BYT5_VOCABULARY])
def test_bytes_come_back(vocabulary: int, text: str) -> None:
    codec = generate.codec(Path(), {"inputs": "tokens", "task": "text", "vocabulary": vocabulary})
    ids = codec.encode(text)
    assert codec.decode(ids) == text
    tokens = tokenize.byte_tokens if vocabulary == tokenize.BYTES_VOCABULARY else tokenize.byt5_tokens
    trained: Any = [text.encode()] if vocabulary == tokenize.BYTES_VOCABULARY else [(text.encode(),)]
    assert ids.tolist() == tokens(trained, 1000).ids[:-1].tolist()


def test_characters_come_back_and_rare_ones_are_unknown(tmp_path: Path) -> None:
    write_json(tmp_path / "characters.json", "abé")
    codec = generate.codec(tmp_path, {"inputs": "tokens", "task": "text", "vocabulary": 7})
    assert codec.encode("béxa").tolist() == [4, 5, 1, 3]
    assert codec.decode(codec.encode("béxa")) == "bé\N{REPLACEMENT CHARACTER}a"


def test_a_prompt_of_pieces_starts_like_a_text_and_is_open(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(["the cat sat on the mat", "the mat"] * 3, 64)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    codec = generate.codec(tmp_path, {"inputs": "tokens", "task": "cola", "vocabulary": 64})
    ids = codec.encode("the mat")
    assert tokenizer.encode("the mat").ids[: len(ids)] == ids.tolist()
    assert tokenizer.token_to_id("[SEP]") not in ids
    assert codec.decode(ids) == "[CLS] the mat"


@given(st.lists(st.integers(0, 255), min_size=3, max_size=30))
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back(channels: int, values: list[int]) -> None:
    codec = generate.codec(Path(), {"inputs": "pixels", "channels": channels})
    pixels = np.array(values[: len(values) // 3 * 3]).reshape(-1, *([3] if channels == 3 else []))
    assert np.array_equal(codec.encode(codec.decode(pixels)), pixels)


def test_symbols_come_back() -> None:
    codec = generate.codec(Path(), {"inputs": "tokens", "task": "listops"})
    assert codec.decode(codec.encode("[MAX 2  [MIN 9 0 X X")) == "[MAX 2 [MIN 9 0 X X"
    assert codec.encode("0 X").tolist() == [1, 15]


@pytest.mark.parametrize(
    ("meta", "prompt", "said"),
    [
        ({"inputs": "pixels", "channels": 1}, "3 x", "whole numbers"),
        ({"inputs": "pixels", "channels": 3}, "3 4 5", "3 for a pixel"),
        ({"inputs": "tokens", "task": "listops"}, "[MAX 2 SUM", r"'SUM'"),
    ],
)
def test_a_prompt_of_another_task_is_refused(meta: dict[str, Any], prompt: str, said: str) -> None:
    with pytest.raises(generate.GenerateError, match=said):
        generate.codec(Path(), meta).encode(prompt)


# The command


def test_a_finished_run_generates_by_address_and_by_cell(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    checkout.edit("params.yaml", "protocols: [scratch, spt-masked]", "protocols: [spt-masked, spt-causal]")
    cell = "smoke-listops-s4d-spt-causal-seed0"
    rows = [line.split() for line in checkout.noscratch("plan").stdout.splitlines()]
    prepare = next(row[0] for row in rows if row[1:3] == ["prepare", "listops"])
    address = next(row[0] for row in rows if row[1:3] == ["pretrain", cell])
    for name, said in (
        (cell, "noscratch run " + address),
        ("smoke-listops-s4d-spt-masked-seed0", "masked prediction"),
        ("0123456789ab", "got '0123456789ab'"),
    ):
        refused = checkout.noscratch("generate", name, check=False)
        assert refused.returncode == 1
        assert said in refused.stderr
    checkout.noscratch("run", prepare)
    checkout.noscratch("run", address)
    asked = ("--prompt", "[MAX 2", "--tokens", "8", "--temperature", "0")
    made = [checkout.noscratch("generate", name, *asked).stdout for name in (address, cell)]
    assert made[0] == made[1]
    assert made[0].startswith("[MAX 2 ")
    checkout.edit("params.yaml", "tier: smoke", "tier: mini")
    assert checkout.noscratch("generate", address, *asked).stdout == made[0]
    unasked = checkout.noscratch("generate", cell, "--tokens", "3").stdout.split()
    assert 1 <= len(unasked) <= 4
