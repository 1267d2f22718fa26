"""Files from the network: resumed after a broken connection, whole and checked, or not there."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import requests

from models._files import file_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

TRIES: Final = 5
_PAUSE_S: Final = 1.0  # before the second try; doubled each time
_TIMEOUT_S: Final = (10.0, 60.0)  # to connect, between two pieces
_PIECE: Final = 1 << 14  # bytes; of a broken connection, what has not filled one is lost
_LATER: Final = frozenset({408, 429, 500, 502, 503, 504})  # may be another thing at the next try
_RANGE: Final = re.compile(r"bytes (\d+)-")
_HAND: Final = "fetch it by other means and give the file: --from FILE"


class FetchError(Exception):
    """A file can't be had, is another one than expected, or can't be written."""


class _BrokenOffError(Exception):
    """The connection ended early; another try goes on from there."""


def fetch(
    url: str,
    target: Path,
    *,
    accepted: Collection[str],
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Bring a file to `target` and return its SHA-256, hexadecimal.

    What arrived before a connection broke is kept beside `target` and not asked for again; in
    another run only if the digest is known, for else nothing tells whether it is of the same file.

    Args:
        url: http or https; a user name, a password or a query in it is in no message. Proxies and
            certificates are taken from the environment, as `requests` does.
        target: file; its folder exists.
        accepted: digests, of which the file must have one; empty: any will do.
        sleep: waits some seconds between two tries.

    Raises:
        FetchError: no network, proxy or file there, another digest, or the disk is full.
    """
    part = target.with_name(f".{target.name}.part")
    if not accepted:
        part.unlink(missing_ok=True)
    with requests.Session() as session:
        unchanged: dict[str, str] = {}  # header that asks for the rest of the same file only
        for attempt in range(TRIES):
            if attempt:
                sleep(_PAUSE_S * 2 ** (attempt - 1))
            try:
                _bring(session, url, part, unchanged, known=bool(accepted))
                break
            except _BrokenOffError as error:
                broken = str(error)
        else:
            raise FetchError(_gave_up(url, part, broken, kept=bool(accepted)))
    found = file_sha256(part)
    if accepted and found not in accepted:
        size = part.stat().st_size
        part.unlink()
        raise FetchError(
            f"{shown(url)}: expected sha256 {' or '.join(accepted)}, found {found} ({size} bytes): "
            "the file was changed at its source, or on the way (by a proxy, or a page that asks to "
            f"log in); what came is deleted. Try again, or {_HAND}"
        )
    part.replace(target)
    return found


def is_url(source: str) -> bool:
    """Return whether a source is to be fetched; else it is a path."""
    return source.lower().startswith(("http://", "https://"))


def shown(url: str) -> str:
    """Return an address without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _bring(
    session: requests.Session, url: str, part: Path, unchanged: dict[str, str], *, known: bool
) -> None:
    """Bring what is still missing of a file; `unchanged` is filled by the first answer.

    Raises:
        _BrokenOffError: another try may go on.
        FetchError: another try would be of no use.
    """
    have = part.stat().st_size if part.exists() else 0
    if have and not (known or unchanged):
        have = 0  # nothing would tell a rest of another file
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | unchanged
    with (
        _network_errors_of(url),
        session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer,
    ):
        if answer.status_code == requests.codes.requested_range_not_satisfiable and have:
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return  # it was all there
            part.unlink()
            raise _BrokenOffError(f"what is there ({have} bytes) is no beginning of it")
        if not answer.ok:
            raise _refused(url, answer)
        began = _RANGE.match(answer.headers.get("Content-Range", ""))
        goes_on = answer.status_code == requests.codes.partial_content
        if goes_on and (began is None or int(began[1]) != have):
            part.unlink(missing_ok=True)
            raise _BrokenOffError("it sent another part than was asked for")
        tag = answer.headers.get("ETag", "")
        if tag and not tag.startswith("W/"):  # a weak one does not promise the same bytes
            unchanged["If-Range"] = tag
        pieces = answer.iter_content(_PIECE)
        _write(pieces, part, "ab" if goes_on else "wb")


def _write(pieces: Iterator[bytes], part: Path, mode: str) -> None:
    try:
        file = part.open(mode)
    except OSError as error:
        raise FetchError(f"{part.parent}: can't write there: {error.strerror}") from error
    with contextlib.closing(file):
        for piece in pieces:
            try:
                file.write(piece)
                file.flush()
            except OSError as error:
                raise FetchError(
                    f"{part.parent}: can't write the file: {error.strerror}; make room or choose "
                    f"another folder (--out). {part.name} holds what came"
                ) from error


def _refused(url: str, answer: requests.Response) -> Exception:
    said = f"{answer.status_code} {answer.reason or ''}".strip()
    if answer.status_code in _LATER:
        return _BrokenOffError(f"the server says {said}")
    if answer.status_code in (requests.codes.not_found, requests.codes.gone):
        return FetchError(
            f"{shown(url)}: not there ({said}): its authors may have moved it; {_HAND}"
        )
    return FetchError(f"{shown(url)}: the server refuses it ({said}); {_HAND}")


@contextlib.contextmanager
def _network_errors_of(url: str) -> Iterator[None]:
    """Turn what `requests` raises into our errors."""
    try:
        yield
    except requests.exceptions.ProxyError as error:
        raise FetchError(
            f"{shown(url)}: the proxy does not let it through: {_reason(error)}; HTTPS_PROXY and "
            f"HTTP_PROXY name the proxy, NO_PROXY what goes without. Or {_HAND}"
        ) from error
    except requests.exceptions.SSLError as error:
        raise FetchError(
            f"{shown(url)}: the server's certificate is not trusted: {_reason(error)}; where a "
            "proxy opens connections, REQUESTS_CA_BUNDLE names the file of its certificate"
        ) from error
    except (
        requests.exceptions.ConnectionError,
        requests.exceptions.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ) as error:
        if isinstance(_innermost(error), socket.gaierror):  # waiting will not help
            raise FetchError(
                f"{shown(url)}: the name of the server can't be resolved ({_reason(error)}): check "
                f"the network, and HTTPS_PROXY if it is reached through a proxy; or {_HAND}"
            ) from error
        raise _BrokenOffError(_reason(error)) from error
    except requests.exceptions.RequestException as error:
        raise FetchError(f"{shown(url)}: can't be fetched: {type(error).__name__}") from error


def _innermost(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _reason(error: BaseException) -> str:
    """Return what the innermost cause says: it names no address and no password."""
    cause = _innermost(error)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__


def _gave_up(url: str, part: Path, reason: str, *, kept: bool) -> str:
    size = part.stat().st_size if part.exists() else 0
    what = (
        f"{size} bytes came and are kept in {part}: the same command goes on from there"
        if kept and size
        else "check the network, and HTTPS_PROXY if it is reached through a proxy"
    )
    return f"{shown(url)}: can't be fetched in {TRIES} tries ({reason}); {what}; or {_HAND}"
