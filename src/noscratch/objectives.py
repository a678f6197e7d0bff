"""What a phase is trained on: classes or values of whole sequences, hidden elements, or the next element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from noscratch.data import MASK, Batch, uniform
from noscratch.errors import NoscratchError
from noscratch.model import Model, pixel_value

UNKNOWN = -1
"""The class of an example whose label only the benchmark knows: predicted, never scored."""


class Outcome(NamedTuple):
    total: Tensor
    """Sum of the losses, a scalar: float64 in a float64 model, else float32."""
    terms: int
    """Number of losses in the sum, and of rows that went through the head: examples or predicted elements."""
    units: int
    """What the batch weighs in an epoch: examples, or real positions for the element-wise objectives."""
    output: Tensor
    """What the head gave, (terms, outputs)."""


def outcome_of(model: Model, batch: Batch, objective: str, meta: Mapping[str, Any], seed: int, epoch: int) -> Outcome:
    """Loss of one batch, on the device of its tokens, under "classify", "masked" or "causal"."""
    if objective == "classify":
        return classify(model, batch, meta["kind"])
    if objective == "masked":
        hidden = hidden_positions(batch.mask, batch.index, meta["pretraining"]["ratio"], seed, epoch)
        features = model(batch.tokens, batch.padding, hidden.to(batch.tokens.device))
        return _elements(model, features, batch, hidden, batch.tokens, meta["pretraining"]["loss"])
    assert objective == "causal", objective
    # Position l predicts element l + 1, wherever that is real.
    known = batch.mask.clone()
    known[:, :-1], known[:, -1] = batch.mask[:, 1:], False
    features = model(batch.tokens, batch.padding)
    return _elements(model, features, batch, known, batch.tokens.roll(-1, dims=1), meta["pretraining"]["loss"])


def classify(model: Model, batch: Batch, kind: str) -> Outcome:
    """Cross-entropy of the class, or squared error of the value, of whole sequences or pairs of them."""
    output = _wide(model.head(_encode(model, batch)))
    if kind == "classification":
        total = functional.cross_entropy(output, batch.label, reduction="sum", ignore_index=UNKNOWN)
    else:
        total = functional.mse_loss(output.squeeze(-1), batch.label.to(output.dtype), reduction="sum")
    return Outcome(total, len(batch.index), len(batch.index), output)


def _encode(model: Model, batch: Batch) -> Tensor:
    """Pooled features (R, D), part by part."""
    if len(batch.parts) == 1:
        return model.pool(model(batch.tokens, batch.padding), batch.padding)
    pooled = []
    for rows, length in batch.parts:
        mask = batch.mask[rows, :length]
        pooled.append(model.pool(model(batch.tokens[rows, :length], mask), mask))
    return torch.cat(pooled)[torch.cat([rows for rows, _ in batch.parts]).argsort()]


def hidden_positions(mask: Tensor, index: NDArray[np.int64], ratio: float, seed: int, epoch: int) -> Tensor:
    """(B, L), bool: each real position independently with probability `ratio`, at least one per sequence.

    A pure function of (seed, epoch, index of the example, position): neither the batch nor its padding matters.
    """
    if not 0.0 < ratio <= 1.0:
        raise NoscratchError(
            f"A masked objective hides a share of positions in (0, 1]; got {ratio}: nothing would be learned. "
            "Correct the pretraining of the task's SPEC."
        )
    real = mask.cpu().numpy()
    drawn = np.where(real, uniform(MASK, seed, epoch, index[:, None], np.arange(real.shape[1])), 1.0)
    hidden = drawn < ratio
    none = ~hidden.any(axis=1)
    hidden[none, drawn[none].argmin(axis=1)] = True
    return torch.from_numpy(hidden)


def _elements(model: Model, features: Tensor, batch: Batch, chosen: Tensor, target: Tensor, loss: str) -> Outcome:
    """Losses at the chosen (B, L) positions only, the head included; one is the mean over the channels there."""
    rows = chosen.flatten().nonzero().squeeze(-1).to(features.device)
    output = _wide(model.head(features.flatten(0, 1)[rows]))
    channels = target[0, 0].numel()
    wanted = target.flatten(0, 1)[rows].reshape(len(rows), channels)
    if loss == "l1":
        total = functional.l1_loss(output, pixel_value(wanted).to(output.dtype), reduction="sum")
    else:
        logits = output.unflatten(-1, (channels, -1)).flatten(0, 1)
        total = functional.cross_entropy(logits, wanted.flatten(), reduction="sum")
    return Outcome(total / channels, len(rows), batch.real, output)


def _wide(output: Tensor) -> Tensor:
    """Losses are never computed in less than float32."""
    return output.to(torch.promote_types(output.dtype, torch.float32))
