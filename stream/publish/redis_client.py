"""Connections to Redis: what a URL means, our settings, and which errors waiting can cure.

All keys of a namespace are on one node of a Redis Cluster (docs/decisions/0022). A `Node` is a
connection to it: to the address that was given, or to where the cluster sends us from there.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from urllib.parse import SplitResult

log = logging.getLogger(__name__)

_MOST_MOVES: Final = 3  # of one attempt: nodes that disagree may send us in circles


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

    def elsewhere(self, host: str, port: int) -> RedisAddress:
        """Return the address of another node of the same cluster, where we are the same user.

        Args:
            host: empty for the same host.
            port: TCP.
        """
        host = host or self.options.get("host", "localhost")
        options = {**self.options, "host": host, "port": port}
        options.pop("unix_socket_path", None)
        scheme = "rediss" if options.get("ssl") else "redis"
        return RedisAddress(shown=f"{scheme}://{_bracketed(host)}:{port}", options=options)


class Node:
    """A connection to the server that holds our keys; not yet connected.

    Args:
        address: where to begin, and to begin again after `start_over`.
        name: shown by `CLIENT LIST`; without spaces.
        timeout_s: longest wait for a connection, and for a reply.

    Attributes:
        client: to send commands with; another one after `follow` and `start_over`.
    """

    def __init__(self, address: RedisAddress, *, name: str, timeout_s: float) -> None:
        self._address = self._here = address
        self._name = name
        self._timeout_s = timeout_s
        self._moves = 0
        self.client = address.client(name=name, timeout_s=timeout_s)

    def follow(self, error: RedisError) -> bool:
        """Go where a cluster sends us.

        Returns:
            Whether it did, so that the same commands may be sent again at once.
        """
        if not isinstance(error, MovedError) or self._moves == _MOST_MOVES:
            return False
        self._moves += 1
        self._go(self._address.elsewhere(error.host, error.port))
        log.info("the keys are on another node of the cluster: %s", self._here.shown)
        return True

    def arrived(self) -> None:
        """Note that the node took what was sent."""
        self._moves = 0

    def start_over(self) -> None:
        """Go back to the address that was given, over a new connection.

        After a failover its name leads elsewhere, or its node knows who took over; an open
        connection does not.
        """
        self._moves = 0
        self._go(self._address)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def _go(self, address: RedisAddress) -> None:
        self.client.close()
        self._here = address
        self.client = address.client(name=self._name, timeout_s=self._timeout_s)


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
    shown = f"{parts.scheme}://{_bracketed(host)}:{options['port']}" + (
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
    if isinstance(error, AskError):  # redis-py keeps its slot and address only
        text = f"{'MOVED' if isinstance(error, MovedError) else 'ASK'} {text}"
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def waiting_may_cure(error: RedisError) -> bool:
    """Return whether the same command may succeed later, with nobody changing a configuration."""
    if isinstance(error, AuthenticationError | AuthorizationError | InvalidResponse):
        return False
    if isinstance(error, ReadOnlyError | OutOfMemoryError):
        return True
    if isinstance(error, AskError | ClusterDownError | TryAgainError):  # a cluster that changes
        return True
    if isinstance(error, ResponseError):
        # UNBLOCKED: a failover or a deleted key ended a wait for messages.
        return reason(error).startswith(("MISCONF", "NOREPLICAS", "BUSY", "UNBLOCKED"))
    # redis-py hides a failed handshake in a ConnectionError; one cut short may be a restart.
    cause = error.__context__
    return not isinstance(cause, ssl.SSLError) or isinstance(cause, ssl.SSLEOFError)


def cluster_hint(error: RedisError, namespace: str) -> str:
    """Return what to do about an error of a Redis Cluster that another namespace would cure.

    >>> cluster_hint(ClusterCrossSlotError("Keys in request don't hash to the same slot"), "fw")
    "; cluster mode needs a hash tag: --namespace '{fw}'"
    """
    if isinstance(error, AskError | ClusterCrossSlotError) and "{" not in namespace:
        return f"; cluster mode needs a hash tag: --namespace '{{{namespace}}}'"
    return ""


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


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
