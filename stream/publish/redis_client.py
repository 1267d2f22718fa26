"""Connections to Redis: what a URL means, our settings, and which errors waiting can cure."""

from __future__ import annotations

import ipaddress
import logging
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    InvalidResponse,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from urllib.parse import SplitResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Where a Redis is, and who we are there."""

    shown: str  # for people: without user and password
    options: Mapping[str, Any] = field(repr=False)

    def client(self, *, name: str, timeout_s: float) -> Redis:
        """Return a client that is not yet connected.

        Args:
            name: shown by `CLIENT LIST`; without spaces.
            timeout_s: longest wait for a connection, and for a reply.
        """
        return Redis(
            **self.options,
            client_name=name,
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_keepalive=True,
            # Only the callers know what may be sent twice, and how long they can wait.
            retry=Retry(NoBackoff(), 0),
            # Nothing of RESP3 is used, and every server since Redis 5 speaks RESP2. No CLIENT
            # SETINFO either: it would need a permission that Redis 7.0 does not know.
            protocol=2,
            driver_info=None,
        )


def read_address(url: str, ca_file: Path | None = None) -> RedisAddress:
    """Read a Redis URL; warns when it would send messages over a network in the clear.

    Args:
        url: `redis[s]://[user[:password]@]host[:port][/db]` or `unix://[user[:password]@]/path[?db=n]`,
            with `@ / ? # % :` of the user and password percent-encoded.
        ca_file: PEM file of the CA that signed the server's certificate; default: the system's CAs.

    Raises:
        ConfigError: not such a URL, or no such file. The message repeats no part of the URL but its
            scheme: in a malformed one, a piece of the password may be anywhere.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        _refuse("it can't be taken apart")
    if parts.scheme not in ("redis", "rediss", "unix"):
        _refuse("its scheme is another")
    if parts.fragment or "#" in url:
        _refuse("it holds a #")
    if query.keys() - ({"db"} if parts.scheme == "unix" else set()):
        _refuse("it holds options this program does not know")
    options: dict[str, Any] = {
        "username": None if parts.username is None else unquote(parts.username) or None,
        "password": None if parts.password is None else unquote(parts.password) or None,
    }
    if parts.scheme == "unix":
        return _unix_address(parts, query.get("db", ["0"])[0], options, ca_file)
    if not parts.hostname:
        _refuse("it names no host")
    host = unquote(parts.hostname)
    database = _database(parts.path.removeprefix("/") or "0")
    options |= {"host": host, "port": port or 6379, "db": database}
    shown_host = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{shown_host}:{options['port']}" + (
        f"/{database}" if database else ""
    )
    if parts.scheme == "rediss":
        if ca_file is not None and not ca_file.is_file():
            raise ConfigError(f"ca_file {ca_file}: no such file; expected the CA as PEM")
        options |= {"ssl": True, "ssl_ca_certs": None if ca_file is None else str(ca_file)}
    elif ca_file is not None:
        raise ConfigError(f"ca_file is for rediss://, and the Redis URL is {shown}")
    elif not _is_loopback(host):
        log.warning(
            "%s without TLS: messages and password can be read on the way; use rediss://", shown
        )
    return RedisAddress(shown=shown, options=options)


def reason(error: RedisError) -> str:
    """Return one line that says what went wrong, and does not repeat the command."""
    _, _, text = str(error).rpartition(" of pipeline caused error: ")
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def waiting_may_cure(error: RedisError) -> bool:
    """Return whether the same command may succeed later, with nobody changing a configuration."""
    if isinstance(error, AuthenticationError | AuthorizationError | InvalidResponse):
        return False
    if isinstance(error, ReadOnlyError | OutOfMemoryError | ClusterDownError):
        return True
    if isinstance(error, ResponseError):
        return reason(error).startswith(("MISCONF", "NOREPLICAS", "BUSY"))
    # redis-py hides a failed handshake in a ConnectionError; one cut short may be a restart.
    cause = error.__context__
    return not isinstance(cause, ssl.SSLError) or isinstance(cause, ssl.SSLEOFError)


def _unix_address(
    parts: SplitResult, database: str, options: dict[str, Any], ca_file: Path | None
) -> RedisAddress:
    if parts.hostname or not parts.path:
        _refuse("its path must start with a third slash, as in unix:///run/redis.sock")
    if "@" in parts.path:
        _refuse("its path holds an @, which may be the end of a password; write %40 in a path")
    if ca_file is not None:
        raise ConfigError("ca_file is for rediss://, and the Redis URL is unix://")
    path = unquote(parts.path)
    return RedisAddress(
        shown=f"unix://{path}",
        options={**options, "unix_socket_path": path, "db": _database(database)},
    )


def _database(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        _refuse("its database is no number")
    return int(text)


def _refuse(why: str) -> NoReturn:
    raise ConfigError(
        f"not a Redis URL: {why}; expected redis[s]://[user:password@]host[:port][/db] or "
        "unix:///path, with @ / ? # % : of the password percent-encoded"
    ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
