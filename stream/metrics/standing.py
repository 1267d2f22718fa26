"""What is known of a run at any moment: its sources, engines and certificates; alive, ready.

The states and counts of sources have their home in their statuses, so they are read there when
somebody asks, also those of workers, whose supervisor hears every status.
"""

from __future__ import annotations

import platform
import ssl
import threading
from typing import TYPE_CHECKING, Final, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from stream import __version__
from stream.closing import Closing
from stream.metrics.measures import PREFIX
from stream.publish.consumer_groups import ConsumerGroups, GroupLag
from stream.records import DropReason, SourceState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from prometheus_client import Metric

    from stream.config import SourceConfig, StreamConfig
    from stream.pipeline import Progress
    from stream.records import SourceStatus
    from trt_engines.manifest import Manifest

STUCK_S: Final = 30.0  # a loop that has been at one thing for so long does not come back

Trouble: TypeAlias = str  # why not; empty: all is well


class Standing(Collector, Closing):
    """Tells Prometheus and health checks how a run stands.

    Args:
        config: of the run.
        manifests: of its detectors.
        stuck_s: longest time for one step of the analysis or of publishing, seconds.

    Raises:
        ConfigError: a Redis URL can't be used.
    """

    def __init__(
        self, config: StreamConfig, manifests: Sequence[Manifest], stuck_s: float = STUCK_S
    ) -> None:
        self._at_start = config.sources
        self._manifests = manifests
        self._backend = config.backend.kind
        self._ca_files = {s.ca_file for s in config.sinks if s.kind == "redis" and s.ca_file}
        self._groups = [
            ConsumerGroups(sink)
            for sink in config.sinks
            if sink.kind == "redis" and sink.url is not None
        ]
        self._asking = threading.Lock()  # two may scrape at once
        self._stuck_s = stuck_s
        self._progress: Callable[[], Progress] | None = None

    def of(self, progress: Callable[[], Progress]) -> None:
        """Say where to ask: the run has begun. Any thread may ask from now on."""
        self._progress = progress

    def sources(self) -> tuple[SourceConfig, ...]:
        """Return the sources that there are now."""
        return self._progress().watched if self._progress else self._at_start

    def unhealthy(self) -> Trouble:
        """Return why the process had better be started again."""
        busy_s = self._progress().busy_s if self._progress else 0.0
        if busy_s < self._stuck_s:
            return ""
        return f"the analysis or the publishing has been at one thing for {busy_s:.0f} s"

    def unready(self) -> Trouble:
        """Return why nothing can be expected of the run: engines load, or no source is up."""
        ids = [source.id for source in self.sources()]
        if not ids:
            return ""
        if self._progress is None:
            return "the engines are loading"
        statuses = self._progress().sources
        if any(id_ in statuses and statuses[id_].state.is_up for id_ in ids):
            return ""
        named = [f"{id_} {_said(statuses.get(id_))}" for id_ in ids]
        return "no source is up: " + ", ".join(named)

    def collect(self) -> Iterator[Metric]:
        """Yield what Prometheus is told."""
        build = _gauge("build_info", "1; what runs.", "version", "python")
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        engines = _gauge(
            "engine_info", "1; a detector.", "detector", "method", "family", "backend", "sha256"
        )
        for manifest in self._manifests:
            kind = [manifest.method or "", manifest.family or "", self._backend]
            engines.add_metric([manifest.name, *kind, manifest.onnx_sha256], 1)
        yield engines
        yield from self._of_sources(self._progress().sources if self._progress else {})
        expiry = _gauge(
            "certificate_expiry_timestamp_seconds",
            "Unix time at which the first authority of a ca_file of the configuration expires.",
            "file",
        )
        of_sources = {source.ca_file for source in self.sources() if source.ca_file}
        for path in sorted(self._ca_files | of_sources):
            if (expires := _first_expiry(path)) is not None:
                expiry.add_metric([str(path)], expires)
        yield expiry
        lags = _gauge(
            "consumer_lag_entries",
            "Entries that a consumer group has not acknowledged.",
            "lane",
            "group",
        )
        with self._asking:
            found = [lag for groups in self._groups for lag in groups.lags()]
        # Two servers may have a group of the same name; which is behind, the other metrics tell.
        for lag in {(lag.lane, lag.group): lag for lag in sorted(found, key=_entries)}.values():
            lags.add_metric([lag.lane, lag.group], lag.entries)
        yield lags

    def close(self) -> None:
        """Close the connections to Redis."""
        for groups in self._groups:
            groups.close()

    def _of_sources(self, statuses: dict[str, SourceStatus]) -> Iterator[Metric]:
        states = _gauge("source_state", "1 for the state that a source is in.", "source", "state")
        failed = _gauge("source_failed", "1: the source is over, by a failure.", "source")
        ids = [source.id for source in self.sources()]
        for source_id in ids:
            status = statuses.get(source_id)
            for state in SourceState:
                states.add_metric([source_id, state], status is not None and status.state is state)
            failed.add_metric([source_id], status is not None and status.failed)
        yield states
        yield failed
        decoded = _counter("frames_decoded", "Frames that were decoded.", "source")
        due = _counter(
            "frames_due",
            "Frames selected for analysis, or meant to be and never decoded.",
            "source",
        )
        dropped = _counter(
            "frames_dropped",
            "Of the frames due, those left out because the machine was behind.",
            "source",
            "reason",
        )
        errors = _counter(
            "frames_failed", "Of the frames due, those not analysed because of an error.", "source"
        )
        for source_id in ids:
            if (status := statuses.get(source_id)) is None:
                continue
            decoded.add_metric([source_id], status.frames_seen)
            due.add_metric([source_id], status.frames_due)
            dropped.add_metric([source_id, DropReason.OVERTAKEN], status.frames_overtaken)
            dropped.add_metric([source_id, DropReason.LATE], status.frames_late)
            dropped.add_metric([source_id, DropReason.UNDECODED], status.frames_undecoded)
            errors.add_metric([source_id], status.frames_failed)
        yield from (decoded, due, dropped, errors)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, labels=labels)


def _entries(lag: GroupLag) -> int:
    return lag.entries


def _said(status: SourceStatus | None) -> str:
    return "is being opened" if status is None else f"{status.state} ({status.code})"


def _first_expiry(ca_file: Path) -> float | None:
    """Return when the first certificate expires, Unix seconds; None: there is none to be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca_file)
    except OSError:  # gone or damaged: connections tell, and name it
        return None
    ends = [str(certificate["notAfter"]) for certificate in context.get_ca_certs()]
    return min(map(ssl.cert_time_to_seconds, ends), default=None)
