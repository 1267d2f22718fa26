"""What a run said of a clip, for people: a table, an annotated video, a contact sheet, Redis keys.

All of it is made from the messages alone, as any reader of Redis could; the clip is only decoded
again for its pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Final

import av
import numpy as np
import redis
from av.video.reformatter import Colorspace
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from pydantic import SecretStr, TypeAdapter, ValidationError
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from models import crop_faces
from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder
from stream.errors import ConfigError
from stream.messages import SCHEMA, FaceMessage, OutMessage
from stream.records import AttackFamily, Verdict
from stream.stages.align import common_scale
from trt_engines.backends import OnnxRuntimeConfig, open_backend
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from stream.messages import Detector, TrackVerdict
    from stream.records import Frame
    from stream.stages.align import Scale

CUE_POWER: Final = 1 / 3  # cues are mostly far below 1
_COLOURS: Final = {
    Verdict.UNDECIDED: (190, 190, 190),
    Verdict.BONA_FIDE: (60, 190, 90),
    Verdict.ATTACK: (225, 55, 45),
    Verdict.ABSTAIN: (240, 180, 40),
}
_FONT: Final = ImageFont.load_default(20)
_EVERY_FRAME: Final = DecodeConfig(analyse_fps=1000, threads=2)
_TICKS_PER_S: Final = 90_000
_MAX_ROWS: Final = 12  # of the contact sheet


@dataclass(frozen=True, eq=False)
class TrackHistory:
    """All that was said of one track."""

    number: int  # 1 for the first track seen; stands on the pictures
    messages: tuple[FaceMessage, ...]  # at least one, in the order of media time

    @property
    def id(self) -> str:
        """The track's id in the messages."""
        return self.latest.track.id

    @property
    def latest(self) -> FaceMessage:
        """What was said last."""
        return self.messages[-1]

    @property
    def clearest(self) -> FaceMessage:
        """The sharpest sighting, among those good enough to be scored if there are any."""
        return max(self.messages, key=lambda m: (m.quality.problem is None, m.quality.sharpness))

    def at(self, pts_s: float) -> tuple[NDArray[np.float64], TrackVerdict] | None:
        """Return box and verdict at a media time, or None outside the track's life.

        The box, (4,) x1 y1 x2 y2 as fractions of the frame, moves evenly from message to message;
        the verdict is the last one given by then.
        """
        times, boxes = self._path
        pts_s = round(pts_s, 3)  # as in the messages
        after = int(np.searchsorted(times, pts_s, side="right"))
        if after == 0 or pts_s > times[-1]:
            return None
        before, after = after - 1, min(after, len(times) - 1)
        step_s = times[after] - times[before]
        share = (pts_s - times[before]) / step_s if step_s else 0.0
        box = boxes[before] + share * (boxes[after] - boxes[before])
        return box, self.messages[before].verdict

    @cached_property
    def _path(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Media times, (N,), and boxes, (N, 4), of all messages."""
        times = np.array([message.pts_s for message in self.messages])
        return times, np.array([_corners(message) for message in self.messages])


def read_tracks(path: Path, source_id: str | None = None) -> list[TrackHistory]:
    """Read the tracks of the last run in a file of messages, in the order they were first seen.

    Args:
        path: one message a line, as `--sink jsonl:PATH` writes them.
        source_id: whose tracks; may be None if all are of one source.

    Raises:
        ConfigError: not such a file, or it is not clear which source is meant.
    """
    messages = _read_messages(path)
    ids = sorted({message.source.id for message in messages})
    if source_id is None and len(ids) > 1:
        raise ConfigError(f"{path}: messages of several sources; choose one: {', '.join(ids)}")
    source_id = source_id or next(iter(ids), None)
    tracks: dict[str, list[FaceMessage]] = {}
    for message in messages:
        # A later session is the clip played again.
        if message.source.id == source_id and message.source.session == 0:
            tracks.setdefault(message.track.id, []).append(message)
    histories = (sorted(track, key=lambda message: message.pts_s) for track in tracks.values())
    ordered = sorted(histories, key=lambda track: track[0].pts_s - track[0].track.age_s)
    return [TrackHistory(number, tuple(track)) for number, track in enumerate(ordered, 1)]


def clip_title(clip: Path) -> str | None:
    """Return the title in a video file's metadata: a clip that is a simulation says so there.

    Raises:
        ConfigError: the file can't be read.
    """
    try:
        with av.open(f"file:{clip}") as container:
            return container.metadata.get("title")
    except av.FFmpegError as error:
        raise ConfigError(f"{clip}: can't read the clip: {error.strerror}") from None


def track_table(
    tracks: Sequence[TrackHistory], *, title: str | None, truth: Mapping[str, str] | None = None
) -> Table:
    """Return a table with the last word on each track.

    Args:
        tracks: as `read_tracks` gives them.
        title: of the clip.
        truth: id of a track -> what the face really is, where that is known.
    """
    table = Table(title=Text(title or "", "bold"))
    for heading in ("#", "seen, s", "scores", "p(attack)"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    several = any(len(track.latest.detectors) > 1 for track in tracks)
    if several:
        table.add_column("each detector")
    if truth is not None:
        table.add_column("in truth")
        table.caption = "This shows the stages at work; how good the detector is, it can't show."
    table.add_column("track id", overflow="fold")
    for track in tracks:
        latest, verdict = track.latest, track.latest.verdict
        red, green, blue = _COLOURS[verdict.state]
        cells = [
            str(track.number),
            f"{latest.track.age_s:.1f}",
            str(latest.track.n_scores),
            "-" if verdict.p_attack is None else f"{verdict.p_attack:.3f}",
            f"[rgb({red},{green},{blue})]{verdict.state}{_detail(verdict)}[/]",
        ]
        if several:
            cells.append(escape("\n".join(map(_said, latest.detectors))))
        if truth is not None:
            cells.append(truth.get(track.id, "unknown"))
        table.add_row(*cells, track.id)
    return table


def annotate(clip: Path, tracks: Sequence[TrackHistory], path: Path) -> None:
    """Write the clip again, with each track's box, verdict and probability, and the clip's title.

    Raises:
        ConfigError: the clip can't be read.
        SourceError: the clip can't be decoded.
    """
    title = clip_title(clip)
    with av.open(str(path), "w") as container:
        if title:
            container.metadata["title"] = title
        # The frames keep their times, so the rate is only a hint.
        options = {"preset": "ultrafast", "crf": "25"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)
        for number, frame in enumerate(_frames(clip)):
            if number == 0:
                stream.width = frame.stamp.width // 2 * 2  # 4:2:0 needs even sizes
                stream.height = frame.stamp.height // 2 * 2
            image = Image.fromarray(frame.image.numpy())
            draw = ImageDraw.Draw(image)
            for track in tracks:
                _draw_track(draw, track, frame)
            if title:
                _draw_label(draw, (12, image.height - 36), title, (40, 40, 40))
            picture = av.VideoFrame.from_ndarray(np.asarray(image)).reformat(
                stream.width, stream.height, "yuv420p", dst_colorspace=Colorspace.ITU709
            )
            picture.pts = round(frame.stamp.pts_s * _TICKS_PER_S)
            picture.time_base = stream.codec_context.time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def contact_sheet(
    clip: Path, tracks: Sequence[TrackHistory], manifests: Sequence[Path], path: Path
) -> None:
    """Draw a PNG with a row per track: what each detector is shown, its evidence map, score curves.

    The crops are those of the clearest sighting. Cue maps share one scale, 0..1, steeper at its low
    end, so that they can be compared. Of many tracks, the ones seen longest are drawn.

    Args:
        clip: the video.
        tracks: as `read_tracks` gives them.
        manifests: of the detectors that scored them.
        path: of the PNG, 1200 pixels wide, and 500 more for each detector but the first.

    Raises:
        ConfigError: the clip can't be read.
        SourceError: the clip can't be decoded.
        EngineError: the detector can't be used.
    """
    longest = sorted(tracks, key=lambda track: track.latest.track.age_s, reverse=True)[:_MAX_ROWS]
    rows = sorted(longest, key=lambda track: track.number)
    engines = [load_manifest(manifest) for manifest in manifests]
    thresholds = [engine.thresholds for engine in engines if engine.thresholds is not None]
    scale = common_scale(thresholds) if thresholds else None
    frames = _pick(clip, {track.clearest.frame.index for track in rows})
    end_s = max((track.latest.pts_s for track in rows), default=1.0)
    n = len(engines)
    size = 7 + 5 * n, 1 + 2.6 * max(len(rows), 1)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    left_out = f" (the {len(rows)} of {len(tracks)} tracks seen longest)" * (
        len(rows) < len(tracks)
    )
    figure.suptitle((clip_title(clip) or clip.name) + left_out, weight="bold")
    axes = figure.subplots(
        max(len(rows), 1), 2 * n + 1, squeeze=False, width_ratios=(1, 1.25) * n + (3,)
    )
    if not rows:
        axes[0, 1].text(0.5, 0.5, "no face was tracked", ha="center")
        for empty in axes[0]:
            empty.axis("off")
    for number, (manifest, engine) in enumerate(zip(manifests, engines, strict=True)):
        backend = open_backend(manifest, OnnxRuntimeConfig())
        for row, track in zip(axes, rows, strict=False):
            shown = track.clearest
            frame = frames[shown.frame.index]
            box = _pixels(_corners(shown), frame)
            crop = crop_faces(frame.image, box[None], engine.input)
            cue = backend.infer(crop)["explanation"][0, 0].numpy()
            left, middle = row[2 * number : 2 * number + 2]
            left.imshow(crop[0].permute(1, 2, 0).numpy())
            by = f", {engine.name}" if n > 1 else ""
            left.set_title(f"#{track.number} at {shown.pts_s:.1f} s{by}", size="medium")
            drawn = middle.imshow(cue, cmap="inferno", norm=PowerNorm(CUE_POWER, vmin=0, vmax=1))
            middle.set_title(f"evidence map, largest {cue.max():.2f}", size="medium")
            figure.colorbar(drawn, ax=middle, ticks=(0, 0.01, 0.1, 0.5, 1))
            for picture in (left, middle):
                picture.set_xticks([])
                picture.set_yticks([])
        backend.close()
    for row, track in zip(axes, rows, strict=False):
        _draw_curves(row[-1], track, scale, end_s)
    figure.savefig(path)


def redis_table(url: str, namespace: str) -> Table:
    """Return a table of the keys that were written under a namespace, and how much each holds."""
    table = Table("key", "type", "holds", title=Text(f"Redis keys under {namespace}:", "bold"))
    table.caption = (
        f"Alerts and source events also went out by PUBLISH on the channel {namespace}:alerts."
    )
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for key in sorted(client.scan_iter(f"{namespace}:*")):
            kind = client.type(key)
            if kind == "stream":
                holds = f"{client.xlen(key)} entries"
            elif kind == "hash":
                fields = client.hgetall(key)
                said = ", ".join(f"{name} {fields[name]}" for name in ("state", "code"))
                holds = f"{len(fields)} fields ({said}), expires in {client.ttl(key)} s"
            else:
                holds = "-"
            table.add_row(key, kind, holds)
    return table


def _read_messages(path: Path) -> list[FaceMessage]:
    """Return what the last run in a file said of tracks."""
    adapter: TypeAdapter[OutMessage] = TypeAdapter(OutMessage)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        messages = [adapter.validate_json(line) for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't read the messages: {error}") from error
    except ValidationError:
        raise ConfigError(
            f"{path}: not messages of {SCHEMA}; expected a file that `--sink jsonl:PATH` wrote"
        ) from None
    return [
        message
        for message in messages
        if isinstance(message, FaceMessage) and message.producer.run == messages[-1].producer.run
    ]


def _frames(clip: Path) -> Iterator[Frame]:
    """Decode every frame."""
    source = SourceConfig(id="clip", uri=SecretStr(clip.resolve().as_uri()))
    decoder = open_decoder(source, _EVERY_FRAME, session=0)
    try:
        yield from (frame for frame in decoder.frames() if frame is not None)
    finally:
        decoder.close()


def _pick(clip: Path, wanted: set[int]) -> dict[int, Frame]:
    """Return the frames with these indices, decoding no further than needed."""
    found: dict[int, Frame] = {}
    for frame in _frames(clip):
        if frame.stamp.index in wanted:
            found[frame.stamp.index] = frame
        if len(found) == len(wanted):
            return found
    missing = min(wanted - found.keys())
    raise ConfigError(f"{clip}: has no frame {missing}, of which the messages speak; another clip?")


def _corners(message: FaceMessage) -> tuple[float, float, float, float]:
    box = message.bbox
    return box.x, box.y, box.x + box.w, box.y + box.h


def _pixels(box: Sequence[float] | NDArray[np.float64], frame: Frame) -> NDArray[np.float32]:
    size = (frame.stamp.width, frame.stamp.height) * 2
    return np.asarray(box, np.float32) * np.array(size, np.float32)


def _draw_track(draw: ImageDraw.ImageDraw, track: TrackHistory, frame: Frame) -> None:
    seen = track.at(frame.stamp.pts_s)
    if seen is None:
        return
    box, verdict = seen
    x1, y1, x2, y2 = _pixels(box, frame).tolist()
    colour = _COLOURS[verdict.state]
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=3)
    score = "" if verdict.p_attack is None else f" {verdict.p_attack:.2f}"
    text = f"#{track.number} {verdict.state.replace('_', ' ')}{_detail(verdict)}{score}"
    _draw_label(draw, (x1, max(y1 - 26, 0)), text, colour)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
) -> None:
    x, y = corner
    draw.rectangle((x, y, x + draw.textlength(text, _FONT) + 10, y + 26), fill=colour)
    draw.text((x + 5, y + 13), text, (255, 255, 255), _FONT, anchor="lm")


def _detail(verdict: TrackVerdict) -> str:
    """Return why a verdict is abstain, or which kind of attack it is if that is known."""
    known = None if verdict.family is AttackFamily.UNSURE else verdict.family
    why = verdict.reason or known
    return f" ({why})" if why else ""


def _said(detector: Detector) -> str:
    """Return on one line what a detector says."""
    if detector.abstains:
        says = f"abstains ({detector.abstains})"
    else:
        says = "-" if detector.p_attack is None else f"{detector.p_attack:.3f}"
    return f"{detector.name} {says}"


def _draw_curves(axes: Axes, track: TrackHistory, scale: Scale | None, end_s: float) -> None:
    """Draw the fused probability, that of each detector if there are several, and thresholds."""
    scored = [
        (m.pts_s, m.verdict.p_attack, [v / 255 for v in _COLOURS[m.verdict.state]])
        for m in track.messages
        if m.verdict.p_attack is not None
    ]
    if scored:
        scored_s, probabilities, colours = zip(*scored, strict=True)
        axes.plot(scored_s, probabilities, color="0.6", linewidth=1)
        axes.scatter(scored_s, probabilities, c=colours, s=16, zorder=3)
    if len(track.latest.detectors) > 1:
        for number, detector in enumerate(track.latest.detectors):
            said = [m.detectors[number].p_attack for m in track.messages]
            own = [np.nan if p is None else p for p in said]  # a gap
            times = [m.pts_s for m in track.messages]
            axes.plot(times, own, linewidth=1, alpha=0.6, label=detector.name)
        axes.legend(loc="upper left", fontsize="small")
    if scale is not None:
        for name, value in (("enter", scale.enter), ("leave", scale.leave)):
            axes.axhline(value, color="0.4", linestyle="--", linewidth=0.8)
            axes.text(end_s, value, f" {name} {value:.2f}", size="small", va="center")
    latest = track.latest
    state = latest.verdict.state.replace("_", " ")
    axes.set_title(f"{state}, {latest.track.n_scores} scores", size="medium")
    axes.set(xlim=(0, end_s), ylim=(0, 1), xlabel="media time, s", ylabel="p(attack), fused")
