"""One loop for pretraining and fine-tuning: batch, loss, step; evaluate, select, save; the test set once, last."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import signal
import sys
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
from noscratch.budget import Budget
from noscratch.data import Batch, Split, evaluation_batches, read_meta, training_batches
from noscratch.errors import NoscratchError
from noscratch.flops import Cost
from noscratch.metrics import score
from noscratch.model import Model, build_model
from noscratch.objectives import classify, outcome_of
from noscratch.optim import AdamW, factor

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
    progress: bool = False,
    checkpoint_seconds: float = 60.0,
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Train one phase of one cell; returns the result that its record keeps.

    prepared: the task's folder. out: gets weights, curves and, in fine-tuning, predictions. checkpoints: where this
    run's own are kept between calls; they are the caller's to delete. init: the folder of the pretraining run whose
    weights (all but the head) this one starts from. budget: what a matched run is to spend. The same arguments give the
    same bits on one device, however often the run was killed in between.

    Raises Diverged, or Interrupted when `stop_after` seconds have passed or SIGTERM or SIGUSR1 has come.
    """
    started = time.monotonic()
    where, seed, plan = torch.device(device), settings["seed"], settings["train"]
    # Tuning is a fine-tuning that ends before the test set.
    selects, tests = settings["phase"] != "pretrain", settings["phase"] == "finetune"
    _prepare_process(settings["threads"], where)
    meta = read_meta(prepared)
    primary = meta["metrics"][0] if selects else "loss"

    # The model, its optimizer and where an earlier call left them.
    model = build_model(meta, settings, _seed(seed, "parameters")).to(where, WIDTHS[settings["dtype"]])
    if init is not None:
        _hand_over(init / WEIGHTS, model)
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

    with (
        _Stop(started, stop_after) as stop,
        _Progress(progress, steps, state, started) as report,
        _curve_written(out, state),
    ):
        saved_at = time.monotonic()
        for epoch, batches, index in training_batches(train.lengths, plan["batch_tokens"], seed, state.step):
            if state.step == steps:
                break
            if state.step == steps - 1:
                index = index[: course.last]
            batch = train.batch(index).to(where)

            # One step. Its random numbers are a function of (seed, step), so there is no generator to restore.
            model.train()
            # Weights that were handed over have the course of a training behind them.
            model.set_progress(1.0 if init is not None else state.step / steps)
            _seed_dropout(_seed(seed, settings["phase"], state.step), where)
            with _autocast(settings["dtype"], where):
                outcome = outcome_of(model, batch, settings["objective"], meta, seed, epoch)
            # The mean loss, weighted so that every sequence (or token) counts the same in an epoch of unequal batches.
            loss = outcome.total / max(outcome.terms, 1) * (outcome.units * batches / units)
            loss.backward()
            value, norm = outcome.total.item(), optimizer.norm()
            if not math.isfinite(value):
                raise Diverged(state.step + 1, f"the loss is {value}")
            if not math.isfinite(norm.item()):
                groups = [name for name, part in optimizer.norms().items() if not part.isfinite()]
                raise Diverged(state.step + 1, f"the gradient is not finite in the group ({'), ('.join(groups)})")
            if plan["clip"] > 0:
                optimizer.clip(norm, plan["clip"])
            optimizer.step(factor(state.step, steps, plan["warmup"], plan["schedule"]))
            state.step += 1
            _account(state, batch, outcome.terms, value)
            report.update(state)

            # Evaluate, and keep the best by the primary metric: the earliest of equals.
            if state.step % plan["evaluate_every"] == 0 or state.step == steps:
                state.curve.append((state.step, "train", "loss", state.loss_total / max(state.loss_terms, 1)))
                state.loss_total, state.loss_terms = 0.0, 0
                if not all(parameter.isfinite().all() for parameter in model.parameters()):
                    raise Diverged(state.step, "the update left weights that are not finite")
                if validation is not None:
                    scores = evaluate(model, validation, meta, plan["batch_tokens"], settings["dtype"], state.step)
                    state.curve += [(state.step, "validation", name, v) for name, v in scores.metrics.items()]
                    if not state.best_metrics or scores.metrics[primary] > state.best_metrics[primary]:
                        state.best_step, state.best_metrics = state.step, scores.metrics
                        best = _Best(_weights(model), scores.prediction)

            # Save now and then, and when asked to stop.
            if state.step < steps:
                why = stop.asked()
                if why or time.monotonic() - saved_at >= checkpoint_seconds:
                    _save(checkpoints, identity, model, optimizer, state, best)
                    saved_at = time.monotonic()
                if why:
                    raise Interrupted(state.step, why)

    # Hand over: the last weights of pretraining, the selected ones of fine-tuning. Only now is the test set opened.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    examples, metrics = {"train": len(train)}, {"train": {"loss": state.curve[-1][3]}}
    selection: dict[str, Any] = {"rule": "final step", "step": state.step, "value": state.curve[-1][3]}
    if validation is not None:
        examples, metrics = examples | {"validation": len(validation)}, {"validation": state.best_metrics}
        rule = f"highest validation {primary}, the earliest of equals"
        selection = {"rule": rule, "step": state.best_step, "value": state.best_metrics[primary]}
        model.load_state_dict(best.weights)
    if validation is not None and tests:
        test = Split(prepared, "test")
        scores = evaluate(model, test, meta, plan["batch_tokens"], settings["dtype"], state.best_step)
        examples, metrics = examples | {"test": len(test)}, metrics | {"test": scores.metrics}
        _write_predictions(out / PREDICTIONS, {validation: best.prediction, test: scores.prediction})
        if meta["submission"]:
            hidden = Split(prepared, HIDDEN)
            prediction, _ = predict(model, hidden, meta, plan["batch_tokens"], settings["dtype"])
            _write_predictions(out / f"{HIDDEN}.parquet", {hidden: prediction})
    safetensors.torch.save_file(_weights(model), out / WEIGHTS)
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


def evaluate(model: Model, split: Split, meta: Mapping[str, Any], batch_tokens: int, dtype: str, step: int) -> Scores:
    """Loss and metrics of every example, whatever the batches. Raises Diverged for a loss that is not finite."""
    prediction, total = predict(model, split, meta, batch_tokens, dtype)
    if not math.isfinite(total):
        raise Diverged(step, f"the loss on the {split.name} set is {total}")
    metrics = {name: score(name, split.targets(), prediction) for name in meta["metrics"]}
    return Scores({"loss": total / len(split), **metrics}, prediction)


def predict(
    model: Model, split: Split, meta: Mapping[str, Any], batch_tokens: int, dtype: str
) -> tuple[NDArray[np.float64], float]:
    """Class index or value of every example in the order of the split, and the sum of the losses."""
    model.eval()
    device = model.norm.weight.device
    total, prediction = 0.0, np.zeros(len(split))
    for index in evaluation_batches(split.lengths, batch_tokens):
        with torch.no_grad(), _autocast(dtype, device):
            outcome = classify(model, split.batch(index).to(device), meta["kind"])
        total += outcome.total.item()
        chosen = outcome.output.argmax(-1) if meta["kind"] == "classification" else outcome.output.squeeze(-1)
        prediction[index] = chosen.double().cpu().numpy()
    return prediction, total


# What the device and the process are told


def _prepare_process(threads: int, device: torch.device) -> None:
    torch.set_num_threads(threads)
    if device.type == "cuda":
        # The CPU's operations are deterministic for a fixed number of threads. The GPU's have to be asked, and one that
        # has no deterministic form says so in a warning.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


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
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


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
    for name, value in own.items():
        value.copy_(given[name])


def _identity(settings: Mapping[str, Any], meta: Mapping[str, Any], init: Path | None, budget: Budget | None) -> str:
    """What a checkpoint must have been made of for this run to go on from it."""
    start = hashlib.sha256((init / WEIGHTS).read_bytes()).hexdigest() if init is not None else None
    spend = None if budget is None else asdict(budget)
    return hashlib.sha256(json.dumps([settings, meta, start, spend], sort_keys=True).encode()).hexdigest()


def _save(folder: Path, identity: str, model: Model, optimizer: AdamW, state: State, best: _Best) -> None:
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    tensors |= {f"optimizer.{name}": value.cpu() for name, value in optimizer.state().items()}
    tensors |= {f"best.{name}": value for name, value in best.weights.items()}
    tensors["best_prediction"] = torch.from_numpy(best.prediction)
    checkpoint.save(folder, state.step, tensors, {"identity": identity, "state": asdict(state)})


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

    model.load_state_dict(part("model."))
    optimizer.load_state(part("optimizer."))
    state = State(**saved.state["state"])
    state.curve = [(step, split, metric, value) for step, split, metric, value in state.curve]
    state.shapes = {int(length): counts for length, counts in state.shapes.items()}  # JSON's keys are texts
    return state, _Best(part("best."), saved.tensors["best_prediction"].numpy())


# What is counted and written


def _account(state: State, batch: Batch, terms: int, loss: float) -> None:
    state.loss_total += loss
    state.loss_terms += terms
    state.tokens_real += batch.real
    for rows, length in batch.parts:
        state.tokens_computed += len(rows) * length
        batches, sequences = state.shapes.get(length, (0, 0))
        state.shapes[length] = [batches + 1, sequences + len(rows)]
    state.rows += terms


@contextmanager
def _curve_written(out: Path, state: State) -> Iterator[None]:
    """However training ends, its curve so far is on disk."""
    try:
        yield
    finally:
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


# Being asked to stop, and saying how far it is


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


class _Progress:
    """A bar on a terminal, a line every ten seconds elsewhere, on standard error; nothing unless asked for."""

    SECONDS = 10.0

    def __init__(self, wanted: bool, steps: int, state: State, started: float) -> None:
        self._steps, self._first_step, self._first_tokens = steps, state.step, state.tokens_real
        self._started = self._said = started
        self._bar: Any = None
        self._say: Callable[[str], object] | None = sys.stderr.write if wanted else None
        if wanted and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=steps, completed=state.step)

    def update(self, state: State) -> None:
        if self._say is None:
            return
        now = time.monotonic()
        if self._bar is None and now - self._said < self.SECONDS and state.step < self._steps:
            return
        seconds, done = now - self._started, state.step - self._first_step
        speed = (state.tokens_real - self._first_tokens) / seconds
        loss = state.loss_total / max(state.loss_terms, 1)
        text = f"loss {loss:.4f}, {speed:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=state.step, description=text)
        else:
            left = seconds / done * (self._steps - state.step)
            self._say(f"step {state.step}/{self._steps}, {text}, {left:.0f} s left\n")
            self._said = now

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
