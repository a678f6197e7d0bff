"""A file from the network: whole, verified and resumable, or not there at all.

Bytes go to `<name>.part` beside the target, with `<name>.part.json` telling whose they are; the target's name appears
by one rename, after size and sha256 were compared. A download that was cut, stalled or killed goes on where it stopped
(Range with If-Range, RFC 9110 section 14), on any of its addresses when a digest vouches for the result.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any, TypeVar

from noscratch.errors import NoscratchError
from noscratch.locks import is_at
from noscratch.sources.unpack import DigestError, DiskFull, disk_errors, verify

CHUNK = 1 << 16
SLACK = 1 << 20  # bytes of disk that must stay free
GAIN = 1 << 16  # an attempt that gets this much further than any before is not counted as failed
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers that another attempt may mend
LONGEST_WAIT = 60.0  # seconds between two attempts


class Unreachable(NoscratchError):  # noqa: N818
    """No address gave the file. brief: what each answered, without the addresses."""

    def __init__(self, name: str, answers: Sequence[tuple[str, str]]) -> None:
        told = "; ".join(f"{url}: {answer}" for url, answer in answers)
        super().__init__(f"{name}: no address gives it ({told}); try again later or use a mirror")
        self.brief = f"no address gives {name} ({'; '.join(answer for _, answer in answers)})"


@dataclass(frozen=True)
class Policy:
    """How patient a download is.

    stall: seconds after which a silent or dripping connection (under `slowest` bytes per second) is given up.
    attempts: failures in a row before the next address is tried. redirects: the most that are followed.
    sleep: how to wait between two attempts (1, 2, 4 ... seconds, or what Retry-After asks for, at most a minute).
    """

    stall: float = 30.0
    slowest: int = 1024
    attempts: int = 5
    redirects: int = 5
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Downloaded:
    """What is here now: the address that finished it ("" where it was here already), size in bytes, sha256."""

    url: str
    bytes: int
    sha256: str


Noted = TypeVar("Noted", str, int)
Watch = Callable[[int, int | None], None]  # called with the bytes that are here and the bytes that there will be


class _Again(Exception):  # noqa: N818
    """This attempt failed; another may not. wait: seconds that the server asked for; keep: is the part still good?"""

    def __init__(self, reason: str, wait: float = 0.0, keep: bool = True) -> None:
        super().__init__(reason)
        self.wait = wait
        self.keep = keep


class _Other(_Again):
    """What came is something else than the listed file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, keep=False)


class _Never(Exception):  # noqa: N818
    """This address will not give the file."""


def download(
    urls: Sequence[str],
    target: Path,
    size: int | None,
    sha256: str | None,
    policy: Policy | None = None,
    watch: Watch | None = None,
) -> Downloaded:
    """Bring the file at the first of `urls` that gives it to `target`; a verified one that is there already is kept.

    size, sha256: what it must be; None where nothing is published (then the server's own length is what counts).
    Raises DigestError where only other content was offered, Unreachable where none was, DiskFull without room.
    """
    policy = policy or Policy()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        if target.exists():
            with contextlib.suppress(DigestError):
                return Downloaded("", *verify(target, size, sha256))
            target.unlink()
        part = _Part(target)
        answers: list[tuple[str, str]] = []
        other: str | None = None
        for url in urls:
            failed = spoiled = 0
            most = part.size
            while failed < policy.attempts and spoiled < 2:
                here = part.size
                expected = size if size is not None else part.noted(url, "bytes", int)
                try:
                    if expected is not None:
                        _need_room(part, expected - here)
                    if expected is None or here != expected:
                        _attempt(url, part, size, sha256, policy, watch)
                    found = _finish(part, target, size, sha256)
                    return Downloaded(url, *found)
                except DiskFull:
                    part.discard()
                    raise
                except _Never as error:
                    answers.append((url, str(error)))
                    break
                except _Again as error:
                    if not error.keep:
                        part.discard()
                    if isinstance(error, _Other):
                        other = str(error)
                        spoiled += 1
                    failed = 0 if part.size >= most + GAIN else failed + 1
                    most = max(most, part.size)
                    if failed == policy.attempts or spoiled == 2:
                        answers.append((url, str(error)))
                    else:
                        policy.sleep(min(LONGEST_WAIT, max(error.wait, 2.0 ** max(0, failed - 1))))
        if other is not None:
            told = "; ".join(f"{url}: {answer}" for url, answer in answers)
            raise DigestError(f"{target.name}: {other}; no address gives the listed file ({told})")
        raise Unreachable(target.name, answers)


def probe(url: str, policy: Policy | None = None) -> int | None:
    """Bytes that an address promises (None: it does not tell), without downloading. Raises Unreachable."""
    name = url.rpartition("/")[2]
    try:
        with contextlib.closing(_open(url, {}, policy or Policy(), "HEAD")) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise _Never("an HTML page instead of the file")
            return _length(answer.headers)
    except (_Again, _Never) as error:
        raise Unreachable(name, [(url, str(error))]) from error


@contextlib.contextmanager
def bar(name: str, shown: bool) -> Iterator[Watch | None]:
    """A progress bar for one download where standard error is a terminal, nothing elsewhere."""
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        row = progress.add_task(name, total=None)
        yield lambda here, total: progress.update(row, completed=here, total=total)


class _Part:
    """The unfinished file and the note beside it: the address and validator of the bytes in it."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def noted(self, url: str, key: str, kind: type[Noted]) -> Noted | None:
        """What the note says; None when the bytes came from another address, or there is no such note."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(note, dict) or note.get("url") != url:
            return None
        value = note.get(key)
        return value if isinstance(value, kind) else None

    def begin(self, url: str, headers: HTTPMessage, total: int | None) -> None:
        """Start from nothing: note whose bytes follow."""
        etag = headers.get("ETag")
        # A weak ETag does not promise equal bytes, so it may not stand in If-Range (RFC 9110, 13.1.5).
        validator = etag if etag is not None and etag.startswith('"') else headers.get("Last-Modified")
        self.discard()
        self.note.write_text(json.dumps({"url": url, "validator": validator, "bytes": total}), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _attempt(url: str, part: _Part, size: int | None, sha256: str | None, policy: Policy, watch: Watch | None) -> None:
    """One request; returns when the part holds every byte that it should."""
    validator = part.noted(url, "validator", str)
    if part.size and (validator is None if sha256 is None else size is not None and part.size > size):
        part.discard()  # nothing would vouch for what is put together
    here = part.size
    headers = {"Range": f"bytes={here}-"} if here else {}
    if here and validator is not None:
        headers["If-Range"] = validator
    with contextlib.closing(_open(url, headers, policy, "GET")) as answer:
        total = _total(answer, here, size)
        if answer.status == http.HTTPStatus.OK:
            here = 0
        if here == 0:
            part.begin(url, answer.headers, total)
            _need_room(part, total or 0)
        _read(answer, part, here, total, policy, watch)


def _total(answer: Any, here: int, size: int | None) -> int | None:
    """Bytes of the whole file by the headers of an answer, after all that they can tell against it. None: not told."""
    headers = answer.headers
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise _Again(f"comes encoded ({encoding}), which was not asked for")
    if headers.get_content_type() == "text/html":
        raise _Again("an HTML page instead of the file")
    if answer.status == http.HTTPStatus.OK:
        total = _length(headers)
        if total is None and size is None:
            raise _Never("tells no length, and none is listed: a cut file could not be told from a whole one")
    elif answer.status == http.HTTPStatus.PARTIAL_CONTENT and here:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None or int(match[1]) != here or (match[3] != "*" and int(match[2]) + 1 != int(match[3])):
            raise _Again(f"gives the range {headers.get('Content-Range')!r}, not from byte {here} on", keep=False)
        total = size if match[3] == "*" else int(match[3])
    else:
        raise _Again(f"answers {answer.status} to a request for the whole file")
    if size is not None and total is not None and total != size:
        raise _Other(f"has {total} bytes, expected {size}")
    return size if size is not None else total


def _read(answer: Any, part: _Part, here: int, total: int | None, policy: Policy, watch: Watch | None) -> None:
    """Append the body to the part, each piece as it comes, so that a kill at any time loses next to nothing."""
    with part.path.open("ab", buffering=0) as file:
        since, mark = time.monotonic(), here
        while True:
            piece = _receive(answer)
            if not piece:
                break
            if here == 0 and piece.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                raise _Again("an HTML page instead of the file", keep=False)
            here += len(piece)
            if total is not None and here > total:
                raise _Other(f"has more than {total} bytes, expected {total}")
            with disk_errors(part.path.name.removesuffix(".part")):
                file.write(piece)
            if watch is not None:
                watch(here, total)
            if time.monotonic() - since > policy.stall:
                if here - mark < policy.slowest * policy.stall:
                    raise _Again(f"too slow: {here - mark} bytes in {policy.stall:g} s")
                since, mark = time.monotonic(), here
        if total is not None and here < total:
            raise _Again(f"cut after {here} of {total} bytes")
        with disk_errors(part.path.name.removesuffix(".part")):
            os.fsync(file.fileno())


def _receive(answer: Any) -> bytes:
    with _network_errors():
        piece: bytes = answer.read1(CHUNK)
        return piece


def _finish(part: _Part, target: Path, size: int | None, sha256: str | None) -> tuple[int, str]:
    """Compare the part with what it must be and give it its name."""
    try:
        found = verify(part.path, size, sha256, target.name)
    except DigestError as error:
        raise _Other(str(error).partition("; ")[0]) from error
    os.replace(part.path, target)
    part.note.unlink(missing_ok=True)
    return found


def _open(url: str, headers: dict[str, str], policy: Policy, method: str) -> Any:
    """The answer to a request, redirects followed: an http.client response of status 200 or 206."""
    opener = urllib.request.build_opener(_Still())
    headers = {"User-Agent": "noscratch", "Accept-Encoding": "identity", **headers}
    for _ in range(policy.redirects + 1):
        if not url.lower().startswith(("http://", "https://")):
            raise _Never(f"only http and https are followed, not {url.partition(':')[0]!r}")
        try:
            with _network_errors():
                answer = opener.open(urllib.request.Request(url, headers=headers, method=method), timeout=policy.stall)  # noqa: S310
        except urllib.error.HTTPError as error:
            with error:
                status, told = error.code, error.headers
        else:
            return answer
        if status in (301, 302, 303, 307, 308):
            place = urllib.parse.urljoin(url, told.get("Location", ""))
            if url.lower().startswith("https:") and place.lower().startswith("http:"):
                raise _Never("redirects from https to http")
            if "Location" not in told:
                raise _Never(f"answers {status} without a place to go to")
            url = place
        elif status in AGAIN:
            wait = told.get("Retry-After", "")
            raise _Again(f"answers {status}", float(wait) if wait.isdecimal() else 0.0)
        elif status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _Again("has fewer bytes than were here already", keep=False)
        else:
            raise _Never(f"answers {status}")
    raise _Never(f"redirects more than {policy.redirects} times")


class _Still(urllib.request.HTTPRedirectHandler):
    """Follows nothing: every step is checked by `_open`."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise _Again(f"no connection ({error.reason})") from error
    except TimeoutError as error:
        raise _Again("stalled") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Again(f"connection broken ({type(error).__name__})") from error


def _length(headers: HTTPMessage) -> int | None:
    told = headers.get("Content-Length", "")
    return int(told) if told.isdecimal() else None


def _need_room(part: _Part, wanted: int) -> None:
    """Ask the disk first: a download that cannot end should not start."""
    free = shutil.disk_usage(part.path.parent).free
    if wanted + SLACK > free:
        name = part.path.name.removesuffix(".part")
        raise DiskFull(f"{name} needs {wanted} more bytes of disk, {free} are free; free some space and run again")


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One download of a target at a time; a second one waits, then finds the file."""
    path = target.with_name(f".{target.name}.lock")
    while True:
        with path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # The one that held it may have removed it meanwhile: then the lock is on a file that nobody else will see.
            if is_at(lock.fileno(), path):
                try:
                    yield
                finally:
                    path.unlink()
                return
