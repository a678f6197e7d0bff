"""The dense layer of the backbones."""

from __future__ import annotations

from torch import Tensor, nn

from noscratch.kernels import resolve, structured


class Linear(nn.Linear):
    """`nn.Linear` through `structured.linear`, whose fast form uses the widest instructions of any maker's CPU."""

    def __init__(self, inputs: int, outputs: int, backend: str) -> None:
        super().__init__(inputs, outputs)
        self.backend = backend

    @property
    def kernels(self) -> dict[str, str]:
        return {"linear": resolve("linear", self.backend, structured.LINEAR_BACKENDS, self.weight.device)}

    def forward(self, x: Tensor) -> Tensor:
        return structured.linear(x, self.weight, self.bias, backend=self.backend)
