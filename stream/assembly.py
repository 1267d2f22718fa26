"""The parts of a run, put together from its configuration.

What loads networks is imported when networks are loaded: a supervisor of workers needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream import __version__
from stream.errors import ConfigError
from stream.messages import MessageWriter, ModelId
from stream.pipeline import Pipeline
from stream.publish import open_sinks
from trt_engines.errors import EngineError
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from stream.analyse import Analyser
    from stream.config import StreamConfig
    from stream.pipeline import Watcher
    from stream.publish import Sink
    from stream.sources import Source


def load_engines(config: StreamConfig) -> Analyser:
    """Load the engines of a run; the caller closes what is returned.

    Raises:
        ConfigError: an engine is missing, damaged or of the wrong kind, or a threshold is out of
            every track's reach.
    """
    import torch

    from stream.analyse import open_analyser

    torch.set_num_threads(1)  # the engines have their own; tensor work here is small
    try:
        return open_analyser(config)
    except EngineError as error:
        raise ConfigError(str(error)) from error


def message_writer(config: StreamConfig, run: str) -> MessageWriter:
    """Return what makes the messages of a run.

    Args:
        config: names the engines.
        run: names the run in every message.

    Raises:
        ConfigError: a manifest is missing or damaged.
    """
    try:
        manifests = [load_manifest(engine.manifest) for engine in config.score.engines]
    except EngineError as error:
        raise ConfigError(str(error)) from error
    models = [ModelId(name=m.name, onnx_sha256=m.onnx_sha256) for m in manifests]
    return MessageWriter(run=run, version=__version__, models=models)


def connect(
    config: StreamConfig,
    sources: Sequence[Source],
    analyser: Analyser,
    *,
    run: str,
    stop: threading.Event,
    watchers: Sequence[Watcher] = (),
    listeners: Sequence[Sink] = (),
) -> Pipeline:
    """Open the sinks and connect all parts of a run.

    Args:
        config: of the run.
        sources: of that configuration.
        analyser: judges their frames.
        run: names the run in every message.
        stop: set from outside to drain and end.
        watchers: see every step of the analysis.
        listeners: get every message, beside the sinks that are configured.

    Raises:
        ConfigError: a sink can't be used as configured.
    """
    writer = message_writer(config, run)
    sinks = open_sinks(
        config.sinks,
        run=run,
        heartbeat_s=max(source.heartbeat_s for source in config.sources),
        source_ids=[source.source_id for source in sources],
    )
    return Pipeline(
        sources,
        analyser,
        writer,
        [*sinks, *listeners],
        stop=stop,
        shutdown_s=config.shutdown_s,
        watchers=watchers,
    )
