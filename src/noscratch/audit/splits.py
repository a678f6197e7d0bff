"""Data: splits that share nothing, are complete and are those that were committed; sources in an accepted form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa

from noscratch.audit.case import UNREADABLE, Case, Entry, Finding
from noscratch.sources import PARTIAL
from noscratch.sources.registry import SOURCES
from noscratch.store import RECORD
from noscratch.tasks import HOLD_OUT_RULE, SPLITS, held_out, prefix

MANIFESTS = Path("src/noscratch/tasks/splits")
AGAIN = "Remove the folder and prepare the task again."
# Above this share of test inputs that are training inputs too, the test set was trained on. What official data repeat
# stays far below it (the task's page counts it).
LEAK = 0.5


def check(case: Case) -> Iterator[Finding]:
    """Every prepared task and every fetched source."""
    for entry in case.in_place("prepared", "raw"):
        if not entry.done:
            continue
        try:
            yield from CHECKS[entry.kind](case, entry)
        except UNREADABLE as error:
            yield Finding(entry.at(RECORD), "record", f"it cannot be checked: {type(error).__name__} {error}", AGAIN)


def _prepared(case: Case, entry: Entry) -> Iterator[Finding]:
    result, task = entry.record["result"]["splits"], str(entry.record["settings"]["task"])
    stated = json.loads((entry.folder / "splits.json").read_text(encoding="utf-8"))
    legacy = json.loads((entry.folder / "meta.json").read_text(encoding="utf-8"))["protocol"] == "legacy"
    if legacy and "legacy" not in task:
        got = f"{task} is prepared by the legacy protocol, which its name does not say"
        yield Finding(entry.at("meta.json"), "splits", got, AGAIN)
    ids: dict[str, list[str]] = {}
    inputs: dict[str, list[bytes]] = {}
    for split in stated["splits"]:
        ids[split], inputs[split] = examples(entry.folder / f"{split}.arrow")
        digest = _digest(ids[split])
        if stated["splits"][split] != {"examples": len(ids[split]), "sha256": digest}:
            got = f"{len(ids[split])} ids with sha256 {digest[:12]}, splits.json has {stated['splits'][split]}"
            yield Finding(entry.at(f"{split}.arrow"), "splits", got, AGAIN)
        if result[split]["examples"] != len(ids[split]):
            got = f"{len(ids[split])} examples, the record says {result[split]['examples']}"
            yield Finding(entry.at(f"{split}.arrow"), "splits", got, AGAIN)
        if len(set(ids[split])) < len(ids[split]):
            yield Finding(entry.at(f"{split}.arrow"), "splits", "an example stands in it twice", AGAIN)
    pairs = (("train", "test"), ("train", "validation"), ("validation", "test"))
    for one, other in pairs[: 2 if legacy else 3]:
        if shared := set(ids[one]) & set(ids[other]):
            got = f"{len(shared)} examples of {other} are in {one} too ({min(shared)} first)"
            yield Finding(entry.at(f"{other}.arrow"), "splits", got, AGAIN)
    # Without their ids: whoever moves test inputs into the training set may rename them.
    known = set(inputs["train"])
    for split in ("test",) if legacy else ("validation", "test"):
        if (repeated := sum(each in known for each in inputs[split])) > LEAK * len(inputs[split]):
            got = f"{repeated} of its {len(inputs[split])} inputs are training inputs"
            yield Finding(entry.at(f"{split}.arrow"), "leak", got, AGAIN)
    yield from _as_committed(case, entry, task, stated["rule"], ids)


def examples(path: Path) -> tuple[list[str], list[bytes]]:
    """Ids of a prepared split, and a digest of each example's input."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        columns = [_digests(table[name]) for name in ("tokens", "second") if name in table.column_names]
        return table["id"].to_pylist(), [b"".join(parts) for parts in zip(*columns, strict=True)]


def _digests(column: pa.ChunkedArray) -> list[bytes]:
    found = []
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
        found += [
            hashlib.blake2b(values[first:last].tobytes(), digest_size=16).digest()
            for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        ]
    return found


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(ids)).encode()).hexdigest()


def _as_committed(
    case: Case, entry: Entry, task: str, rule: str, ids: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    """What was prepared is the committed split, or, where settings limit it, a part of it that they determine."""
    path = case.root / MANIFESTS / f"{task}.json"
    if rule.startswith(HOLD_OUT_RULE):
        wrong = [
            name
            for split, inside in (("train", False), ("validation", True))
            for name, out in zip(ids[split], held_out(ids[split]), strict=True)
            if bool(out) is not inside
        ]
        if wrong:
            got = f"{len(wrong)} examples are not in the split that the rule puts them in ({wrong[0]} first)"
            yield Finding(entry.at("splits.json"), "splits", got, AGAIN)
    if not path.is_file():
        return
    manifest = json.loads(path.read_text(encoding="utf-8"))
    data = entry.record["settings"]["data"]
    for split in SPLITS:
        full, limit = manifest["splits"][split], int(data.get(split, 0))
        complete = limit == 0 or limit >= full["examples"]
        if complete and full != {"examples": len(ids[split]), "sha256": _digest(ids[split])}:
            got = f"its {len(ids[split])} ids are not the {full['examples']} of {MANIFESTS}/{task}.json"
            yield Finding(entry.at(f"{split}.arrow"), "splits", got, AGAIN)
        if not complete and len(ids[split]) != limit:
            got = f"{len(ids[split])} examples, its settings keep {limit}"
            yield Finding(entry.at(f"{split}.arrow"), "splits", got, AGAIN)
    listed, limit = manifest["validation"], int(data.get("validation", 0))
    if listed is not None:
        kept = {listed[row] for row in prefix(listed, limit).tolist()}
        if set(ids["validation"]) != kept:
            got = f"it is not the part of {MANIFESTS}/{task}.json that its settings keep"
            yield Finding(entry.at("validation.arrow"), "splits", got, AGAIN)
        others = chain(ids["train"], ids["test"])
        if inside := set(listed).intersection(others):
            got = f"{len(inside)} training or test examples are committed as validation ({min(inside)} first)"
            yield Finding(entry.at("splits.json"), "splits", got, AGAIN)


def _fetched(case: Case, entry: Entry) -> Iterator[Finding]:
    name = str(entry.record["settings"]["source"]).removesuffix(PARTIAL)
    source, label = SOURCES.get(name), entry.record["result"]["form"]
    forms = [form for form in source.forms if form.label == label] if source else []
    if not forms:
        yield Finding(
            entry.at(RECORD), "source", f"{name} has no form {label!r}", "Remove the folder and fetch it again."
        )
        return
    first_use = _first_use(case)
    wrong: list[str] = []
    for form in forms:
        wrong = []
        for file in form.files:
            known = file.sha256 or first_use.get(f"{label}: {file.name}")
            artifact = entry.record["artifacts"].get(file.name)
            if artifact is not None and known is not None and artifact["sha256"] != known:
                wrong.append(file.name)
        if not wrong:
            return
    for file_name in wrong:
        yield Finding(
            entry.at(file_name), "source", "not the digest that is listed for it", "Remove the folder; fetch it."
        )


def _first_use(case: Case) -> dict[str, str]:
    """The digests of files that have no published one, recorded when they were first seen."""
    path = case.root / "reports" / "digests.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: str(entry["sha256"]) for name, entry in recorded.items()}


CHECKS = {"prepare": _prepared, "fetch": _fetched}
