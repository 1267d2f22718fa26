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
    from stream.config import SourceConfig, StreamConfig
    from stream.decode.recent import RecentPackets
    from stream.evidence.keeper import EvidenceKeeper
    from stream.learn.learner import Learner
    from stream.learned import Learned
    from stream.metrics.measures import Measures
    from stream.pipeline import PerSource, Watcher
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


def what_was_learned(source: SourceConfig, config: StreamConfig) -> Learned | None:
    """Return what was learned of a source, if it names anything.

    Args:
        source: which; need not be of `config`.
        config: of the run.

    Raises:
        ConfigError: it does not fit, or a manifest is missing or damaged.
    """
    if source.learned is None:
        return None
    import scipy.stats  # noqa: F401 (loaded here, for the analysis can't wait when it watches drift)

    from stream.learned import learned_of

    return learned_of(source, config)


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
        heartbeat_s: longest of any source, of those that come later, too; default: of
            `config.sources`.

    Raises:
        ConfigError: a sink can't be used as configured.
    """
    from stream.learn.drift import DriftWatcher

    writer = message_writer(config, run)
    drift = DriftWatcher()
    own: list[Watcher] = [drift]
    per_source: list[PerSource] = [drift]
    evidence: list[Sink] = []
    if config.evidence is not None:
        keeper = _evidence_keeper(config, writer, run)
        own.append(keeper)
        per_source.append(keeper)
        evidence.append(keeper)
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
        per_source=per_source,
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


def _evidence_keeper(config: StreamConfig, writer: MessageWriter, run: str) -> EvidenceKeeper:
    """Return what collects evidence.

    Raises:
        ConfigError: folder or key can't be used, or a package is missing.
    """
    try:
        from stream.evidence.keeper import EvidenceKeeper
    except ImportError as error:
        raise _not_installed(error) from error
    return EvidenceKeeper(config, writer, run)
