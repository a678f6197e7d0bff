"""Speed and peak memory of the kernels and blocks, forward and backward, beside the public layers and plain PyTorch.

    python -m bench.kernels --out FOLDER [--peer-s4 PATH] [--peer-sgconv PATH] [--peer-bigs PATH]
        [--shapes 8,128,1024,64 ...] [--items s4d ...] [--conditions plain,2 equal,2 plain,1] [--seconds 10]

A shape is batch, heads H, length L, real states N (N / 2 conjugate pairs). What is compared runs in turn in one
process, float32, then anew in another one while there is time, and the minimum over all rounds counts: of processor
time with one thread, of elapsed time with more, for which the machine must be idle. A condition is an environment and
the number of threads. Environments: "plain", as shipped; "equal", where the whole process keeps freed memory (glibc's
mallopt), which helps all sides. Peers are checkouts of the repositories in bench/peers.py, and need einops and
opt_einsum. Peak memory is that of one forward and backward pass at the longest shape in a fresh process, plain.
Writes FOLDER/kernels.parquet and kernels.json after every shape, prints the table of ratios, and leaves a record. What
FOLDER holds of other comparisons stays; each row says at which commit it was measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from bench import _timing, peers, plain
from noscratch.allocator import keep_freed_memory
from noscratch.backbones import bigs, dss, s4, s4d, sgconv
from noscratch.backbones._block import Convolution, MixerBlock, Settings
from noscratch.kernels import attention, conv, scan, structured
from noscratch.record import Stopwatch, write_bench

MODULES = tuple(f"noscratch.backbones.{name}" for name in ("bigs", "dss", "s4", "s4d", "sgconv"))
ROOT = Path(__file__).parents[1]
OURS, PLAIN = "noscratch", "plain PyTorch"
ENVIRONMENTS = ("plain", "equal")
TAKE = 3.0  # seconds of rounds in one process


class Condition(NamedTuple):
    environment: str
    threads: int

    @classmethod
    def parse(cls, text: str) -> Condition:
        environment, _, threads = text.partition(",")
        if environment not in ENVIRONMENTS:
            raise ValueError
        return cls(environment, int(threads))


CONDITIONS = tuple(map(Condition.parse, ("plain,2", "equal,2", "plain,1")))


class Shape(NamedTuple):
    batch: int
    heads: int
    length: int
    states: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        return cls(*map(int, text.split(",")))


SHAPES = tuple(map(Shape.parse, ("8,128,1024,64", "8,128,2048,64", "4,128,4096,64", "2,128,16384,64")))


@dataclass(frozen=True)
class Row:
    """One candidate in one comparison: seconds, bytes, and both as multiples of this project's in the same run."""

    item: str
    batch: int
    heads: int
    length: int
    states: int
    environment: str
    threads: int
    candidate: str
    revision: str
    best: float
    median: float
    rounds: int
    ratio: float
    peak: int | None
    peak_ratio: float | None
    device: str
    torch: str
    commit: str


# ---------------------------------------------------------------- this project's side


class Core(nn.Module):
    """u (B, H, L) convolved with the mixer's kernel, plus D u."""

    def __init__(self, mixer: Convolution) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, u: Tensor) -> Tensor:
        taps = self.mixer.kernel(u.shape[-1])
        return conv.long_conv(u, taps[0], self.mixer.D, None if self.mixer.causal else taps[1])


class Whole(nn.Module):
    """A block on x (B, L, H) without padding."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, None)


class Mix(nn.Module):
    """The layer, GELU and GLU of a block on u (B, L, H): as much of it as is a layer of the peers."""

    def __init__(self, block: MixerBlock) -> None:
        super().__init__()
        self.mixer, self.gate = block.mixer, block.gate

    def forward(self, u: Tensor) -> Tensor:
        return structured.gated(self.mixer(u), self.gate.weight, self.gate.bias)


class Rotary(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return attention.rotary(x)


class Attention(nn.Module):
    """Causal attention of qkv (B, 3, heads, L, d)."""

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unbind(1)
        return attention.attend(q, k, v, causal=True)


class Linear(nn.Module):
    """x (B, L, H) to (B, L, 2 H)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return structured.linear(x, self.layer.weight, self.layer.bias)


class Scan(nn.Module):
    """x_t = a x_{t-1} + b_t of b (B, L, H), complex."""

    def __init__(self, width: int) -> None:
        super().__init__()
        a = torch.polar(torch.rand(width) * 0.1 + 0.9, torch.rand(width) * 2 * math.pi)
        self.a = nn.Parameter(torch.view_as_real(a))

    def forward(self, b: Tensor) -> Tensor:
        return scan.linear_scan(torch.view_as_complex(self.a), b)


def _s4d(shape: Shape, causal: bool = True) -> s4d.S4D:
    return s4d.S4D(s4d.Config(d_state=shape.states, train_b=True), shape.heads, causal, "auto")


def _s4(shape: Shape) -> s4.S4:
    return s4.S4(s4.Config(d_state=shape.states), shape.heads, True, "auto")


def _dss(shape: Shape) -> dss.DSS:
    return dss.DSS(dss.Config(d_state=shape.states // 2), shape.heads, shape.length, True, "auto")


def _sgconv(shape: Shape) -> sgconv.SGConv:
    taps = min(64, shape.length)
    return sgconv.SGConv(sgconv.Config(kernel_dim=taps), shape.heads, shape.length, True, "auto")


def _mix(mixer: Convolution, shape: Shape) -> Mix:
    return Mix(MixerBlock(mixer, shape.heads, Settings()))


def _block(mixer: Convolution, shape: Shape) -> Whole:
    return Whole(MixerBlock(mixer, shape.heads, Settings()))


def _bigs(shape: Shape) -> Whole:
    return Whole(bigs.build(bigs.Config(d_state=shape.states), shape.heads, shape.length, False))


# ---------------------------------------------------------------- the peers' side


class First(nn.Module):
    """A peer's layer, which returns its output and a state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Residual(nn.Module):
    """The norm before and the sum after a peer's layer, which its models add outside it."""

    def __init__(self, layer: First, width: int) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(width), layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x))


class Called(nn.Module):
    """A peer's layer, which overrides `__call__`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def _peer_core(module: ModuleType, shape: Shape, mode: str, bidirectional: bool = False) -> nn.Module:
    layer = module.FFTConv(
        shape.heads,
        l_max=shape.length,
        activation=None,
        bidirectional=bidirectional,
        mode=mode,
        init="legs",
        d_state=shape.states,
    )
    return First(layer)


def _peer_s4_mix(module: ModuleType, shape: Shape) -> First:
    return First(module.S4Block(shape.heads, transposed=False, l_max=shape.length, init="legs", d_state=shape.states))


def _peer_s4d_mix(module: ModuleType, shape: Shape) -> First:
    return First(module.S4D(shape.heads, shape.states, transposed=False))


def _peer_sgconv(module: ModuleType, shape: Shape) -> nn.Module:
    taps = min(64, shape.length)
    return First(module.GConv(shape.heads, l_max=shape.length, linear=True, kernel_dim=taps))


def _peer_bigs(module: ModuleType, shape: Shape) -> nn.Module:
    config = SimpleNamespace(
        num_ssm=shape.states,
        max_position_embeddings=shape.length,
        pre_norm=True,
        decode=False,
        layer_norm_eps=bigs.EPS,
        hidden_size=shape.heads,
        intermediate_size=bigs.Config().expansion * shape.heads,
        use_pykeops_kernel=False,
    )
    return Called(module.BiGSLayer(config))


# ---------------------------------------------------------------- what is measured


def _channels(shape: Shape) -> tuple[int, ...]:
    return shape.batch, shape.heads, shape.length


def _positions(shape: Shape) -> tuple[int, ...]:
    return shape.batch, shape.length, shape.heads


def _attended(shape: Shape) -> tuple[int, ...]:
    return shape.batch, 3, 4, shape.length, shape.heads // 4


def _turned(shape: Shape) -> tuple[int, ...]:
    return shape.batch, 4, shape.length, shape.heads // 4


@dataclass(frozen=True)
class Item:
    """`ours` and `plain`, which takes it and shares its parameters; `peer` from the module called `module`."""

    input: Callable[[Shape], tuple[int, ...]]
    ours: Callable[[Shape], Any]
    plain: Callable[[Any, Shape], nn.Module]
    module: str | None = None
    peer: Callable[[ModuleType, Shape], nn.Module] | None = None
    dtype: torch.dtype = torch.float32


ITEMS: Mapping[str, Item] = {
    "s4d": Item(
        _channels,
        lambda shape: Core(_s4d(shape)),
        lambda ours, shape: plain.S4DCore(ours.mixer),
        "s4",
        lambda module, shape: _peer_core(module, shape, "diag"),
    ),
    "s4d-bidirectional": Item(
        _channels,
        lambda shape: Core(_s4d(shape, causal=False)),
        lambda ours, shape: plain.S4DCore(ours.mixer),
        "s4",
        lambda module, shape: _peer_core(module, shape, "diag", bidirectional=True),
    ),
    "s4": Item(
        _channels,
        lambda shape: Core(_s4(shape)),
        lambda ours, shape: plain.S4Core(ours.mixer, shape.length),
        "s4",
        lambda module, shape: _peer_core(module, shape, "dplr"),
    ),
    "dss-exp": Item(
        _channels,
        lambda shape: Core(_dss(shape)),
        lambda ours, shape: plain.DSSCore(ours.mixer),
        "s4",
        lambda module, shape: _peer_core(module, shape, "diag"),
    ),
    "sgconv": Item(
        _channels,
        lambda shape: Core(_sgconv(shape)),
        lambda ours, shape: plain.SGConvCore(ours.mixer),
        "sgconv",
        _peer_sgconv,
    ),
    "s4d-mix": Item(
        _positions,
        lambda shape: _mix(_s4d(shape), shape),
        lambda ours, shape: plain.Mix(plain.S4DCore(ours.mixer), ours.gate),
        "s4d",
        _peer_s4d_mix,
    ),
    "s4-mix": Item(
        _positions,
        lambda shape: _mix(_s4(shape), shape),
        lambda ours, shape: plain.Mix(plain.S4Core(ours.mixer, shape.length), ours.gate),
        "s4",
        _peer_s4_mix,
    ),
    "s4d-block": Item(
        _positions,
        lambda shape: _block(_s4d(shape), shape),
        lambda ours, shape: plain.Block(ours.block, plain.S4DCore(ours.block.mixer)),
        "s4d",
        lambda module, shape: Residual(_peer_s4d_mix(module, shape), shape.heads),
    ),
    "s4-block": Item(
        _positions,
        lambda shape: _block(_s4(shape), shape),
        lambda ours, shape: plain.Block(ours.block, plain.S4Core(ours.block.mixer, shape.length)),
        "s4",
        lambda module, shape: Residual(_peer_s4_mix(module, shape), shape.heads),
    ),
    "bigs": Item(
        _positions,
        _bigs,
        lambda ours, shape: plain.BiGS(ours.block, ours.block.mixer),
        "bigs",
        _peer_bigs,
    ),
    "linear": Item(
        _positions,
        lambda shape: Linear(nn.Linear(shape.heads, 2 * shape.heads)),
        lambda ours, shape: ours.layer,
    ),
    "scan": Item(
        _positions,
        lambda shape: Scan(shape.heads),
        lambda ours, shape: plain.LogStepScan(ours.a),
        dtype=torch.complex64,
    ),
    "rotary": Item(_turned, lambda shape: Rotary(), lambda ours, shape: plain.Rotary()),
    "attention": Item(_attended, lambda shape: Attention(), lambda ours, shape: plain.Attention()),
}


def candidates(item: str, shape: Shape, checkouts: Mapping[str, Path]) -> dict[str, Callable[[], nn.Module]]:
    """What is compared, by name; each is made on demand."""
    spec = ITEMS[item]
    torch.manual_seed(0)
    ours = spec.ours(shape)
    found: dict[str, Callable[[], nn.Module]] = {OURS: lambda: ours, PLAIN: lambda: spec.plain(ours, shape)}
    if spec.peer is not None and spec.module is not None and spec.module in checkouts:
        module, build = peers.load(spec.module, checkouts[spec.module]), spec.peer
        with peers.quiet():
            layer = build(module, shape)
        found[peers.PEERS[spec.module].repository] = lambda: layer
    return found


def forward_backward(item: str, shape: Shape, module: nn.Module) -> Callable[[], None]:
    """One pass forwards, and backwards to every parameter and the input."""
    spec = ITEMS[item]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(spec.input(shape), dtype=spec.dtype, generator=generator).requires_grad_()
    with torch.no_grad(), peers.quiet():
        grad = torch.randn(module(x).shape, dtype=spec.dtype, generator=generator)

    def call() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        module(x).backward(grad)

    return call


# ---------------------------------------------------------------- processes


def times(
    item: str, shape: Shape, condition: Condition, seconds: float, checkouts: Mapping[str, Path]
) -> dict[str, _timing.Timing]:
    """Per candidate, in one process. Each item has its own: what earlier ones freed would change what "plain" is."""
    if condition.environment == "equal" and not keep_freed_memory():
        raise OSError("The equal environment needs glibc; measure without it (--conditions plain,2).")
    torch.set_num_threads(condition.threads)
    modules = {name: make() for name, make in candidates(item, shape, checkouts).items()}
    calls = {name: forward_backward(item, shape, module) for name, module in modules.items()}
    return _timing.round_robin(calls, seconds, condition.threads)


def peak(item: str, shape: Shape, candidate: str, threads: int, checkouts: Mapping[str, Path]) -> int:
    """Bytes; thread pools and libraries are started before, at a length of 2."""
    torch.set_num_threads(threads)
    made = candidates(item, shape, checkouts)
    tiny = shape._replace(batch=1, length=2)
    forward_backward(item, tiny, candidates(item, tiny, {})[OURS]())()
    module = made[candidate]()
    del made
    spec = ITEMS[item]
    x = torch.randn(spec.input(shape), dtype=spec.dtype).requires_grad_()

    def call() -> None:
        y = module(x)
        y.backward(torch.ones_like(y))

    with peers.quiet():
        return _timing.peak_bytes(call)


def measure(
    item_names: Sequence[str],
    shape: Shape,
    condition: Condition,
    seconds: float,
    checkouts: Mapping[str, Path],
    memory: bool,
) -> list[Row]:
    """Rows for one shape under one condition; the memory in processes of its own."""
    found = {
        item: _timing.takes(
            partial(_timing.alone, times, item, shape, condition, min(TAKE, seconds), checkouts), seconds
        )
        for item in item_names
    }
    revisions = {peers.PEERS[name].repository: peers.revision(path) for name, path in checkouts.items()}
    machine, commit = _timing.device(), peers.revision(ROOT)
    rows = []
    for item, timings in found.items():
        peaks = {
            name: _timing.alone(peak, item, shape, name, condition.threads, checkouts) for name in timings if memory
        }
        for name, timing in timings.items():
            rows.append(
                Row(
                    item,
                    *shape,
                    condition.environment,
                    condition.threads,
                    name,
                    revisions.get(name, ""),
                    *timing,
                    timing.best / timings[OURS].best,
                    peaks.get(name),
                    peaks[name] / peaks[OURS] if peaks.get(OURS) else None,
                    machine,
                    torch.__version__,
                    commit,
                )
            )
    return rows


# ---------------------------------------------------------------- results

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("item",)]
    + [(name, pa.int64()) for name in ("batch", "heads", "length", "states")]
    + [("environment", pa.string()), ("threads", pa.int64()), ("candidate", pa.string()), ("revision", pa.string())]
    + [("best", pa.float64()), ("median", pa.float64()), ("rounds", pa.int64()), ("ratio", pa.float64())]
    + [("peak", pa.int64()), ("peak_ratio", pa.float64()), ("device", pa.string()), ("torch", pa.string())]
    + [("commit", pa.string())]
)


def write(rows: Sequence[Row], out: Path) -> None:
    """kernels.parquet and kernels.json."""
    records = [asdict(row) for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records, SCHEMA), out / "kernels.parquet")
    (out / "kernels.json").write_text(json.dumps(records, indent=1) + "\n")


def measured(out: Path) -> list[Row]:
    """The rows of the measurement that lies in `out`."""
    file = out / "kernels.json"
    return [Row(**row) for row in json.loads(file.read_text())] if file.is_file() else []


def renewed(rows: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """`rows`, but for the comparisons that `new` made again, and `new`."""
    again = {comparison(row) for row in new}
    return [*(row for row in rows if comparison(row) not in again), *new]


def comparison(row: Row) -> tuple[Any, ...]:
    """What was compared, under which condition, where: a measurement on another machine leaves this one's rows."""
    shape = row.batch, row.heads, row.length, row.states
    return row.item, *shape, row.environment, row.threads, row.device


def table(rows: Sequence[Row]) -> str:
    """One line per comparison: this project's time and memory, and each other's as a multiple."""
    head = f"{'item':18} {'B,H,L,N':18} {'environment':11} {'threads':>7} {'ms':>9} {'MB':>7}  others: time, memory"
    lines = [head]
    comparisons: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        comparisons.setdefault(comparison(row), []).append(row)
    for (item, *shape, environment, threads, _), group in comparisons.items():
        ours = next(row for row in group if row.candidate == OURS)
        others = [
            f"{row.candidate} {row.ratio:.1f}x" + (f", {row.peak_ratio:.1f}x" if row.peak_ratio is not None else "")
            for row in group
            if row is not ours
        ]
        megabytes = "" if ours.peak is None else f"{ours.peak / 1e6:.0f}"
        lines.append(
            f"{item:18} {','.join(map(str, shape)):18} {environment:11} {threads:7} {ours.best * 1e3:9.2f} "
            f"{megabytes:>7}  {'; '.join(others)}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of kernels.parquet and kernels.json")
    parser.add_argument("--peer-s4", type=Path, help="checkout of state-spaces/s4")
    parser.add_argument("--peer-sgconv", type=Path, help="checkout of ctlllll/SGConv")
    parser.add_argument("--peer-bigs", type=Path, help="checkout of jxiw/BiGS")
    parser.add_argument("--shapes", type=Shape.parse, nargs="+", default=SHAPES, metavar="B,H,L,N")
    parser.add_argument("--items", choices=ITEMS, nargs="+", default=list(ITEMS))
    parser.add_argument(
        "--conditions", type=Condition.parse, nargs="+", default=CONDITIONS, metavar="ENVIRONMENT,THREADS"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for each comparison, in which processes of it start"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    watch = Stopwatch(ROOT, "cpu")
    paths = {"s4": asked.peer_s4, "s4d": asked.peer_s4, "sgconv": asked.peer_sgconv, "bigs": asked.peer_bigs}
    checkouts = {name: path for name, path in paths.items() if path is not None}
    rows = measured(asked.out)
    longest = max(shape.length for shape in asked.shapes)
    for condition in asked.conditions:
        for shape in asked.shapes:
            memory = not asked.no_memory and condition == asked.conditions[0] and shape.length == longest
            new = measure(asked.items, shape, condition, asked.seconds, checkouts, memory)
            rows = renewed(rows, new)
            write(rows, asked.out)
            print(table(new), flush=True)
    settings = {
        "shapes": [list(shape) for shape in asked.shapes],
        "items": asked.items,
        "conditions": [list(condition) for condition in asked.conditions],
        "seconds": asked.seconds,
    }
    write_bench(asked.out, "kernels", settings, MODULES, watch)


if __name__ == "__main__":
    main()
