"""`make demo`: write a clip, watch it as a user would, and show what was found.

`python -m demo report CLIP MESSAGES` shows the same of any clip and the messages of a run on it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
from rich.console import Console

from demo.clip import true_face, write_clip
from demo.report import (
    annotate,
    clip_title,
    contact_sheet,
    read_tracks,
    redis_table,
    track_table,
)
from stream.config import RedisSinkConfig, ScoreConfig
from stream.errors import StreamError
from stream.publish.embedded import EmbeddedServer
from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from demo.report import TrackHistory

_SHIPPED = tuple(engine.manifest for engine in ScoreConfig().engines)
_console = Console()


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--manifest",
    "manifests",
    type=click.Path(path_type=Path),
    multiple=True,
    default=_SHIPPED,
    help="A detector's manifest; several judge together. [default: the shipped one]",
)
@click.pass_context
def main(context: click.Context, manifests: tuple[Path, ...]) -> None:
    """Write a clip, watch it with run_stream.py, and show what was found, in demo/out/."""
    torch.set_num_threads(1)  # the clip is drawn in two threads
    context.obj = manifests
    if context.invoked_subcommand is None:
        with _errors_shown():
            _demo(manifests)


@main.command()
@click.argument("clip", type=click.Path(path_type=Path))
@click.argument("messages", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--source", help="Id of the clip's source, if the messages are of several.")
@click.pass_obj
def report(
    manifests: tuple[Path, ...], clip: Path, messages: Path, out: Path, source: str | None
) -> None:
    """Show what MESSAGES, which `run_stream.py --sink jsonl:MESSAGES` wrote, say of CLIP."""
    with _errors_shown():
        out.mkdir(parents=True, exist_ok=True)
        _report(clip, read_tracks(messages, source), manifests, out)


def _demo(manifests: tuple[Path, ...]) -> None:
    started = time.monotonic()
    out = Path("demo") / "out"  # relative, so that the command below can be copied
    out.mkdir(parents=True, exist_ok=True)
    clip, messages = out / "clip.mp4", out / "messages.jsonl"
    messages.unlink(missing_ok=True)  # the sink appends

    with _step("1/3 the clip: a simulation, no real footage"), _console.status("drawing"):
        write_clip(clip)
    with closing(EmbeddedServer()) as server:
        with _step("2/3 the main job, with an embedded Redis server"):
            _watch(clip, messages, server.url, manifests)
        keys = redis_table(server.url, RedisSinkConfig().namespace)
    with _step("3/3 the report"):
        tracks = read_tracks(messages)
        truth = {track.id: _truth(track) for track in tracks}
        _report(clip, tracks, manifests, out, truth)
    _console.print(keys)
    _console.print(f"demo: done in {time.monotonic() - started:.0f} s")


def _watch(clip: Path, messages: Path, redis_url: str, manifests: tuple[Path, ...]) -> None:
    """Run the command that a user would type."""
    options = ["--redis", redis_url, "--sink", "redis", "--sink", f"jsonl:{messages}"]
    # Every score is published, not one a second, so that the boxes can follow the faces.
    options += ["--set", "fuse.publish_every_s=0"]
    if manifests != _SHIPPED:
        options += [word for manifest in manifests for word in ("--model", str(manifest))]
    command = ["run_stream.py", f"clip={clip}", *options]
    _console.print(f"$ {shlex.join(['python', *command])}", soft_wrap=True, highlight=False)
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code != 0:
        sys.exit(code)


def _report(
    clip: Path,
    tracks: list[TrackHistory],
    manifests: tuple[Path, ...],
    out: Path,
    truth: Mapping[str, str] | None = None,
) -> None:
    _console.print(track_table(tracks, title=clip_title(clip), truth=truth))
    video, sheet = out / "annotated.mp4", out / "contact_sheet.png"
    with _console.status("drawing"):
        annotate(clip, tracks, video)
        contact_sheet(clip, tracks, manifests, sheet)
    for path in (video, sheet):
        _console.print(f"wrote {path}", soft_wrap=True, highlight=False, markup=False)


def _truth(track: TrackHistory) -> str:
    """Return what the clip's faces were where the track saw them."""
    seen = set()
    for message in track.messages:
        box, frame = message.bbox, message.frame
        x, y = (box.x + box.w / 2) * frame.w, (box.y + box.h / 2) * frame.h
        seen.add(true_face(message.pts_s, x, y) or "no face")
    return ", ".join(sorted(seen))


@contextmanager
def _step(name: str) -> Iterator[None]:
    _console.rule(name, align="left")
    started = time.monotonic()
    yield
    _console.print(f"({time.monotonic() - started:.1f} s)")


@contextmanager
def _errors_shown() -> Iterator[None]:
    try:
        yield
    except (StreamError, EngineError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main(prog_name="python -m demo")
