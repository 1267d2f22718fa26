"""The command line of `run_stream.py scan`; docs/scan.md explains it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import click

from models import Setting
from stream.console import hide_in_logs, open_standard_streams, set_up_logging
from stream.errors import ConfigError, StreamError
from stream.processors import processors
from stream.redact import secrets_of
from stream.signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from stream.config import RedisSinkConfig, SinkConfig, StreamConfig
    from stream.scan.inputs import Listing
    from stream.scan.policy import Look, Mode, ScanLimits
    from stream.scan.scanner import ScanPlan, ScanProgress
    from trt_engines.backends import Backend

log = logging.getLogger(__name__)

FAILED, USAGE, SOME_UNREADABLE, ATTACKS_FOUND = 1, 2, 3, 10
_LOG_EVERY_S: Final = 10.0

_EXAMPLES = """\b
Examples:
  run_stream.py scan archive/ --out results
  run_stream.py scan archive/ --out results --mode keyframes --fail-on attack
  find /mnt -name '*.mkv' -print0 | run_stream.py scan --from - --null --out results
  run_stream.py scan archive/ --out results --shard 0/8
  run_stream.py scan merge results --out merged
"""


@click.command("scan", context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXAMPLES)
@click.argument("paths", nargs=-1, metavar="PATH...", type=click.Path(path_type=bytes))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder for the results; a scan that was cut off goes on there.",
)  # fmt: skip
@click.option(
    "--from", "lists", multiple=True, metavar="FILE",
    help="List of paths, one a line; - is the standard input; may be repeated.",
)  # fmt: skip
@click.option("--null", is_flag=True, help="Paths in lists end with NUL, not with a line break.")
@click.option(
    "--include", multiple=True, metavar="GLOB",
    help="Take only files of folders whose name or path below the folder matches; may be "
    "repeated.  [default: suffixes of videos and pictures]",
)  # fmt: skip
@click.option(
    "--exclude", multiple=True, metavar="GLOB",
    help="Leave such files of folders out; may be repeated.",
)  # fmt: skip
@click.option("--follow-links", is_flag=True, help="Follow symbolic links.")
@click.option(
    "--mode", type=click.Choice(["keyframes", "sample", "full"]), default="sample",
    show_default=True, help="Which frames are looked at: key frames, some a second, or as many as "
    "the live stream looks at.",
)  # fmt: skip
@click.option(
    "--then", type=click.Choice(["sample"]),
    help="With --mode keyframes: where key frames show a face, look at the seconds around again, "
    "at --fps.",
)  # fmt: skip
@click.option(
    "--fps", type=click.FloatRange(min=0, min_open=True, max=1000), default=1.0, show_default=True,
    help="Frames a second of media time that `sample` looks at, and `keyframes` at most.",
)  # fmt: skip
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE",
    help="YAML file of the live stream; its sources don't matter, its sinks only with --sink.",
)  # fmt: skip
@click.option(
    "--model", "models", type=click.Path(path_type=Path), multiple=True, metavar="PATH",
    help="Detector to use, as in run_stream.py; several judge together.",
)  # fmt: skip
@click.option(
    "--set", "settings", type=Setting(), multiple=True, metavar="KEY=VALUE",
    help="Any option of the stream's configuration, such as detect.min_face_px=60.",
)  # fmt: skip
@click.option(
    "--limit", "limits", type=Setting(), multiple=True, metavar="KEY=VALUE",
    help="What one file may cost: cpu_s, wall_s, silent_s, memory_mb, max_pixels, still_pixels, "
    "duration_s; temporary_mb for what is fetched from object stores.",
)  # fmt: skip
@click.option(
    "--readers", type=click.IntRange(1, 256), metavar="N",
    help="Files that are read at a time, each by a process.  [default: the number of processors, "
    "with --engine ray those of the cluster]",
)  # fmt: skip
@click.option(
    "--shard", metavar="I/N",
    help="Scan the part number I, from 0, of N parts; `scan merge` makes one of their results.",
)  # fmt: skip
@click.option(
    "--watch", type=click.FloatRange(min=0, min_open=True, max=86400), metavar="SECONDS",
    help="Go on with what arrives: list PATH... so often, and scan what has stood still since the "
    "listing before. A signal ends it.",
)  # fmt: skip
@click.option(
    "--sink", "sinks", type=click.Choice(["redis", "webhook"]), multiple=True,
    help="Publish a message per file, too: to the Redis of --config or $REDIS_URL, or to the "
    "webhooks of --config; may be repeated.",
)  # fmt: skip
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Scan with this machine, or with a Ray cluster: see docs/scale.md.",
)  # fmt: skip
@click.option(
    "--ray-address", metavar="HOST:PORT",
    help="With --engine ray: the cluster; auto is the one this machine is part of.  [default: "
    "$RAY_ADDRESS, else a cluster of its own]",
)  # fmt: skip
@click.option("--no-crops", is_flag=True, help="Keep no pictures of faces.")
@click.option(
    "--fail-on", type=click.Choice(["attack"]), help="End with exit code 10 if there is an attack."
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text",
              show_default=True, help="Form of the log on stderr.")  # fmt: skip
@click.option("--verbose", is_flag=True, help="Log details, too.")
def scan(
    paths: tuple[bytes, ...],
    out: Path,
    lists: tuple[str, ...],
    null: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    follow_links: bool,
    mode: str,
    then: str | None,
    fps: float,
    config_path: Path | None,
    models: tuple[Path, ...],
    settings: tuple[tuple[str, Any], ...],
    limits: tuple[tuple[str, Any], ...],
    readers: int | None,
    shard: str | None,
    watch: float | None,
    sinks: tuple[str, ...],
    engine: str,
    ray_address: str | None,
    no_crops: bool,
    fail_on: str | None,
    log_format: Literal["text", "json"],
    verbose: bool,
) -> None:
    """Scan the files at PATH..., and those in folders there, for attacks.

    PATH may be the address of an object, or of a folder, in an object store: s3://, gs://, az://.

    Exit codes: 0 clean, 1 failed or stopped, 2 usage, 3 some files could not be read to the end,
    10 attacks found with --fail-on attack.
    """
    from stream.scan.inputs import Listing, Selection
    from stream.scan.listing import list_items
    from stream.shards import parse_shard

    signals = StopSignals()
    open_standard_streams()
    set_up_logging(log_format, verbose=verbose)
    with _ending():
        if not paths and not lists:
            raise ConfigError("expected PATH... or --from FILE, found neither")
        if then is not None and mode != "keyframes":
            raise ConfigError(f"--then sample goes with --mode keyframes, not with {mode}")
        if engine != "ray" and ray_address is not None:
            raise ConfigError("--ray-address goes with --engine ray")
        if engine == "ray" and watch is not None:
            raise ConfigError("--watch goes with --engine local, not with ray")
        part = (0, 1) if shard is None else parse_shard(shard)
        allowed = _limits(limits)
        named = [*paths, *(path for each in lists for path in _listed(each, null=null))]
        config = _config(config_path, models, settings)
        publish_to = _sinks(config, sinks, out)
        selection = Selection(include, exclude, follow_links)

        def list_all() -> Listing:
            return list_items(named, selection, shard=part)

        listing = list_all()
        log.info(
            "%d files to scan, %d of folders left out by name, %d links not followed",
            len(listing.items), listing.left_out, listing.links,
        )  # fmt: skip
        with ExitStack() as resources:
            run = _Run(config, _mode(mode), fps, allowed, out, resources, looks_closer=bool(then))
            plan = run.plan(follow_links=follow_links, readers=readers or processors())
            if watch is not None:
                listing = Listing()  # what is there already may be half-written, too
            progress = run.scan(
                plan,
                listing,
                part,
                signals,
                crops=not no_crops,
                sinks=publish_to,
                watch=None if watch is None else (list_all, watch),
                ray=Cluster(ray_address, readers) if engine == "ray" else None,
            )
        _say(progress)
        if signals.stop.is_set() and watch is None:
            log.error("stopped; run again to go on")
            sys.exit(FAILED)
        if fail_on and progress.verdicts["attack"]:
            sys.exit(ATTACKS_FOUND)
        if progress.files != progress.statuses["ok"]:
            sys.exit(SOME_UNREADABLE)


@click.command("merge", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folders", nargs=-1, required=True, metavar="DIR...",
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="Folder for the results as one; may be one of DIR...")  # fmt: skip
def merge(folders: tuple[Path, ...], out: Path) -> None:
    """Make one result of those of several shards, in one folder or several.

    A file that was scanned more than once is there once, as it was scanned last.
    """
    from stream.scan.report import write_report
    from stream.scan.results import collect_crops, merge_journals, write_results

    set_up_logging("text", verbose=False)
    with _ending():
        journals = merge_journals(folders)
        out.mkdir(parents=True, exist_ok=True)
        collect_crops(folders, out)
        n = write_results(journals, out)
        write_report(journals, out, None)
        log.info("%d journals, %d files: %s", len(journals), n, out)


def main(arguments: Sequence[str]) -> None:
    """Run `scan`, or `scan merge`."""
    if arguments and arguments[0] == "merge":
        merge(list(arguments[1:]), prog_name="run_stream.py scan merge")
    else:
        scan(list(arguments), prog_name="run_stream.py scan")


class Cluster(NamedTuple):
    """Of Ray: where it is, and how many files it scans at a time; see `scan_on_ray`."""

    address: str | None
    actors: int | None


class _Run:
    """A scan with its configuration; engines are opened when they are first needed."""

    def __init__(
        self,
        config: StreamConfig,
        mode: Mode,
        fps: float,
        limits: ScanLimits,
        out: Path,
        resources: ExitStack,
        *,
        looks_closer: bool,
    ) -> None:
        from stream.scan.analysers import Analysers
        from stream.scan.policy import Look, Mode, config_for

        self._configs = {
            look: config_for(look, config, mode, fps)
            for look in Look
            if looks_closer or look is not Look.CLOSER
        }
        self._mode = mode
        self._fps = config.decode.analyse_fps if mode is Mode.FULL else fps
        self._limits = limits
        self._out = out
        self._analysers = resources.enter_context(Analysers(self._configs))

    def plan(self, *, follow_links: bool, readers: int) -> ScanPlan:
        """Return how files are scanned.

        Raises:
            ConfigError: an engine can't be used.
        """
        from stream.scan.policy import Look
        from stream.scan.scanner import ScanPlan
        from trt_engines.errors import EngineError
        from trt_engines.manifest import load_manifest

        config = self._configs[Look.VIDEO]
        closer = self._configs.get(Look.CLOSER)
        nets = [config.detect.engines / f"{net}.manifest.json" for net in ("pnet", "rnet", "onet")]
        try:
            found = [load_manifest(engine.manifest) for engine in config.score.engines]
            manifests = [*(load_manifest(net) for net in nets), *found]
        except EngineError as error:
            raise ConfigError(str(error)) from error
        told = [
            each.model_dump(mode="json", exclude={"sources", "sinks", "shutdown_s", "feed"})
            for each in self._configs.values()
        ]
        for each in told:  # where an engine lies does not matter, what it is does
            del each["detect"]["engines"]
            each["score"]["engines"] = [e["interval_s"] for e in each["score"]["engines"]]
        key = [told, [m.model_dump(mode="json") for m in manifests], self._mode, self._fps]
        key.append(self._limits.model_dump(mode="json", exclude={"temporary_mb"}))
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return ScanPlan(
            mode=self._mode,
            fps=self._fps,
            decode=config.decode,
            closer=None if closer is None else closer.decode,
            limits=self._limits,
            follow_links=follow_links,
            readers=readers,
            folder=self._out / "fetched",
            run_key=digest[:32],
            models=tuple(f"{m.name}:{m.onnx_sha256}" for m in found),
        )

    def scan(
        self,
        plan: ScanPlan,
        listing: Listing,
        part: tuple[int, int],
        signals: StopSignals,
        *,
        crops: bool,
        sinks: Sequence[SinkConfig],
        watch: tuple[Callable[[], Listing], float] | None,
        ray: Cluster | None,
    ) -> ScanProgress:
        """Scan, and write the results of what is finished, however it ends.

        Args:
            plan: how.
            listing: what.
            part: of how many parts this is which.
            signals: end it.
            crops: whether pictures of faces are kept.
            sinks: where results are published, too.
            watch: what lists all that is there, and every how many seconds; None: `listing` is all.
            ray: what scans; None: this machine.
        """
        import torch

        from stream.scan.crops import CropKeeper
        from stream.scan.journal import Journal
        from stream.scan.outputs import Outputs
        from stream.scan.policy import Look
        from stream.scan.ray_engine import Setup, scan_on_ray
        from stream.scan.scanner import Scanner
        from stream.scan.watch import Watch
        from trt_engines.manifest import load_manifest

        torch.set_num_threads(1)  # the engines have their own; tensor work here is small
        number, parts = part
        name = "all" if parts == 1 else f"{number}-of-{parts}"
        first = load_manifest(self._configs[Look.VIDEO].score.engines[0].manifest)
        leave = 0.5 if first.thresholds is None else first.thresholds.leave
        shown = first.input, leave
        plan = replace(plan, folder=plan.folder / name)
        with ExitStack() as held:
            journal = held.enter_context(Journal(self._out / "journal" / f"{name}.jsonl"))
            if ray is None:
                for look in {Look.STILL if item.is_still else Look.VIDEO for item in listing.items}:
                    self._analysers.of(look)  # what can't be used is said before the first file
            outputs = Outputs(
                self._out,
                journal,
                self._open_first if crops else None,
                sinks=sinks,
                is_whole=parts == 1,
                grows=watch is not None,
            )
            held.enter_context(outputs)
            arrivals = None if watch is None else held.enter_context(Watch(*watch))
            signals.drain_from_now()
            with _reporter() as report:

                def tell(progress: ScanProgress) -> None:
                    outputs.refresh()
                    report(progress)

                if ray is None:
                    keeper = CropKeeper(self._out / "crops", *shown) if crops else None
                    scanner = Scanner(
                        plan,
                        self._analysers.of,
                        journal.finished,
                        outputs.add,
                        keeper,
                        stop=signals.stop,
                    )
                    scanner.run(listing.items, tell, arrivals)
                    progress = scanner.progress
                else:
                    progress = scan_on_ray(
                        Setup(
                            plan, self._without_sinks(), shown if crops else None, str(Path.cwd())
                        ),
                        listing.items,
                        journal.finished,
                        outputs.add,
                        self._out / "crops",
                        address=ray.address,
                        actors=ray.actors,
                        stop=signals.stop,
                        report=tell,
                    )
            outputs.write()
        return progress

    def _without_sinks(self) -> dict[Look, StreamConfig]:
        """Return what workers need to know: no credentials are among it."""
        return {
            look: config.model_copy(update={"sinks": ()}) for look, config in self._configs.items()
        }

    def _open_first(self) -> Backend:
        from stream.scan.policy import Look
        from trt_engines.backends import open_backend

        config = self._configs[Look.VIDEO]
        return open_backend(config.score.engines[0].manifest, config.backend)


@contextmanager
def _ending() -> Iterator[None]:
    """Turn what goes wrong into one line and an exit code."""
    try:
        yield
    except StreamError as error:
        log.error("%s", error)  # noqa: TRY400 - one line, without the stack
        sys.exit(USAGE if isinstance(error, ConfigError) else FAILED)
    except Exception:
        log.exception("failed: this is a bug in facewarden; please report it with these lines")
        sys.exit(FAILED)


def _config(
    path: Path | None, models: Sequence[Path], settings: Sequence[tuple[str, Any]]
) -> StreamConfig:
    from stream.config import load_config
    from stream.engine_paths import manifest_of

    engines = [{"manifest": manifest_of(model)} for model in models]
    unused = [("sources", [{"id": "scan", "uri": "scan"}])]  # a stream must have some
    return load_config(
        path, [*unused, *([("score.engines", engines)] if engines else []), *settings]
    )


def _sinks(config: StreamConfig, kinds: Collection[str], out: Path) -> list[SinkConfig]:
    """Return where results are published; what waits lies beside them, unless told otherwise.

    Raises:
        ConfigError: a kind is asked for, and not configured.
    """
    sinks: list[SinkConfig] = [_redis(config, out / "spool")] if "redis" in kinds else []
    webhooks = [sink for sink in config.sinks if sink.kind == "webhook"]
    if "webhook" not in kinds:
        if webhooks:
            log.warning("the webhooks of --config get nothing of this scan: add --sink webhook")
        return sinks
    if not webhooks:
        raise ConfigError(
            "--sink webhook: expected its address in --config (sinks: [{kind: webhook, url: ...}]),"
            " found none"
        )
    for number, webhook in enumerate(webhooks, 1):
        hide_in_logs(webhook.secrets)
        spool = webhook.spool or out / f"spool-webhook-{number}"
        sinks.append(webhook.model_copy(update={"spool": spool}))
    return sinks


def _redis(config: StreamConfig, spool: Path) -> RedisSinkConfig:
    """Return the Redis of the configuration; what waits for it lies beside the results.

    Raises:
        ConfigError: no server is named.
    """
    from pydantic import SecretStr

    from stream.config import RedisSinkConfig

    redis = next((s for s in config.sinks if isinstance(s, RedisSinkConfig)), RedisSinkConfig())
    url = redis.url or SecretStr(os.environ.get("REDIS_URL", ""))
    if not url.get_secret_value():
        raise ConfigError(
            "--sink redis: expected its URL in --config (sinks: [{kind: redis, url: ...}]) or in "
            "$REDIS_URL, found none"
        )
    hide_in_logs(secrets_of(url.get_secret_value()))
    return redis.model_copy(update={"url": url, "spool": redis.spool or spool})


def _mode(text: str) -> Mode:
    from stream.scan.policy import Mode

    return Mode(text)


def _limits(settings: Sequence[tuple[str, Any]]) -> ScanLimits:
    from pydantic import ValidationError

    from models import lay_over, one_line
    from stream.scan.policy import ScanLimits

    data: dict[str, Any] = {}
    try:
        lay_over(data, settings)
        return ScanLimits.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"--limit: {one_line(error, ScanLimits)}") from None
    except ValueError as error:
        raise ConfigError(f"--limit: {error}") from None


def _listed(name: str, *, null: bool) -> Sequence[bytes]:
    from stream.scan.inputs import read_list

    try:
        if name == "-":
            return read_list(sys.stdin.buffer, null=null)
        with Path(name).open("rb") as file:
            return read_list(file, null=null)
    except OSError as error:
        raise ConfigError(f"--from {name}: can't be read ({error.strerror})") from error


@contextmanager
def _reporter() -> Iterator[Callable[[ScanProgress], None]]:
    """Yield what shows progress: a line that is rewritten on a terminal, else the log."""
    started = time.monotonic()
    told_at = started

    def in_log(progress: ScanProgress) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _LOG_EVERY_S:
            told_at = time.monotonic()
            log.info("%s", _line(progress, told_at - started))

    if not sys.stderr.isatty():
        yield in_log
        return
    from rich.console import Console
    from rich.status import Status

    with ExitStack() as shown:
        status = Status("scanning", console=Console(stderr=True))
        with suppress(OSError):
            shown.enter_context(status)

        def on_terminal(progress: ScanProgress) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= 0.25:
                told_at = time.monotonic()
                with suppress(OSError):
                    status.update(_line(progress, told_at - started))

        yield on_terminal


def _line(progress: ScanProgress, elapsed_s: float) -> str:
    speed = progress.media_s / elapsed_s if elapsed_s > 0 else 0.0
    share = progress.bytes / progress.bytes_due if progress.bytes_due else 1.0
    left = f", {elapsed_s * (1 / share - 1):.0f} s left" if 0 < share < 1 else ""
    unread = progress.files - progress.statuses["ok"]
    return (
        f"{progress.files} of {progress.files_due} files, {progress.bytes / 1e6:.0f} of "
        f"{progress.bytes_due / 1e6:.0f} MB, {speed:.1f} x real time{left}; "
        f"{progress.verdicts['attack']} with attacks, {unread} not read to the end"
    )


def _say(progress: ScanProgress) -> None:
    log.info(
        "%d files scanned, %d known from before; %s; %s",
        progress.files,
        progress.files_known,
        ", ".join(f"{n} {name}" for name, n in progress.statuses.most_common()) or "none read",
        ", ".join(f"{n} {name}" for name, n in progress.verdicts.most_common()) or "no verdicts",
    )
