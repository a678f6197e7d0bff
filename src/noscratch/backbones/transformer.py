"""Transformer block: softmax attention and a two-layer feedforward, each with its own norm and residual sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch.backbones import Block, CausalBlock, parallel, recurrent, require
from noscratch.backbones._ffn import Feedforward, Settings
from noscratch.backbones._linear import Linear
from noscratch.kernels import attention, resolve

PAPER = "Vaswani et al., Attention Is All You Need, arXiv 1706.03762; rotary positions: Su et al., arXiv 2104.09864"
CAUSAL_OK = True
BIDIRECTIONAL_OK = True
EQUIVALENT = ((parallel, recurrent),)


@dataclass(frozen=True)
class Config(Settings):
    """Sizes of Vaswani et al. (table 3, base); norm position and dropout of Amos et al. 2024 (arXiv 2310.02980);
    structured feedforwards of Wei et al. 2024 (arXiv 2406.16450)."""

    heads: int = 8
    expansion: float = 4
    """Width of the feedforward over d_model; 2.5 and 1.25 have the weights of a low-rank one of rank 1/2 and 1/4."""
    positions: Literal["rotary", "sinusoidal", "none"] = "rotary"
    """sinusoidal: absolute ones, which the model adds to the embedding, as in Long Range Arena."""
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    """On both branches, before the residual sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.heads >= 1, f"heads is at least 1; got {self.heads}.")
        require(self.expansion > 0, f"expansion is positive; got {self.expansion}.")
        require(
            self.positions in ("rotary", "sinusoidal", "none"),
            f"positions is rotary, sinusoidal or none; got {self.positions!r}.",
        )
        require(self.norm in ("pre", "post"), f"norm is pre or post; got {self.norm!r}.")
        require(0.0 <= self.dropout < 1.0, f"dropout is in [0, 1); got {self.dropout}.")


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> StackedBlock:
    mixer = Attention(d_model, config.heads, config.positions == "rotary", causal, backend)
    hidden = round(config.expansion * d_model)
    require(
        hidden == config.expansion * d_model, f"expansion x d_model is whole; got {config.expansion} and {d_model}."
    )
    feedforward = Feedforward(d_model, hidden, config, backend)
    return StackedBlock(mixer, feedforward, d_model, config.norm, config.dropout)


class Attention(nn.Module):
    """Softmax attention in heads of equal width, with a linear layer on either side: x (B, L, D) to (B, L, D)."""

    def __init__(self, d_model: int, heads: int, rotary: bool, causal: bool, backend: str) -> None:
        super().__init__()
        require(d_model % heads == 0, f"d_model is a multiple of heads; got {d_model} and {heads}.")
        require(
            not rotary or d_model // heads % 2 == 0,
            f"rotary positions need an even width of a head; got {d_model // heads}: change d_model or heads.",
        )
        self.heads, self.rotary, self.causal, self.backend = heads, rotary, causal, backend
        self.qkv = Linear(d_model, 3 * d_model, backend)
        self.out = Linear(d_model, d_model, backend)

    @property
    def kernels(self) -> dict[str, str]:
        device = self.out.weight.device
        forms = self.out.kernels | {"attend": resolve("attend", self.backend, attention.ATTEND_BACKENDS, device)}
        if self.rotary:
            forms["rotary"] = resolve("rotary", self.backend, attention.ROTARY_BACKENDS, device)
        return forms

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self._heads(x)
        # A causal query never sees the padding on its right.
        return self._join(
            attention.attend(q, k, v, self.causal, mask=None if self.causal else mask, backend=self.backend)
        )

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """No keys and no values yet: two tensors (batch, heads, 0, width of a head)."""
        empty = self.out.weight.new_empty(batch, self.heads, 0, self.out.in_features // self.heads)
        return empty, empty

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        keys, values = state
        q, k, v = self._heads(x[:, None], offset=keys.shape[2])
        keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        y = attention.attend(q, keys, values, causal=False, backend=self.backend)
        return self._join(y)[:, 0], (keys, values)

    def _heads(self, x: Tensor, offset: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, L, width) of x (B, L, D), whose first position is `offset`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.rotary:
            q, k = (attention.rotary(part, offset=offset, backend=self.backend) for part in (q, k))
        return q, k, v

    def _join(self, y: Tensor) -> Tensor:
        """What the heads found, (B, heads, L, width), to (B, L, D)."""
        joined: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return joined


class StackedBlock(nn.Module):
    """A mixer of positions, which is called like a block, and a feedforward, each with its norm and residual sum."""

    def __init__(self, mixer: Block, feedforward: Feedforward, d_model: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.mixer, self.feedforward = mixer, feedforward
        self.pre, self.dropout = norm == "pre", dropout
        self.norm_mixer, self.norm_feedforward = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    @property
    def kernels(self) -> dict[str, str]:
        return self.mixer.kernels | self.feedforward.kernels

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self._add(x, self.mixer(self._enter(x, self.norm_mixer), mask), self.norm_mixer)
        return self._feed(x)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        state: tuple[Tensor, ...] = cast(CausalBlock, self.mixer).initial_state(batch)
        return state

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, state = cast(CausalBlock, self.mixer).step(self._enter(x, self.norm_mixer), state)
        return self._feed(self._add(x, y, self.norm_mixer)), state

    def _feed(self, x: Tensor) -> Tensor:
        y = self.feedforward(self._enter(x, self.norm_feedforward))
        return self._add(x, y, self.norm_feedforward)

    def _enter(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x) if self.pre else x

    def _add(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        y = x + functional.dropout(y, self.dropout, self.training)
        return y if self.pre else norm(y)
