"""Downloads against a server that misbehaves: each fault is healed or refused, and never seen under the final name."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

import faultserver as fs
from noscratch.errors import NoscratchError
from noscratch.sources import download as downloads
from noscratch.sources.download import Downloaded, Policy, Unreachable, download, probe
from noscratch.sources.unpack import DigestError, DiskFull

CONTENT = random.Random(7).randbytes(200_000)
DIGEST = sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)
HEALED, OTHER, NONE = "healed", DigestError, Unreachable
GZ_PAGE = b"\x1f\x8b not even a page"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[fs.FaultServer]:
    with fs.FaultServer(CONTENT) as running:
        yield running


def policy(waits: list[float] | None = None, stall: float = 20.0, attempts: int = 3) -> Policy:
    return Policy(stall=stall, attempts=attempts, sleep=(waits if waits is not None else []).append)


def changed(content: bytes) -> bytes:
    return bytes(reversed(content))


# name, the faults of one address in turn (the last one for good), the outcome, words of the message
FAULTS: list[tuple[str, Sequence[fs.Fault], object, str]] = [
    ("no fault", [fs.good], HEALED, ""),
    # cut, empty, longer
    ("cut once", [fs.cut(100_000), fs.good], HEALED, ""),
    ("cut three times", [fs.cut(70_000), fs.cut(50_000), fs.cut(10), fs.good], HEALED, ""),
    ("cut after the headers", [fs.cut(0), fs.good], HEALED, ""),
    ("cut one byte short", [fs.cut(SIZE - 1), fs.good], HEALED, ""),
    ("cut here and there, no ranges", [fs.in_turn(fs.no_range(150_000), fs.no_range(10_000))], NONE, "cut after"),
    ("always cut, no ranges", [fs.no_range(150_000)], NONE, "cut after 150000 of 200000 bytes"),
    ("empty body", [fs.as_if(lambda _: b"")], OTHER, "has 0 bytes, expected 200000"),
    ("empty body without length", [fs.no_length(lambda _: b"")], NONE, "cut after 0 of 200000"),
    ("body without length", [fs.no_length(bytes)], HEALED, ""),
    ("longer body without length", [fs.no_length(lambda c: c + b"x")], OTHER, "more than 200000 bytes"),
    ("shorter file", [fs.as_if(lambda c: c[:-1])], OTHER, "has 199999 bytes, expected 200000"),
    ("longer file", [fs.as_if(lambda c: c + b"x")], OTHER, "has 200001 bytes, expected 200000"),
    ("wrong length, then good", [fs.as_if(lambda c: c[:9]), fs.good], HEALED, ""),
    ("more bytes than told", [lambda r: r.answer(r.content + b"x", Content_Length=SIZE)], HEALED, ""),
    ("length that is no number", [fs.no_range(None, Content_Length="many")], HEALED, ""),
    ("negative length", [fs.no_range(None, Content_Length=-5)], HEALED, ""),
    # another content
    ("page as 200", [fs.page("text/html")], NONE, "an HTML page"),
    ("page as 200, then good", [fs.page("text/html"), fs.good], HEALED, ""),
    ("page of the right length", [fs.page("text/html", SIZE)], NONE, "an HTML page"),
    ("page that says it is a file", [fs.page("application/zip", SIZE)], NONE, "an HTML page"),
    ("page without length", [fs.no_length(lambda _: b"\n <HTML>no such file")], NONE, "an HTML page"),
    ("page compressed", [fs.zipped(fs.PAGE, "text/html")], NONE, "comes encoded .gzip"),
    ("file compressed", [fs.zipped(None, "application/zip")], NONE, "comes encoded .gzip"),
    ("encoding of another name", [fs.no_range(None, Content_Encoding="br")], NONE, "comes encoded .br"),
    ("flip in the middle", [fs.flipped(SIZE // 2)], OTHER, "sha256 [0-9a-f]{64}, expected " + DIGEST),
    ("flip of the first byte", [fs.flipped(0)], OTHER, "sha256"),
    ("flip of the last byte", [fs.flipped(SIZE - 1)], OTHER, "sha256"),
    ("flip once", [fs.flipped(9), fs.good], HEALED, ""),
    ("other content of the same length", [fs.as_if(changed)], OTHER, "sha256"),
    ("zeros of the same length", [fs.as_if(lambda c: bytes(len(c)))], OTHER, "sha256"),
    # resuming
    ("range ignored", [fs.cut(90_000), fs.no_range()], HEALED, ""),
    ("range ignored, cut again", [fs.cut(90_000), fs.no_range(80_000), fs.no_range()], HEALED, ""),
    ("changed ETag, same bytes", [fs.cut(90_000), fs.etag('"two"')], HEALED, ""),
    ("changed ETag, other bytes", [fs.cut(90_000), fs.etag('"two"', changed)], OTHER, "sha256"),
    ("other bytes under the same ETag", [fs.cut(90_000), fs.as_if(changed)], OTHER, "sha256"),
    ("other bytes once under the same ETag", [fs.cut(90_000), fs.as_if(changed), fs.good], HEALED, ""),
    ("weak ETag", [fs.etag('W/"one"', upto=90_000), fs.good], HEALED, ""),
    ("date as validator", [fs.dated(90_000), fs.dated()], HEALED, ""),
    ("range off by one", [fs.cut(90_000), fs.partial("bytes {next}-{last}/{size}", 1), fs.good], HEALED, ""),
    ("range off by one, untold", [fs.cut(90_000), fs.partial("bytes {start}-{last}/{size}", 1), fs.good], HEALED, ""),
    ("range from the start", [fs.cut(90_000), fs.partial("bytes 0-{last}/{size}"), fs.good], HEALED, ""),
    ("range not told", [fs.cut(90_000), fs.partial(None), fs.good], HEALED, ""),
    ("range unreadable", [fs.cut(90_000), fs.partial("bytes all"), fs.good], HEALED, ""),
    ("range of another size", [fs.cut(90_000), fs.partial("bytes {start}-299999/300000"), fs.good], HEALED, ""),
    ("range with an end of its own", [fs.cut(90_000), fs.partial("bytes {start}-95000/{size}"), fs.good], HEALED, ""),
    ("range of unknown size", [fs.cut(90_000), fs.partial("bytes {start}-{last}/*")], HEALED, ""),
    (
        "several ranges",
        [fs.cut(90_000), fs.partial(None, Content_Type="multipart/byteranges; boundary=b"), fs.good],
        HEALED,
        "",
    ),
    ("range that nobody asked for", [fs.partial("bytes 0-{last}/{size}")], NONE, "answers 206"),
    ("416 to a good range", [fs.cut(90_000), fs.status(416), fs.good], HEALED, ""),
    # redirects
    ("redirect to itself", [fs.redirect("{self}")], NONE, "redirects more than 5 times"),
    ("redirect, then good", [fs.redirect("{self}", 307), fs.good], HEALED, ""),
    ("five redirects", [*[fs.redirect("{self}", 301)] * 5, fs.good], HEALED, ""),
    ("six redirects", [*[fs.redirect("{self}", 308)] * 6, fs.good], NONE, "redirects more than"),
    ("redirect by a relative address", [fs.redirect("file.bin", 303), fs.good], HEALED, ""),
    ("redirect to a file", [fs.redirect("file:///etc/hosts")], NONE, "only http and https .* 'file'"),
    ("redirect to ftp", [fs.redirect("ftp://127.0.0.1/x")], NONE, "only http and https"),
    ("redirect to nowhere", [fs.redirect(None)], NONE, "without a place"),
    ("redirect to a host that is none", [fs.redirect("http://127.0.0.1:1/x")], NONE, "no connection"),
    # answers
    ("400", [fs.status(400)], NONE, "answers 400"),
    ("401", [fs.status(401)], NONE, "answers 401"),
    ("403", [fs.status(403)], NONE, "answers 403"),
    ("404", [fs.status(404)], NONE, "answers 404"),
    ("404 as a page", [fs.status(404, Content_Type="text/html")], NONE, "answers 404"),
    ("410", [fs.status(410)], NONE, "answers 410"),
    ("451", [fs.status(451)], NONE, "answers 451"),
    ("204", [fs.raw(b"HTTP/1.1 204 No Content\r\n\r\n")], NONE, "answers 204"),
    ("304", [fs.raw(b"HTTP/1.1 304 Not Modified\r\n\r\n")], NONE, "answers 304"),
    ("500 then good", [fs.status(500), fs.good], HEALED, ""),
    ("503 twice then good", [fs.status(503), fs.status(503), fs.good], HEALED, ""),
    ("503 in the middle", [fs.cut(90_000), fs.status(503), fs.good], HEALED, ""),
    ("429 then good", [fs.status(429, Retry_After=3), fs.good], HEALED, ""),
    ("408 then good", [fs.status(408), fs.good], HEALED, ""),
    ("502 for good", [fs.status(502)], NONE, "answers 502"),
    # connections
    ("closed before the status", [fs.raw(b"")], NONE, "connection broken"),
    ("closed once", [fs.raw(b""), fs.good], HEALED, ""),
    ("closed within the headers", [fs.raw(b"HTTP/1.1 200 OK\r\nContent-Le")], NONE, "cut|no length|broken"),
    ("reset", [fs.reset], NONE, "connection broken|no connection"),
    ("reset once", [fs.reset, fs.good], HEALED, ""),
    ("no HTTP at all", [fs.raw(b"SSH-2.0-OpenSSH_9.9\r\n")], NONE, "connection broken"),
    ("status that is none", [fs.raw(b"HTTP/1.1 abc OK\r\n\r\n")], NONE, "connection broken"),
    ("endless header", [fs.raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000)], NONE, "connection broken"),
    ("too many headers", [fs.raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n")], NONE, "connection broken"),
    ("chunked", [fs.chunked()], HEALED, ""),
    ("chunked, cut", [fs.chunked(100_000, b""), fs.good], HEALED, ""),
    ("chunked, wrong size", [fs.chunked(100_000, b"zz\r\n"), fs.good], HEALED, ""),
    ("chunked, ends early", [fs.chunked(100_000), fs.good], HEALED, ""),
    ("stalled before the status", [fs.stall(-1), fs.good], HEALED, ""),
    ("stalled after the headers", [fs.stall(0), fs.good], HEALED, ""),
    ("stalled in the body", [fs.stall(120_000), fs.good], HEALED, ""),
    ("stalled for good", [fs.stall(10)], NONE, "stalled"),
    ("slow drip", [fs.drip, fs.good], HEALED, ""),
    ("slow drip for good", [fs.drip], NONE, "too slow|cut|stalled"),
]


@pytest.mark.proves("faults")
@pytest.mark.parametrize(
    ("faults", "outcome", "words"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS]
)
def test_fault_is_healed_or_refused(
    faults: Sequence[fs.Fault], outcome: object, words: str, server: fs.FaultServer, tmp_path: Path
) -> None:
    target = tmp_path / "file.bin"
    waits: list[float] = []
    slow = any(fault is fs.drip or "stall" in getattr(fault, "__qualname__", "") for fault in faults)
    url = server.script(faults)
    patience = policy(waits, stall=1.0 if slow else 20.0, attempts=2 if slow else 3)
    if outcome is HEALED:
        done = download([url], target, SIZE, DIGEST, patience)
        assert done == Downloaded(url, SIZE, DIGEST)
        assert target.read_bytes() == CONTENT
        assert list(tmp_path.iterdir()) == [target]
    else:
        assert isinstance(outcome, type)
        with pytest.raises(outcome, match=words):
            download([url], target, SIZE, DIGEST, patience)
        assert not target.exists()
        assert {path.name for path in tmp_path.iterdir()} <= {"file.bin.part", "file.bin.part.json"}
        # What is left is at most a true beginning, or a later call would start from rubbish.
        if (tmp_path / "file.bin.part").exists():
            assert CONTENT.startswith((tmp_path / "file.bin.part").read_bytes())


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 50
    assert len({case[0] for case in FAULTS}) == len(FAULTS)


def test_thirty_cuts_cost_next_to_nothing(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(6_000_000)
    rng = random.Random(2)
    with fs.FaultServer(content) as server:
        url = server.script([*[fs.cut(rng.randrange(70_000, 250_000)) for _ in range(30)], fs.good])
        download([url], tmp_path / "f", len(content), sha256(content).hexdigest(), policy())
        assert server.requests == 31
        assert server.sent <= 1.1 * len(content)


def test_thirty_kills_cost_at_most_a_tenth(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(6_000_000)
    digest = sha256(content).hexdigest()
    rng = random.Random(4)
    received = 0

    class Killed(BaseException):
        pass

    def killer(limit: int) -> Callable[[int, int | None], None]:
        last: list[int] = []

        def watch(here: int, total: int | None) -> None:
            nonlocal received
            received += here - (last[-1] if last else start)
            last.append(here)
            if here >= limit:
                raise Killed

        return watch

    with fs.FaultServer(content) as server:
        url = server.script([fs.good])
        for limit in sorted(rng.randrange(len(content)) for _ in range(30)):
            part = tmp_path / "f.part"
            start = part.stat().st_size if part.exists() else 0
            with pytest.raises(Killed):
                download([url], tmp_path / "f", len(content), digest, policy(), killer(limit))
            assert not (tmp_path / "f").exists()
        start = (tmp_path / "f.part").stat().st_size
        download([url], tmp_path / "f", len(content), digest, policy(), killer(10 * len(content)))
    assert (tmp_path / "f").read_bytes() == content
    assert received <= 1.1 * len(content)


@pytest.mark.proves("kills")
def test_killed_process_goes_on_where_it_was(server: fs.FaultServer, tmp_path: Path) -> None:
    url = server.script([fs.stall(120_000), fs.good])
    code = (
        "import sys; from pathlib import Path; from noscratch.sources.download import download;"
        f"download([sys.argv[1]], Path(sys.argv[2]), {SIZE}, {DIGEST!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path / "f")])
    part = tmp_path / "f.part"
    waiting = threading.Event()
    while not (part.exists() and part.stat().st_size == 120_000):
        assert child.poll() is None
        waiting.wait(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "f").exists()
    server.sent = 0
    download([url], tmp_path / "f", SIZE, DIGEST, policy())
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.sent == SIZE - 120_000


def test_addresses_are_tried_in_order(server: fs.FaultServer, tmp_path: Path) -> None:
    urls = [server.script([fault]) for fault in (fs.status(404), fs.flipped(5), fs.good, fs.status(500))]
    done = download(urls, tmp_path / "f", SIZE, DIGEST, policy())
    assert done.url == urls[2]


def test_another_address_goes_on_with_the_same_part(server: fs.FaultServer, tmp_path: Path) -> None:
    urls = [server.script([fs.cut(150_000), fs.status(404)]), server.script([fs.good])]
    assert download(urls, tmp_path / "f", SIZE, DIGEST, policy()).url == urls[1]
    assert server.sent < SIZE + 1000


@pytest.mark.parametrize(
    ("part", "note"),
    [
        (CONTENT[:99_000], None),
        (CONTENT[:99_000], "{not json"),
        (CONTENT[:99_000], '["a list"]'),
        (b"\x00" * 99_000, '{"url": "http://elsewhere/"}'),
        (CONTENT + b"more", None),
        (CONTENT, None),
        (changed(CONTENT), None),
        (b"", "{}"),
    ],
    ids=["no note", "broken note", "note of another kind", "rubbish", "too long", "whole", "whole rubbish", "empty"],
)
def test_what_an_earlier_run_left_is_used_or_thrown_away(
    part: bytes, note: str | None, server: fs.FaultServer, tmp_path: Path
) -> None:
    (tmp_path / "f.part").write_bytes(part)
    if note is not None:
        (tmp_path / "f.part.json").write_text(note)
    download([server.script([fs.good])], tmp_path / "f", SIZE, DIGEST, policy())
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert {path.name for path in tmp_path.iterdir()} == {"f"}
    if part == CONTENT:
        assert server.requests == 0


def test_verified_file_is_not_asked_for_again(server: fs.FaultServer, tmp_path: Path) -> None:
    url = server.script([fs.good])
    for data in (CONTENT, b"spoiled since"):
        (tmp_path / "f").write_bytes(data)
        assert download([url], tmp_path / "f", SIZE, DIGEST, policy()).sha256 == DIGEST
    assert server.requests == 1


def test_waits_double_and_honour_the_server(server: fs.FaultServer, tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(Unreachable):
        download([server.script([fs.status(500)])], tmp_path / "f", SIZE, DIGEST, policy(waits, attempts=5))
    assert waits == [1, 2, 4, 8]
    waits.clear()
    script = [
        fs.status(503, Retry_After=30),
        fs.status(429, Retry_After=9999),
        fs.status(503, Retry_After="soon"),
        fs.good,
    ]
    download([server.script(script)], tmp_path / "f", SIZE, DIGEST, policy(waits, attempts=5))
    assert waits == [30, 60, 4]


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://127.0.0.1/f", "data:,x", "/etc/hosts", ""])
def test_only_http_is_spoken(url: str, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="only http and https"):
        download([url], tmp_path / "f", SIZE, DIGEST, policy())
    assert not list(tmp_path.iterdir())


def test_https_never_falls_back_to_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Opener:
        def open(self, request: urllib.request.Request, timeout: float) -> None:
            headers = fs.Message()
            headers["Location"] = "http://127.0.0.1/f"
            raise urllib.request.HTTPError(request.full_url, 302, "Found", headers, None)  # type: ignore[attr-defined,arg-type]

    monkeypatch.setattr(urllib.request, "build_opener", lambda *_: Opener())
    with pytest.raises(Unreachable, match="from https to http"):
        download(["https://127.0.0.1/f"], tmp_path / "f", SIZE, DIGEST, policy())


def test_port_that_nobody_listens_on(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/f"
        with pytest.raises(Unreachable, match="no connection"):
            download([url], tmp_path / "f", SIZE, DIGEST, policy())


def test_without_a_digest_only_the_same_address_and_validator_go_on(server: fs.FaultServer, tmp_path: Path) -> None:
    # A part from another address is not trusted: nothing would vouch for the two halves together.
    urls = [server.script([fs.cut(150_000), fs.status(404)]), server.script([fs.good])]
    assert download(urls, tmp_path / "f", None, None, policy()) == Downloaded(urls[1], SIZE, DIGEST)
    assert server.sent >= SIZE + 150_000
    server.sent = 0
    url = server.script([fs.cut(150_000), fs.good])
    assert download([url], tmp_path / "g", None, None, policy()).sha256 == DIGEST
    assert server.sent == SIZE
    url = server.script([fs.cut(150_000), fs.etag('"two"', changed)])
    assert download([url], tmp_path / "h", None, None, policy()).sha256 == sha256(changed(CONTENT)).hexdigest()


def test_without_digest_and_length_nothing_is_taken(server: fs.FaultServer, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="tells no length"):
        download([server.script([fs.no_length(bytes)])], tmp_path / "f", None, None, policy())
    assert not (tmp_path / "f").exists()


def test_finished_part_without_digest_is_not_asked_for_again(server: fs.FaultServer, tmp_path: Path) -> None:
    url = server.script([fs.good])
    (tmp_path / "f.part").write_bytes(CONTENT)
    (tmp_path / "f.part.json").write_text(json.dumps({"url": url, "validator": '"one"', "bytes": SIZE}))
    assert download([url], tmp_path / "f", None, None, policy()).sha256 == DIGEST
    assert server.requests == 0


def test_disk_is_asked_before_the_server(
    server: fs.FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: SimpleNamespace(free=SIZE))
    with pytest.raises(DiskFull, match=r"f needs 200000 more bytes of disk, 200000 are free; free some space"):
        download([server.script([fs.good])], tmp_path / "f", SIZE, DIGEST, policy())
    assert server.requests == 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(DiskFull, match="needs 200000 more"):
        download([server.script([fs.good])], tmp_path / "f", None, None, policy())
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_nothing(server: fs.FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(downloads.os, "fsync", full)
    with pytest.raises(DiskFull, match="f: the disk is full"):
        download([server.script([fs.good])], tmp_path / "f", SIZE, DIGEST, policy())
    assert not list(tmp_path.iterdir())


def test_two_downloads_of_one_file_ask_once(server: fs.FaultServer, tmp_path: Path) -> None:
    url = server.script([fs.good])
    done: list[Downloaded] = []
    threads = [
        threading.Thread(target=lambda: done.append(download([url], tmp_path / "f", SIZE, DIGEST, policy())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.sha256 for one in done] == [DIGEST] * 4
    assert server.requests == 1
    assert {path.name for path in tmp_path.iterdir()} == {"f"}


def test_probe_reads_no_body(server: fs.FaultServer) -> None:
    assert probe(server.script([fs.good]), policy()) == SIZE
    assert server.sent == 0
    with pytest.raises(Unreachable, match="an HTML page"):
        probe(server.script([lambda r: r.head(200, Content_Type="text/html", Content_Length=0)]), policy())
    with pytest.raises(Unreachable, match="answers 403"):
        probe(server.script([lambda r: r.head(403, Content_Length=0)]), policy())


def test_errors_are_the_users(server: fs.FaultServer) -> None:
    assert all(issubclass(error, NoscratchError) for error in (Unreachable, DigestError, DiskFull))


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with downloads.bar("CoLA.zip", True) as watch:
        assert watch is not None
        watch(5, 10)
    assert "CoLA.zip" in terminal.getvalue()
    assert "5/10 bytes" in terminal.getvalue()
    with downloads.bar("CoLA.zip", False) as watch:
        assert watch is None


def test_bar_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with downloads.bar("f", True) as watch:
        assert watch is None
    assert capsys.readouterr() == ("", "")
