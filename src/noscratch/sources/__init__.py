"""Where bytes come from: what can be had (`availability`), and getting it (`fetch`), verified, in one normal layout.

A mirror (a folder, or an http address) stands before the network. A partial form is taken only where the name asks for
it (`cifar10-partial`) and no whole one can be had. What cannot be had is `Blocked`, with its reason; a file that is
there but is not the listed one is an error.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from noscratch.errors import NoscratchError
from noscratch.sources import download, unpack
from noscratch.sources.registry import SOURCES, File, Form, Source

AVAILABLE = "available"
PARTIAL = "-partial"


class Blocked(NoscratchError):  # noqa: N818
    """A source that cannot be had, for a reason that is no mistake."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Fetched:
    """What `fetch` wrote: the label of the form, where its bytes came from, and for each file its size and sha256."""

    form: str
    origin: str
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class _Way:
    """One way to a form: for each of its files the place in a folder, or the addresses to ask in order."""

    form: Form
    origin: str
    places: tuple[Path | tuple[str, ...], ...]


def availability(names: Iterable[str], network: bool, mirror: str | None) -> dict[str, str]:
    """For each source "available" or "blocked: <reason>", from what is on disk alone: no request, no hash.

    network: may addresses be used? mirror: a folder or an http(s) address, or None. The reasons hold no path.
    """
    found = {}
    for name in names:
        try:
            _ways(name, network, mirror)
            found[name] = AVAILABLE
        except Blocked as blocked:
            found[name] = f"blocked: {blocked.reason}"
    return found


def fetch(
    name: str,
    out: Path,
    network: bool,
    mirror: str | None,
    progress: bool,
    cache: Path | None = None,
    digests: Path | None = None,
) -> Fetched:
    """Write the files of a source into the folder `out`: verified, under the names of its form, all or none.

    GLUE tasks end as <split>.tsv; IMDB as its archive. progress: show a bar where a terminal is.
    cache: a folder that keeps downloads between calls, so that a killed one goes on; without it they live in `out` and
    end with the call. digests: the JSON file with the digests of what has no published one: recorded when first seen,
    compared from then on; without it such a source is refused.
    Raises Blocked where it cannot be had, NoscratchError where a file is not the listed one or cannot be written.
    """
    ways = _ways(name, network, mirror)
    out.mkdir(parents=True, exist_ok=True)
    reasons = []
    for way in ways:
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=out) as scratch:
            work = Path(scratch)
            try:
                origins = [
                    _take(file, way.form.label, place, work, cache or work / "cache", digests, progress)
                    for file, place in zip(way.form.files, way.places, strict=True)
                ]
            except download.Unreachable as error:
                reasons.append(error.brief)
                continue
            files = {output: unpack.digest(work / output) for output in way.form.outputs}
            for output in way.form.outputs:
                (work / output).replace(out / output)
        return Fetched(way.form.label, way.origin + "".join(f" {origin}" for origin in origins if origin), files)
    raise Blocked("; ".join(reasons))


def check(name: str) -> dict[str, str]:
    """Ask every address of a source what it holds, without downloading: address -> "ok" or what is wrong."""
    states = {}
    for file in (file for form in _source(name).forms for file in form.files):
        for url in file.urls:
            try:
                size = download.probe(url)
            except download.Unreachable as error:
                states[url] = error.brief
                continue
            wrong = file.bytes is not None and size not in (None, file.bytes)
            states[url] = f"has {size} bytes, not the listed {file.bytes}" if wrong else "ok"
    return states


def locate(name: str, network: bool, mirror: str | None) -> tuple[str, str]:
    """The form that `fetch` would take and where from: (label, "mirror" or "network"). Raises Blocked."""
    way = _ways(name, network, mirror)[0]
    return way.form.label, way.origin


def _source(name: str) -> Source:
    whole = name.removesuffix(PARTIAL)
    if whole not in SOURCES:
        raise NoscratchError(f"unknown source {name!r}; the sources are {', '.join(SOURCES)}")
    return SOURCES[whole]


def _ways(name: str, network: bool, mirror: str | None) -> list[_Way]:
    """Every way to a source, the best first: whole forms before partial ones, the mirror before the network."""
    source = _source(name)
    if source.blocked is not None:
        raise Blocked(source.blocked)
    if mirror is None and not network:
        raise Blocked("not asked for (network off, no mirror)")
    ways: list[_Way] = []
    reasons = []
    if mirror is not None and mirror.lower().startswith(("http://", "https://")):
        for form in source.forms:
            if all(file.mirror and not file.folder for file in form.files):
                urls = [tuple(f"{mirror.rstrip('/')}/{path}" for path in file.mirror) for file in form.files]
                ways.append(_Way(form, "mirror", tuple(urls)))
    elif mirror is not None:
        if not Path(mirror).is_dir():
            raise NoscratchError(
                f"the mirror {mirror} is no folder; NOSCRATCH_MIRROR is a folder or an http(s) address"
            )
        for form in source.forms:
            found = _in_folder(form, Path(mirror))
            if isinstance(found, str):
                reasons.append(found)
            else:
                ways.append(_Way(form, "mirror", found))
    if network:
        urls_of = {form: tuple(file.urls for file in form.files) for form in source.forms}
        ways += [_Way(form, "network", urls) for form, urls in urls_of.items() if all(urls)]
    if not ways:
        reasons = [reason for reason in reasons if reason]
        if mirror is not None and not reasons:
            forms = dict.fromkeys(form.files[0].name for form in source.forms if form.files[0].mirror)
            reasons = [f"the mirror holds none of its forms ({', '.join(forms)})"]
        raise Blocked("; ".join([*reasons[:1], "it has no address" if network else "network off"]))
    whole = [way for way in ways if way.form.label != "partial"]
    if name.endswith(PARTIAL):
        return whole + [way for way in ways if way.form.label == "partial"]
    if not whole:
        raise Blocked(f"only a part of it is at hand ({ways[0].form.note})")
    return whole


def _in_folder(form: Form, mirror: Path) -> tuple[Path, ...] | str:
    """Where the files of a form are below a mirror, or what is wrong with them; "" where there is none of them."""
    places = {file: _place(file, mirror) for file in form.files}
    there = {file: place for file, place in places.items() if place is not None}
    for file, place in there.items():
        found = place.stat().st_size
        if file.bytes not in (None, found):
            return f"the mirror's {place.name} has {found} bytes, not the listed {file.bytes}"
    if len(there) == len(places):
        return tuple(there.values())
    missing = ", ".join(file.name for file in places if file not in there)
    return f"the mirror lacks {missing}" if there else ""


def _place(file: File, mirror: Path) -> Path | None:
    there = Path.is_dir if file.folder else Path.is_file
    return next((mirror / path for path in file.mirror if there(mirror / path)), None)


def _take(
    file: File, label: str, place: Path | tuple[str, ...], work: Path, cache: Path, digests: Path | None, progress: bool
) -> str:
    """Bring the outputs of one file of a form into `work`, verified before it is opened; the address it came from."""
    if file.sha256 is None and digests is None:
        raise NoscratchError(f"{file.name} has no published digest; say where to record the one found (digests)")
    origin = ""
    if isinstance(place, tuple):
        path = cache / (file.sha256[:12] if file.sha256 else "unpublished") / file.name
        with download.bar(file.name, progress) as watch:
            done = download.download(place, path, file.bytes, file.sha256, watch=watch)
        origin, found = done.url, (done.bytes, done.sha256)
    elif file.folder:
        path = work / file.name
        unpack.pack(place, path, file.limits)
        found = unpack.digest(path)
    else:
        path = place
        if not file.members:  # a copy is verified, as the mirror may change; archives are opened where they are
            path = work / file.name
            with unpack.disk_errors(file.name):
                shutil.copyfile(place, path)
        found = unpack.verify(path, file.bytes, file.sha256, f"{place.name} of the mirror")
    if file.sha256 is None and digests is not None:
        _recorded(digests, f"{label}: {file.name}", found)
    if file.members:
        unpack.extract(path, file.members, work, file.limits, "ignore")
    elif path != work / file.name:
        with unpack.disk_errors(file.name):
            shutil.copyfile(path, work / file.name)
    return origin


def _recorded(digests: Path, key: str, found: tuple[int, str]) -> None:
    """Compare a file with what was recorded when it was first seen; record it when this is the first time."""
    digests.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(digests.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # sources are fetched in parallel
        known: dict[str, dict[str, int | str]] = json.loads(digests.read_text("utf-8")) if digests.exists() else {}
        entry: dict[str, int | str] = {"bytes": found[0], "sha256": found[1]}
        if key not in known:
            text = json.dumps({**known, key: entry}, indent=2, sort_keys=True) + "\n"
            unfinished = digests.with_name(f".{digests.name}.unfinished")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(digests)
        elif known[key] != entry:
            raise unpack.DigestError(
                f"{key} has {found[0]} bytes and sha256 {found[1]}, but {known[key]['bytes']} bytes and "
                f"{known[key]['sha256']} were recorded in {digests.name} when it was first used; "
                "it changed since: find out why before removing that entry"
            )
    finally:
        os.close(folder)
