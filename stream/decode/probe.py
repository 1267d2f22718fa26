"""What a source is, and which decoder it gets: for people who set one up."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from av.audio.stream import AudioStream

from stream.decode import SourceKind, open_decoder
from stream.decode.auto import AutoDecoder
from stream.decode.groups import is_key_frame
from stream.decode.on_device import FULL_RANGE, DeviceDecoder
from stream.decode.pyav_packets import COLORSPACE_UNSPECIFIED, matrix_of
from stream.errors import SourceError
from stream.redact import printable, redact, scrub, secrets_of

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream
    from av.video.format import VideoFormat

    from stream.config import DecodeConfig, SourceConfig

# Groups of pictures to look at, and for how long at most.
_GROUPS: Final = 2
LONGEST_LIVE_S: Final = 15.0
LONGEST_RECORDED_S: Final = 60.0  # of the recording
_MATRICES: Final = {1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What packets and first picture of a source say."""

    live: bool
    codec: str
    profile: str | None
    chroma: str  # 4:2:0 and so on, gray, rgb
    bit_depth: int
    width: int  # px, as stored
    height: int
    fps: float | None
    gop_pictures: int | None  # from key frame to key frame; None: longer than was looked
    gop_s: float | None
    b_frames: bool
    sound: tuple[str, ...] | None  # codecs; None where it is not asked for
    rotation_deg: int  # to turn counter-clockwise
    pixel_aspect: float
    interlaced: bool
    full_range: bool
    matrix: str
    matrix_tagged: bool  # else guessed by the height


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What `probe` found of one source; nothing in it is secret."""

    source: str
    uri: str
    facts: Facts | None
    decoder: str | None  # what the first frame was decoded by
    why: str  # that decoder, or no frame
    code: str  # of `SourceCode`

    @property
    def is_fine(self) -> bool:
        """Whether a frame was decoded."""
        return self.decoder is not None


def probe(source: SourceConfig, config: DecodeConfig) -> Probe:
    """Look at a source for some seconds, then decode its first frame as a run would.

    A camera is asked twice, one after the other.

    Args:
        source: to look at.
        config: which decoder.

    Raises:
        ConfigError: the URI is not one we open.
    """
    facts = decoder = None
    code, why = "ok", f"decode.kind is {config.kind}"
    try:
        with closing(_Looker(source, config)) as looker:
            facts = looker.facts()
        with closing(
            open_decoder(source.model_copy(update={"realtime": False}), config, session=0)
        ) as opened:
            for frame in opened.frames():
                if frame is not None:
                    decoder = frame.stamp.decoder
                    break
            if isinstance(opened, AutoDecoder):
                why = f"{why}: {opened.why}"
    except SourceError as error:
        code, why = error.code, str(error)
    uri = source.uri.get_secret_value()
    return Probe(
        source=source.id,
        uri=redact(uri),
        facts=facts,
        decoder=decoder,
        why=printable(scrub(why, secrets_of(uri))),
        code=code,
    )


class _Looker(DeviceDecoder):
    """Reads packets, and decodes one of them."""

    def __init__(self, source: SourceConfig, config: DecodeConfig) -> None:
        super().__init__(
            source,
            config,
            session=0,
            clock=time.time,
            monotonic=time.monotonic,
            wait=time.sleep,
        )

    def facts(self) -> Facts:
        """Read until two groups of pictures are over, or it takes too long.

        Raises:
            SourceError: it broke before there was anything to say.
        """
        context = self._stream.codec_context
        codec = context.codec.canonical_name
        keys: list[tuple[int, float | None]] = []  # number of the packet, its time
        first = None
        shown: list[int] = []
        began = time.monotonic()
        n = 0
        for packet in self._packets():
            if not self._of_video(packet):
                continue
            if is_key_frame(packet, codec):
                keys.append((n, _time_s(packet)))
                first = first or self._example(packet)
            if packet.pts is not None:
                shown.append(packet.pts)
            n += 1
            if len(keys) > _GROUPS or self._is_long(began, shown):
                break
        form = context.format
        colour = first.colour if first else None
        return Facts(
            live=self._live,
            codec=codec,
            profile=context.profile,
            chroma=_chroma(form),
            bit_depth=form.components[0].bits if form else 0,
            width=context.width,
            height=context.height,
            fps=float(self._stream.average_rate) if self._stream.average_rate else None,
            gop_pictures=keys[1][0] - keys[0][0] if len(keys) > 1 else None,
            gop_s=_apart_s(keys),
            b_frames=any(b < a for a, b in pairwise(shown)),
            sound=self._sound(),
            rotation_deg=90 * first.turns if first else 0,
            pixel_aspect=round(self._pixel_aspect(), 4),
            interlaced=first.interlaced if first else False,
            full_range=colour.full_range if colour else context.color_range == FULL_RANGE,
            matrix="RGB" if form and form.is_rgb else _matrix(context.colorspace, context.height),
            matrix_tagged=context.colorspace != COLORSPACE_UNSPECIFIED,
        )

    def _is_long(self, began: float, shown: list[int]) -> bool:
        if self._live:
            return time.monotonic() - began > LONGEST_LIVE_S
        base = self._stream.time_base
        if base is None or not shown:
            return False
        return (max(shown) - min(shown)) * base > LONGEST_RECORDED_S

    def _sound(self) -> tuple[str, ...] | None:
        if self._kind is SourceKind.RTSP:
            return None  # only the video is asked for
        tracks = [each for each in self._container.streams if isinstance(each, AudioStream)]
        return tuple(each.codec_context.name if each.codec_context else "?" for each in tracks)


def _time_s(packet: Packet[Stream]) -> float | None:
    ticks = packet.dts if packet.pts is None else packet.pts
    return None if ticks is None or packet.time_base is None else float(ticks * packet.time_base)


def _apart_s(keys: list[tuple[int, float | None]]) -> float | None:
    times = [time_s for _, time_s in keys[:2] if time_s is not None]
    return round(times[1] - times[0], 3) if len(times) > 1 else None


def _chroma(form: VideoFormat | None) -> str:
    if form is None:
        return "?"
    if form.is_rgb:
        return "rgb"
    if len(form.components) < 3:
        return "gray"
    wide, high = 64 // form.chroma_width(64), 64 // form.chroma_height(64)
    return {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (4, 1): "4:1:1"}.get(
        (wide, high), form.name
    )


def _matrix(colorspace: int, height: int) -> str:
    matrix = matrix_of(colorspace, height)
    return _MATRICES.get(matrix, f"AVColorSpace {matrix}")


def lines_of(found: Probe) -> list[str]:
    """Return what was found of a source, for people."""
    lines = [f"{found.source}: {found.uri}"]
    if found.facts is not None:
        lines += _lines_of(found.facts)
    lines.append(f"  decoder      {found.decoder or f'none ({found.code})'}: {found.why}")
    return lines


def _lines_of(facts: Facts) -> list[str]:
    gop = "longer than was looked"
    if facts.gop_pictures is not None:
        seconds = "" if facts.gop_s is None else f", {facts.gop_s:g} s"
        gop = f"{facts.gop_pictures} pictures{seconds}"
    shape = "" if facts.pixel_aspect == 1 else f", pixels {facts.pixel_aspect:g} wide"
    sound = "not asked for" if facts.sound is None else ", ".join(facts.sound) or "none"
    values = {
        "kind": "live" if facts.live else "a recording",
        "codec": f"{facts.codec}{f', profile {facts.profile}' if facts.profile else ''}",
        "pixels": f"{facts.chroma}, {facts.bit_depth} bits"
        + (", interlaced" if facts.interlaced else ""),
        "size": f"{facts.width}x{facts.height}{shape}",
        "fps": "?" if facts.fps is None else f"{facts.fps:.4g}",
        "key frames": gop,
        "B-frames": "yes" if facts.b_frames else "no",
        "sound": sound,
        "rotation": f"{facts.rotation_deg} degrees",
        "colours": f"{facts.matrix} ({'tagged' if facts.matrix_tagged else 'guessed'}), "
        + ("full range" if facts.full_range else "limited range"),
    }
    return [f"  {name:<12} {value}" for name, value in values.items()]
