"""Messages to Redis: streams for what happened, hashes for how it is, a channel for who listens.

docs/messages.md is the contract.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ExecAbortError, NoPermissionError, RedisError

from stream.errors import ConfigError, SinkError
from stream.messages import SCHEMA, Lane, StatusMessage
from stream.publish.backlog import Backlog
from stream.publish.embedded import EmbeddedServer
from stream.publish.redis_client import read_address, reason, waiting_may_cure
from stream.publish.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from redis.client import Pipeline

    from stream.config import RedisSinkConfig
    from stream.messages import OutMessage

log = logging.getLogger(__name__)

_CHUNK: Final = 500  # messages in one pipeline: about half a megabyte
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0


class RedisSink:
    """Delivers every message at least once, if Redis is up or comes back within the limits.

    Args:
        config: of this sink.
        run: of the producer; names the connection.
        heartbeat_s: longest time between two statuses of a source; its hash expires after three.
        clock: monotonic seconds.

    Attributes:
        address: where to read, without credentials; the embedded server's, if no URL was given.
        backlog: what waits, and counts what was lost.
        alerts_sent: entries of the stream `<ns>:alerts` that Redis acknowledged.
        scores_sent: entries of the stream `<ns>:tracks` that Redis acknowledged.
        outages: times that Redis went away.

    Raises:
        ConfigError: the URL or the spool can't be used, or Redis refuses us for a reason that
            waiting can't cure: password, permissions, TLS. A Redis that is not there is an outage
            instead: messages wait from the start.
    """

    def __init__(
        self,
        config: RedisSinkConfig,
        *,
        run: str,
        heartbeat_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.alerts_sent = self.scores_sent = self.outages = 0
        self._config = config
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
                url = resources.enter_context(EmbeddedServer()).url
            else:
                url = config.url.get_secret_value()
            address = read_address(url, config.ca_file)
            self.address = address.shown
            self._redis = address.client(name=f"facewarden-{run}", timeout_s=config.timeout_s)
            resources.callback(self._redis.close)
            spool = _open_spool(config, resources)
            self.backlog = Backlog(spool, config.queue_messages)
            self._rehearse()
            self._resources = resources.pop_all()
        log.info("messages go to %s, keys %s:*", self.address, config.namespace)
        if spool:
            log.warning("%s: %d alerts of an earlier run wait", spool.path, len(spool))
            self.publish([])

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
            elif message.lane in (Lane.ALERTS, Lane.SOURCES):
                self.backlog.add_alert(message.to_json())
            else:
                self.backlog.add_score(message.to_json())
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

    def _rehearse(self) -> None:
        """Let Redis check every command we are going to send, and run none."""
        pipe = self._redis.pipeline(transaction=False)
        started = self._clock()
        _raw(pipe, "MULTI")  # what follows is checked and queued...
        self._write(pipe, ["{}"], ["{}"], {"rehearsal": {"schema": SCHEMA}})
        pipe.publish(self._key(Lane.ALERTS), "{}")
        _raw(pipe, "DISCARD")  # ...and thrown away
        _raw(pipe, "MULTI")
        _raw(pipe, "EXEC")
        error = _first_error(_execute(pipe))
        if error is None:
            return
        if not waiting_may_cure(error):
            denied = isinstance(error, NoPermissionError | ExecAbortError)
            hint = "; see docs/messages.md" if denied else ""
            raise ConfigError(f"Redis at {self.address} refuses us: {reason(error)}{hint}")
        self._leave(error, started)

    def _deliver(self) -> None:
        """Send what waits, alerts first, until all is sent or Redis fails."""
        if not (self.backlog or self._statuses):
            return  # with nothing to send, nothing is learnt of Redis
        alerts_before, scores_before = self.alerts_sent, self.scores_sent
        while self.backlog or self._statuses:
            started = self._clock()
            error = self._send(*self.backlog.head(_CHUNK))
            if error is not None:
                self._leave(error, started)
                return
        if self._away_since is not None:
            log.warning(
                "%s back after %.1f s: delivered %d alerts and %d scores that waited; in all, %s",
                self.address,
                self._away_s(),
                self.alerts_sent - alerts_before,
                self.scores_sent - scores_before,
                self.backlog.account(),
            )
            self._away_since = None
            self._retry_at = -math.inf

    def _send(self, alerts: Sequence[str], scores: Sequence[str]) -> RedisError | None:
        """Send one pipeline, forget what Redis acknowledged, and return what failed first.

        What it writes is one transaction, so that a Redis which recovers in its midst does not take
        a later alert before an earlier one. When the reply is lost, all of it is sent again.
        """
        pipe = self._redis.pipeline(transaction=False)
        _raw(pipe, "MULTI")
        self._write(pipe, alerts, scores, self._statuses)
        _raw(pipe, "EXEC")
        written = len(pipe)
        for alert in alerts:  # no part of the transaction: the channel may fail alone
            pipe.publish(self._key(Lane.ALERTS), alert)
        replies = _execute(pipe)
        results = replies[written - 1]  # of EXEC
        if isinstance(results, RedisError):
            return _first_error(replies[:written])
        n_alerts = _acknowledged(results[: len(alerts)])
        n_scores = _acknowledged(results[len(alerts) :][: len(scores)])
        self.backlog.drop(n_alerts, n_scores)
        self.alerts_sent += n_alerts
        self.scores_sent += n_scores
        error = _first_error(results)
        if error is None:
            self._statuses.clear()
            self._check_channel(_first_error(replies[written:]))
        return error

    def _write(
        self,
        pipe: Pipeline,
        alerts: Iterable[str],
        scores: Iterable[str],
        statuses: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Add to a pipeline what goes into keys: alerts, scores, statuses."""
        config = self._config
        for alert in alerts:
            pipe.xadd(self._key(Lane.ALERTS), {"metadata": alert}, maxlen=config.alerts_maxlen)
        for score in scores:
            pipe.xadd(self._key(Lane.TRACKS), {"metadata": score}, maxlen=config.tracks_maxlen)
        for source_id, fields in statuses.items():
            key = f"{self._key(Lane.STATUS)}:{source_id}"
            pipe.hset(key, items=[part for field in fields.items() for part in field])
            pipe.expire(key, self._status_ttl_s)

    def _key(self, lane: Lane) -> str:
        return f"{self._config.namespace}:{lane}"

    def _leave(self, error: RedisError, started: float) -> None:
        """Note that Redis is away, choose when to try again, and bring the alerts to safety."""
        why = reason(error)
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
        # After a failover the name leads elsewhere; an open connection does not.
        self._redis.connection_pool.disconnect()
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


def _open_spool(config: RedisSinkConfig, resources: contextlib.ExitStack) -> Spool:
    """Open the configured spool, or one in a folder that goes when nothing is left in it."""
    folder = config.spool or Path(tempfile.mkdtemp(prefix="facewarden-spool-"))
    spool = Spool(folder, config.spool_alerts)

    def release() -> None:
        spool.close()
        if config.spool is None and not spool:
            shutil.rmtree(folder)

    resources.callback(release)
    return spool


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
