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
    from collections.abc import Mapping, Sequence

    from stream.analyse import Analyser
    from stream.config import StreamConfig
    from stream.decode.recent import RecentPackets
    from stream.evidence.keeper import EvidenceKeeper
    from stream.learn.drift import DriftWatcher
    from stream.learn.learner import Learner
    from stream.metrics.measures import Measures
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
    verdicts = () if config.evidence is None else config.evidence.verdicts
    return MessageWriter(run=run, version=__version__, models=models, evidence=verdicts)


def recent_packets(config: StreamConfig) -> RecentPackets | None:
    """Return the memory of the latest packets that a source needs; None: no evidence is kept."""
    if config.evidence is None:
        return None
    from stream.decode.recent import RecentPackets

    # A verdict is made while the decoder is a few frames ahead; of a camera up to a second.
    ahead_s = 2.0 + 3 / config.decode.analyse_fps
    return RecentPackets(config.evidence.before_s + ahead_s, config.evidence.cut_mb * 2**20)


def connect(
    config: StreamConfig,
    sources: Sequence[Source],
    analyser: Analyser,
    *,
    run: str,
    stop: threading.Event,
    watchers: Sequence[Watcher] = (),
    listeners: Sequence[Sink] = (),
    measures: Measures | None = None,
    recent: Mapping[str, RecentPackets] | None = None,
    heartbeat_s: float | None = None,
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
        measures: see the analysis and the messages; default: nothing is measured.
        recent: latest packets by source, of sources that come later, too; default: those of
            `sources`.
        heartbeat_s: longest of any source, of those that come later, too; default: of
            `config.sources`.

    Raises:
        ConfigError: a sink can't be used as configured.
    """
    writer = message_writer(config, run)
    own: list[Watcher] = []
    evidence: list[Sink] = []
    if config.evidence is not None:
        if recent is None:
            recent = {s.source_id: s.recent for s in sources if s.recent is not None}
        keeper = _evidence_keeper(config, recent, writer, run)
        own.append(keeper)
        evidence.append(keeper)
    drift = _drift_watcher(config)
    if drift is not None:
        own.append(drift)
    sinks = open_sinks(
        config.sinks,
        run=run,
        heartbeat_s=heartbeat_s or max(source.heartbeat_s for source in config.sources),
        source_ids=[source.source_id for source in sources],
    )
    sinks += listeners
    if measures is not None:
        sinks.append(measures.sink(sinks))
        own.append(measures.analysis)
    return Pipeline(
        sources,
        analyser,
        writer,
        [*evidence, *sinks],  # first: it needs what the others may take their time with
        stop=stop,
        shutdown_s=config.shutdown_s,
        watchers=[*own, *watchers],
    )


def learning(
    config: StreamConfig,
    source: Source,
    analyser: Analyser,
    learner: Learner,
    *,
    run: str,
    stop: threading.Event,
) -> Pipeline:
    """Connect a run that learns from one source, and publishes nothing."""
    writer = message_writer(config, run)
    limit = config.shutdown_s
    return Pipeline([source], analyser, writer, (), stop=stop, shutdown_s=limit, watchers=[learner])


def _drift_watcher(config: StreamConfig) -> DriftWatcher | None:
    """Return what watches the sources that have learned something; None: none has.

    Raises:
        ConfigError: what was learned does not fit.
    """
    named = {source.id: source.learned for source in config.sources if source.learned is not None}
    if not named:
        return None
    from stream.learn.drift import DriftWatcher
    from stream.learned import load_learned

    return DriftWatcher({s: load_learned(path, s, config) for s, path in named.items()})


def check_evidence(config: StreamConfig) -> None:
    """Look at what keeping evidence needs, but for its folder.

    Raises:
        ConfigError: the key can't be used, or a package is missing.
    """
    if config.evidence is None:
        return
    try:
        from stream.evidence.seal import load_private_key
    except ImportError as error:
        raise _not_installed(error) from error
    load_private_key(config.evidence.key)


def _not_installed(error: ImportError) -> ConfigError:
    return ConfigError(
        f"evidence needs a package that is not installed ({error.name}): pip install -r "
        "requirements/evidence.txt"
    )


def _evidence_keeper(
    config: StreamConfig, recent: Mapping[str, RecentPackets], writer: MessageWriter, run: str
) -> EvidenceKeeper:
    """Return what collects evidence.

    Raises:
        ConfigError: folder or key can't be used, or a package is missing.
    """
    try:
        from stream.evidence.keeper import EvidenceKeeper
    except ImportError as error:
        raise _not_installed(error) from error
    return EvidenceKeeper(config, recent, writer, run)
