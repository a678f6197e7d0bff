"""A web server on 127.0.0.1 that serves one file and misbehaves on request.

A fault is a function of the request; each path of the server has a list of them, one per request, the last for good:

    with FaultServer(content) as server:
        url = server.script([cut(1000), good])
"""

from __future__ import annotations

import contextlib
import gzip
import re
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAGE = b"<!DOCTYPE html><html><title>503 Service Unavailable</title><body>Try again later.</body></html>"


class Request:
    """One request: what was asked, what there is, and the raw connection to answer on."""

    def __init__(self, handler: Handler, server: FaultServer) -> None:
        self.handler = handler
        self.server = server
        self.headers: Message = handler.headers
        self.content = server.content
        self.etag = '"one"'
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.start = int(match[1]) if match else None

    def raw(self, data: bytes) -> None:
        self.handler.wfile.write(data)

    def head(self, status: int, **headers: str | int) -> None:
        lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        self.raw(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def body(self, data: bytes) -> None:
        self.server.sent += len(data)
        self.raw(data)

    def answer(self, content: bytes, upto: int | None = None, **headers: str | int) -> None:
        """A correct answer to the request, with `content`; only the first `upto` bytes of its body are sent."""
        condition = self.headers.get("If-Range")
        ranged = self.start is not None and condition in (None, self.etag)
        if ranged and self.start is not None and self.start >= len(content):
            self.head(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
            return
        data = content[self.start :] if ranged else content
        fields: dict[str, str | int] = {"Content_Length": len(data), "ETag": self.etag, "Accept_Ranges": "bytes"}
        if ranged:
            fields["Content_Range"] = f"bytes {self.start}-{len(content) - 1}/{len(content)}"
        self.head(206 if ranged else 200, **{**fields, **headers})
        if self.handler.command != "HEAD":
            self.body(data[:upto])

    def hang(self) -> None:
        """Say nothing more until the server ends."""
        self.server.closing.wait(30)


Fault = Callable[[Request], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        owner: FaultServer = self.server.owner
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client gives up, as it should
            owner.fault(self.path)(Request(self, owner))

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


class FaultServer:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.sent = 0  # bytes of bodies
        self.requests = 0
        self.closing = threading.Event()
        self.scripts: list[list[Fault]] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.owner = self  # type: ignore[attr-defined]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> FaultServer:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def script(self, faults: Sequence[Fault]) -> str:
        """An address that answers with these faults, in turn."""
        self.scripts.append(list(faults))
        return f"http://127.0.0.1:{self.http.server_port}/{len(self.scripts) - 1}/file.bin"

    def fault(self, path: str) -> Fault:
        self.requests += 1
        script = self.scripts[int(path.split("/")[1])]
        return script.pop(0) if len(script) > 1 else script[0]


def good(r: Request) -> None:
    r.answer(r.content)


def cut(count: int) -> Fault:
    return lambda r: r.answer(r.content, upto=count)


def status(code: int, **headers: str | int) -> Fault:
    def fault(r: Request) -> None:
        r.head(code, **{"Content_Length": len(PAGE), "Content_Type": "text/plain", **headers})
        r.body(PAGE)

    return fault


def page(kind: str, length: int | None = None, **headers: str | int) -> Fault:
    """An error page with status 200; padded to `length`."""

    def fault(r: Request) -> None:
        data = PAGE.ljust(length or 0)
        r.head(200, Content_Type=kind, Content_Length=len(data), **headers)
        r.body(data)

    return fault


def zipped(content: bytes | None, kind: str) -> Fault:
    def fault(r: Request) -> None:
        data = gzip.compress(r.content if content is None else content)
        r.head(200, Content_Type=kind, Content_Encoding="gzip", Content_Length=len(data))
        r.body(data)

    return fault


def redirect(place: str | None, code: int = 302) -> Fault:
    """To `place`; `{self}` is the address asked for, `{good}` one that answers well."""

    def fault(r: Request) -> None:
        here = f"http://127.0.0.1:{r.server.http.server_port}{r.handler.path}"
        headers: dict[str, str | int] = {} if place is None else {"Location": place.replace("{self}", here)}
        r.head(code, Content_Length=0, **headers)

    return fault


def flipped(position: int) -> Fault:
    def fault(r: Request) -> None:
        data = bytearray(r.content)
        data[position] ^= 0x10
        r.answer(bytes(data))

    return fault


def drip(r: Request) -> None:
    r.head(200, Content_Length=len(r.content))
    for i in range(len(r.content)):
        r.body(r.content[i : i + 1])
        if r.server.closing.wait(0.05):
            return


def stall(count: int) -> Fault:
    """`count` bytes of the body, then silence; -1: silence before the first header."""

    def fault(r: Request) -> None:
        if count >= 0:
            r.answer(r.content, upto=count)
        r.hang()

    return fault


def as_if(content: Callable[[bytes], bytes], **headers: str | int) -> Fault:
    """A self-consistent answer with another content."""
    return lambda r: r.answer(content(r.content), **headers)


def no_range(upto: int | None = None, **headers: str | int) -> Fault:
    """200 with the whole file, whatever range was asked for."""

    def fault(r: Request) -> None:
        r.head(200, **{"Content_Length": len(r.content), **headers})
        r.body(r.content[:upto])

    return fault


def no_length(content: Callable[[bytes], bytes]) -> Fault:
    """The end of the connection is the end of the body."""

    def fault(r: Request) -> None:
        r.head(200, Connection="close")
        r.body(content(r.content))

    return fault


def etag(value: str, content: Callable[[bytes], bytes] = bytes, upto: int | None = None) -> Fault:
    def fault(r: Request) -> None:
        r.etag = value
        r.answer(content(r.content), upto=upto)

    return fault


def dated(upto: int | None = None) -> Fault:
    """No ETag: the date is the validator."""

    def fault(r: Request) -> None:
        r.etag = "Thu, 01 Jan 2009 00:00:00 GMT"
        data = r.content if r.start is None else r.content[r.start :]
        assert r.headers.get("If-Range") in (None, r.etag)
        more = {} if r.start is None else {"Content_Range": f"bytes {r.start}-{len(r.content) - 1}/{len(r.content)}"}
        r.head(200 if r.start is None else 206, Content_Length=len(data), Last_Modified=r.etag, **more)
        r.body(data[:upto])

    return fault


def partial(content_range: str | None, shift: int = 0, **headers: str | int) -> Fault:
    """206 with a Content-Range of our own ({start}, {last}, {size} are the right ones) and the bytes shifted."""

    def fault(r: Request) -> None:
        start, size = r.start or 0, len(r.content)
        data = r.content[max(0, start + shift) :]
        fields: dict[str, str | int] = {"Content_Length": len(data), "ETag": r.etag}
        if content_range is not None:
            text = content_range.replace("{start}", str(start)).replace("{next}", str(start + 1))
            fields["Content_Range"] = text.replace("{last}", str(size - 1)).replace("{size}", str(size))
        r.head(206, **{**fields, **headers})
        r.body(data)

    return fault


def in_turn(*faults: Fault) -> Fault:
    """One after the other, round and round."""
    return lambda r: faults[r.server.requests % len(faults)](r)


def chunked(upto: int | None = None, ending: bytes = b"0\r\n\r\n") -> Fault:
    def fault(r: Request) -> None:
        r.head(200, Transfer_Encoding="chunked")
        data = r.content[:upto]
        for i in range(0, len(data), 50_000):
            piece = data[i : i + 50_000]
            r.body(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        r.raw(ending)

    return fault


def raw(data: bytes) -> Fault:
    """Bytes on the line, and the end."""
    return lambda r: r.raw(data)


def reset(r: Request) -> None:
    """The connection is reset, not closed."""
    r.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    r.handler.connection.close()
