"""Watch faces on cameras and files and publish attack scores: the command line.

Reads the configuration, builds the pipeline, handles signals, and turns the outcome into an exit
code: 0 done or stopped by a signal, 1 failed while running, 2 bad arguments or configuration.
Nothing else happens here. What takes long to import is imported where it is used: `--help` answers
at once, and signals are handled before anything slow begins.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from models import Setting, one_line
from stream.closing import end_process
from stream.console import hide_in_logs, open_standard_streams, progress_reporter, set_up_logging
from stream.engine_paths import manifest_of
from stream.errors import ConfigError, StreamError
from stream.redact import printable, secrets_of
from stream.signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stream.config import RedisSinkConfig, SourceConfig, StreamConfig
    from stream.control import Control
    from stream.metrics.monitor import Monitor
    from stream.page.app import Pictures
    from stream.page.board import Board
    from stream.page.feed import LiveBoard
    from stream.page.server import Page
    from stream.pipeline import Progress
    from stream.records import SourceStatus

log = logging.getLogger("run_stream")

_EXAMPLES = """\b
Examples:
  run_stream.py lobby=rtsp://user:password@camera-1/stream --redis redis://localhost
  run_stream.py clip.mp4 --sink jsonl:messages.jsonl
  run_stream.py --config cameras.yaml --set track.lost_after_s=3 --check
  run_stream.py --probe rtsp://user:password@camera-1/stream
  run_stream.py --config cameras.yaml --workers auto --shard 0/3
  run_stream.py scan archive/ --out results        (see run_stream.py scan --help)
"""


def _finite(
    _context: click.Context, _option: click.Parameter, seconds: float | None
) -> float | None:
    if seconds is not None and not math.isfinite(seconds):
        raise click.BadParameter("expected a number of seconds; leave it out to run for ever")
    return seconds


def _workers(_context: click.Context, _option: click.Parameter, text: str) -> int | None:
    """Return the number, or None for `auto`."""
    if text == "auto":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise click.BadParameter(f"expected 1, 2, 3... or auto, found {text!r}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXAMPLES)
@click.argument("sources", nargs=-1, metavar="[ID=]SOURCE...")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file with what differs from the defaults; options given here win over it.",
)
@click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    help="Server to publish to: redis://, rediss:// or unix://.  [default: $REDIS_URL]",
)
@click.option(
    "--namespace", metavar="PREFIX", help="Prefix of all Redis keys.  [default: facewarden]"
)
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    metavar="jsonl:PATH|redis|webhook:URL",
    help="Where messages go; may be repeated. A webhook's secret is $FACEWARDEN_WEBHOOK_SECRET.  "
    "[default: redis]",
)
@click.option(
    "--model",
    "models",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Detector to use: an engine's folder, or its manifest; several judge together.  "
    "[default: the shipped one]",
)
@click.option(
    "--set",
    "settings",
    type=Setting(),
    multiple=True,
    metavar="KEY=VALUE",
    help="Any option of the configuration, such as track.lost_after_s=3; may be repeated.",
)
@click.option("--allow-http", is_flag=True, help="Accept http:// and https:// among SOURCES.")
@click.option(
    "--workers",
    default="1",
    show_default=True,
    callback=_workers,
    metavar="N|auto",
    help="Processes that share the sources; auto: one per processor. One that dies is started "
    "again, and the others go on.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Watch the part number I, from 0, of N parts of the sources, for N machines.",
)
@click.option(
    "--metrics",
    is_flag=False,
    flag_value="",
    metavar="[HOST:PORT]",
    help="Serve /metrics for Prometheus, /healthz and /readyz; alone, after SOURCES, on "
    "127.0.0.1:9464.  [default: not]",
)
@click.option(
    "--page",
    is_flag=False,
    flag_value="",
    metavar="[HOST:PORT]",
    help="Serve the live page and the control API; alone, after SOURCES, on 127.0.0.1:8765.  "
    "[default: not]",
)
@click.option(
    "--duration",
    type=click.FloatRange(min=0),
    callback=_finite,
    metavar="SECONDS",
    help="Stop after so long.  [default: when the sources end]",
)
@click.option(
    "--check",
    is_flag=True,
    help="Print the configuration and the detectors that a run would use, and end.",
)
@click.option(
    "--probe",
    is_flag=True,
    help="Print of each source what it is and which decoder it gets, and end.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="With --probe: print JSON, one source a line."
)
@click.option(
    "--learn",
    "learn_id",
    metavar="ID",
    help="Watch this source, which shows bona fide faces alone, choose its own thresholds for "
    "--budget, and end; nothing is published (docs/learn.md).",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    help="With --learn: watch for so long.  [default: until the source ends, or a signal]",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="With --learn: false alarms a week, at most.",
)
@click.option(
    "--learned",
    "learned_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --learn: file to write.  [default: ID.learned.json]",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the log on stderr.",
)
@click.option("--verbose", is_flag=True, help="Log details, too.")
def main(
    sources: tuple[str, ...],
    config_path: Path | None,
    redis_url: str | None,
    namespace: str | None,
    sinks: tuple[str, ...],
    models: tuple[Path, ...],
    settings: tuple[tuple[str, Any], ...],
    allow_http: bool,
    workers: int | None,
    shard: str | None,
    metrics: str | None,
    page: str | None,
    duration: float | None,
    check: bool,
    probe: bool,
    as_json: bool,
    learn_id: str | None,
    minutes: float | None,
    budget: float,
    learned_path: Path | None,
    log_format: Literal["text", "json"],
    verbose: bool,
) -> None:
    """Watch faces on SOURCES and publish attack scores per track to Redis.

    A source is an address rtsp://, rtsps:// or http(s)://, a webcam such as /dev/video0, or a file.
    An id may stand before it, as in lobby=rtsp://camera/stream; messages carry it. A path that
    holds a = is written with its folder: ./a=b.mp4.

    Without --redis and $REDIS_URL, an embedded Redis server is started, and its address logged.
    SIGTERM, SIGINT, SIGQUIT and SIGHUP end the program after what was decoded is published; with
    --config, SIGHUP instead reads that file again, and adds, removes and changes sources.
    """
    signals = StopSignals()  # first: see its docstring
    open_standard_streams()
    set_up_logging(log_format, verbose=verbose)
    if as_json and not probe:
        _fail(ConfigError("--json is for --probe"), 2)
    if learn_id is None and (minutes is not None or learned_path is not None):
        _fail(ConfigError("--minutes and --learned are for --learn"), 2)
    if learn_id is not None and (workers != 1 or duration is not None):
        what = "watches one source, by one process, for --minutes"
        _fail(ConfigError(f"--learn {what}: no --workers, no --duration"), 2)
    try:
        signals.reload_on_hang_up(config_path is not None)
        engines = [{"manifest": manifest_of(model)} for model in models]
        overrides = [*([("score.engines", engines)] if engines else []), *settings]
        if metrics is not None:
            overrides.append(("metrics", _host_and_port(metrics)))
        if page:
            overrides += _page_address(page)

        def resolve() -> StreamConfig:
            resolved = _resolve(
                sources, config_path, redis_url, namespace, sinks, overrides, allow_http=allow_http
            )
            return resolved if page is None else _with_page(resolved)

        def reread() -> StreamConfig:
            return _shard(resolve(), shard)

        config = resolve()
        hide_in_logs(_secrets(config))
        of_all, config = config, _shard(config, shard)
        if check:
            for line in _checked(config):
                click.echo(f"# {line}")
            _print(config)
            return
        if probe:
            sys.exit(_probe(config, as_json=as_json))
        if learn_id is not None:
            _learn(config, learn_id, minutes, budget, learned_path, signals)
        elif not config.sources:
            _wait_for_nothing(of_all, duration, signals)
        elif workers == 1:
            _run(config, duration, signals, reread)
        else:
            _supervise(config, workers, duration, signals, reread)
    except ConfigError as error:
        _fail(error, 2)
    except StreamError as error:
        _fail(error, 1)
    except Exception:
        log.exception("failed: this is a bug in facewarden; please report it with these lines")
        sys.exit(1)


def _fail(error: Exception, code: int) -> None:
    log.error("%s", error)
    sys.exit(code)


def _resolve(
    sources: tuple[str, ...],
    config_path: Path | None,
    redis_url: str | None,
    namespace: str | None,
    sinks: tuple[str, ...],
    overrides: list[tuple[str, Any]],
    *,
    allow_http: bool,
) -> StreamConfig:
    """Lay the command line over the YAML file."""
    from stream.config import RedisSinkConfig, load_config
    from stream.decode import source_kind

    if sources:
        from stream.sources import parse_source_argument

        parsed = [parse_source_argument(text, i) for i, text in enumerate(sources, start=1)]
        allowed = [source.model_copy(update={"allow_http": allow_http}) for source in parsed]
        overrides = [*overrides, ("sources", allowed)]
    if sinks:
        overrides = [*overrides, ("sinks", [_sink(text) for text in sinks])]
    config = load_config(config_path, overrides)
    if redis_url is not None and not any(s.kind == "redis" for s in config.sinks):
        config = config.model_copy(update={"sinks": (*config.sinks, RedisSinkConfig())})
    # A variable of the environment fills a gap; only an option overrides the file.
    from_environment = os.environ.get("REDIS_URL") or None
    config = config.model_copy(
        update={
            "sinks": tuple(
                _redis(sink, redis_url, from_environment, namespace)
                if isinstance(sink, RedisSinkConfig)
                else sink
                for sink in config.sinks
            )
        }
    )
    for source in config.sources:
        source_kind(source)
    return config if config.page is None else _with_page(config)


def _page_address(text: str) -> list[tuple[str, Any]]:
    """Read HOST:PORT, with an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError(
            f"--page {text}: expected HOST:PORT, such as 127.0.0.1:8765; without it, --page comes "
            "after the sources"
        )
    return [("page.host", host.removeprefix("[").removesuffix("]")), ("page.port", int(port))]


def _with_page(config: StreamConfig) -> StreamConfig:
    """Return the configuration with a page, and the secret from the environment if none is named.

    Raises:
        ConfigError: the secret of the environment is too short, or other machines can reach the
            page, and what protects it is missing.
    """
    from pydantic import ValidationError

    from stream.config import PageConfig
    from stream.page.exposure import check_exposure

    known = {} if config.page is None else config.page.model_dump()
    known["secret"] = known.get("secret") or os.environ.get("FACEWARDEN_PAGE_SECRET") or None
    try:
        page = PageConfig.model_validate(known)
    except ValidationError as error:
        raise ConfigError(f"$FACEWARDEN_PAGE_SECRET: {one_line(error, PageConfig)}") from None
    check_exposure(page)
    return config.model_copy(update={"page": page})


def _shard(config: StreamConfig, shard: str | None) -> StreamConfig:
    """Return the configuration with the sources of a shard, which may have none."""
    from stream.shards import parse_shard, part_of

    if shard is None:
        return config
    number, parts = parse_shard(shard)
    mine = tuple(s for s in config.sources if part_of(s.id.encode(), parts) == number)
    log.info("shard %s: %d of %d sources", shard, len(mine), len(config.sources))
    return config.model_copy(update={"sources": mine})


def _wait_for_nothing(config: StreamConfig, duration: float | None, signals: StopSignals) -> None:
    """Wait to be stopped, as cameras would: a service that ends is started again and again."""
    from stream.decode import SourceKind, source_kind

    if any(source_kind(source) is not SourceKind.FILE for source in config.sources):
        log.info("no source falls to this shard; waiting to be stopped")
        signals.reload_on_hang_up(False)
        with ExitStack() as resources:
            _monitor(config.model_copy(update={"sources": ()}), resources)
            signals.drain_from_now()
            signals.stop.wait(duration)


def _secrets(config: StreamConfig) -> Iterator[str]:
    for source in config.sources:
        yield from secrets_of(source.uri.get_secret_value())
    for sink in config.sinks:
        if sink.kind == "redis" and sink.url is not None:
            yield from secrets_of(sink.url.get_secret_value())
        elif sink.kind == "webhook":
            yield from sink.secrets
    if config.page is not None and config.page.secret is not None:
        yield config.page.secret.get_secret_value()


def _redis(
    sink: RedisSinkConfig, url: str | None, from_environment: str | None, namespace: str | None
) -> RedisSinkConfig:
    """Lay options and environment over the Redis sink of the configuration."""
    from pydantic import ValidationError

    known = sink.model_dump()
    known["url"] = url or known["url"] or from_environment
    known["namespace"] = known["namespace"] if namespace is None else namespace
    try:
        return type(sink).model_validate(known)
    except ValidationError as error:
        raise ConfigError(f"Redis options: {one_line(error, type(sink))}") from None


def _checked(config: StreamConfig) -> list[str]:
    """Look at what `run` would only find out when it starts; return a line on each detector."""
    from stream.assembly import check_evidence
    from stream.learned import learned_of
    from stream.stages.fuse import Fuser, attack_detector
    from trt_engines.errors import EngineError
    from trt_engines.manifest import load_manifest, verified_file

    nets = [config.detect.engines / f"{net}.manifest.json" for net in ("pnet", "rnet", "onet")]
    engines = config.score.engines
    try:
        for path in (*nets, *(engine.manifest for engine in engines)):
            manifest = load_manifest(path)
            verified_file(path, manifest.onnx, manifest.onnx_sha256)
        manifests = [load_manifest(engine.manifest) for engine in engines]
        every_s = [config.look_every_s(engine) for engine in engines]
        detectors = [attack_detector(*each) for each in zip(manifests, every_s, strict=True)]
    except EngineError as error:
        raise ConfigError(str(error)) from error
    learned = [each for source in config.sources if (each := learned_of(source, config))]
    fuser = Fuser(config.fuse, detectors)
    check_evidence(config)
    lines = [
        f"detector {printable(found.name)}, method {found.method}, family "
        f"{found.family or 'unknown'}: a window of {spec.margin:g} x the face ({spec.window}, "
        f"{spec.resize}) at {spec.size_px} px, every {found.look_every_s:g} s, up to "
        f"{manifest.max_batch} together; attack at or above {found.thresholds.enter:g}, bona fide "
        f"below {found.thresholds.leave:g}"
        for found, manifest in zip(detectors, manifests, strict=True)
        for spec in [manifest.input]
    ]
    lines.append(f"fused: attack at or above {fuser.enter:g}, bona fide below {fuser.leave:g}")
    return lines + [
        f"source {own.source_id}, learned: attack at or above {own.enter:g}, bona fide below "
        f"{own.leave:g}"
        for own in learned
    ]


def _probe(config: StreamConfig, *, as_json: bool) -> int:
    """Print what each source is; return the exit code: 0 if a frame of each was decoded."""
    import json
    from dataclasses import asdict

    from stream.decode.probe import lines_of, probe

    all_fine = True
    for source in config.sources:
        found = probe(source, config.decode)
        all_fine &= found.is_fine
        lines = [json.dumps(asdict(found))] if as_json else lines_of(found)
        click.echo("\n".join(lines))
    return 0 if all_fine else 1


def _print(config: StreamConfig) -> None:
    import yaml

    click.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False)


def _host_and_port(text: str) -> dict[str, Any]:
    """Read HOST:PORT, with an IPv6 address in brackets; empty: the defaults."""
    if not text:
        return {}
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError(
            f"--metrics {text}: expected HOST:PORT, such as 127.0.0.1:9464; without it, --metrics "
            "comes after the sources"
        )
    return {"host": host.removeprefix("[").removesuffix("]"), "port": int(port)}


def _sink(text: str) -> dict[str, str]:
    kind, _, path = text.partition(":")
    if text == "redis":
        return {"kind": "redis"}
    if kind == "jsonl" and path:
        return {"kind": "jsonl", "path": path}
    if kind == "webhook" and path:
        return {"kind": "webhook", "url": path}
    shown = "webhook" if kind == "webhook" else text  # an address may hold a token
    raise ConfigError(f"--sink {shown}: expected jsonl:PATH, redis or webhook:URL")


def _run(
    config: StreamConfig,
    duration: float | None,
    signals: StopSignals,
    reread: Callable[[], StreamConfig],
) -> None:
    from stream.assembly import connect, load_engines, recent_packets, what_was_learned
    from stream.control import Control
    from stream.page.board import Board
    from stream.page.feed import open_feed
    from stream.sources import Source

    def open_source(source: SourceConfig) -> Source:
        return Source(
            source,
            config.decode,
            stop=threading.Event(),
            recent=recent_packets(config),
            learned=what_was_learned(source, config),
        )

    stop = signals.stop
    with ExitStack() as resources:
        monitor = _monitor(config, resources)
        measures = monitor.measures if monitor else None
        analyser = resources.enter_context(load_engines(config))
        signals.drain_from_now()
        sources = [open_source(source) for source in config.sources]
        run = secrets.token_hex(4)
        board: LiveBoard = Board(run)
        feeds = [] if config.page is None else [open_feed(config, board)]
        pipeline = connect(
            config,
            sources,
            analyser,
            run=run,
            stop=stop,
            watchers=feeds,
            listeners=feeds,
            measures=measures,
        )

        def add(source: SourceConfig) -> None:
            pipeline.add(open_source(source))

        control = Control(config, pipeline, add, hide=_hide_source)
        if config.page is not None:
            resources.enter_context(_live_page(config, board, control))
        _reload_when_told(signals, control, reread)
        if duration is not None:
            resources.callback(_stop_after(duration, signals).cancel)
        show = resources.enter_context(progress_reporter())

        def report(progress: Progress) -> None:
            show(progress)
            if measures is not None:
                measures.tick(progress)

        if monitor is not None:
            monitor.standing.of(pipeline.progress)
        pipeline.run(report)
    _complain(pipeline.failed_sources(), len(sources))


def _monitor(
    config: StreamConfig, resources: ExitStack, *, workers: bool = False
) -> Monitor | None:
    """Start what measures the run, if that is wanted."""
    if config.metrics is None:
        return None
    from stream.metrics.monitor import Monitor

    return resources.enter_context(Monitor(config, config.metrics, workers=workers))


def _learn(
    config: StreamConfig,
    source_id: str,
    minutes: float | None,
    budget: float,
    path: Path | None,
    signals: StopSignals,
) -> None:
    """Watch one source, and write what was learned of it, or say what is missing."""
    from stream.assembly import learning, load_engines
    from stream.learn.learner import Learner
    from stream.learned import save_learned
    from stream.sources import Source

    chosen = tuple(source for source in config.sources if source.id == source_id)
    if not chosen:
        known = ", ".join(source.id for source in config.sources)
        raise ConfigError(f"--learn {source_id}: there is no such source; there are: {known}")
    (source,) = chosen
    # What it learned before must not matter, and every look counts.
    config = config.model_copy(
        update={
            "sources": (source.model_copy(update={"learned": None}),),
            "fuse": config.fuse.model_copy(update={"publish_every_s": 0.0}),
        }
    )
    learner = Learner(config)
    with ExitStack() as resources:
        analyser = resources.enter_context(load_engines(config))
        signals.drain_from_now()
        pipeline = learning(
            config,
            Source(config.sources[0], config.decode, stop=signals.stop),
            analyser,
            learner,
            run=secrets.token_hex(4),
            stop=signals.stop,
        )
        if minutes is not None:
            resources.callback(_stop_after(60 * minutes, signals).cancel)
        pipeline.run(resources.enter_context(progress_reporter()))
    learned = learner.learned(budget)
    out = path or Path(f"{source_id}.learned.json")
    save_learned(out, learned)
    click.echo(
        f"{out}: attack at or above {learned.enter:g}, bona fide below {learned.leave:g}: at most "
        f"{learned.at_most:.3g} false alarms a week ({learned.confidence:.0%} sure, by what was "
        f"{learned.rule}), from {learned.visits} visits in {learned.watched_s / 3600:.1f} h; name "
        f"it as sources[].learned of {source_id}"
    )


def _stop_after(seconds: float, signals: StopSignals) -> threading.Timer:
    """Set `stop` after a while; return the timer, started."""
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), signals.stop.set)
    timer.daemon = True
    timer.start()
    return timer


def _page(
    config: StreamConfig, board: Board[Any, Any], control: Control, pictures: Pictures
) -> Page:
    """Serve the page.

    Raises:
        ConfigError: its address can't be used, or a package is missing.
    """
    assert config.page is not None
    try:
        from stream.page.server import Page
    except ImportError as error:
        raise ConfigError(
            f"the page needs a package that is not installed ({error.name}): pip install -r "
            "requirements/page.txt"
        ) from error
    return Page(config.page, board, control, pictures)


def _live_page(config: StreamConfig, board: LiveBoard, control: Control) -> Page:
    """Serve the page of this process alone; see `_page`."""
    from stream.page.pictures import LivePictures

    pictures = LivePictures(board, config.score.engines[0].manifest)
    return _page(config, board, control, pictures)


def _reload_when_told(
    signals: StopSignals, control: Control, reread: Callable[[], StreamConfig]
) -> None:
    """Change the sources by each SIGHUP, in a thread."""
    from stream.control import reload_when_told

    threading.Thread(
        target=reload_when_told, args=(signals.reload, control, reread), daemon=True
    ).start()


def _hide_source(source: SourceConfig) -> None:
    hide_in_logs(secrets_of(source.uri.get_secret_value()))


def _supervise(
    config: StreamConfig,
    workers: int | None,
    duration: float | None,
    signals: StopSignals,
    reread: Callable[[], StreamConfig],
) -> None:
    from stream.control import Control
    from stream.processors import processors
    from stream.workers.page import Gallery
    from stream.workers.supervisor import Supervisor

    # Before the first worker's imports: a pool of threads each would outnumber the processors.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ExitStack() as resources:
        monitor = _monitor(config, resources, workers=True)
        run = secrets.token_hex(4)
        gallery = None if config.page is None else Gallery(run)
        supervisor = Supervisor(
            config,
            workers or processors(),
            run=run,
            signals=signals,
            log_level=logging.getLogger().getEffectiveLevel(),
            duration_s=duration,
            monitor=monitor,
            gallery=gallery,
        )
        if monitor is not None:
            monitor.standing.of(supervisor.progress)
        control = Control(config, supervisor, supervisor.add, hide=_hide_source)
        if gallery is not None:
            resources.enter_context(_page(config, gallery.board, control, gallery))
        _reload_when_told(signals, control, reread)
        supervisor.run(resources.enter_context(progress_reporter()))
    _complain(supervisor.failed_sources(), len(config.sources))


def _complain(failed: Sequence[SourceStatus], sources: int) -> None:
    if failed:
        named = "; ".join(f"{status.source_id} ({status.code})" for status in failed)
        raise StreamError(f"{len(failed)} of {sources} sources failed: {named}")


def start() -> None:
    """Run the command line, that of `scan` too; the console script `facewarden`."""
    if sys.argv[1:2] == ["scan"]:  # a file of that name is ./scan
        from stream.scan.command import main as scan

        scan(sys.argv[2:])
    try:
        main()
    except SystemExit as end:
        end_process(end.code if isinstance(end.code, int) else int(end.code is not None))


if __name__ == "__main__":
    start()
