"""All that `--metrics` is for one run, of one process or of several workers.

Workers keep what they measure in files of a private folder, each in its own, and the supervisor
serves the sum: the multiprocess mode of prometheus_client. A worker that is started again goes on
with the files of the one before it, so counters never go back and no file is left behind.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from stream.closing import Closing
from stream.errors import ConfigError
from stream.metrics.measures import Measures
from stream.metrics.server import MetricsServer
from stream.metrics.standing import Standing
from trt_engines.errors import EngineError
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import Metric

    from stream.config import MetricsConfig, StreamConfig
    from trt_engines.manifest import Manifest


class Monitor(Closing):
    """Serves what a run measures, from before its engines are loaded until `close`.

    Args:
        config: of the run.
        metrics: where to listen.
        workers: whether workers measure, in processes of their own.

    Attributes:
        measures: of this process.
        standing: to be told where to ask (`of`) when the run begins.
        folder: where workers keep what they measure; None without workers.
        address: `http://HOST:PORT`.

    Raises:
        ConfigError: nothing can listen there, or a manifest is missing or damaged.
    """

    def __init__(self, config: StreamConfig, metrics: MetricsConfig, *, workers: bool) -> None:
        manifests = _manifests(config)
        registry, measured = CollectorRegistry(), CollectorRegistry()
        self.folder: Path | None = None
        with ExitStack() as resources:
            if workers:
                folder = tempfile.TemporaryDirectory(prefix="facewarden-metrics-")
                self.folder = Path(resources.enter_context(folder))
                _keep_in(self.folder, "supervisor")
                MultiProcessCollector(measured, str(self.folder))  # type: ignore[no-untyped-call]
            self.measures = _measures(config, manifests, None if workers else measured)
            self.standing = resources.enter_context(Standing(config, manifests))
            registry.register(self.standing)
            registry.register(_OfThoseWatched(measured, self.standing))
            ProcessCollector(registry=registry)
            server = resources.enter_context(MetricsServer(metrics, registry, self.standing))
            self.address = server.address
            self._resources = resources.pop_all()

    def worker_died(self, number: int) -> None:
        """Forget what only a living worker has, such as frames that wait."""
        if self.folder is not None:
            mark_process_dead(_name(number), str(self.folder))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Stop serving; remove the folder."""
        self._resources.close()


class _OfThoseWatched(Collector):
    """What was measured, without sources that were removed.

    Left out where it is read, since files of several processes forget nothing. One that comes back
    goes on with its counters.
    """

    def __init__(self, measured: CollectorRegistry, standing: Standing) -> None:
        self._measured = measured
        self._standing = standing

    def collect(self) -> Iterator[Metric]:
        """Yield it."""
        ids = {source.id for source in self._standing.sources()}
        for metric in self._measured.collect():
            metric.samples = [
                s for s in metric.samples if "source" not in s.labels or s.labels["source"] in ids
            ]
            yield metric


def measures_of_worker(config: StreamConfig, folder: Path, number: int) -> Measures:
    """Return what a worker measures, in its own process, where nothing was measured before.

    Args:
        config: of the worker.
        folder: of `Monitor`.
        number: of the worker; no other that lives has it.

    Raises:
        ConfigError: a manifest is missing or damaged.
    """
    _keep_in(folder, _name(number))
    return _measures(config, _manifests(config), None)


def _measures(
    config: StreamConfig, manifests: Sequence[Manifest], registry: CollectorRegistry | None
) -> Measures:
    sources = [source.id for source in config.sources]
    return Measures(registry, sources, [manifest.name for manifest in manifests])


def _keep_in(folder: Path, name: str) -> None:
    """Let all that this process measures from now on lie in files of that name."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]


def _name(number: int) -> str:
    return f"worker-{number}"


def _manifests(config: StreamConfig) -> list[Manifest]:
    try:
        return [load_manifest(engine.manifest) for engine in config.score.engines]
    except EngineError as error:
        raise ConfigError(str(error)) from error
