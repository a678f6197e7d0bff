"""The exam of the auditor: cheats, each applied to a copy of an honest checkout, each of which it has to find.

A cheat that is `settled` covers its traces as well as it can: digests, the records of what was built on it, reports,
pages, dvc.lock and the commit are all made anew from what it changed. What then gives it away is what it could not
forge: the plan, the other artifacts, the weights, the history.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from noscratch.audit.case import CURVES, PREDICTIONS, Finding, files_below
from noscratch.audit.check import audit
from noscratch.audit.honest import choose, commit, honest, record, run, show
from noscratch.plan import canonical_json, read_plan
from noscratch.record import blocked_record
from noscratch.results import collect, parquet_bytes, parquet_table, publish
from noscratch.results.published import RECORDS
from noscratch.store import PROVENANCE, RECORD, SUMS, as_json, sha256_of

CELL = "smoke/listops/s4d"  # whose runs are doctored, below data/runs
MINI = "mini/listops/s4d/scratch"  # whose published runs are
Record = dict[str, Any]


@dataclass(frozen=True)
class Cheat:
    """name, what is done, the rules one of which has to catch it, and whether its traces are covered."""

    name: str
    rules: tuple[str, ...]
    apply: Callable[[Path], None]
    settled: bool


CHEATS: list[Cheat] = []


def _cheat(name: str, *rules: str, settled: bool = True) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def add(apply: Callable[[Path], None]) -> Callable[[Path], None]:
        CHEATS.append(Cheat(name, rules, apply, settled))
        return apply

    return add


@dataclass(frozen=True)
class Outcome:
    """What the auditor said of a cheat: all findings, and those by the rules that have to catch it."""

    cheat: Cheat
    findings: list[Finding]
    caught: list[Finding]


def exam(source: Path) -> Iterator[Outcome]:
    """Build an honest checkout with the code of `source`, then apply every cheat to a copy of it and audit that.

    The first outcome is of no cheat at all: an honest checkout has no finding.
    """
    with tempfile.TemporaryDirectory(prefix="noscratch-exam-") as folder:
        first = honest(Path(folder) / "honest", source)
        findings = audit(first, models=True).findings
        yield Outcome(Cheat("none: the honest checkout", (), lambda _: None, settled=False), findings, [])
        for cheat in CHEATS:
            yield sit(cheat, first, Path(folder) / "copy")


def sit(cheat: Cheat, first: Path, copy: Path) -> Outcome:
    """Apply a cheat to a copy of the checkout `first`, and audit it."""
    shutil.copytree(first, copy)
    try:
        cheat.apply(copy)
        if cheat.settled:
            record(copy)
        findings = audit(copy, models="models" in cheat.rules).findings
    finally:
        shutil.rmtree(copy)
    return Outcome(cheat, findings, [finding for finding in findings if finding.rule in cheat.rules])


# ---------------------------------------------------------------- how to forge


def write(path: Path, content: bytes) -> None:
    """Write a file that is read-only."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _load(folder: Path) -> Record:
    return dict(json.loads((folder / RECORD).read_bytes()))


def _places(root: Path, name: str) -> list[Path]:
    """Every folder that holds the result of this name, but published ones."""
    found = [path.parent for path in (root / "data").rglob(RECORD) if _load(path.parent)["name"] == name]
    assert found, name
    return found


def forge(
    root: Path, where: Path, files: Mapping[str, bytes] = {}, change: Callable[[Record], None] = lambda _: None
) -> None:
    """Give the result that lies in `where` other files and another record, with every digest that follows from them:
    its artifacts' and SHA256SUMS, and the records of all that was built on it."""
    before = _load(where)
    for place in _places(root, before["name"]):
        for name, content in files.items():
            write(place / name, content)
        told = _load(place)
        change(told)
        told["artifacts"] = {
            name: {"bytes": (place / name).stat().st_size, "sha256": sha256_of(place / name)}
            for name in told["artifacts"]
        }
        write(place / RECORD, as_json(told))
        if (place / SUMS).is_file():
            names = [p.relative_to(place).as_posix() for p in files_below(place) if p.name != SUMS]
            write(place / SUMS, "".join(f"{sha256_of(place / name)}  {name}\n" for name in names).encode())
    digest = sha256_of(where / RECORD)
    for path in sorted((root / "data/runs").rglob(RECORD)):
        built = _load(path.parent)
        for role, address in built["needs"].items():
            if address == before["address"] and built["inputs"].get(role, digest) != digest:
                forge(root, path.parent, {}, _reading(role, digest))


def _reading(role: str, digest: str) -> Callable[[Record], None]:
    def change(told: Record) -> None:
        told["inputs"][role] = digest

    return change


def readdress(told: Record) -> None:
    """Give a record the address and the name that its settings, code and needs have."""
    identity = {name: told[name] for name in ("kind", "settings", "code", "needs")}
    told["address"] = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]
    cell = told["cell"]
    label = f"{cell['tier']}-{cell['task']}-{cell['backbone']}-{cell['protocol']}-seed{cell['seed']}"
    told["name"] = f"{told['address']}-{told['kind']}-{label}"


def _run(root: Path, protocol: str = "scratch", seed: int = 0, phase: str = "finetune") -> Path:
    return root / "data" / "runs" / CELL / protocol / f"seed{seed}" / phase


def _predicted(folder: Path, change: Callable[[dict[str, list[Any]]], None]) -> bytes:
    """predictions.parquet with its columns changed."""
    columns = pq.read_table(folder / PREDICTIONS).to_pydict()
    change(columns)
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), out)
    return out.getvalue().to_pybytes()


def _scored(folder: Path, test: float) -> Callable[[Record], None]:
    """A change of a record: its test accuracy."""

    def change(told: Record) -> None:
        told["result"]["metrics"]["test"]["accuracy"] = test

    return change


def _arrow(folder: Path, split: str, change: Callable[[dict[str, list[Any]]], None]) -> bytes:
    """A prepared split with its columns changed."""
    with pa.memory_map(str(folder / f"{split}.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        columns = table.to_pydict()
    change(columns)
    out = pa.BufferOutputStream()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(pa.table(columns, schema=table.schema))
    return out.getvalue().to_pybytes()


def _manifest(folder: Path, splits: Mapping[str, list[str]]) -> bytes:
    """splits.json for these ids."""
    stated = json.loads((folder / "splits.json").read_bytes())
    for split, ids in splits.items():
        digest = hashlib.sha256("".join(f"{name}\n" for name in sorted(ids)).encode()).hexdigest()
        stated["splits"][split] = {"examples": len(ids), "sha256": digest}
    return (json.dumps(stated, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _ids(folder: Path, split: str) -> list[str]:
    with pa.memory_map(str(folder / f"{split}.arrow")) as file:
        return list(pa.ipc.open_file(file).read_all()["id"].to_pylist())


# ---------------------------------------------------------------- records and what lies beside them


@_cheat("edit a score in a record", "metrics", settled=False)
def _edit_record(root: Path) -> None:
    told = _load(_run(root))
    _scored(_run(root), 0.9375)(told)
    write(_run(root) / RECORD, as_json(told))


@_cheat("edit predictions, score and every digest alike", "models")
def _edit_all(root: Path) -> None:
    where = _run(root)

    def right(columns: dict[str, list[Any]]) -> None:
        tested = [split == "test" for split in columns["split"]]
        columns["prediction"] = [
            target if test else prediction
            for test, target, prediction in zip(tested, columns["target"], columns["prediction"], strict=True)
        ]

    forge(root, where, {PREDICTIONS: _predicted(where, right)}, _scored(where, 1.0))


@_cheat("call wrong answers right: edit the targets", "predictions")
def _edit_targets(root: Path) -> None:
    where = _run(root)

    def agree(columns: dict[str, list[Any]]) -> None:
        columns["target"] = [
            p if split == "test" else t
            for split, t, p in zip(columns["split"], columns["target"], columns["prediction"], strict=True)
        ]

    forge(root, where, {PREDICTIONS: _predicted(where, agree)}, _scored(where, 1.0))


@_cheat("shorten the test set to what was answered rightly", "predictions")
def _shorten(root: Path) -> None:
    where = _run(root)
    kept: list[int] = []

    def drop(columns: dict[str, list[Any]]) -> None:
        rows = zip(columns["split"], columns["target"], columns["prediction"], strict=True)
        kept.extend(i for i, (split, t, p) in enumerate(rows) if split != "test" or t == p or i % 4 == 0)
        for name, values in columns.items():
            columns[name] = [values[i] for i in kept]

    content = _predicted(where, drop)
    table = parquet_table(content)
    test = table.filter(pc.equal(table["split"], "test"))
    right = [t == p for t, p in zip(test["target"].to_pylist(), test["prediction"].to_pylist(), strict=True)]

    def change(told: Record) -> None:
        told["result"]["metrics"]["test"]["accuracy"] = sum(right) / len(right)
        told["result"]["examples"]["test"] = len(right)

    forge(root, where, {PREDICTIONS: content}, change)


@_cheat("select the checkpoint on the test set", "selection")
def _select_on_test(root: Path) -> None:
    def change(told: Record) -> None:
        told["result"]["selection"]["rule"] = "highest test accuracy, the earliest of equals"

    forge(root, _run(root), {}, change)


@_cheat("keep a checkpoint that validation did not select", "selection", "curves")
def _select_another(root: Path) -> None:
    def change(told: Record) -> None:
        selection = told["result"]["selection"]
        selection["step"] = 2 if selection["step"] == 4 else 4

    forge(root, _run(root), {}, change)


@_cheat("look at the test set while training", "test-once")
def _peek(root: Path) -> None:
    where = _run(root)
    rows = list(csv.reader(io.StringIO((where / CURVES).read_text(encoding="utf-8"))))
    rows.append(["2", "test", "accuracy", "0.5"])
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    forge(root, where, {CURVES: out.getvalue().encode()})


@_cheat("score pretraining on the test set", "test-once")
def _pretrain_on_test(root: Path) -> None:
    def change(told: Record) -> None:
        told["result"]["metrics"]["test"] = {"loss": 0.5}
        told["result"]["examples"]["test"] = 16

    forge(root, _run(root, "spt-masked", phase="pretrain"), {}, change)


@_cheat("give a run the weights of another", "models", "seeds")
def _swap_weights(root: Path) -> None:
    other = (_run(root, seed=1) / "weights.safetensors").read_bytes()
    forge(root, _run(root), {"weights.safetensors": other})


@_cheat("claim more training than there was", "plan")
def _more_steps(root: Path) -> None:
    def change(told: Record) -> None:
        told["settings"]["train"]["steps"] = 100_000
        readdress(told)

    forge(root, _run(root), {}, change)


# ---------------------------------------------------------------- data and splits


@_cheat("train on the test set", "leak")
def _train_on_test(root: Path) -> None:
    where = root / "data/prepared/listops"
    with pa.memory_map(str(where / "test.arrow")) as file:
        test = pa.ipc.open_file(file).read_all().to_pydict()

    def replace(columns: dict[str, list[Any]]) -> None:
        for name in ("tokens", "label"):  # under the ids of the training examples that they replace
            columns[name][: len(test[name])] = test[name]

    forge(root, where, {"train.arrow": _arrow(where, "train", replace)})


@_cheat("let training examples into the test set", "splits")
def _overlap(root: Path) -> None:
    where, train = root / "data/prepared/listops", _ids(root / "data/prepared/listops", "train")

    def rename(columns: dict[str, list[Any]]) -> None:
        columns["id"][:4] = train[:4]

    content = _arrow(where, "test", rename)
    ids = [*train[:4], *_ids(where, "test")[4:]]
    forge(root, where, {"test.arrow": content, "splits.json": _manifest(where, {"test": ids})})


@_cheat("change the split after training", "predictions")
def _resplit(root: Path) -> None:
    """Some test examples change places with training examples; every manifest says so."""
    where = root / "data/prepared/listops"
    columns: dict[str, dict[str, list[Any]]] = {}
    for split in ("train", "test"):
        _arrow(where, split, lambda found, split=split: columns.update({split: dict(found)}))  # type: ignore[misc]
    for name in ("id", "tokens", "label"):
        one, other = list(columns["train"][name]), list(columns["test"][name])
        one[:4], other[:4] = other[:4], one[:4]
        columns["train"][name], columns["test"][name] = one, other
    files = {
        f"{split}.arrow": _arrow(where, split, lambda found, split=split: found.update(columns[split]))  # type: ignore[misc]
        for split in ("train", "test")
    }
    manifest = _manifest(where, {split: columns[split]["id"] for split in columns})
    forge(root, where, {**files, "splits.json": manifest})


@_cheat("swap the test data for easier ones", "predictions")
def _swap_data(root: Path) -> None:
    where = root / "data/prepared/listops"

    def easy(columns: dict[str, list[Any]]) -> None:
        columns["label"] = [(label + 1) % 10 for label in columns["label"]]

    forge(root, where, {"test.arrow": _arrow(where, "test", easy)})


@_cheat("edit a committed split", "git", settled=False)
def _edit_manifest(root: Path) -> None:
    path = root / "src/noscratch/tasks/splits/cola.json"
    manifest = json.loads(path.read_bytes())
    manifest["validation"] = manifest["validation"][1:]
    write(path, json.dumps(manifest).encode())


# ---------------------------------------------------------------- seeds, and runs left out


@_cheat("pick the best of several seeds", "seeds")
def _best_seeds(root: Path) -> None:
    plan = json.loads((root / "params.yaml").read_bytes())
    plan["tiers"]["smoke"]["seeds"] = [0, 1, 2, 3, 4]
    choose(root, plan, "smoke")
    run(root)
    scores = {seed: _load(_run(root, seed=seed))["result"]["metrics"]["test"]["accuracy"] for seed in range(1, 5)}
    plan["tiers"]["smoke"]["seeds"] = sorted(sorted(scores, key=lambda seed: -scores[seed])[:3])
    choose(root, plan, "smoke")
    show(root)


@_cheat("run more seeds and report the first ones", "seeds")
def _more_seeds(root: Path) -> None:
    plan = json.loads((root / "params.yaml").read_bytes())
    for seeds in ([0, 1, 2, 3], [0, 1, 2]):
        plan["tiers"]["smoke"]["seeds"] = seeds
        choose(root, plan, "smoke")
        (run if len(seeds) == 4 else show)(root)


@_cheat("report one run under two seeds", "seeds", settled=False)
def _reuse_seed(root: Path) -> None:
    first, second = _run(root), _run(root, seed=1)
    told = _load(first)
    files = {name: (first / name).read_bytes() for name in told["artifacts"]}

    def change(other: Record) -> None:
        other["result"] = told["result"]

    forge(root, second, files, change)


@_cheat("drop a published seed", "history", "complete")
def _drop_seed(root: Path) -> None:
    shutil.rmtree(root / RECORDS / "runs" / MINI / "seed1")


def _collect_present(root: Path) -> None:
    """Make the results from the runs that are there."""
    folders = [path.parent for path in sorted((root / "data/runs").rglob(RECORD))]
    planned = {_load(folder)["address"] for folder in folders}
    collect.collect(folders, root / "reports", planned)


@_cheat("hide a run that diverged", "complete", settled=False)
def _hide(root: Path) -> None:
    shutil.rmtree(root / "data/runs/smoke/listops/transformer/scratch/seed1")
    _collect_present(root)
    commit(root, "Results")


@_cheat("call a run that diverged blocked", "complete")
def _excuse(root: Path) -> None:
    plan = read_plan(root)
    job = next(j for j in plan.of("finetune") if j.cell and (j.cell.backbone, j.cell.seed) == ("transformer", 1))
    shutil.rmtree(root / "data/store" / job.name)
    where = root / "data/runs" / job.view
    shutil.rmtree(where)
    write(where / RECORD, blocked_record(job, "listops: not asked for (network off, no mirror)"))


# ---------------------------------------------------------------- published records


def _publish(root: Path, name: str, told: Record, source: Path) -> None:
    """Publish a forged run: its record, and what lies beside the one that it was made from."""
    target = root / RECORDS / "runs" / name
    for each in (CURVES, PREDICTIONS):
        write(target / each, (source / each).read_bytes())
    provenance = next((root / RECORDS / "runs" / MINI).rglob(PROVENANCE))
    write(target / PROVENANCE, provenance.read_bytes())
    write(target / RECORD, as_json(told))


@_cheat("relabel smoke runs as mini", "planned")
def _relabel(root: Path) -> None:
    for seed in range(3):
        where = _run(root, "spt-masked", seed)
        told = _load(where)
        told["cell"]["tier"] = told["settings"]["tier"] = "mini"
        readdress(told)
        _publish(root, f"mini/listops/s4d/spt-masked/seed{seed}/finetune", told, where)


@_cheat("pass generated data off as the official ones", "planned")
def _mix(root: Path) -> None:
    where = root / RECORDS / "runs" / MINI / "seed0/finetune"
    told = _load(where)
    told["cell"]["task"] = told["settings"]["task"] = "listops-official"
    readdress(told)
    _publish(root, "mini/listops-official/s4d/scratch/seed0/finetune", told, where)


def _reprovenance(root: Path, **changes: object) -> None:
    path = root / RECORDS / "runs" / MINI / "seed0/finetune" / PROVENANCE
    write(path, as_json({**json.loads(path.read_bytes()), **changes}))


@_cheat("doctor the provenance: another device", "history")
def _other_device(root: Path) -> None:
    _reprovenance(root, device="cuda", processor="NVIDIA H200")


@_cheat("doctor the provenance: another commit", "provenance", "history")
def _other_commit(root: Path) -> None:
    _reprovenance(root, commit="0123456789abcdef0123456789abcdef01234567")


@_cheat("replace a measurement by a better one", "history")
def _remeasure(root: Path) -> None:
    where = root / RECORDS / "bench-exam"
    content = json.dumps([{"item": "nothing", "ms": 0.5}]).encode()
    write(where / "exam.json", content)
    told = _load(where)
    told["artifacts"]["exam.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write(where / RECORD, as_json(told))


@_cheat("replace a published run by another of the same address", "history")
def _rerun(root: Path) -> None:
    where = root / RECORDS / "runs" / MINI / "seed0/finetune"
    told = _load(where)
    told["result"]["metrics"]["test"]["loss"] *= 0.9
    write(where / RECORD, as_json(told))


# ---------------------------------------------------------------- reports, pages, claims


def _edit_table(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        change(row)
    write(path, parquet_bytes(pa.Table.from_pylist(rows, schema=table.schema)))


@_cheat("edit a row of the results", "results", settled=False)
def _edit_results(root: Path) -> None:
    def raise_(row: dict[str, Any]) -> None:
        if row["value"] is not None and row["split"] == "test" and row["metric"] == "accuracy":
            row["value"] = min(1.0, row["value"] + 0.125)

    _edit_table(root / "reports/results.parquet", raise_)
    commit(root, "Results")


@_cheat("edit the summary of the results", "results", settled=False)
def _edit_summary(root: Path) -> None:
    path = root / "reports/metrics.json"
    write(path, path.read_bytes().replace(b'"accuracy": 0.', b'"accuracy": 0.9'))
    commit(root, "Results")


@_cheat("edit a verdict", "verdicts", settled=False)
def _edit_verdict(root: Path) -> None:
    _edit_table(root / "reports/verdicts.parquet", lambda row: row.update(verdict="contradicted"))
    commit(root, "Verdicts")


@_cheat("edit a number on a page", "numbers", "pages", settled=False)
def _edit_page(root: Path) -> None:
    folder = root / publish.GENERATED
    path = next(path for path in sorted(folder.rglob("*.md")) if b"data-cell" in path.read_bytes())
    before, mark, after = path.read_bytes().partition(b'<data value="')
    _, quote, rest = after.partition(b'"')
    write(path, before + mark + b"0.98765" + quote + rest)


@_cheat("put a number on a page that leads nowhere", "numbers", "pages", settled=False)
def _bare_number(root: Path) -> None:
    path = root / publish.GENERATED / "results.md"
    write(path, path.read_bytes() + b"\n<p>Accuracy 99.9 %</p>\n")


def _edit_claim(root: Path) -> None:
    path = root / "claims/exam.yaml"
    text = path.read_text(encoding="utf-8")
    assert "margin: 60.0" in text
    write(path, text.replace("margin: 60.0", "margin: 99.0").encode())


@_cheat("edit a claim after its verdict", "claims", settled=False)
def _edit_claim_and_commit(root: Path) -> None:
    _edit_claim(root)
    commit(root, "Claim")


@_cheat("edit a claim and the history of its verdict", "history")
def _edit_claim_and_history(root: Path) -> None:
    _edit_claim(root)
    write(root / "reports/verdicts.jsonl", b"")


@_cheat("drop a line of the history of verdicts", "history", settled=False)
def _drop_line(root: Path) -> None:
    path = root / "reports/verdicts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines
    write(path, b"".join(lines[1:]))
    commit(root, "Verdicts")
