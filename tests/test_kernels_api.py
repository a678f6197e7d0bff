"""What all kernels have in common: how one asks for a form of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from noscratch.kernels import KernelError, attention, conv, scan, ssm, structured

MODULES: tuple[ModuleType, ...] = (attention, conv, scan, ssm, structured)
KERNELS = {
    name: function
    for module in MODULES
    for name, function in vars(module).items()
    if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
}
ONE = torch.ones(1)
COMPLEX = torch.ones(1, 1, dtype=torch.complex64)
ONE_FORM: dict[str, tuple[Any, ...]] = {
    "hippo_legs": (2,),
    "discretize": (ONE, -COMPLEX, COMPLEX, "zoh"),
    "dss_discretize": (ONE, -COMPLEX, 4, "exp"),
    "dlr_discretize": (ONE, ONE),
    "s4_discretize": (ONE, -COMPLEX, COMPLEX, COMPLEX),
    "s4d_step": (ONE[None], COMPLEX[None], COMPLEX, COMPLEX, COMPLEX),
    "dss_step": (ONE[None], COMPLEX[None], COMPLEX, COMPLEX, COMPLEX),
    "dlr_step": (ONE[None], COMPLEX[None], COMPLEX[0], COMPLEX),
    "s4_step": (ONE[None], COMPLEX[None], torch.ones(1, 2, 2), torch.ones(1, 2), COMPLEX),
    "lru_step": (-ONE, ONE, COMPLEX, COMPLEX, ONE, ONE[None], COMPLEX),
    "dense_of": ("low_rank", ONE[None], ONE[None]),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_every_kernel_takes_its_form_by_keyword(kernel: Callable[..., Any]) -> None:
    backend = inspect.signature(kernel).parameters["backend"]
    assert backend.kind is inspect.Parameter.KEYWORD_ONLY
    assert backend.default == "auto"


@pytest.mark.parametrize("name", ONE_FORM)
def test_a_kernel_of_one_form_names_it(name: str) -> None:
    kernel, arguments = KERNELS[name], ONE_FORM[name]
    kernel(*arguments, backend="auto")
    kernel(*arguments, backend="reference")
    with pytest.raises(KernelError, match=f"{name} has the backends reference; got 'fast'"):
        kernel(*arguments, backend="fast")


def test_attention_that_does_not_fit_is_an_error() -> None:
    q, k = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 4)
    for backend in attention.ATTEND_BACKENDS:
        assert attention.attend(q, k, k, causal=False, backend=backend).shape == q.shape
    for causal, keys, values in ((True, k, k), (False, k, q), (False, k[:, :1], k[:, :1]), (False, k[0], k[0])):
        with pytest.raises(
            KernelError, match=r"q, k and v of \(batch, heads, L, d\), one L if causal; got \(1, 2, 3, 4\)"
        ):
            attention.attend(q, keys, values, causal=causal)
