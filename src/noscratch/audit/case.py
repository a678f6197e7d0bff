"""What is audited: every record that lies in the checkout, read once, and what the checkout plans."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noscratch.audit.digests import Digests
from noscratch.audit.planned import Plans, plans
from noscratch.errors import NoscratchError
from noscratch.plan import VIEWS
from noscratch.results.published import RECORDS
from noscratch.schema import Record, parse
from noscratch.store import PROVENANCE, RECORD, SUMS, as_json

PREDICTIONS, CURVES, WEIGHTS = "predictions.parquet", "curves.csv", "weights.safetensors"
# What goes wrong when damaged or doctored files are read; each becomes a finding.
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, pa.ArrowException, NoscratchError)

# Every rule that the audit knows, and what it says.
RULES: Mapping[str, str] = {
    "bytes": "a file has the size and sha256 that its record states, and a folder holds nothing else",
    "sums": "every file of a store entry has the digest in its SHA256SUMS",
    "dvc": "what DVC versions has the md5 that dvc.lock and DVC's cache name it by",
    "git": "committed evidence is as it was committed",
    "record": "a record is what its job wrote: whole, and spelt so",
    "address": "a record lies at the hash of its own settings, code and needs, under its own name",
    "inputs": "a run read the records that it names, with the sha256 that they have",
    "plan": "views and reports are those of the present plan",
    "complete": "no planned run is missing, whatever became of it",
    "seeds": "seeds are declared before, 0 to n-1, each a run of its own, and none is left out",
    "test-once": "the test set is opened once, at the end, by the selected checkpoint",
    "selection": "the checkpoint is the one that validation selects",
    "predictions": "predictions are for exactly the prepared examples, with their labels",
    "metrics": "a metric is what scikit-learn or scipy compute from the stored predictions",
    "curves": "a run's curve has its steps and ends in its result",
    "splits": "splits are disjoint, complete and those of the committed manifests",
    "leak": "what is tested on was not trained on",
    "source": "a source has one of its accepted forms, with the listed digests",
    "models": "stored weights give the stored predictions",
    "results": "results, metrics and curves are those that the records give",
    "verdicts": "verdicts are those that results and claims give",
    "pages": "the generated pages are those that the reports give",
    "numbers": "every number of a page leads to its bytes and is what they give",
    "provenance": "a run names the commit, device and time that it was made at",
    "planned": "a published run stands in the plan of the commit that it names",
    "history": "evidence is only ever added: one address, one result, for good",
    "claims": "a claim does not change after its first verdict without a new version",
}


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong: where (a path from the checkout), which rule (a key of RULES), what was got, what to do."""

    path: str
    rule: str
    got: str
    next: str


@dataclass(frozen=True)
class Entry:
    """A record and what lies beside it. place: "store", a view's name, "published" (a run or trial) or "bench"."""

    place: str
    folder: Path
    path: str
    record: Mapping[str, Any]
    sha256: str
    """Of record.json."""

    @property
    def kind(self) -> str:
        return str(self.record["kind"])

    @property
    def address(self) -> str:
        return str(self.record["address"])

    @property
    def done(self) -> bool:
        return bool(self.record["state"] == "done")

    @property
    def cell(self) -> tuple[str, str, str, str, int]:
        cell = self.record["cell"]
        return cell["tier"], cell["task"], cell["backbone"], cell["protocol"], cell["seed"]

    def at(self, name: str) -> str:
        """The path of one of its files from the checkout."""
        return f"{self.path}/{name}"


@dataclass(frozen=True)
class Predictions:
    """Of one split: ids, targets and predictions, all (examples,)."""

    ids: list[str]
    target: NDArray[np.float64]
    prediction: NDArray[np.float64]


class Case:
    """A checkout with all that the checks ask about it."""

    def __init__(self, root: Path) -> None:
        """Read every record below `root`."""
        self.root = root
        self.data = root / "data"
        self.digests = Digests()
        self.broken: list[Finding] = []  # records that cannot be read
        self.numbers = 0  # how many were walked on pages
        self.entries = list(self._entries())
        self._predictions: dict[Path, dict[str, Predictions]] = {}

    def relative(self, path: Path) -> str:
        """A path from the checkout."""
        return path.relative_to(self.root).as_posix()

    @cached_property
    def plans(self) -> Plans:
        """What the checkout plans; raises PlanError where it plans nothing."""
        return plans(self.root)

    def in_place(self, *places: str) -> list[Entry]:
        """The entries of these places."""
        return [entry for entry in self.entries if entry.place in places]

    @property
    def built(self) -> bool:
        """Is there anything beside what git holds?"""
        return any((self.data / view).is_dir() for view in VIEWS)

    @property
    def runs(self) -> list[Entry]:
        """Every run that is shown: of the view, and published."""
        shown = self.in_place("runs", "published")
        return [entry for entry in shown if entry.record["cell"] is not None and entry.record["state"] != "blocked"]

    @cached_property
    def _needed(self) -> dict[str, Entry]:
        return {entry.address: entry for entry in self.in_place("store", *VIEWS) if entry.done}

    def needed(self, address: str) -> Entry | None:
        """The finished result at an address, from store or view; None where it is not here."""
        return self._needed.get(address)

    def predictions(self, entry: Entry) -> dict[str, Predictions]:
        """A run's predictions by split."""
        path = entry.folder / PREDICTIONS
        if path not in self._predictions:
            table = pq.read_table(path, columns=["id", "split", "target", "prediction"])
            ids, splits = table["id"].to_pylist(), np.array(table["split"].to_pylist(), dtype=str)
            target, prediction = (table[name].to_numpy() for name in ("target", "prediction"))
            self._predictions[path] = {
                str(split): Predictions([ids[i] for i in rows], target[rows], prediction[rows])
                for split in dict.fromkeys(splits.tolist())
                for rows in [np.flatnonzero(splits == split)]
            }
        return self._predictions[path]

    def _entries(self) -> Iterator[Entry]:
        yield from self._read("store", sorted(self.data.glob(f"store/[0-9a-f]*/{RECORD}")))
        for view in VIEWS:
            yield from self._read(view, sorted((self.data / view).rglob(RECORD)))
        for path in sorted((self.root / RECORDS).rglob(RECORD)):
            inside = path.relative_to(self.root / RECORDS).parts[0]
            yield from self._read("published" if inside in ("runs", "tuning") else "bench", [path])

    def _read(self, place: str, paths: list[Path]) -> Iterator[Entry]:
        for path in paths:
            content = path.read_bytes()
            try:
                record = parse(Record, content)
                spelt = as_json(record) == content
            except ValueError as error:  # not JSON, not UTF-8, NaN
                self._break(path, str(error))
            else:
                if not spelt:
                    self._break(path, "another spelling of the same JSON")
                yield Entry(place, path.parent, self.relative(path.parent), record, hashlib.sha256(content).hexdigest())

    def _break(self, path: Path, got: str) -> None:
        self.broken.append(Finding(self.relative(path), "record", got, "Take back the folder, or remove and rerun it."))


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def extras(place: str) -> tuple[str, ...]:
    """The files that lie in an entry beside its artifacts, by place."""
    return {"store": (RECORD, PROVENANCE, SUMS), "published": (RECORD, PROVENANCE), "bench": (RECORD, PROVENANCE)}.get(
        place, (RECORD,)
    )
