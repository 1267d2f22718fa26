"""What the watch over feeds finds, how soon, and what it finds where nothing is.

`python -m benchmarks.feed --data ../shared/data` plays every real clip below a folder as a camera
(false alarms), still scenes with a sensor's noise through several encoders (the same), and feeds
that attackers made of the longer clips: frozen, looped, covered, swapped, changed. Each feed is
encoded as cameras do and decoded by the stream's own decoder. Then the longer clips run in a loop
for half an hour of media time each. Nothing waits for the clock: the stage lives by media time.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import av
import click
import numpy as np
import torch
from av.video.stream import VideoStream

from benchmarks.clips import write_clip
from benchmarks.record import ROOT, circumstances, command_line, kept, save
from stream.config import DecodeConfig, FeedConfig, SourceConfig
from stream.records import Frame, FrameStamp
from stream.sources import Source
from stream.stages.feed import FeedWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from stream.records import FeedAlert

PARTS: Final = ("real", "still", "attacks", "swaps", "loops", "cost")
FPS: Final = 10  # of the feeds that are made
WIDTH, HEIGHT = 640, 360
SWAP_CLIP_S: Final = 5.0  # of clips that one feed is swapped for another of
LONG_S: Final = 15.0  # clips as long are attacked
HALF_HOUR_S: Final = 1800.0
BEFORE_S: Final = 20.0  # of every made feed, before the attack
CAMERA: Final = {"preset": "veryfast", "g": "20", "bf": "0", "sc_threshold": "0"}
ENCODERS: Final[dict[str, tuple[str, dict[str, str], int | None]]] = {
    "h264 crf 23, key frame every 2 s": ("libx264", CAMERA | {"crf": "23"}, None),
    "h264 crf 32, key frame every 2 s": ("libx264", CAMERA | {"crf": "32"}, None),
    "h264 crf 32, key frame every 40 s": ("libx264", CAMERA | {"crf": "32", "g": "400"}, None),
    "h264 300 kbit/s, key frame every 2 s": ("libx264", CAMERA, 300_000),
    "mpeg4 400 kbit/s": ("mpeg4", {"g": "20"}, 400_000),
    "mjpeg": ("mjpeg", {}, 4_000_000),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--part", type=click.Choice(PARTS), multiple=True, help="Measure this part alone.")
def main(data: Path, part: tuple[str, ...]) -> None:
    """Measure false alarms, detection and delay."""
    result = kept("feed") | {"command": command_line("benchmarks.feed")} | circumstances()
    clips = sorted(p for p in data.rglob("*") if p.suffix in {".mp4", ".mkv", ".mov"})
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name:
        folder = Path(name)
        measure: dict[str, Callable[[], Any]] = {
            "real": partial(_real, clips),
            "still": partial(_still_scenes, folder),
            "attacks": partial(_attacks, folder, _long(clips)),
            "swaps": partial(_swaps, clips),
            "loops": partial(_half_hours, folder, _long(clips)),
            "cost": _cost,
        }
        for each in part or PARTS:
            result[each] = measure[each]()
            click.echo(json.dumps({each: result[each]}, indent=1))
    click.echo(f"wrote {save('feed', result).relative_to(ROOT)}")


def _real(clips: list[Path]) -> dict[str, Any]:
    """Play every clip once, each as a camera of its own."""
    alarms, seconds, frames, cost_s = {}, 0.0, 0, 0.0
    for clip in clips:
        watch = FeedWatch(FeedConfig())
        watch.begin("cam")
        said: list[FeedAlert] = []
        last_s = 0.0
        for frame in _frames(clip):
            began = time.thread_time()
            said += watch.look(frame)
            cost_s += time.thread_time() - began
            last_s = frame.stamp.pts_s
            frames += 1
        seconds += last_s
        if said:
            alarms[clip.name] = [f"{a.condition} at {a.stamp.pts_s:.1f} s" for a in said]
    return {
        "clips": len(clips),
        "minutes": round(seconds / 60, 1),
        "alarms": alarms,
        "ms per frame": round(1000 * cost_s / frames, 3),
    }


def _still_scenes(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Show a still room for two minutes, with noise, through each encoder."""
    room = np.asarray(_room(), np.float32)
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for (name, how), noise in itertools.product(ENCODERS.items(), (0.0, 0.5, 2.0)):
        random = np.random.default_rng(0)
        grain = random.normal(0, noise, (HEIGHT * 2, WIDTH * 2, 1)).astype(np.float32)

        def picture(_: int, random: Any = random, grain: Any = grain) -> NDArray[np.uint8]:
            y, x = random.integers(HEIGHT), random.integers(WIDTH)
            shown = room + grain[y : y + HEIGHT, x : x + WIDTH]
            return np.asarray(shown.clip(0, 255), np.uint8)

        clip = folder / "still.mkv"
        _write(clip, (picture(i) for i in range(120 * FPS)), *how)
        found[name][f"noise {noise:g}"] = [
            f"{a.condition}{' over' if a.cleared else ''} at {a.stamp.pts_s:.0f} s"
            for a in _watched(_frames(clip))
        ]
    return dict(found)


def _attacks(folder: Path, clips: list[Path]) -> dict[str, Any]:
    """Make each kind of feed of each clip, and say how often and how soon it is found."""
    pictures = {clip.name: _pictures(clip) for clip in clips}
    delays: dict[str, list[float | None]] = defaultdict(list)
    others: Counter[str] = Counter()
    names = list(pictures)
    grey = np.full((HEIGHT, WIDTH, 3), 110, np.float32)
    noise = np.random.default_rng(0).normal(0, 4, (64, HEIGHT, WIDTH, 1)).astype(np.float32)
    for n, name in enumerate(names):
        own, other = pictures[name], pictures[names[(n + 1) % len(names)]]
        before = [own[i % len(own)] for i in range(int(BEFORE_S * FPS))][: len(own)]
        cloth = [(grey + noise[i % 64]).clip(0, 255).astype(np.uint8) for i in range(200)]
        feeds = {
            "frozen, the encoder goes on": ("frozen", [*before, *[before[-1]] * 90 * FPS]),
            "covered by black": ("covered", [*before, *[np.zeros_like(own[0])] * 20 * FPS]),
            "covered by white": ("covered", [*before, *[np.full_like(own[0], 255)] * 20 * FPS]),
            "covered by cloth": ("covered", [*before, *cloth]),
            "swapped": ("swapped", [*before, *other[: 20 * FPS]]),
            "looped": ("looped", [*own[:-3], *own[:-3], *own[:-3]]),
        }
        for kind, (expected, feed) in feeds.items():
            clip = folder / "feed.mkv"
            _write(clip, feed, *ENCODERS["h264 crf 23, key frame every 2 s"])
            began_s = len(own[:-3] if expected == "looped" else before) / FPS
            said = _watched(_frames(clip))
            hits = [a for a in said if a.condition == expected and not a.cleared]
            delays[kind].append(hits[0].stamp.pts_s - began_s if hits else None)
            others.update(f"{kind}: {a.condition}" for a in said if a.condition != expected)
        frames = list(_frames(clip))
        changed = [_smaller(f) for f in frames]
        said = _watched([*frames, *changed])
        hits = [a for a in said if a.condition == "changed"]
        delays["changed size"].append(hits[0].stamp.pts_s - frames[0].stamp.pts_s if hits else None)
    return {kind: _summary(of_kind) for kind, of_kind in delays.items()} | {
        "also said": dict(others)
    }


def _swaps(clips: list[Path]) -> dict[str, Any]:
    """Go over from every clip to every other of another camera, without encoding anew."""
    shown = {}
    for clip in clips:
        frames = [_smallest(frame) for frame in _frames(clip)]
        if frames[-1].stamp.pts_s >= SWAP_CLIP_S:
            shown[clip.name] = frames[: round(SWAP_CLIP_S * 5)]
    found, missed = 0, []
    for one, other in itertools.permutations(shown, 2):
        if _camera(one) == _camera(other):
            continue
        feed = [*shown[one], *reversed(shown[one]), *shown[other], *reversed(shown[other])]
        said = _watched(
            replace(frame, stamp=replace(frame.stamp, pts_s=n / 5)) for n, frame in enumerate(feed)
        )
        if "swapped" in [a.condition for a in said]:
            found += 1
        else:
            missed.append(f"{one} to {other}")
    of = found + len(missed)
    return {
        "clips": len(shown),
        "found": f"{found} of {of}",
        "missed, ten of them": missed[::37][:10],
    }


def _camera(name: str) -> str:
    """Return what clips of one camera have in common."""
    return name.split("_")[0]


def _half_hours(folder: Path, clips: list[Path]) -> dict[str, str]:
    """Run each clip in a loop for half an hour of media time; it should be found."""
    write_clip(folder / "demo.mp4", 10)
    found = {}
    for clip in [folder / "demo.mp4", *clips]:
        frames = list(_frames(clip, fps=1000.0))
        watch = FeedWatch(FeedConfig())
        watch.begin("cam")
        said: list[FeedAlert] = []
        costs_s = []
        due_s = shift_s = 0.0
        interval_s = frames[-1].stamp.pts_s / (len(frames) - 1)
        length_s = frames[-1].stamp.pts_s + interval_s
        while shift_s < HALF_HOUR_S:
            for frame in frames:
                pts_s = shift_s + frame.stamp.pts_s
                if pts_s >= due_s:  # five a second, at other places of the clip each time
                    due_s = max(due_s + 0.2, pts_s)
                    moved = replace(frame, stamp=replace(frame.stamp, pts_s=pts_s))
                    began = time.thread_time()
                    said += watch.look(moved)
                    costs_s.append(time.thread_time() - began)
            shift_s += length_s
        says = [
            f"{a.condition}{' over' if a.cleared else ''} at {a.stamp.pts_s:.0f} s "
            f"(residual {a.measure:.3f})"
            for a in said
        ]
        size = f"{frames[0].stamp.width}x{frames[0].stamp.height}"
        found[clip.name] = (
            f"{length_s:.1f} s long: {'; '.join(says) or 'nothing'}; {size}, "
            f"{1000 * np.mean(costs_s):.2f} ms a frame"
        )
    return found


def _cost() -> dict[str, float]:
    """Show half an hour of 1920x1080 in which nothing repeats, and measure the last minutes."""
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (1080, 1920, 3), dtype=torch.uint8) for _ in range(16)]
    order = np.random.default_rng(0).integers(len(images), size=round(HALF_HOUR_S * 5))
    stamp = FrameStamp(
        source_id="cam",
        session=0,
        index=0,
        pts_s=0.0,
        captured_at=0.0,
        width=1920,
        height=1080,
        decoder="pyav",
    )
    watch = FeedWatch(FeedConfig())
    watch.begin("cam")
    costs_s = []
    for n, number in enumerate(order):
        frame = Frame(stamp=replace(stamp, pts_s=n / 5), image=images[number])
        began = time.thread_time()
        watch.look(frame)
        costs_s.append(time.thread_time() - began)
    last = 1000 * np.array(costs_s[-1500:])
    return {
        "ms a frame": round(float(last.mean()), 3),
        "p99": round(float(np.quantile(last, 0.99)), 3),
    }


def _summary(delays: list[float | None]) -> str:
    known = sorted(d for d in delays if d is not None)
    if not known:
        return f"0 of {len(delays)}"
    return (
        f"{len(known)} of {len(delays)}, after {np.median(known):.1f} s (median), "
        f"{known[-1]:.1f} s at most"
    )


def _watched(frames: Iterable[Frame]) -> list[FeedAlert]:
    watch = FeedWatch(FeedConfig())
    watch.begin("cam")
    return [alert for frame in frames for alert in watch.look(frame)]


def _frames(clip: Path, fps: float = 5.0) -> Iterator[Frame]:
    config = SourceConfig.model_validate({"id": "cam", "uri": str(clip)})
    source = Source(config, DecodeConfig(analyse_fps=fps), stop=threading.Event())
    return (event for event in source.events() if isinstance(event, Frame))


def _long(clips: list[Path]) -> list[Path]:
    """Return the clips that are long enough to be attacked."""
    found = []
    for clip in clips:
        with av.open(str(clip)) as container:
            if (container.duration or 0) / av.time_base >= LONG_S:
                found.append(clip)
    return found


def _pictures(clip: Path) -> list[NDArray[np.uint8]]:
    """Return the pictures of a clip, at `FPS` and of one size."""
    size = [HEIGHT, WIDTH]
    shown = []
    for frame in _frames(clip, fps=FPS):
        image = frame.image.permute(2, 0, 1)[None].float()
        small = torch.nn.functional.interpolate(image, size, mode="area")
        shown.append(small[0].permute(1, 2, 0).to(torch.uint8).numpy())
    return shown


def _smallest(frame: Frame) -> Frame:
    """Return a frame of as few pixels as are looked at, so that many fit into memory."""
    height, width, _ = frame.image.shape
    rows, columns = (
        (torch.arange(n) * 2 + 1) * m // (2 * n) for n, m in ((72, height), (128, width))
    )
    image = frame.image[rows][:, columns].contiguous()
    return Frame(stamp=replace(frame.stamp, width=128, height=72), image=image)


def _smaller(frame: Frame) -> Frame:
    image = frame.image[::2, ::2].contiguous()
    height, width, _ = image.shape
    stamp = replace(frame.stamp, session=1, width=width, height=height)
    return Frame(stamp=stamp, image=image)


def _room() -> NDArray[np.uint8]:
    """Return a picture of things on a table, (HEIGHT, WIDTH, 3)."""
    import skimage.data
    from PIL import Image

    table = Image.fromarray(skimage.data.coffee())  # type: ignore[no-untyped-call]
    return np.asarray(table.resize((WIDTH, HEIGHT)))


def _write(
    path: Path,
    pictures: Iterable[NDArray[np.uint8]],
    codec: str,
    options: dict[str, str],
    bit_rate: int | None,
) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.feed")
