"""Messages to Redis: streams for what happened, hashes for how it is, a channel for who listens.

docs/messages.md is the contract.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ExecAbortError, NoPermissionError, RedisError

from stream.errors import ConfigError, SinkError
from stream.messages import SCHEMA, Lane, StatusMessage
from stream.publish.backlog import LIVE, Backlog, counted
from stream.publish.embedded import EmbeddedServer
from stream.publish.redis_client import Node, cluster_hint, read_address, reason, waiting_may_cure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from redis.client import Pipeline

    from stream.config import RedisSinkConfig
    from stream.messages import OutMessage

log = logging.getLogger(__name__)

_CHUNK: Final = 500  # messages in one pipeline: about half a megabyte
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0
_ON_CHANNEL: Final = (Lane.ALERTS, Lane.FEEDS, Lane.SOURCES)


class RedisSink:
    """Delivers every message at least once, if Redis is up or comes back within the limits.

    Args:
        config: of this sink.
        run: of the producer; names the connection.
        heartbeat_s: longest time between two statuses of a source; its hash expires after three.
        source_ids: whose statuses will be sent; their keys are looked at.
        lanes: kinds of messages that will be sent, without statuses.
        clock: monotonic seconds.

    Attributes:
        address: where to read, without credentials; the embedded server's, if no URL was given.
        backlog: what waits, and counts what was lost.
        sent: entries of the streams that Redis acknowledged, by kind.
        outages: times that Redis went away.

    Raises:
        ConfigError: the URL or the spool can't be used, or Redis refuses us for a reason that
            waiting can't cure: password, permissions, TLS, a key of another type, a cluster that
            would spread our keys. A Redis that is not there is an outage instead: messages wait
            from the start.
    """

    def __init__(
        self,
        config: RedisSinkConfig,
        *,
        run: str,
        heartbeat_s: float,
        source_ids: Sequence[str] = (),
        lanes: Sequence[Lane] = LIVE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sent = Counter(dict.fromkeys(lanes, 0))
        self._lanes = lanes
        self.outages = 0
        self._config = config
        self._maxlens = {
            Lane.ALERTS: config.alerts_maxlen,
            Lane.FEEDS: config.feeds_maxlen,
            Lane.SOURCES: config.sources_maxlen,
            Lane.SCANS: config.scans_maxlen,
            Lane.TRACKS: config.tracks_maxlen,
        }
        self._clock = clock
        self._status_ttl_s = math.ceil(3 * heartbeat_s)
        self._statuses: dict[str, Mapping[str, str]] = {}  # by source, the latest not yet sent
        self._away_since: float | None = None
        self._retry_at = -math.inf
        self._wait_s = _FIRST_WAIT_S
        self._reason = ""
        self._channel_complaint = ""
        self._gave_up = self._closed = False
        with contextlib.ExitStack() as resources:
            if config.url is None:
                server = resources.enter_context(contextlib.closing(EmbeddedServer()))
                url = server.url
            else:
                url = config.url.get_secret_value()
            address = read_address(url, config.ca_file)
            self.address = address.shown
            self._node = Node(address, name=f"facewarden-{run}", timeout_s=config.timeout_s)
            resources.callback(self._node.close)
            spooled = {
                Lane.ALERTS: config.spool_alerts,
                Lane.FEEDS: config.spool_feeds,
                Lane.SOURCES: config.spool_sources,
                Lane.SCANS: config.spool_scans,
            }
            self.backlog = Backlog(
                config.spool,
                spool_limits={lane: n for lane, n in spooled.items() if lane in lanes},
                memory_limit=config.queue_messages,
                lanes=lanes,
            )
            resources.callback(self.backlog.close)
            self._rehearse(source_ids)
            self._resources = resources.pop_all()
        log.info("messages go to %s, keys %s:*", self.address, config.namespace)
        if config.spool is None:
            _warn_without_temporary_folder()
        if self.backlog:
            log.warning("%s: %d messages of an earlier run wait", config.spool, len(self.backlog))
            self.publish([])

    @property
    def is_away(self) -> bool:
        """Whether the latest attempt to reach Redis failed."""
        return self._away_since is not None

    def publish(self, messages: Sequence[OutMessage]) -> None:
        """Deliver the messages of one step, or keep them for later.

        While Redis is away, at most a fifth of the time goes into attempts to reach it. An empty
        list is such an attempt, if one is due.

        Raises:
            SinkError: Redis has been away for longer than `outage_limit_s`.
        """
        for message in messages:
            if isinstance(message, StatusMessage):
                self._statuses[message.source.id] = message.hash_fields()
            else:
                self.backlog.add(message.lane, message.to_json())
        if self._away_since is not None:
            self.backlog.keep()
        if self._clock() >= self._retry_at:
            self._deliver()
        if self._away_s() > self._config.outage_limit_s:
            self._gave_up = True
            raise SinkError(self._account())

    def close(self) -> None:
        """Try once more to deliver what waits; release connection, spool and embedded server.

        A second call does nothing.

        Raises:
            SinkError: alerts or scores remain undelivered, and `publish` has not said so already.
        """
        if self._closed:
            return
        self._closed = True
        with self._resources:
            self._deliver()
            if not self.backlog:
                return
            self.backlog.abandon()
            account = self._account()
        log.warning("%s", account)
        if not self._gave_up:
            raise SinkError(account)

    def _rehearse(self, source_ids: Sequence[str]) -> None:
        """Let Redis check every command we are going to send, run none, and look at our keys."""
        started = self._clock()
        expected = {self._key(lane): "stream" for lane in self._lanes}
        if self._is_live:
            expected |= {self._status_key(id_): "hash" for id_ in ("none", *source_ids)}
        error = self._try_commands(expected)
        while error is not None and not self._hint(error) and self._node.follow(error):
            error = self._try_commands(expected)
        if error is None:
            return
        if self._hint(error) or not waiting_may_cure(error):
            denied = isinstance(error, NoPermissionError | ExecAbortError)
            hint = "; see docs/messages.md" if denied else self._hint(error)
            raise ConfigError(f"Redis at {self.address} refuses us: {reason(error)}{hint}")
        self._leave(error, started)

    @property
    def _is_live(self) -> bool:
        return Lane.ALERTS in self._lanes  # then statuses and the channel are used, too

    def _try_commands(self, expected: Mapping[str, str]) -> RedisError | None:
        """Rehearse on the present node, and return what failed first.

        Args:
            expected: type by key.

        Raises:
            ConfigError: a key is there already and of another type.
        """
        pipe = self._node.client.pipeline(transaction=False)
        _raw(pipe, "MULTI")  # what follows is checked and queued...
        self._add_messages(pipe, {lane: ["{}"] for lane in self._lanes})
        if self._is_live:
            self._add_status(pipe, "none", {"schema": SCHEMA})
            pipe.publish(self._key(Lane.ALERTS), "{}")
        _raw(pipe, "DISCARD")  # ...and thrown away
        _raw(pipe, "MULTI")  # a cluster runs a transaction only if one node holds all its keys
        for key in expected:
            pipe.type(key)
        _raw(pipe, "EXEC")
        replies = _execute(pipe)
        types = replies[-1] if isinstance(replies[-1], list) else []
        for (key, wanted), there in zip(expected.items(), types, strict=False):
            if there not in (b"none", wanted.encode()):
                raise ConfigError(
                    f"Redis at {self.address} holds a {there.decode()} under {key}; expected a "
                    f"{wanted} or nothing: remove it, or use another --namespace"
                )
        return _first_error(replies)

    def _deliver(self) -> None:
        """Send what waits, alerts first, until all is sent or Redis fails."""
        if not (self.backlog or self._statuses):
            return  # with nothing to send, nothing is learnt of Redis
        before = self.sent.copy()
        while self.backlog or self._statuses:
            started = self._clock()
            error = self._send(self.backlog.head(_CHUNK))
            if error is None:
                self._node.arrived()
            elif not self._node.follow(error):
                self._leave(error, started)
                return
        if self._away_since is not None:
            log.warning(
                "%s back after %.1f s: delivered %s that waited; in all, %s",
                self.address,
                self._away_s(),
                counted({lane: n - before[lane] for lane, n in self.sent.items()}),
                self.backlog.account(),
            )
            self._away_since = None
            self._retry_at = -math.inf

    def _send(self, batch: Mapping[Lane, Sequence[str]]) -> RedisError | None:
        """Send one pipeline, forget what Redis acknowledged, and return what failed first.

        Each message is a command by itself, not a part of a transaction: some servers lose
        transactions when they restart (docs/decisions/0021). If a message is refused, those after
        it are sent again, as when the reply is lost.

        Args:
            batch: messages by kind; none of a kind must stand behind another of them.
        """
        pipe = self._node.client.pipeline(transaction=False)
        self._add_messages(pipe, batch)
        if self._statuses:
            _raw(pipe, "MULTI")  # a status without an expiry would outlive us
            for source_id, fields in self._statuses.items():
                self._add_status(pipe, source_id, fields)
            _raw(pipe, "EXEC")
        written = len(pipe)
        for lane in _ON_CHANNEL:
            for message in batch.get(lane, ()):
                pipe.publish(self._key(Lane.ALERTS), message)
        replies = _execute(pipe)
        error = self._settle(batch, replies[:written])
        if error is None:
            self._statuses.clear()
            self._check_channel(_first_error(replies[written:]))
        return error

    def _settle(
        self, batch: Mapping[Lane, Sequence[str]], replies: Sequence[Any]
    ) -> RedisError | None:
        """Drop what was acknowledged, and return what failed first."""
        remaining = iter(replies)
        for lane, messages in batch.items():
            n = _acknowledged(list(islice(remaining, len(messages))))
            self.backlog.drop(lane, n)
            self.sent[lane] += n
        results = replies[-1] if self._statuses and isinstance(replies[-1], list) else []
        return _first_error([*replies, *results])

    def _add_messages(self, pipe: Pipeline, batch: Mapping[Lane, Sequence[str]]) -> None:
        for lane, messages in batch.items():
            for message in messages:
                pipe.xadd(self._key(lane), {"metadata": message}, maxlen=self._maxlens[lane])

    def _add_status(self, pipe: Pipeline, source_id: str, fields: Mapping[str, str]) -> None:
        key = self._status_key(source_id)
        pipe.hset(key, items=[part for field in fields.items() for part in field])
        pipe.expire(key, self._status_ttl_s)

    def _status_key(self, source_id: str) -> str:
        return f"{self._key(Lane.STATUS)}:{source_id}"

    def _key(self, lane: Lane) -> str:
        return f"{self._config.namespace}:{lane}"

    def _hint(self, error: RedisError) -> str:
        return cluster_hint(error, self._config.namespace)

    def _leave(self, error: RedisError, started: float) -> None:
        """Note that Redis is away, choose when to try again, and bring what waits to safety."""
        why = reason(error) + self._hint(error)
        if self._away_since is None:
            self._away_since = started
            self._wait_s = _FIRST_WAIT_S
            self.outages += 1
            log.warning("%s away (%s): messages wait", self.address, why)
        elif why != self._reason:
            log.warning("%s still away: %s", self.address, why)
        self._reason = why
        now = self._clock()
        # An attempt that hung until its timeout is followed by a rest four times as long.
        self._retry_at = now + max(self._wait_s, 4 * (now - started))
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        self._node.start_over()
        self.backlog.keep()

    def _check_channel(self, error: RedisError | None) -> None:
        """Log when PUBLISH begins to fail. The channel is lossy anyway: it holds up nothing."""
        complaint = "" if error is None else reason(error)
        if complaint and complaint != self._channel_complaint:
            log.warning("%s: PUBLISH fails: %s", self.address, complaint)
        self._channel_complaint = complaint

    def _away_s(self) -> float:
        return 0.0 if self._away_since is None else self._clock() - self._away_since

    def _account(self) -> str:
        away = f"{self.address} away for {self._away_s():.0f} s ({self._reason})"
        return f"{away}; {self.backlog.account()}"


def _warn_without_temporary_folder() -> None:
    """Say now, rather than in an outage, that nothing can be kept on disk."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        log.warning(
            "no folder for temporary files (%s): while Redis is away, messages wait in memory "
            "alone; name a folder that lasts with this sink's `spool`",
            error.strerror,
        )


def _execute(pipe: Pipeline) -> Sequence[Any]:
    """Return one reply or error per command; if the connection fails, the error for every one."""
    commands = len(pipe)
    try:
        return pipe.execute(raise_on_error=False)
    except RedisError as error:
        return [error] * commands


def _raw(pipe: Pipeline, command: str) -> None:
    pipe.execute_command(command)  # type: ignore[no-untyped-call]


def _first_error(replies: Iterable[object]) -> RedisError | None:
    return next((reply for reply in replies if isinstance(reply, RedisError)), None)


def _acknowledged(replies: Sequence[object]) -> int:
    """Return how many replies stand before the first error."""
    return next((i for i, r in enumerate(replies) if isinstance(r, RedisError)), len(replies))
