"""Watch faces on cameras and files and publish attack scores: the command line.

Reads the configuration, builds the pipeline, handles signals, and turns the outcome into an exit
code: 0 done or asked to stop, 1 failed while running, 2 bad arguments or configuration. Nothing
else happens here.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import yaml
from pydantic import ValidationError

from stream import __version__
from stream.config import RedisSinkConfig, StreamConfig, load_config
from stream.console import hide_in_logs, progress_reporter, set_up_logging
from stream.errors import ConfigError, StreamError
from stream.redact import secrets_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

log = logging.getLogger("run_stream")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sources", nargs=-1, metavar="[ID=]SOURCE...")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="YAML file.")
@click.option("--redis", "redis_url", help="redis://, rediss:// or unix:// [default: $REDIS_URL]")
@click.option("--namespace", help="Prefix of all Redis keys. [default: facewarden]")
@click.option(
    "--sink", "sinks", multiple=True, metavar="jsonl:PATH|redis", help="Where messages go; repeat."
)
@click.option(
    "--model", type=click.Path(path_type=Path), help="Engine: its manifest, or its folder."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="E.g. track.lost_after_s=3."
)
@click.option("--allow-http", is_flag=True, help="Accept http(s):// among the SOURCES given here.")
@click.option("--duration", type=click.FloatRange(min=0), help="Stop after so many seconds.")
@click.option("--check", is_flag=True, help="Validate, print the resolved configuration, end.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
@click.option("--verbose", is_flag=True, help="Log details too.")
def main(
    sources: tuple[str, ...],
    config_path: Path | None,
    redis_url: str | None,
    namespace: str | None,
    sinks: tuple[str, ...],
    model: Path | None,
    settings: tuple[str, ...],
    allow_http: bool,
    duration: float | None,
    check: bool,
    log_format: Literal["text", "json"],
    verbose: bool,
) -> None:
    """Watch faces on SOURCES and publish attack scores per track to Redis.

    A source is rtsp://, rtsps://, a webcam device such as /dev/video0, or a file, with an optional
    name: cam1=rtsp://camera/stream. Without --redis an embedded server is started; its address is
    logged.
    """
    set_up_logging(log_format, verbose=verbose)
    if model is not None:
        settings = (f"score.manifest={_manifest(model)}", *settings)
    try:
        config = _resolve(
            sources, config_path, redis_url, namespace, sinks, settings, allow_http=allow_http
        )
        hide_in_logs(_secrets(config))
        if check:
            _check(config)
            click.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False)
            return
        _run(config, duration)
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


def _manifest(model: Path) -> Path:
    """Return the manifest of an engine's folder; a path that is no folder is the manifest."""
    found = sorted(model.glob("*.manifest.json")) if model.is_dir() else [model]
    if len(found) != 1:
        _fail(ConfigError(f"--model {model}: expected one *.manifest.json, found {len(found)}"), 2)
    return found[0]


def _resolve(
    sources: tuple[str, ...],
    config_path: Path | None,
    redis_url: str | None,
    namespace: str | None,
    sinks: tuple[str, ...],
    settings: tuple[str, ...],
    *,
    allow_http: bool,
) -> StreamConfig:
    """Lay the command line over the YAML file."""
    overrides: list[tuple[str, Any]] = [_setting(text) for text in settings]
    from stream.decode import source_kind

    if sources:
        from stream.sources import parse_source_argument

        parsed = [parse_source_argument(text, i) for i, text in enumerate(sources, start=1)]
        allowed = [source.model_copy(update={"allow_http": allow_http}) for source in parsed]
        overrides.append(("sources", allowed))
    if sinks:
        overrides.append(("sinks", [_sink(text) for text in sinks]))
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
    return config


def _secrets(config: StreamConfig) -> Iterator[str]:
    for source in config.sources:
        yield from secrets_of(source.uri.get_secret_value())
    for sink in config.sinks:
        if isinstance(sink, RedisSinkConfig) and sink.url is not None:
            yield from secrets_of(sink.url.get_secret_value())


def _redis(
    sink: RedisSinkConfig, url: str | None, from_environment: str | None, namespace: str | None
) -> RedisSinkConfig:
    """Lay options and environment over the Redis sink of the configuration."""
    known = sink.model_dump()
    known["url"] = url or known["url"] or from_environment
    known["namespace"] = namespace or known["namespace"]
    try:
        return RedisSinkConfig.model_validate(known)
    except ValidationError as error:
        raise ConfigError(f"--namespace {namespace}: {error.errors()[0]['msg']}") from None


def _check(config: StreamConfig) -> None:
    """Look at what `run` would only find out when it starts."""
    from stream.stages.fuse import Fuser
    from trt_engines.errors import EngineError
    from trt_engines.manifest import load_manifest, verified_file

    nets = [config.detect.engines / f"{net}.manifest.json" for net in ("pnet", "rnet", "onet")]
    try:
        for path in (*nets, config.score.manifest):
            manifest = load_manifest(path)
            verified_file(path, manifest.onnx, manifest.onnx_sha256)
    except EngineError as error:
        raise ConfigError(str(error)) from error
    if manifest.thresholds is not None:  # of the detector, the last one
        Fuser(config.fuse, manifest.thresholds, manifest.name, look_every_s=config.look_every_s)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, for example track.lost_after_s=3")
    return key, yaml.safe_load(value)


def _sink(text: str) -> dict[str, str]:
    kind, _, path = text.partition(":")
    if text == "redis":
        return {"kind": "redis"}
    if kind == "jsonl" and path:
        return {"kind": "jsonl", "path": path}
    raise ConfigError(f"--sink {text}: expected jsonl:PATH or redis")


def _run(config: StreamConfig, duration: float | None) -> None:
    # Imported here, so that --help answers at once.
    import secrets

    import torch

    from stream.analyse import open_analyser
    from stream.messages import MessageWriter, ModelId
    from stream.pipeline import Pipeline
    from stream.publish import open_sinks
    from stream.sources import Source
    from trt_engines.errors import EngineError
    from trt_engines.manifest import load_manifest

    torch.set_num_threads(1)  # the engines have their own; tensor work here is small
    stop = threading.Event()
    _stop_on_signals(stop)
    with ExitStack() as resources:
        try:
            analyser = resources.enter_context(open_analyser(config))
        except EngineError as error:
            raise ConfigError(str(error)) from error
        manifest = load_manifest(config.score.manifest)
        run = secrets.token_hex(4)
        writer = MessageWriter(
            run=run,
            version=__version__,
            models=(ModelId(name=manifest.name, onnx_sha256=manifest.onnx_sha256),),
        )
        sources = [Source(source, config.decode, stop=stop) for source in config.sources]
        heartbeat_s = max(source.heartbeat_s for source in config.sources)
        source_ids = [source.id for source in config.sources]
        sinks = open_sinks(config.sinks, run=run, heartbeat_s=heartbeat_s, source_ids=source_ids)
        pipeline = Pipeline(
            sources, analyser, writer, sinks, stop=stop, shutdown_s=config.shutdown_s
        )
        if duration is not None:
            timer = threading.Timer(duration, stop.set)
            timer.daemon = True
            timer.start()
            resources.callback(timer.cancel)
        report = resources.enter_context(progress_reporter())
        pipeline.run(report)
    if failed := pipeline.failed_sources():
        named = "; ".join(f"{status.source_id} ({status.code})" for status in failed)
        raise StreamError(f"{len(failed)} of {len(sources)} sources failed: {named}")


def _stop_on_signals(stop: threading.Event) -> None:
    def request_stop(number: int, _frame: FrameType | None) -> None:
        log.info("%s: draining", signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)


if __name__ == "__main__":
    main()
