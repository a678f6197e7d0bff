"""Generation: the model of a finished causal run goes on with a sequence, one element after the other.

State is carried from position to position: a state space keeps its state, which does not grow; attention keeps the
keys and values of all earlier positions (the KV cache). What comes out is a pure function of the weights, the prompt
and the seed, on one device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from noscratch.backbones import CausalBlock
from noscratch.backbones._ffn import Feedforward
from noscratch.data import Split, read_meta, uniform
from noscratch.errors import NoscratchError
from noscratch.model import PIXEL_VALUES, Model, build_model, sinusoids
from noscratch.plan import Job, Plan
from noscratch.tokenize import BYT5_SHIFT, BYT5_VOCABULARY, BYTES_VOCABULARY, byte_tokens, character_tokens
from noscratch.train import WEIGHTS

DRAW = 3
"""First key of `uniform` here, apart from those of training."""

Ids = NDArray[np.int64]


class GenerateError(NoscratchError):
    """A run that does not generate, or a prompt that is none of its task."""


class Carried:
    """A causal model on its way along B sequences: `step` by step, what the model gives for them at once."""

    @torch.no_grad()
    def __init__(self, model: Model, batch: int, length: int) -> None:
        """Before the first of at most `length` positions."""
        if not model.causal:
            raise GenerateError("Generation needs a causal model; this one looks ahead. Use a run of spt-causal.")
        self.model = model.eval()
        self._blocks = [cast(CausalBlock, block) for block in model.blocks]
        self.states = [block.initial_state(batch) for block in self._blocks]
        self._positions = sinusoids(length, model.d_model, model.weight.device) if model.absolute else None
        self.position = 0

    @torch.no_grad()
    def step(self, elements: Tensor) -> Tensor:
        """elements (B,), or (B, channels), at the present position to the head's outputs (B, outputs) there: about the
        next element. One position is over."""
        x = self.model.embed(elements.unsqueeze(1), None).squeeze(1)
        if self._positions is not None:
            x = x + self._positions[self.position]
        for i, block in enumerate(self._blocks):
            x, self.states[i] = block.step(x, self.states[i])
        self.position += 1
        outputs: Tensor = self.model.head(self.model.normed(x))
        return outputs


def load_model(prepared: Path, run: Path, settings: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    """The trained model of a causal pretraining run, ready to generate, and meta.json of its task."""
    torch.set_num_threads(settings["threads"])
    meta = read_meta(prepared)
    model = build_model(meta, settings, seed=0)
    model.load_state_dict(safetensors.torch.load_file(run / WEIGHTS))
    model.set_progress(1.0)  # what changes in the course of a training has done so
    for module in list(model.modules()):
        if isinstance(module, Feedforward):
            module.merge()
    return model.eval(), meta


def generate(
    model: Model, meta: dict[str, Any], prompt: Ids, count: int, temperature: float | None = None, seed: int = 0
) -> Ids:
    """`prompt` (P,), or (P, channels), and `count` elements that follow it, or fewer where the text ends.

    Each is drawn from what the model predicts, its logits divided by `temperature` (1 if None; 0: the likeliest). A
    model trained under an L1 loss predicts values and no distribution: they are rounded, and no temperature is taken.
    """
    _check(meta, prompt, count, temperature)
    device = model.weight.device
    carried = Carried(model, 1, len(prompt) + count)
    for element in torch.from_numpy(prompt).to(device):
        outputs = carried.step(element.unsqueeze(0))
    made: list[Ids] = []
    for place in range(len(prompt), len(prompt) + count):
        element = _next(outputs.squeeze(0), meta, 1.0 if temperature is None else temperature, seed, place)
        if meta["eos"] is not None and element == meta["eos"]:
            break
        made.append(element)
        outputs = carried.step(torch.from_numpy(element[None]).to(device))
    return np.concatenate([prompt, *(element[None] for element in made)])


def _check(meta: dict[str, Any], prompt: Ids, count: int, temperature: float | None) -> None:
    if len(prompt) < 1 or count < 1 or len(prompt) + count > meta["length"]:
        raise GenerateError(
            f"The prompt has at least one element and so has what follows, together at most {meta['length']}, the "
            f"length of the task; got {len(prompt)} and {count}. Change the prompt or --tokens."
        )
    if prompt.min() < 0 or prompt.max() >= meta["vocabulary"]:
        raise GenerateError(
            f"Elements are numbers from 0 to {meta['vocabulary'] - 1}; the prompt holds {prompt.min()} to "
            f"{prompt.max()}. Correct it."
        )
    if temperature is not None and (temperature < 0 or meta["pretraining"]["loss"] == "l1"):
        raise GenerateError(
            "A temperature is 0 or more, for a task whose elements are predicted as a distribution; got "
            f"{temperature:g}, and the loss is {meta['pretraining']['loss']}. Change --temperature or leave it out."
        )


def _next(outputs: Tensor, meta: dict[str, Any], temperature: float, seed: int, place: int) -> Ids:
    """One element, () or (channels,) as the task has it, from what the head gave (outputs,)."""
    values = outputs.double().cpu().numpy()
    shape = (meta["channels"],) if meta["channels"] > 1 else ()
    if meta["pretraining"]["loss"] == "l1":
        pixels = np.rint((values + 1.0) / 2.0 * (PIXEL_VALUES - 1)).clip(0, PIXEL_VALUES - 1)
        return cast(Ids, pixels.astype(np.int64).reshape(shape))
    logits = values.reshape(meta["channels"], -1)
    if meta["inputs"] == "tokens":
        logits[:, [meta["pad"], meta["mask"]]] = -np.inf  # no text holds them
    if temperature == 0.0:
        return cast(Ids, logits.argmax(axis=1).reshape(shape))
    weights = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature).cumsum(axis=1)
    drawn = uniform(DRAW, seed, place, np.arange(len(weights))) * weights[:, -1]
    return cast(Ids, (weights <= drawn[:, None]).sum(axis=1).reshape(shape))


# Prompts and what is printed


class Codec(NamedTuple):
    """Between what a user types or reads and the elements of a task."""

    encode: Callable[[str], Ids]
    decode: Callable[[Ids], str]


def codec(prepared: Path, meta: dict[str, Any]) -> Codec:
    """The task's own: bytes, characters, pieces of words or ListOps' symbols; for pixels numbers from 0 to 255, those
    of a colour joined by commas."""
    if meta["inputs"] == "pixels":
        return _pixels(meta["channels"])
    if meta["task"] == "listops":
        return _symbols()
    if (prepared / "tokenizer.json").is_file():
        return _pieces(prepared / "tokenizer.json")
    if (prepared / "characters.json").is_file():
        return _characters(json.loads((prepared / "characters.json").read_text(encoding="utf-8")))
    shifts = {BYTES_VOCABULARY: 1, BYT5_VOCABULARY: BYT5_SHIFT}
    return _bytes(shifts[meta["vocabulary"]])


def _pixels(channels: int) -> Codec:
    def encode(text: str) -> Ids:
        try:
            rows = [[int(value) for value in pixel.split(",")] for pixel in text.split()]
        except ValueError:
            rows = [[]]
        if any(len(row) != channels for row in rows):
            raise GenerateError(
                f"A prompt of pixels is whole numbers between blanks, {channels} for a pixel, joined by commas; got "
                f"{text!r}. Correct it."
            )
        pixels = np.array(rows, np.int64)
        return pixels.squeeze(1) if channels == 1 else pixels

    def decode(ids: Ids) -> str:
        return " ".join(",".join(map(str, row)) for row in ids.reshape(len(ids), channels).tolist())

    return Codec(encode, decode)


def _symbols() -> Codec:
    from noscratch.generators.listops import SYMBOLS

    def encode(text: str) -> Ids:
        words = text.split()
        unknown = [word for word in words if word not in SYMBOLS]
        if unknown:
            raise GenerateError(
                f"A prompt of ListOps is symbols between blanks: {' '.join(SYMBOLS)}; got {unknown[0]!r}. Correct it."
            )
        return np.array([SYMBOLS.index(word) + 1 for word in words], np.int64)

    return Codec(encode, lambda ids: " ".join(SYMBOLS[i - 1] for i in ids.tolist()))


def _pieces(path: Path) -> Codec:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))

    def encode(text: str) -> Ids:
        ids = np.array(tokenizer.encode(text).ids, np.int64)
        return ids[:-1]  # the text goes on: it has a first mark and no last one

    return Codec(encode, lambda ids: str(tokenizer.decode(ids.tolist(), skip_special_tokens=False)))


def _characters(alphabet: str) -> Codec:
    def encode(text: str) -> Ids:
        return character_tokens([text], alphabet, len(text) + 2).ids[:-1].astype(np.int64)

    return Codec(encode, lambda ids: "".join("\N{REPLACEMENT CHARACTER}" if i < 3 else alphabet[i - 3] for i in ids))


def _bytes(shift: int) -> Codec:
    def encode(text: str) -> Ids:
        return byte_tokens([text.encode()], len(text.encode()) + 2).ids[:-1].astype(np.int64) - 1 + shift

    def decode(ids: Ids) -> str:
        return bytes(int(i) - shift for i in ids if 0 <= i - shift < 256).decode(errors="replace")

    return Codec(encode, decode)


def first_element(prepared: Path) -> Ids:
    """The first element of the first training example, (1,) or (1, channels): what generation starts from unasked."""
    return cast(Ids, Split(prepared, "train", alone=True).batch(np.zeros(1, np.int64)).tokens[0, :1].numpy())


def find_run(plans: Iterable[Plan], name: str) -> tuple[Plan, Job]:
    """The causal pretraining run with this address, or of the cell with this name (`<tier>-<task>-...-seed<k>`)."""
    for plan in plans:
        for job in plan.of("pretrain"):
            if name in (job.address, job.label):
                if job.settings["objective"] != "causal":
                    raise GenerateError(
                        f"Generation needs a model that predicts the next element; {job.name} learned "
                        f"{job.settings['objective']} prediction. Name a run of spt-causal; `noscratch plan --kind "
                        "pretrain` lists them."
                    )
                return plan, job
    raise GenerateError(
        f"A run is named by the address of a causal pretraining job, or by its cell; got {name!r}. `noscratch plan "
        "--kind pretrain` lists both."
    )
