"""One loop for pretraining and fine-tuning: batch, loss, step; evaluate, select, save; the test set once, last."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from noscratch import budget as budgets
from noscratch import checkpoint
from noscratch.allocator import keep_freed_memory
from noscratch.budget import Budget
from noscratch.data import Split, evaluation_batches, read_meta, training_batches
from noscratch.errors import NoscratchError
from noscratch.flops import Cost
from noscratch.metrics import score
from noscratch.model import Model, build_model
from noscratch.objectives import classify, outcome_of
from noscratch.optim import AdamW, factor
from noscratch.ranks import Alone, fill, whole

CURVES, PREDICTIONS, WEIGHTS = "curves.csv", "predictions.parquet", "weights.safetensors"
HIDDEN = "submission"
"""Name of the split whose labels only the benchmark knows, and of the file with what the run predicts for it."""

WIDTHS = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
"""What `dtype` makes of weights, optimizer and loss; they start from the same float32 draw."""


class Diverged(NoscratchError):  # noqa: N818 (an outcome)
    """Loss or gradients stopped being finite: a result of the settings, kept as such."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"Training stops where a number is not finite: at step {step}, {what}. Lower the learning rate."
        )
        self.step, self.what = step, what


class Interrupted(NoscratchError):  # noqa: N818 (an outcome)
    """The run was asked to stop, and a checkpoint is saved: the same call goes on from it."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(f"Stopped after step {step} ({why}); a checkpoint is saved. Run the same command to go on.")
        self.step = step


@dataclass
class State:
    """What a run knows between two steps, besides the model and the optimizer; plain values, exact in JSON."""

    step: int = 0
    loss_total: float = 0.0
    """Sum of the losses since the last point of the curve, and their number."""
    loss_terms: int = 0
    tokens_real: int = 0
    tokens_computed: int = 0
    shapes: dict[int, list[int]] = field(default_factory=dict)
    """Length L of what is encoded together -> how often, and how many sequences."""
    rows: int = 0
    """Rows that went through the head."""
    curve: list[tuple[int, str, str, float]] = field(default_factory=list)
    """(step, split, metric, value)"""
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    split: int = 1
    """In how many pieces each batch goes through the model: doubled whenever memory runs out."""


class Scores(NamedTuple):
    metrics: dict[str, float]
    prediction: NDArray[np.float64]
    """(n,) in the order of the split: class indices or values."""


def run(
    settings: dict[str, Any],
    prepared: Path,
    out: Path,
    checkpoints: Path,
    init: Path | None,
    device: str,
    stop_after: float | None = None,
    report: Callable[[int, State], None] = lambda steps, state: None,
    checkpoint_seconds: float = 60.0,
    budget: Budget | None = None,
    ranks: Alone | None = None,
) -> dict[str, Any]:
    """Train one phase of one cell; returns the result that its record keeps.

    prepared: the task's folder. out: gets weights, curves and, in fine-tuning, predictions. checkpoints: where this
    run's own are kept between calls; they are the caller's to delete. init: the folder of the pretraining run whose
    weights (all but the head) this one starts from. report: is told the number of steps, and the state after each.
    budget: what a matched run is to spend. ranks: the processes that train together; each of them calls this, and the
    first writes. The same arguments give the same bits on one device, however often the run was killed in between.

    Raises Diverged, or Interrupted when `stop_after` seconds have passed or SIGTERM or SIGUSR1 has come.
    """
    started = time.monotonic()
    ranks = ranks or Alone()
    where, seed, plan = torch.device(device), settings["seed"], settings["train"]
    # Tuning is a fine-tuning that ends before the test set.
    selects, tests = settings["phase"] != "pretrain", settings["phase"] == "finetune"
    _prepare_process(settings["threads"], where, settings["deterministic"])
    meta = read_meta(prepared)
    primary = meta["metrics"][0] if selects else "loss"

    # The model, its optimizer and where an earlier call left them.
    model = build_model(meta, settings, _seed(seed, "parameters")).to(where, WIDTHS[settings["dtype"]])
    if init is not None:
        _hand_over(init / WEIGHTS, model)
    _check_batch_norm(model, plan, settings["objective"] == "classify" and meta["pairs"], ranks)
    ranks.wrap(model)
    optimizer = AdamW(model, plan["lr"], plan["weight_decay"])
    state, best = State(), _Best({}, np.zeros(0))
    identity = _identity(settings, meta, init, budget)
    saved = checkpoint.load(checkpoints)
    if saved is not None:
        state, best = _restore(saved, identity, model, optimizer, checkpoints)

    # Pretraining opens the training inputs only, and takes the texts of a pair one by one.
    classifies = settings["objective"] == "classify"
    train = Split(prepared, "train", alone=not classifies)
    validation = Split(prepared, "validation") if selects else None
    units = len(train) if classifies else int(train.lengths.sum())

    def cost() -> Cost:
        return Cost(model, train, where, (0.25, 0.75) if init is None else (1.0,))

    course = budgets.length(plan, budget, train, cost, seed)
    steps = course.steps

    with _Stop(started, stop_after) as stop, _curve_written(out, state, ranks.rank == 0):
        saved_at = time.monotonic()
        for epoch, batches, index in training_batches(train.lengths, plan["batch_tokens"], seed, state.step):
            if state.step == steps:
                break
            if state.step == steps - 1:
                index = index[: course.last]

            # One step. Its random numbers are a function of (seed, step), so there is no generator to restore.
            model.train()
            # Weights that were handed over have the course of a training behind them.
            model.set_progress(1.0 if init is not None else state.step / steps)
            total, terms, pieces = _accumulate(model, train, index, epoch, settings, meta, state, ranks)
            # The mean loss, weighted so that every sequence (or token) counts the same in an epoch of unequal batches.
            weight = (len(index) if classifies else train.real(index)) * batches / units
            ranks.add_gradients(model.parameters())
            optimizer.scale(weight / max(terms, 1))
            norm = optimizer.norm()
            if not math.isfinite(total):
                raise Diverged(state.step + 1, f"the loss is {total}")
            if not math.isfinite(norm.item()):
                groups = [name for name, part in optimizer.norms().items() if not part.isfinite()]
                raise Diverged(state.step + 1, f"the gradient is not finite in the group ({'), ('.join(groups)})")
            if plan["clip"] > 0:
                optimizer.clip(norm, plan["clip"])
            optimizer.step(factor(state.step, steps, plan["warmup"], plan["schedule"]))
            state.step += 1
            _account(state, train, pieces, terms, total)
            report(steps, state)

            # Evaluate, and keep the best by the primary metric: the earliest of equals.
            if state.step % plan["evaluate_every"] == 0 or state.step == steps:
                state.curve.append((state.step, "train", "loss", state.loss_total / max(state.loss_terms, 1)))
                state.loss_total, state.loss_terms = 0.0, 0
                if not all(whole(parameter.isfinite().all()) for parameter in model.parameters()):
                    raise Diverged(state.step, "the update left weights that are not finite")
                if validation is not None:
                    scores = evaluate(model, validation, meta, settings, state, ranks)
                    state.curve += [(state.step, "validation", name, v) for name, v in scores.metrics.items()]
                    if not state.best_metrics or scores.metrics[primary] > state.best_metrics[primary]:
                        state.best_step, state.best_metrics = state.step, scores.metrics
                        best = _Best(_weights(model), scores.prediction)

            # Save now and then, and when asked to stop.
            if state.step < steps:
                why = stop.asked()
                asked, due = ranks.add([why is not None, time.monotonic() - saved_at >= checkpoint_seconds])
                if asked or due:
                    _save(checkpoints, identity, model, optimizer, state, best, ranks)
                    saved_at = time.monotonic()
                if asked:
                    raise Interrupted(state.step, why or "another of its processes was asked to")

    # Hand over: the last weights of pretraining, the selected ones of fine-tuning. Only now is the test set opened.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    examples, metrics = {"train": len(train)}, {"train": {"loss": state.curve[-1][3]}}
    selection: dict[str, Any] = {"rule": "final step", "step": state.step, "value": state.curve[-1][3]}
    predictions: dict[str, dict[Split, NDArray[np.float64]]] = {}
    if validation is not None:
        examples, metrics = examples | {"validation": len(validation)}, {"validation": state.best_metrics}
        rule = f"highest validation {primary}, the earliest of equals"
        selection = {"rule": rule, "step": state.best_step, "value": state.best_metrics[primary]}
        _load(model, best.weights)
    if validation is not None and tests:
        test = Split(prepared, "test")
        scores = evaluate(model, test, meta, settings, state, ranks)
        examples, metrics = examples | {"test": len(test)}, metrics | {"test": scores.metrics}
        predictions |= {PREDICTIONS: {validation: best.prediction, test: scores.prediction}}
        if meta["submission"]:
            hidden = Split(prepared, HIDDEN)
            predictions[f"{HIDDEN}.parquet"] = {hidden: predict(model, hidden, meta, settings, state, ranks)[0]}
    weights = _weights(model)
    if ranks.rank == 0:
        for name, kept in predictions.items():
            _write_predictions(out / name, kept)
        safetensors.torch.save_file(weights, out / WEIGHTS)
    operations = round(cost()(state.shapes, state.rows))
    matched = {} if budget is None else {"matched": budgets.ratios(budget, plan["matched"], steps, operations)}
    return {
        "phase": settings["phase"],
        "metrics": metrics,
        "primary": primary,
        "selection": selection,
        "examples": examples,
        "counts": {
            "parameters": parameters,
            "steps": state.step,
            "tokens_real": state.tokens_real,
            "tokens_computed": state.tokens_computed,
            "flops": operations,
        },
        "kernels": model.kernels(),
        **matched,
    }


def evaluate(
    model: Model, split: Split, meta: Mapping[str, Any], settings: Mapping[str, Any], state: State, ranks: Alone
) -> Scores:
    """Loss and metrics of every example, whatever the batches. Raises Diverged for a loss that is not finite."""
    prediction, total = predict(model, split, meta, settings, state, ranks)
    if not math.isfinite(total):
        raise Diverged(state.step, f"the loss on the {split.name} set is {total}")
    metrics = {name: score(name, split.targets(), prediction) for name in meta["metrics"]}
    return Scores({"loss": total / len(split), **metrics}, prediction)


def predict(
    model: Model, split: Split, meta: Mapping[str, Any], settings: Mapping[str, Any], state: State, ranks: Alone
) -> tuple[NDArray[np.float64], float]:
    """Class index or value of every example in the order of the split, and the sum of the losses."""
    model.eval()
    device = model.weight.device
    total, prediction = 0.0, np.zeros(len(split))
    for index in evaluation_batches(split.lengths, settings["train"]["batch_tokens"]):
        for piece in _pieces(split, index, settings["train"]["micro_tokens"], state.split, ranks)[ranks.rank]:
            taken = piece if len(piece) else index[:1]
            with torch.no_grad(), _autocast(settings["dtype"], device):
                outcome = classify(model, split.batch(taken).to(device), meta["kind"])
            if len(piece):
                total += outcome.total.item()
                chosen = outcome.output.argmax(-1) if meta["kind"] == "classification" else outcome.output.squeeze(-1)
                prediction[piece] = chosen.double().cpu().numpy()
    return ranks.add_array(prediction), ranks.add([total])[0]


# A step's gradients


def _accumulate(
    model: Model,
    train: Split,
    index: NDArray[np.int64],
    epoch: int,
    settings: Mapping[str, Any],
    meta: Mapping[str, Any],
    state: State,
    ranks: Alone,
) -> tuple[float, int, list[NDArray[np.int64]]]:
    """Add up the gradients of the losses' sum over a batch, piece by piece; that sum and the number of losses, over all
    ranks, and the pieces.

    Where memory runs out, on any rank, all begin again with pieces of half the size, and stay with that.
    """
    device = model.weight.device
    purpose = (settings["phase"], state.step, *([ranks.rank] if ranks.rank else []))
    while True:
        shares = _pieces(train, index, settings["train"]["micro_tokens"], state.split, ranks)
        _seed_dropout(_seed(settings["seed"], *purpose), device)
        total, terms, short = torch.zeros((), dtype=torch.float64, device=device), 0, None
        try:
            for piece in shares[ranks.rank]:
                ranks.taking = len(piece) > 0
                # A rank without an example goes through the same motions.
                batch = train.batch(piece if len(piece) else index[:1]).to(device)
                with _autocast(settings["dtype"], device):
                    outcome = outcome_of(model, batch, settings["objective"], meta, settings["seed"], epoch)
                (outcome.total if len(piece) else outcome.total * 0.0).backward()
                if len(piece):
                    total += outcome.total.detach()
                    terms += outcome.terms
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or ranks.sharded:
                raise
            if model.batch_norm:
                raise NoscratchError(
                    "Batch norm takes the statistics of the batch, which smaller pieces would change; at step "
                    f"{state.step + 1} memory ran out: {error}. Set micro_tokens (statistics are then of each piece), "
                    "or take a smaller model or a larger device."
                ) from error
            short = str(error) or type(error).__name__
        sums = ranks.add([total.item(), terms, short is not None])
        if not sums[2]:
            return sums[0], round(sums[1]), [piece for share in shares for piece in share if len(piece)]
        batch = outcome = None  # type: ignore[assignment] # what they hold on the device
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if all(len(piece) <= 1 for share in shares for piece in share):
            raise NoscratchError(
                f"A step needs memory for one example at least; at step {state.step + 1} there is not: "
                f"{short or 'another process ran out'}. Take a smaller model, shorter sequences or a larger device."
            )
        state.split *= 2


def _pieces(
    split: Split, index: NDArray[np.int64], micro_tokens: int | None, halvings: int, ranks: Alone
) -> list[list[NDArray[np.int64]]]:
    """What goes through the model at once, for each rank the same number of pieces; of at most `micro_tokens` computed
    tokens where that is set, then divided by `halvings`. Pieces are empty where examples are few."""
    shares = ranks.shares(index)
    tokens = sum(count * length for count, length in split.shapes(index)) / len(shares)
    wanted = halvings * (1 if micro_tokens is None else math.ceil(tokens / micro_tokens))
    return [np.array_split(share, min(wanted, len(shares[0]))) for share in shares]


def _out_of_memory(error: Exception) -> bool:
    """Of the GPU or, by what PyTorch's allocator says, of the host."""
    said = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in said)


# What the device and the process are told


def _prepare_process(threads: int, device: torch.device, deterministic: bool) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device.type == "cuda" and deterministic:
        # The CPU's operations are deterministic for a fixed number of threads. The GPU's have to be asked, and one that
        # has no deterministic form says so in a warning.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _check_batch_norm(model: Model, plan: Mapping[str, Any], pairs: bool, ranks: Alone) -> None:
    """Its statistics are of what goes through the model at once: several processes must have the same of one."""
    if ranks.world > 1 and model.batch_norm and (pairs or plan["micro_tokens"] is not None):
        raise NoscratchError(
            "Several processes take batch norm's statistics of a whole batch together; here it goes through the model "
            f"in parts ({'texts of a pair by length' if pairs else 'micro_tokens'}), which one process divides "
            "otherwise. Use one process, or normalization: layer."
        )


def _autocast(dtype: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def _seed(seed: int, *purpose: str | int) -> int:
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def _seed_dropout(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` without importing the compiler, which would cost every process a second."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


# Weights and checkpoints


@dataclass(frozen=True)
class _Best:
    weights: dict[str, Tensor]
    prediction: NDArray[np.float64]
    """On the validation set."""


def _weights(model: Model) -> dict[str, Tensor]:
    return {name: whole(value.detach()).cpu().clone().contiguous() for name, value in model.state_dict().items()}


def _hand_over(path: Path, model: Model) -> None:
    """Load all but the head; every other tensor is there, in its shape, or it is an error."""
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    try:
        given = {n: v for n, v in safetensors.torch.load_file(path).items() if not n.startswith("head.")}
    except (OSError, safetensors.SafetensorError) as error:
        raise NoscratchError(f"Fine-tuning starts from pretrained weights; reading {path} gave: {error}.") from error
    unlike = [n for n in sorted(own | given) if n not in own or n not in given or own[n].shape != given[n].shape]
    if unlike:
        raise NoscratchError(
            f"Pretrained weights have the names and shapes of this model's; {path} differs in {', '.join(unlike)}. "
            "Give both phases the same model settings."
        )
    _fill(own, given)


def _identity(settings: Mapping[str, Any], meta: Mapping[str, Any], init: Path | None, budget: Budget | None) -> str:
    """What a checkpoint must have been made of for this run to go on from it."""
    start = hashlib.sha256((init / WEIGHTS).read_bytes()).hexdigest() if init is not None else None
    spend = None if budget is None else asdict(budget)
    return hashlib.sha256(json.dumps([settings, meta, start, spend], sort_keys=True).encode()).hexdigest()


def _load(model: Model, given: Mapping[str, Tensor]) -> None:
    """Take over what `_weights` gave, all of it and nothing else."""
    own = model.state_dict()
    assert own.keys() == given.keys(), f"weights differ in {own.keys() ^ given.keys()}"
    _fill(own, given)


def _fill(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in own.items():
            fill(value, given[name])


def _save(folder: Path, identity: str, model: Model, optimizer: AdamW, state: State, best: _Best, ranks: Alone) -> None:
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    tensors |= {f"optimizer.{name}": whole(value).cpu() for name, value in optimizer.state().items()}
    tensors |= {f"best.{name}": value for name, value in best.weights.items()}
    tensors["best_prediction"] = torch.from_numpy(best.prediction)
    if ranks.rank == 0:
        checkpoint.save(folder, state.step, tensors, {"identity": identity, "state": asdict(state)})
    ranks.wait()


def _restore(
    saved: checkpoint.Checkpoint, identity: str, model: Model, optimizer: AdamW, folder: Path
) -> tuple[State, _Best]:
    if saved.state["identity"] != identity:
        raise checkpoint.CheckpointError(
            f"A run goes on from its own checkpoints; those of {folder} are of other settings, data or pretrained "
            "weights. Delete the folder."
        )

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): value for key, value in saved.tensors.items() if key.startswith(name)}

    _load(model, part("model."))
    optimizer.load_state(part("optimizer."))
    state = State(**saved.state["state"])
    state.curve = [(step, split, metric, value) for step, split, metric, value in state.curve]
    state.shapes = {int(length): counts for length, counts in state.shapes.items()}  # JSON's keys are texts
    return state, _Best(part("best."), saved.tensors["best_prediction"].numpy())


# What is counted and written


def _account(state: State, train: Split, pieces: list[NDArray[np.int64]], terms: int, loss: float) -> None:
    state.loss_total += loss
    state.loss_terms += terms
    state.rows += terms
    for piece in pieces:
        state.tokens_real += train.real(piece)
        for sequences, length in train.shapes(piece):
            state.tokens_computed += sequences * length
            batches, so_far = state.shapes.get(length, (0, 0))
            state.shapes[length] = [batches + 1, so_far + sequences]


@contextmanager
def _curve_written(out: Path, state: State, first: bool) -> Iterator[None]:
    """However training ends, its curve so far is on disk; the first rank writes it."""
    try:
        yield
    finally:
        if first:
            with open(out / CURVES, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(("step", "split", "metric", "value"))
                writer.writerows(state.curve)


def _write_predictions(path: Path, predictions: Mapping[Split, NDArray[np.float64]]) -> None:
    """Columns from buffers: pa.array() would do the same and import pandas, which costs every process half a second."""

    def floats(values: NDArray[np.float64]) -> pa.Array:
        return pa.Array.from_buffers(pa.float64(), len(values), [None, pa.py_buffer(values)])

    def repeated(text: str, n: int) -> pa.Array:
        offsets = np.arange(n + 1, dtype=np.int32) * len(text)
        return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text.encode("ascii") * n))

    parts = [
        pa.Table.from_arrays(
            [split.ids(), repeated(split.name, len(split)), floats(split.targets()), floats(prediction)],
            names=["id", "split", "target", "prediction"],
        )
        for split, prediction in predictions.items()
    ]
    pa.parquet.write_table(pa.concat_tables(parts).combine_chunks(), path)


# Being asked to stop


class _Stop:
    """Whether the time is up or a signal has come; the run looks between two steps."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, started: float, stop_after: float | None) -> None:
        self._end = math.inf if stop_after is None else started + stop_after
        self._after = stop_after
        self._signal: str | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def asked(self) -> str | None:
        """Why the run should stop, or None."""
        if self._signal is None and time.monotonic() >= self._end:
            return f"{self._after:g} seconds have passed"
        return self._signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = f"{signal.Signals(number).name} came"

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._earlier = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
