"""How cameras ask for the password, where FFmpeg does not understand them.

FFmpeg answers Basic and Digest with MD5. Of several Digest challenges it takes the last, whatever
its algorithm, and then goes without a password (FFmpeg 8.1, libavformat/httpauth.c). RFC 7616 lets
a camera name several, in any order.
"""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from stream.decode.tls import dial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream.config import SourceConfig

MAX_HEAD_BYTES: Final = 65536
KNOWN: Final = ("MD5", "MD5-sess")  # to FFmpeg, which minds the case
_ASKS: Final = re.compile(rb"(?i)WWW-Authenticate:\s*(.*)")
_NEXT: Final = re.compile(rb"(?i),\s*(?=(?:Digest|Basic)\s+\w+\s*=)")
_ALGORITHM: Final = re.compile(rb'(?i)\balgorithm\s*=\s*"?([^",\s]+)')
_LENGTH: Final = re.compile(rb"(?im)^Content-Length:\s*(\d+)")


def algorithms_of(head: bytes) -> list[str]:
    r"""Return the algorithms of the Digest challenges in an answer, in their order.

    >>> algorithms_of(b'WWW-Authenticate: Digest realm="a", algorithm=SHA-256\r\n')
    ['SHA-256']
    """
    challenges = [c for line in head.split(b"\r\n") for c in _challenges(line)]
    found = [_ALGORITHM.search(c) for c in challenges if c[:6].lower() == b"digest"]
    return [match[1].decode("latin-1") if match else "MD5" for match in found]


def algorithms_asked(source: SourceConfig, context: ssl.SSLContext | None) -> list[str]:
    """Return the algorithms that a server offers when it is asked for a source without a password.

    Raises:
        OSError: no answer.
    """
    parts = urlsplit(source.uri.get_secret_value())
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme.lower() in {"rtsp", "rtsps"}:
        request = f"DESCRIBE {urlunsplit(parts._replace(netloc=host))} RTSP/1.0\r\nCSeq: 1\r\n\r\n"
    else:
        path = urlunsplit(parts._replace(scheme="", netloc="")) or "/"
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    head = b""
    with dial(source, context) as connection:
        connection.sendall(request.encode("utf-8", "surrogateescape"))
        while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
            if not (more := connection.recv(4096)):
                break
            head += more
    return algorithms_of(head.partition(b"\r\n\r\n")[0])


def is_misread(algorithms: list[str]) -> bool:
    """Return whether FFmpeg goes without a password although it could give one."""
    return any(name in KNOWN for name in algorithms) and algorithms[-1] not in KNOWN


@contextmanager
def md5_alone(source: SourceConfig, context: ssl.SSLContext | None) -> Iterator[str]:
    """Stand between FFmpeg and an RTSP camera, and hide the Digest challenges it misreads.

    Yields:
        The URL to open in place of the source's; on this machine, for one connection.
    """
    parts = urlsplit(source.uri.get_secret_value())
    user_info, at, _ = parts.netloc.rpartition("@")
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        camera = sockets.enter_context(dial(source, context))
        camera.setblocking(False)  # TLS may have read, and yet have nothing for us
        thread = threading.Thread(target=_relay, args=(listener, camera), daemon=True)
        thread.start()
        try:
            host = f"127.0.0.1:{listener.getsockname()[1]}"
            yield urlunsplit(parts._replace(scheme="rtsp", netloc=f"{user_info}{at}{host}"))
        finally:
            for end in (listener, camera):
                _hang_up(end)
            thread.join()


def _relay(listener: socket.socket, camera: socket.socket) -> None:
    """Pass on what one viewer and a camera say to each other, until one of them hangs up."""
    answers = Answers()
    try:
        viewer, _ = listener.accept()
        with viewer, selectors.DefaultSelector() as ready:
            ready.register(viewer, selectors.EVENT_READ)
            ready.register(camera, selectors.EVENT_READ)
            while True:
                is_pending = getattr(camera, "pending", int)  # of TLS: read, but not handed out
                ends = [camera] if is_pending() else [key.fileobj for key, _ in ready.select()]
                if camera in ends:
                    with suppress(BlockingIOError, ssl.SSLWantReadError):
                        if not (data := camera.recv(65536)):
                            return
                        viewer.sendall(answers.feed(data))
                if viewer in ends:
                    if not (data := viewer.recv(65536)):
                        return
                    camera.sendall(data)
    except OSError:
        return  # FFmpeg will say that the connection broke
    finally:
        _hang_up(camera)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


class Answers:
    """Takes the Digest challenges that FFmpeg misreads out of what an RTSP server sends."""

    def __init__(self) -> None:
        self._held = b""  # the start of a head
        self._to_pass = 0  # bytes of a body or of an interleaved packet

    def feed(self, data: bytes) -> bytes:
        """Take what was received, and return what to pass on."""
        self._held += data
        passed = []
        while self._held:
            if not self._to_pass:
                if self._held[:1] == b"$":
                    if len(self._held) < 4:
                        break
                    self._to_pass = 4 + int.from_bytes(self._held[2:4], "big")
                else:
                    head, end, rest = self._held.partition(b"\r\n\r\n")
                    if not end and len(self._held) < MAX_HEAD_BYTES:
                        break
                    passed.append(_understood(head) + end)
                    length = _LENGTH.search(head)
                    self._held, self._to_pass = rest, int(length[1]) if length else 0
                    continue
            passed.append(self._held[: self._to_pass])
            self._held, self._to_pass = (
                self._held[self._to_pass :],
                max(self._to_pass - len(self._held), 0),
            )
        return b"".join(passed)


def _challenges(line: bytes) -> list[bytes]:
    """Return the challenges of a header line, none if it is another header."""
    match = _ASKS.match(line)
    return _NEXT.split(match[1]) if match else []


def _understood(head: bytes) -> bytes:
    lines: list[bytes] = []
    for line in head.split(b"\r\n"):
        challenges = [b"WWW-Authenticate: " + challenge for challenge in _challenges(line)]
        lines += challenges or [line]
    return b"\r\n".join(
        line for line in lines if all(name in KNOWN for name in algorithms_of(line))
    )
