"""Transformer block: softmax attention and a two-layer feedforward, each with its own norm and residual sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch.backbones import parallel, recurrent, require
from noscratch.kernels import attention, resolve

PAPER = "Vaswani et al., Attention Is All You Need, arXiv 1706.03762; rotary positions: Su et al., arXiv 2104.09864"
CAUSAL_OK = True
BIDIRECTIONAL_OK = True
EQUIVALENT = ((parallel, recurrent),)


@dataclass(frozen=True)
class Config:
    """Sizes of Vaswani et al. (table 3, base); norm position and dropout of Amos et al. 2024 (arXiv 2310.02980)."""

    heads: int = 8
    expansion: int = 4
    """Width of the feedforward over d_model."""
    positions: Literal["rotary", "none"] = "rotary"
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    """On both branches, before the residual sum."""

    def __post_init__(self) -> None:
        require(self.heads >= 1, f"heads is at least 1; got {self.heads}.")
        require(self.expansion >= 1, f"expansion is at least 1; got {self.expansion}.")
        require(self.positions in ("rotary", "none"), f"positions is rotary or none; got {self.positions!r}.")
        require(self.norm in ("pre", "post"), f"norm is pre or post; got {self.norm!r}.")
        require(0.0 <= self.dropout < 1.0, f"dropout is in [0, 1); got {self.dropout}.")


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> TransformerBlock:
    require(d_model % config.heads == 0, f"d_model is a multiple of heads; got {d_model} and {config.heads}.")
    width = d_model // config.heads
    require(
        config.positions == "none" or width % 2 == 0,
        f"rotary positions need an even width of a head; got {width}: change d_model or heads.",
    )
    return TransformerBlock(config, d_model, causal, backend)


class TransformerBlock(nn.Module):
    def __init__(self, config: Config, d_model: int, causal: bool, backend: str) -> None:
        super().__init__()
        self.config, self.causal, self.backend = config, causal, backend
        self.norm_attention = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.norm_feedforward = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, config.expansion * d_model)
        self.down = nn.Linear(config.expansion * d_model, d_model)

    @property
    def kernels(self) -> dict[str, str]:
        device = self.qkv.weight.device
        forms = {"attend": resolve("attend", self.backend, attention.ATTEND_BACKENDS, device)}
        if self.config.positions == "rotary":
            forms["rotary"] = resolve("rotary", self.backend, attention.ROTARY_BACKENDS, device)
        return forms

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self._heads(self._enter(x, self.norm_attention))
        # A causal query never sees the padding on its right.
        y = attention.attend(q, k, v, self.causal, mask=None if self.causal else mask, backend=self.backend)
        return self._feedforward(self._leave(x, y, self.norm_attention))

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """No keys and no values yet: two tensors (batch, heads, 0, width of a head)."""
        width = self.qkv.in_features // self.config.heads
        empty = self.qkv.weight.new_empty(batch, self.config.heads, 0, width)
        return empty, empty

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        keys, values = state
        q, k, v = self._heads(self._enter(x, self.norm_attention)[:, None], offset=keys.shape[2])
        keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        y = attention.attend(q, keys, values, causal=False, backend=self.backend)
        return self._feedforward(self._leave(x[:, None], y, self.norm_attention))[:, 0], (keys, values)

    def _heads(self, x: Tensor, offset: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, L, width) of x (B, L, D), whose first position is `offset`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.config.positions == "rotary":
            q, k = (attention.rotary(part, offset=offset, backend=self.backend) for part in (q, k))
        return q, k, v

    def _enter(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x) if self.config.norm == "pre" else x

    def _leave(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        """x plus what the heads (B, heads, L, width) found."""
        return self._add(x, self.out(y.transpose(1, 2).flatten(2)), norm)

    def _feedforward(self, x: Tensor) -> Tensor:
        y = self.down(functional.gelu(self.up(self._enter(x, self.norm_feedforward))))
        return self._add(x, y, self.norm_feedforward)

    def _add(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        y = x + functional.dropout(y, self.config.dropout, self.training)
        return y if self.config.norm == "pre" else norm(y)
