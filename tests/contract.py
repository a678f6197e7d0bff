"""The contract that every backbone keeps, as checks that take a backbone's name.

Exact properties (padding, causality, equal forms) are checked in float64 under the derived tolerance, so that a leak of
one position cannot hide in rounding. `OVERRIDES` shrinks settings whose defaults are too large for a test.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch import backbones
from noscratch.backbones._ffn import Structured
from noscratch.backbones._norm import BatchNorm
from noscratch.optim import AdamW
from tolerances import assert_close, tolerance

D_MODEL = 16
LENGTH = 24
BATCH = 3
OVERRIDES: dict[str, dict[str, Any]] = {}
# What learns more slowly: eigenvalues without structure forget soon, norms behind hold small changes back.
STEPS = {"lru-random": 40, "sgconv-post": 40}

# A block is a dozen operations deep, and norms divide by a spread that may be a tenth of the scale.
CONDITION = 100.0


def build(name: str, causal: bool, seed: int = 0, dtype: torch.dtype = torch.float64, **extra: Any) -> nn.Module:
    """A block in eval mode, on its way through a training if that changes it; `extra`: backend, d_model, max_length or
    settings of its Config."""
    backbone = backbones.load(name)
    backend, d_model, max_length = (
        extra.pop("backend", "auto"),
        extra.pop("d_model", D_MODEL),
        extra.pop("max_length", 4 * LENGTH),
    )
    config = backbones.configure(backbone, OVERRIDES.get(name, {}) | extra)
    torch.default_generator.manual_seed(seed)
    block = backbone.build(config, d_model, max_length, causal, backend=backend)
    for module in block.modules():
        if isinstance(module, Structured):
            module.set_progress(0.2)
        if isinstance(module, BatchNorm):
            module.mean.copy_(draw(d_model, seed=8))
            module.variance.copy_(draw(d_model, seed=9).exp())
    return block.to(dtype).eval()


def directions(name: str) -> list[bool]:
    """The values of `causal` that the backbone offers."""
    backbone = backbones.load(name)
    return [True] * backbone.CAUSAL_OK + [False] * backbone.BIDIRECTIONAL_OK


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def real(lengths: list[int], longest: int) -> Tensor:
    """The validity mask (B, L) of sequences of these lengths, padded on the right."""
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def run(block: nn.Module, x: Tensor) -> Tensor:
    return backbones.parallel(block, x)


def declares(name: str) -> None:
    """Constants, a frozen Config of plain values with a default each, optimizer hints that name own parameters."""
    backbone = backbones.load(name)
    assert backbone.PAPER.strip()
    assert directions(name), "a backbone is causal, bidirectional or both"
    fields = dataclasses.fields(backbone.Config)
    assert backbone.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(isinstance(getattr(backbone.Config(), field.name), bool | int | float | str) for field in fields)
    for causal in directions(name):
        block = build(name, causal)
        assert block.kernels is not None
        assert all(isinstance(form, str) for form in block.kernels.values())
        for module in block.modules():
            own = dict(module.named_parameters(recurse=False))
            for parameter, hint in getattr(module, "optim", {}).items():
                assert parameter in own, f"{type(module).__name__}.optim names {parameter}, which it does not have"
                assert set(hint) <= {"lr", "weight_decay"}


def refuses_unknown_settings(name: str) -> None:
    backbone = backbones.load(name)
    with pytest.raises(backbones.BackboneError, match="no_such_setting"):
        backbones.configure(backbone, {"no_such_setting": 1})


def keeps_shape_and_dtype(name: str) -> None:
    """(B, L, D) to (B, L, D) in the dtype of x, for L from 1 to max_length; real floating parameters."""
    for causal in directions(name):
        for dtype in (torch.float32, torch.float64):
            block = build(name, causal, dtype=dtype, max_length=LENGTH)
            assert all(parameter.dtype == dtype for parameter in block.parameters()), "parameters are real floats"
            for length in (1, 2, 7, LENGTH):
                x = draw(BATCH, length, D_MODEL, dtype=dtype)
                y = run(block, x)
                assert y.shape == x.shape
                assert y.dtype == dtype
                assert y.isfinite().all()
                assert torch.equal(y, run(block, x)), "eval mode is a function of its input"


def ignores_padding(name: str) -> None:
    """What stands at padded positions, how much of it, and the other sequences of the batch change nothing."""
    lengths = [LENGTH, 5, 1]
    for causal in directions(name):
        block = build(name, causal)
        x = draw(len(lengths), LENGTH, D_MODEL)
        alone = [run(block, x[i : i + 1, :length])[0] for i, length in enumerate(lengths)]
        for longest in (LENGTH, LENGTH + 1, 2 * LENGTH + 13):
            padded = 30.0 * draw(len(lengths), longest, D_MODEL, seed=longest)
            mask = real(lengths, longest)
            padded[mask] = torch.cat([x[i, :length] for i, length in enumerate(lengths)])
            y = block(padded, mask)
            assert y.isfinite().all()
            for i, length in enumerate(lengths):
                bound = tolerance(torch.float64, longest, CONDITION)
                assert_close(y[i, :length], alone[i], bound, what=f"length {length} padded to {longest}")


def needs_no_mask_without_padding(name: str) -> None:
    """None for a mask that would hide nothing gives the same outputs and gradients."""
    for causal in directions(name):
        found = []
        for mask in (None, real([LENGTH] * BATCH, LENGTH)):
            block = build(name, causal).train()
            x = draw(BATCH, LENGTH, D_MODEL).requires_grad_()
            y = block(x, mask)
            (y * draw(*y.shape, seed=3)).sum().backward()
            found.append([y.detach(), x.grad] + [parameter.grad for parameter in block.parameters()])
        for without, with_mask in zip(*found, strict=True):
            assert_close(
                without, with_mask, tolerance(torch.float64, LENGTH, LENGTH * CONDITION), what="without a mask"
            )


def padding_has_no_gradient(name: str) -> None:
    """Neither the padded inputs nor the amount of padding enter the gradients of a loss on real positions."""
    for causal in directions(name):
        found = []
        for extra in (0, 9):
            block = build(name, causal)
            x = draw(1, LENGTH, D_MODEL)
            x = torch.cat([x, draw(1, extra, D_MODEL, seed=2)], dim=1).requires_grad_()
            y = block(x, real([LENGTH], LENGTH + extra))
            (y[:, :LENGTH] * draw(1, LENGTH, D_MODEL, seed=3)).sum().backward()
            assert x.grad is not None
            assert not x.grad[:, LENGTH:].any()
            found.append([x.grad[:, :LENGTH]] + [parameter.grad for parameter in block.parameters()])
        for short, long in zip(*found, strict=True):
            assert_close(long, short, tolerance(torch.float64, 2 * LENGTH, LENGTH * CONDITION), what="gradient")


def looks_where_it_may(name: str) -> None:
    """Causal: nothing before a changed position moves. Bidirectional: something does. Both: later positions move."""
    where = LENGTH // 2
    for causal in directions(name):
        block = build(name, causal)
        x = draw(BATCH, LENGTH, D_MODEL)
        changed = x.clone()
        changed[:, where] += draw(BATCH, D_MODEL, seed=2)
        moved = (run(block, changed) - run(block, x)).abs().amax(dim=(0, 2)) / run(block, x).abs().max()
        bound = tolerance(torch.float64, LENGTH, CONDITION)
        assert moved[where] > 1e-6
        assert moved[where + 1 :].max() > 1e3 * bound, "no position after the change saw it"
        if causal:
            assert moved[:where].max() <= bound, f"the future leaks: {moved[:where].max():.3g}"
        else:
            assert moved[:where].max() > 1e3 * bound, "no position before the change saw it"


def every_parameter_gets_a_gradient(name: str) -> None:
    for causal in directions(name):
        block = build(name, causal, dtype=torch.float32).train()
        run(block, draw(BATCH, LENGTH, D_MODEL, dtype=torch.float32)).square().sum().backward()
        for parameter, value in block.named_parameters():
            assert value.grad is not None, f"{parameter} has no gradient"
            assert value.grad.isfinite().all(), f"the gradient of {parameter} is not finite"
            assert value.grad.any(), f"the gradient of {parameter} is zero"


class Tiny(nn.Module):
    """The block with a readout, on a task for both directions: which of two tokens came more often so far."""

    def __init__(self, name: str, causal: bool, seed: int = 0) -> None:
        super().__init__()
        self.block = build(name, causal, seed, dtype=torch.float32).train()
        self.embedding, self.readout = nn.Embedding(2, D_MODEL), nn.Linear(D_MODEL, 2)

    def loss(self) -> Tensor:
        tokens = (draw(8, LENGTH) > 0).long()
        majority = ((2 * tokens - 1).cumsum(1) > 0).long()
        return functional.cross_entropy(
            self.readout(run(self.block, self.embedding(tokens))).flatten(0, 1), majority.flatten()
        )

    def losses(self, optimizer: AdamW, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            loss = self.loss()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found


def learns(name: str) -> None:
    """The loss falls by a quarter in 20 steps (`STEPS`) of the product's own optimizer."""
    for causal in directions(name):
        tiny = Tiny(name, causal)
        losses = tiny.losses(AdamW(tiny, lr=1e-2, weight_decay=0.0), STEPS.get(name, 20))
        assert losses[-1] < 0.75 * losses[0], losses


def same_seed_same_bits(name: str) -> None:
    for causal in directions(name):
        one, same, other = (Tiny(name, causal, seed) for seed in (0, 0, 1))
        assert bits(one.block) == bits(same.block)
        assert bits(one.block) != bits(other.block)
        for tiny in (one, same):
            tiny.losses(AdamW(tiny, lr=1e-2, weight_decay=0.0), 3)
        assert bits(one) == bits(same), "training twice gave different bits"


def bits(module: nn.Module) -> bytes:
    return safetensors.torch.save(module.state_dict())


def saves_and_loads(name: str) -> None:
    """state_dict through safetensors, loaded strictly into a block of another seed, gives the same bits."""
    for causal in directions(name):
        block, twin = build(name, causal), build(name, causal, seed=1)
        twin.load_state_dict(safetensors.torch.load(bits(block)), strict=True)
        x = draw(BATCH, LENGTH, D_MODEL)
        assert torch.equal(run(twin, x), run(block, x))


def resumes(name: str) -> None:
    """Two steps, a save, a load and two steps are four steps, to the bit."""
    causal = directions(name)[0]
    through, first, second = (Tiny(name, causal, seed) for seed in (0, 0, 1))
    through.losses(AdamW(through, lr=1e-2, weight_decay=0.1), 4)
    optimizer = AdamW(first, lr=1e-2, weight_decay=0.1)
    first.losses(optimizer, 2)
    second.load_state_dict(safetensors.torch.load(bits(first)))
    resumed = AdamW(second, lr=1e-2, weight_decay=0.1)
    resumed.load_state(safetensors.torch.load(safetensors.torch.save(optimizer.state())))
    second.losses(resumed, 2)
    assert bits(second) == bits(through)


def runs_in_bfloat16(name: str) -> None:
    """Autocast: finite, near float32 (a bfloat16 has 8 bits), float32 gradients for every parameter."""
    for causal in directions(name):
        block = build(name, causal, dtype=torch.float32)
        x = draw(BATCH, LENGTH, D_MODEL, dtype=torch.float32)
        want = run(block, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = run(block, x)
        assert_close(got.float(), want, 2**-8 * 16, what="bfloat16")
        got.float().square().sum().backward()
        for parameter, value in block.named_parameters():
            assert value.grad is not None, parameter
            assert value.grad.dtype == torch.float32
            assert value.grad.isfinite().all(), parameter


def equivalent_forms_agree(name: str) -> None:
    """The pairs that the backbone declares; a causal one declares at least step against forward."""
    backbone = backbones.load(name)
    if not backbone.CAUSAL_OK:
        assert not backbone.EQUIVALENT
        return
    assert (backbones.parallel, backbones.recurrent) in tuple(backbone.EQUIVALENT)
    block = build(name, causal=True)
    for length in (1, 2, LENGTH):
        x = draw(BATCH, length, D_MODEL)
        for left, right in backbone.EQUIVALENT:
            bound = tolerance(torch.float64, length, length * CONDITION)
            assert_close(right(block, x), left(block, x), bound, what=f"{left.__name__} = {right.__name__}")


def backends_agree(name: str) -> None:
    """The reference forms of the kernels and the ones that `auto` takes, values and gradients."""
    for causal in directions(name):
        blocks = [build(name, causal, backend=backend) for backend in ("reference", "auto")]
        x, mask = draw(2, LENGTH, D_MODEL), real([LENGTH, 7], LENGTH)
        outputs = [block(x, mask)[mask] for block in blocks]
        bound = tolerance(torch.float64, LENGTH, LENGTH * CONDITION)
        assert_close(outputs[1], outputs[0], bound, what="auto = reference")
        for output in outputs:
            (output * draw(*output.shape, seed=3)).sum().backward()
        for (parameter, want), got in zip(blocks[0].named_parameters(), blocks[1].parameters(), strict=True):
            assert want.grad is not None
            assert got.grad is not None
            assert_close(got.grad, want.grad, bound, what=f"gradient of {parameter}")


def compiles(name: str, backend: str = "eager") -> None:
    """torch.compile, graph breaks allowed, gives the same values and gradients; one direction, for it takes seconds.

    "eager" runs what the compiler made of the Python code, "aot_eager" its gradients too, "inductor" its machine code.
    """
    causal = directions(name)[-1]
    block, twin = build(name, causal), build(name, causal)
    x, mask = draw(2, LENGTH, D_MODEL), real([LENGTH, 7], LENGTH)
    torch.compiler.reset()
    compiled = torch.compile(twin, backend=backend)
    with warnings.catch_warnings():
        # What the compiler says of cached tables, of complex numbers and, after a graph break, of its own look at
        # intermediate results; none of it changes a value.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex")
        want, got = block(x, mask), compiled(x, mask)
    bound = tolerance(torch.float64, LENGTH, LENGTH * CONDITION)
    assert_close(got[mask], want[mask], bound, what="compiled")
    for output in (want, got):
        (output * draw(*output.shape, seed=3))[mask].sum().backward()
    for left, right in zip(twin.parameters(), block.parameters(), strict=True):
        assert left.grad is not None
        assert right.grad is not None
        assert_close(left.grad, right.grad, bound, what="gradient of the compiled block")


CHECKS: tuple[Callable[[str], None], ...] = (
    declares,
    refuses_unknown_settings,
    keeps_shape_and_dtype,
    ignores_padding,
    needs_no_mask_without_padding,
    padding_has_no_gradient,
    looks_where_it_may,
    every_parameter_gets_a_gradient,
    learns,
    same_seed_same_bits,
    saves_and_loads,
    resumes,
    runs_in_bfloat16,
    equivalent_forms_agree,
    backends_agree,
    compiles,
)
