"""Reads alerts from Redis: a reference consumer, as a program and as a library.

```python
from stream.subscribe import Subscription

with Subscription("redis://localhost", group="siem") as alerts:
    for alert in alerts:  # acknowledged when the next one is asked for, or on a clean exit
        print(alert["event"]["type"], alert["source"]["id"])
```

Consumers of one group share the messages. One that dies, or whose handler raises, leaves its
message to the others; after `max_deliveries` it goes to the stream `<ns>:<stream>:dlq`. Duplicates,
which producers make after an outage, are skipped: `<ns>:seen:<stream>:<group>:<event id>` names the
entry that is in hand, or says that one was handled.

Neither torch nor any other part of the analysis is imported: a consumer needs redis-py and click.
"""

from __future__ import annotations

import os
import signal
import sys


def _end_at_ctrl_c() -> None:
    """End at once on SIGINT, without an exception.

    A shell's background job, or a parent that shielded its own children, hands SIGINT on ignored.
    An exception would be lost where Python ignores them (a destructor); and there is nothing to
    tidy up: the message in hand comes again.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


if __name__ == "__main__":
    _end_at_ctrl_c()  # before all that takes time

import json
import logging
import math
import socket
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NamedTuple,
    NoReturn,
    Self,
    TypeAlias,
    TypeVar,
)

import click
from redis.exceptions import RedisError, ResponseError

from stream.errors import ConfigError
from stream.publish.redis_client import Node, cluster_hint, read_address, reason, waiting_may_cure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

log = logging.getLogger(__name__)

StreamName: TypeAlias = Literal["alerts", "feeds", "sources", "tracks", "scans"]

_T = TypeVar("_T")

_TIMEOUT_S: Final = 5.0
_BLOCK_S: Final = 2.0  # one wait for the next message; shorter than the timeout
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0
_DLQ_MAXLEN: Final = 10_000
_HANDLED: Final = b"handled"
# How far apart two copies of a message may be, and still be recognised. Alerts are few, and a spool
# may be sent again long after; scores are many, and wait in memory only.
_REMEMBER_S: Final = {
    "alerts": 86_400,
    "feeds": 86_400,
    "sources": 86_400,
    "tracks": 3_600,
    "scans": 86_400,
}


class _Entry(NamedTuple):
    stream: str  # "alerts", ...
    id: bytes
    fields: dict[bytes, bytes]


class Subscription:
    """An endless iterator over the messages of some streams, each as a dict.

    A message is acknowledged when the next one is asked for, or when the `with` block ends without
    an exception; until then it belongs to this consumer, and after `reclaim_s` to whichever asks
    first. While Redis is away, the iterator waits. Messages of one stream come in its order, those
    of several in turn while all have some.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        group: consumers with the same group share the messages; each group gets all of them.
        consumer: name within the group; default: host and process id.
        streams: of `alerts` (verdicts), `feeds` (attacks on a feed), `sources` (lost, regained,
            failed), `tracks` (scores) and `scans` (results of scanned archives).
        from_start: a new group begins with the oldest entry kept, not with the next to come.
        namespace: first part of all keys.
        ca_file: PEM file of the CA that signed the server's certificate.
        reclaim_s: a message held for so long counts as left; more than handling one ever takes.
        max_deliveries: after so many a message is dead.

    Raises:
        ConfigError: the URL is malformed, or Redis refuses us (password, permissions, TLS).
        ValueError: no stream is named, or one twice.
    """

    def __init__(
        self,
        url: str,
        *,
        group: str,
        consumer: str | None = None,
        streams: Sequence[StreamName] = ("alerts", "feeds", "sources"),
        from_start: bool = False,
        namespace: str = "facewarden",
        ca_file: Path | None = None,
        reclaim_s: float = 30.0,
        max_deliveries: int = 5,
    ) -> None:
        if not streams or len(set(streams)) < len(streams):
            raise ValueError(f"streams must be named, each once; got {list(streams)}")
        address = read_address(url, ca_file)
        self._address = address.shown
        self._node = Node(address, name="facewarden-subscribe", timeout_s=_TIMEOUT_S)
        self._namespace = namespace
        self._streams = {self._key(stream): stream for stream in streams}
        self._group = group
        self._consumer = consumer or f"{socket.gethostname()}-{os.getpid()}"
        self._from_start = from_start
        self._reclaim_s = reclaim_s
        self._max_deliveries = max_deliveries
        self._reclaim_at = 0.0  # monotonic seconds
        self._joined = False
        self._current: tuple[_Entry, str] | None = None  # with its event id
        self._next: deque[tuple[_Entry, float]] = deque()  # with the time when they are left

    def __enter__(self) -> Self:
        self._patiently(lambda: None)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None and self._current is not None:
                self._finish(*self._current)
        except RedisError as error:
            log.warning(
                "%s: the last message is not acknowledged and will come again: %s",
                self._address,
                reason(error),
            )
        finally:
            self._node.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        """Acknowledge the previous message and wait for the next."""
        if self._current is not None:
            self._patiently(partial(self._finish, *self._current))
            self._current = None
        while True:
            entry = self._patiently(self._left_behind) or self._patiently(self._new)
            message = None if entry is None else self._patiently(partial(self._open, entry))
            if message is not None:
                return message

    def _patiently(self, work: Callable[[], _T]) -> _T:
        """Do some work on Redis, again and again until it is there and our group exists."""
        wait_s = _FIRST_WAIT_S
        complaint = ""
        while True:
            try:
                if not self._joined:
                    self._join()
                result = work()
            except RedisError as error:
                why = reason(error) + cluster_hint(error, self._namespace)
                if why.startswith("NOGROUP"):
                    log.warning("%s lost group %s: made anew", self._address, self._group)
                    self._joined, self._from_start = False, True
                    continue
                if cluster_hint(error, self._namespace) or not waiting_may_cure(error):
                    raise ConfigError(f"Redis at {self._address} refuses us: {why}") from error
                if self._node.follow(error):
                    continue
                self._node.start_over()
                if why != complaint:
                    log.warning("%s away (%s): waiting", self._address, why)
                    complaint = why
            else:
                self._node.arrived()
                return result
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _join(self) -> None:
        start = "0" if self._from_start else "$"
        for key in self._streams:
            try:
                self._node.client.xgroup_create(key, self._group, start, mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):  # it exists: others read with us
                    raise
        self._joined = True

    def _left_behind(self) -> _Entry | None:
        """Take over one message whose consumer has held it for too long."""
        if time.monotonic() < self._reclaim_at:
            return None
        for stream in self._streams.values():
            entry = self._left_in(stream)
            if entry is not None:
                return entry
        self._reclaim_at = time.monotonic() + self._reclaim_s / 2  # the sweep is complete
        return None

    def _left_in(self, stream: str) -> _Entry | None:
        cursor: bytes | str = "0-0"
        while True:
            cursor, claimed, *_ = self._node.client.xautoclaim(
                self._key(stream),
                self._group,
                self._consumer,
                min_idle_time=round(self._reclaim_s * 1000),
                start_id=cursor,
                count=1,
            )
            for entry_id, fields in claimed:
                entry = _Entry(stream, entry_id, fields)
                if self._deliveries(entry) <= self._max_deliveries:
                    return entry
                self._bury(entry, f"delivered {self._max_deliveries} times, never acknowledged")
            if cursor == b"0-0":
                return None

    def _new(self) -> _Entry | None:
        """Wait a while for a message that nobody has seen."""
        while self._next:
            entry, left_at = self._next.popleft()
            if time.monotonic() < left_at:
                return entry
        block_s = min(_BLOCK_S, max(self._reclaim_at - time.monotonic(), 0.001))
        replies: Any = self._node.client.xreadgroup(
            self._group,
            self._consumer,
            dict.fromkeys(self._streams, ">"),
            count=1,
            block=math.ceil(block_s * 1000),
        )
        # One of each stream: the others' turn is next, if they are still ours by then.
        left_at = time.monotonic() + self._reclaim_s
        for key, entries in replies:
            self._next += [(_Entry(self._streams[key.decode()], *e), left_at) for e in entries]
        return self._next.popleft()[0] if self._next else None

    def _open(self, entry: _Entry) -> dict[str, Any] | None:
        """Make an entry the current one; None if it is a duplicate, or no message."""
        try:
            message: dict[str, Any] = json.loads(entry.fields[b"metadata"])
            event_id = str(message["event"]["id"])
        except (KeyError, TypeError, ValueError):
            self._bury(entry, "not a message")
            return None
        key, remember_s = self._seen_key(entry, event_id), _REMEMBER_S[entry.stream]
        pipe = self._node.client.pipeline(transaction=False)
        pipe.set(key, entry.id, nx=True, ex=remember_s)
        pipe.get(key)
        _, first = pipe.execute()
        if first not in (entry.id, None):  # None: evicted at once, by a server short of memory
            self._node.client.xack(self._key(entry.stream), self._group, entry.id)
            return None
        self._current = (entry, event_id)
        return message

    def _deliveries(self, entry: _Entry) -> int:
        pending: Any = self._node.client.xpending_range(
            self._key(entry.stream), self._group, entry.id, entry.id, 1
        )
        return int(pending[0]["times_delivered"]) if pending else 0

    def _finish(self, entry: _Entry, event_id: str) -> None:
        pipe = self._node.client.pipeline(transaction=False)
        pipe.set(self._seen_key(entry, event_id), _HANDLED, ex=_REMEMBER_S[entry.stream])
        pipe.xack(self._key(entry.stream), self._group, entry.id)
        pipe.execute()

    def _bury(self, entry: _Entry, why: str) -> None:
        """Move an entry to the dead letters, where people may look at it."""
        key = self._key(entry.stream)
        log.warning("%s: entry %s is dead: %s", key, entry.id.decode(), why)
        pipe = self._node.client.pipeline(transaction=False)
        letter: dict[Any, Any] = {**entry.fields, "entry": entry.id, "group": self._group}
        pipe.xadd(f"{key}:dlq", {**letter, "why": why}, maxlen=_DLQ_MAXLEN)
        pipe.xack(key, self._group, entry.id)
        pipe.execute()

    def _key(self, stream: str) -> str:
        return f"{self._namespace}:{stream}"

    def _seen_key(self, entry: _Entry, event_id: str) -> str:
        return f"{self._namespace}:seen:{entry.stream}:{self._group}:{event_id}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--redis", "url", envvar="REDIS_URL", help="redis://, rediss:// or unix:// URL.")
@click.option("--group", default="console", show_default=True, help="Members share the messages.")
@click.option("--consumer", help="Name within the group. [default: host and process id]")
@click.option(
    "--stream",
    "streams",
    type=click.Choice(list(_REMEMBER_S)),
    multiple=True,
    default=("alerts", "feeds", "sources"),
    show_default=True,
    help="Verdicts, attacks on feeds, events of sources, scores, results of scans; repeat.",
)
@click.option("--from-start", is_flag=True, help="A new group begins with the oldest entry kept.")
@click.option("--namespace", default="facewarden", show_default=True, help="First part of keys.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="CA of a rediss:// server.")
def main(
    url: str | None,
    group: str,
    consumer: str | None,
    streams: tuple[StreamName, ...],
    from_start: bool,
    namespace: str,
    ca_file: Path | None,
) -> None:
    """Print messages as JSON lines until Ctrl-C."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    if url is None:
        _refuse(_without_url())
    try:
        with Subscription(
            url,
            group=group,
            consumer=consumer,
            streams=tuple(dict.fromkeys(streams)),
            from_start=from_start,
            namespace=namespace,
            ca_file=ca_file,
        ) as messages:
            for message in messages:
                click.echo(json.dumps(message, ensure_ascii=False))
    except ConfigError as error:
        _refuse(str(error))


def _refuse(why: str) -> NoReturn:
    click.echo(f"error: {why}", err=True)
    sys.exit(2)


def _without_url() -> str:
    from stream.publish.embedded import running_servers

    servers = running_servers()
    now = f"running now: {', '.join(servers)}" if servers else "none is running now"
    return (
        "--redis is missing; run_stream.py logs the address of its embedded server when it starts "
        f"({now})"
    )


def start() -> None:
    """Run the command line: the console script `facewarden-subscribe`."""
    _end_at_ctrl_c()
    main()


if __name__ == "__main__":
    main()
