"""What comes from elsewhere: all that results can be asked by themselves, before they are adopted into the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from noscratch.audit import artifacts, records
from noscratch.audit.case import Case, Entry, Finding
from noscratch.schema import Provenance, parse
from noscratch.store import PROVENANCE, RECORD, as_json

AGAIN = "Copy the results again; if that changes nothing, leave this one out."


class _Arrived(Case):
    """Folders of results, with the finished results that they were made from; nothing else of the checkout."""

    def __init__(self, root: Path, folders: Sequence[Path]) -> None:
        self._folders = folders
        super().__init__(root)

    def _entries(self) -> Iterator[Entry]:
        return self._read("store", [folder / RECORD for folder in self._folders])


def check(root: Path, arrived: Sequence[Path], needed: Sequence[Path]) -> Iterator[Finding]:
    """What is wrong with the results in `arrived`, folders below `root` in the form of a store's entries.

    needed: folders of the prepared data, which predictions are held against.
    """
    case = _Arrived(root, [*arrived, *needed])
    yield from case.broken
    for entry in case.entries:
        if entry.folder in arrived:
            yield from artifacts.sums(case, entry.folder)
            yield from artifacts.artifacts(case, entry)
            yield from _provenance(entry)
            if entry.done:
                yield from records.run(case, entry)


def _provenance(entry: Entry) -> Iterator[Finding]:
    try:
        content = (entry.folder / PROVENANCE).read_bytes()
        if as_json(parse(Provenance, content)) != content:
            raise ValueError("another spelling of the same JSON")
    except (OSError, ValueError) as error:
        yield Finding(entry.at(PROVENANCE), "provenance", str(error), AGAIN)
