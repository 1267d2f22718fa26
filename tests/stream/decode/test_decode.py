"""What every decoder must do, on real encoded video."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import psutil
import pytest
import torch

from stream.config import DecodeConfig, SourceConfig
from stream.decode import SourceKind, open_decoder, source_kind
from stream.errors import ConfigError, SourceError
from stream.records import Frame, SourceCode

if TYPE_CHECKING:
    pass

EVERY_FRAME = 1000.0  # analyse_fps above any frame rate used here
BT709, BT601 = 1, 5  # AVColorSpace


class Decoding:
    """Opens decoders of one kind, and reads them to the end."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self.error: SourceError | None = None  # that ended the latest `frames`
        self.frames_seen = 0

    def open(
        self,
        uri: Path | str,
        *,
        fps: float = EVERY_FRAME,
        clock=lambda: 0.0,
        monotonic=lambda: 0.0,
        wait=lambda _: None,
        **options: Any,
    ):
        source = SourceConfig(id="cam", uri=str(uri), **options)
        config = DecodeConfig(kind=self._kind, analyse_fps=fps)
        return open_decoder(source, config, session=3, clock=clock, monotonic=monotonic, wait=wait)

    def frames(self, uri: Path | str, **options: Any) -> list[Frame]:
        """Return all frames up to the end or the first error."""
        self.error = None
        frames: list[Frame] = []
        decoder = self.open(uri, **options)
        try:
            frames.extend(frame for frame in decoder.frames() if frame is not None)
        except SourceError as error:
            self.error = error
        self.frames_seen = decoder.frames_seen
        return frames

    def refused(self, uri: Path | str, **options: Any) -> SourceError:
        """Return the error that opening raises."""
        with pytest.raises(SourceError) as raised:
            self.open(uri, **options)
        return raised.value


@pytest.fixture(params=["pyav"])
def decoding(request: pytest.FixtureRequest) -> Decoding:
    return Decoding(request.param)


def numbers_of(frames, read_number):
    return [read_number(frame.image) for frame in frames]


def times_of(frames):
    return [frame.stamp.pts_s for frame in frames]


# --- what it is ---


def test_description_names_codec_size_and_frame_rate(decoding, clip):
    with closing(decoding.open(clip)) as decoder:
        assert decoder.description == "h264 320x240, 25 fps"


def test_a_file_has_an_end(decoding, clip):
    with closing(decoding.open(clip)) as decoder:
        assert not decoder.is_live


# --- count, order, time ---


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".mov"])
def test_every_frame_comes_once_in_order_and_in_time(
    decoding, write_clip, read_number, tmp_path, suffix
):
    time_base = Fraction(1, 25) if suffix == ".avi" else None  # AVI counts frames
    frames = decoding.frames(write_clip(tmp_path / f"clip{suffix}", time_base=time_base))
    assert decoding.error is None
    assert numbers_of(frames, read_number) == list(range(50))
    assert times_of(frames) == pytest.approx([i / 25 for i in range(50)], abs=0.001)


def test_frames_carry_where_and_when_they_were_taken(decoding, clip):
    ticks = iter(range(1000, 2000))
    frames = decoding.frames(clip, fps=5, clock=lambda: float(next(ticks)))
    stamp = frames[3].stamp
    assert (stamp.source_id, stamp.session, stamp.index) == ("cam", 3, 15)
    assert (stamp.width, stamp.height, stamp.decoder) == (320, 240, "pyav")
    assert stamp.pts_s == pytest.approx(0.6)
    assert 1000 <= stamp.captured_at < 2000
    assert [f.stamp.index for f in frames] == list(range(0, 50, 5))
    assert decoding.frames_seen == 50


def test_frames_say_which_encoder_made_them_and_never_which_pictures(
    decoding, write_clip, tmp_path
):
    options = {"preset": "veryfast", "g": "25", "threads": "1", "qp": "22"}

    def encoding(name: str, **how: Any) -> str:
        frames = decoding.frames(write_clip(tmp_path / name, n=3, **how))
        (found,) = {frame.stamp.encoding for frame in frames}
        return str(found)

    usual = encoding("a.mp4", options=options)
    assert usual.split()[0] == "h264"
    assert encoding("b.mp4", options=options, first=100) == usual
    assert encoding("c.mp4", options={**options, "refs": "1", "profile": "baseline"}) != usual
    assert encoding("d.avi", codec="mjpeg", pix_fmt="yuvj420p") == "mjpeg"


def test_due_frames_are_nearly_the_same_at_half_the_rate_and_at_a_varying_rate(
    decoding, write_clip, tmp_path
):
    generator = random.Random(7)
    steps = [generator.choice([1 / 30, 1 / 15, 1 / 24]) for _ in range(60)]
    varying = [sum(steps[:i]) for i in range(60)]
    full = decoding.frames(write_clip(tmp_path / "25.mp4", n=50, fps=25), fps=5)
    half = decoding.frames(write_clip(tmp_path / "12.mp4", n=25, fps=12.5), fps=5)
    vfr = decoding.frames(write_clip(tmp_path / "vfr.mp4", times_s=varying), fps=5)
    assert times_of(full) == pytest.approx([i / 5 for i in range(10)], abs=0.001)
    assert times_of(half) == pytest.approx(times_of(full), abs=1 / 12.5)
    assert times_of(vfr)[:10] == pytest.approx(times_of(full), abs=1 / 15)


def test_a_packet_that_gives_no_due_frame_gives_the_caller_a_turn(decoding, clip):
    with closing(decoding.open(clip, fps=0.5)) as decoder:
        events = list(decoder.frames())
    assert sum(event is not None for event in events) == 1
    assert sum(event is None for event in events) >= 50


def test_frames_without_stamps_are_spaced_at_the_frame_rate(
    decoding, write_clip, read_number, tmp_path
):
    frames = decoding.frames(write_clip(tmp_path / "raw.h264", n=40))
    assert numbers_of(frames, read_number) == list(range(40))
    assert times_of(frames) == pytest.approx([i / 25 for i in range(40)], abs=0.001)


@pytest.mark.parametrize("hours", [1, 10, 26])
def test_media_time_goes_on_where_a_recording_was_joined(
    decoding, write_clip, read_number, tmp_path, hours
):
    late = [hours * 3600 + i / 25 for i in range(25)]
    parts = [
        write_clip(tmp_path / "a.ts", times_s=late),
        write_clip(tmp_path / "b.ts", n=25, first=25),
    ]
    joined = join(tmp_path / "joined.ts", parts)
    frames = decoding.frames(joined)
    assert numbers_of(frames, read_number) == list(range(50))
    assert times_of(frames) == pytest.approx([i / 25 for i in range(50)], abs=0.001)


class Clocks:
    """A clock of the wall and a monotonic one that waiting moves, and nothing else."""

    def __init__(self) -> None:
        self.now = 500.0  # monotonic
        self.wall_ahead = 1e9

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.wall_ahead

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def options(self) -> dict[str, Any]:
        return {"clock": self.wall, "monotonic": self, "wait": self.wait}


def test_a_file_played_as_a_camera_is_paced_by_the_clock(decoding, clip):
    time = Clocks()
    frames = decoding.frames(clip, fps=5, realtime=True, **time.options())
    captured = [frame.stamp.captured_at for frame in frames]
    assert captured == pytest.approx([1e9 + 500 + t for t in times_of(frames)])
    assert time.now == pytest.approx(500 + 49 / 25)


def test_a_wall_clock_that_is_set_does_not_hurry_or_halt_a_file_played_as_a_camera(decoding, clip):
    time = Clocks()
    frames = []
    for frame in decoding.open(clip, fps=5, realtime=True, **time.options()).frames():
        frames += [frame] if frame is not None else []
        time.wall_ahead = [0.0, 3600.0, -3600.0][len(frames) % 3]
    assert len(frames) == 10
    assert time.now == pytest.approx(500 + 49 / 25)


BURSTS_S = [30 * burst + i / 25 for burst in range(4) for i in range(10)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_the_gaps_of_a_recording_that_motion_started_are_kept(
    decoding, write_clip, read_number, tmp_path, suffix
):
    frames = decoding.frames(write_clip(tmp_path / f"motion{suffix}", times_s=BURSTS_S))
    assert decoding.error is None
    assert numbers_of(frames, read_number) == list(range(40))
    assert times_of(frames) == pytest.approx(BURSTS_S, abs=0.001)


def test_a_gap_is_not_waited_out_when_a_file_is_played_as_a_camera(decoding, write_clip, tmp_path):
    time = Clocks()
    path = write_clip(tmp_path / "motion.mp4", times_s=BURSTS_S)
    frames = decoding.frames(path, realtime=True, **time.options())
    assert times_of(frames) == pytest.approx(BURSTS_S, abs=0.001)
    assert time.now == pytest.approx(500 + 4 * 9 / 25 + 3 * 5)


def test_media_time_goes_on_where_a_transport_streams_stamps_wrap(
    decoding, write_clip, read_number, tmp_path
):
    wrap = 2**33 / 90_000
    options = {"output_ts_offset": str(wrap - 1), "mpegts_copyts": "1"}
    bframes = {"preset": "fast", "g": "25", "bf": "2"}
    path = write_clip(tmp_path / "wrap.ts", container_options=options, options=bframes)
    frames = decoding.frames(path)
    assert numbers_of(frames, read_number) == list(range(50))
    assert times_of(frames) == pytest.approx([i / 25 for i in range(50)], abs=0.001)


def test_pictures_sent_one_by_one_are_timed_by_their_arrival_though_the_wall_clock_is_set(
    decoding, write_clip, read_number, live_server, tmp_path
):
    clip = write_clip(tmp_path / "clip.avi", n=8, codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(clip)) as container:
        pictures = [bytes(packet) for packet in container.demux() if packet.size]
    head = b"--part\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    body = b"".join(head % len(data) + data + b"\r\n" for data in pictures)
    url = live_server(body, headers="Content-Type: multipart/x-mixed-replace;boundary=part\r\n")
    wall = iter([1e9, 1e9 + 3, *(1e9 - 3600 + 3 * i for i in range(100))])  # set back by an hour
    monotonic = iter(range(1000, 2000, 3))
    frames = decoding.frames(
        url,
        allow_http=True,
        clock=lambda: next(wall),
        monotonic=lambda: float(next(monotonic)),
    )
    assert numbers_of(frames, read_number)[:7] == list(range(7))
    assert times_of(frames) == [3.0 * i for i in range(len(frames))]
    assert [f.stamp.captured_at - 1e9 for f in frames[:4]] == [0, 3, -3600, -3597]


# --- pixels ---


def patch(number: int, width: int, height: int):
    """A dark picture whose top left quarter is orange: shows colour and which way is up."""
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[: height // 2, : width // 2] = (230, 120, 30)
    return picture


def colour_at(image: torch.Tensor, x: float, y: float) -> list[int]:
    height, width, _ = image.shape
    return [int(v) for v in image[int(y * height), int(x * width)]]


@pytest.mark.parametrize(
    ("size", "tag", "drawn"),
    [
        ((320, 240), BT601, BT601),
        ((320, 240), BT709, BT709),
        ((320, 240), None, BT601),
        ((1280, 720), BT709, BT709),
        ((1280, 720), BT601, BT601),
        ((1280, 720), None, BT709),
    ],
)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv420p10le"])
def test_colours_are_those_that_were_recorded(
    decoding, write_clip, tmp_path, pix_fmt, size, tag, drawn
):
    path = write_clip(
        tmp_path / "colour.mkv",
        n=1,
        size=size,
        pix_fmt=pix_fmt,
        picture=patch,
        matrix=drawn,
        tagged=tag is not None,
        options={"preset": "ultrafast", "crf": "8"},
    )
    (frame,) = decoding.frames(path)
    assert colour_at(frame.image, 0.25, 0.25) == pytest.approx((230, 120, 30), abs=5)
    assert colour_at(frame.image, 0.75, 0.75) == pytest.approx((40, 40, 40), abs=4)


def test_full_range_pictures_keep_black_and_white(decoding, write_clip, tmp_path):
    def half_white(number: int, width: int, height: int):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, : width // 2] = 255
        return picture

    path = write_clip(
        tmp_path / "full.avi", n=1, codec="mjpeg", pix_fmt="yuvj420p", picture=half_white
    )
    (frame,) = decoding.frames(path)
    assert colour_at(frame.image, 0.25, 0.5) == pytest.approx((255, 255, 255), abs=3)
    assert colour_at(frame.image, 0.75, 0.5) == pytest.approx((0, 0, 0), abs=3)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [
        ("libx264", "gray", (320, 240)),
        ("libx264", "yuv444p", (320, 240)),
        ("libx264", "yuv422p10le", (320, 240)),
        ("libx264", "yuv444p", (427, 241)),
        ("ffv1", "yuv420p", (427, 241)),
        ("ffv1", "bgr0", (33, 17)),
        ("libx265", "yuv420p", (320, 240)),
        ("mpeg4", "yuv420p", (320, 240)),
        ("libvpx-vp9", "yuv420p", (320, 240)),
        ("png", "rgb24", (320, 240)),
        ("rawvideo", "bgr24", (320, 240)),
    ],
)
def test_pictures_of_any_format_and_size_are_whole(
    decoding, write_clip, read_number, tmp_path, codec, pix_fmt, size
):
    options = {"libx265": {"x265-params": "log-level=none"}, "libvpx-vp9": {"cpu-used": "8"}}
    suffix = {"png": ".mov", "rawvideo": ".avi"}.get(codec, ".mkv")
    path = write_clip(
        tmp_path / f"clip{suffix}",
        n=12,
        codec=codec,
        pix_fmt=pix_fmt,
        size=size,
        options=options.get(codec),
    )
    frames = decoding.frames(path)
    assert decoding.error is None
    assert numbers_of(frames, read_number) == list(range(12))
    assert all(f.image.shape == (size[1], size[0], 3) for f in frames)


def test_a_picture_of_one_pixel_is_a_picture(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "one.mkv", n=3, codec="ffv1", pix_fmt="gray", size=(1, 1))
    assert [tuple(f.image.shape) for f in decoding.frames(path)] == [(1, 1, 3)] * 3


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, (0, 0)), (90, (0, 1)), (180, (1, 1)), (-90, (1, 0))]
)
def test_a_video_filmed_sideways_is_turned_upright(
    decoding, write_clip, tmp_path, rotation, corner
):
    path = write_clip(tmp_path / "phone.mp4", n=2, picture=patch, rotation=rotation)
    frame = decoding.frames(path)[0]
    upright = rotation % 180 == 0
    assert (frame.stamp.width, frame.stamp.height) == ((320, 240) if upright else (240, 320))
    x, y = corner
    assert colour_at(frame.image, 0.25 + x / 2, 0.25 + y / 2)[0] > 200
    assert colour_at(frame.image, 0.75 - x / 2, 0.75 - y / 2)[0] < 60


def square(number: int, width: int, height: int):
    """A picture as stored of a scene with a square of half its height, whatever is stored."""
    scene = np.full((240, 320, 3), 40, np.uint8)
    scene[60:180, 100:220] = 215
    rows = np.arange(height) * 240 // height
    columns = np.arange(width) * 320 // width
    return np.ascontiguousarray(scene[rows][:, columns])


def sides_of_the_square(image: torch.Tensor) -> tuple[int, int]:
    light = image[..., 1] > 127
    return int(light.any(0).sum()), int(light.any(1).sum())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
@pytest.mark.parametrize(
    ("stored", "aspect", "analysed"),
    [
        ((160, 240), Fraction(2), (320, 240)),  # 1080N
        ((320, 120), Fraction(1, 2), (320, 240)),
        ((384, 240), Fraction(5, 6), (384, 288)),  # 960H
        ((320, 240), Fraction(1001, 1000), (320, 240)),  # rounding, not worth a resampling
        ((320, 240), Fraction(100), (320, 240)),  # a mistake
    ],
)
def test_pixels_that_are_not_square_are_made_square(
    decoding, write_clip, tmp_path, suffix, stored, aspect, analysed
):
    if suffix == ".avi":
        how = {"codec": "mpeg4", "options": {"qscale": "2", "flags": "+qscale"}}
    else:
        how = {}
    path = write_clip(
        tmp_path / f"clip{suffix}", n=25, size=stored, aspect=aspect, picture=square, **how
    )
    frames = decoding.frames(path)
    assert len(frames) == 25
    for frame in frames:
        assert (frame.stamp.width, frame.stamp.height) == analysed
        width, height = sides_of_the_square(frame.image)
        assert width == pytest.approx(120 * analysed[0] / 320, abs=4)
        assert height == pytest.approx(120 * analysed[1] / 240, abs=4)


def test_the_shape_of_pixels_may_be_told_where_the_stream_does_not(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "1080n.mp4", n=1, size=(160, 240), picture=square)
    (frame,) = decoding.frames(path, pixel_aspect=2.0)
    assert sides_of_the_square(frame.image) == pytest.approx((120, 120), abs=4)


def test_the_shape_of_pixels_that_is_told_overrules_the_tag(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", n=1, aspect=Fraction(2), picture=square)
    (frame,) = decoding.frames(path, pixel_aspect=1.0)
    assert tuple(frame.image.shape) == (240, 320, 3)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_pixels_are_made_square_before_the_picture_is_turned_upright(
    decoding, write_clip, tmp_path, rotation
):
    path = write_clip(
        tmp_path / "phone.mp4", n=1, size=(160, 240), aspect=Fraction(2), rotation=rotation,
        picture=square,
    )  # fmt: skip
    (frame,) = decoding.frames(path)
    upright = rotation % 180 == 0
    assert (frame.stamp.width, frame.stamp.height) == ((320, 240) if upright else (240, 320))
    assert sides_of_the_square(frame.image) == pytest.approx((120, 120), abs=4)


def test_the_shape_of_pixels_may_change_in_mid_stream(decoding, write_clip, tmp_path):
    parts = [
        write_clip(tmp_path / "a.ts", n=25, aspect=Fraction(2)),
        write_clip(tmp_path / "b.ts", n=25, aspect=Fraction(1)),
    ]
    frames = decoding.frames(join(tmp_path / "joined.ts", parts))
    widths = [f.stamp.width for f in frames]
    # FFmpeg tells it of the stream, not of each picture: those it still holds are told wrong.
    assert widths[:20] + widths[25:] == [640] * 20 + [320] * 25


def test_a_picture_that_square_pixels_make_too_large_is_refused(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "wide.mp4", n=3, aspect=Fraction(4))
    assert decoding.frames(path, max_pixels=320 * 240) == []
    assert decoding.error.code is SourceCode.TOO_LARGE
    assert "1280x240" in str(decoding.error)


def moving_bar(number: int, width: int, height: int):
    """A bar that moves to the right, filmed in two fields: even rows first."""
    picture = np.full((height, width, 3), 40, np.uint8)
    for field in (0, 1):
        x = 20 + 6 * (2 * number + field)
        picture[field::2, x : x + 60] = 215
    return picture


def combing(image: torch.Tensor) -> float:
    """Mean difference between rows and their neighbours."""
    rows = image[..., 1].float()
    return float((rows[1:-1] - (rows[:-2] + rows[2:]) / 2).abs().mean())


INTERLACED = {"x264-params": "tff=1", "preset": "ultrafast", "qp": "18", "g": "25"}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("n", [1, 2, 15])
def test_pictures_flagged_as_interlaced_are_not_combed(decoding, write_clip, tmp_path, suffix, n):
    how = {"n": n, "picture": moving_bar}
    combed = decoding.frames(write_clip(tmp_path / f"flat{suffix}", **how))
    assert all(combing(f.image) > 2 for f in combed)
    frames = decoding.frames(write_clip(tmp_path / f"lines{suffix}", options=INTERLACED, **how))
    assert decoding.error is None
    assert all(combing(f.image) < 0.5 for f in frames[1:-1])
    assert [f.stamp.index for f in frames] == list(range(n))
    assert times_of(frames) == pytest.approx([i / 25 for i in range(n)], abs=0.001)


def test_pictures_flagged_as_interlaced_keep_their_numbers_and_their_time(
    decoding, write_clip, read_number, tmp_path
):
    path = write_clip(tmp_path / "lines.ts", n=50, options=INTERLACED)
    arrivals = iter(range(1000, 2000))
    frames = decoding.frames(path, fps=5, clock=lambda: float(next(arrivals)))
    assert numbers_of(frames, read_number) == list(range(0, 50, 5))
    assert [f.stamp.index for f in frames] == list(range(0, 50, 5))
    assert [f.stamp.captured_at - 1000 for f in frames[1:9]] == pytest.approx(
        [f.stamp.index for f in frames[1:9]], abs=3
    )


def test_interlaced_pictures_may_change_their_size_and_end_in_mid_stream(
    decoding, write_clip, read_number, tmp_path
):
    parts = [
        write_clip(tmp_path / "a.ts", n=25, options=INTERLACED),
        write_clip(tmp_path / "b.ts", n=25, first=25, size=(480, 352), options=INTERLACED),
        write_clip(tmp_path / "c.ts", n=25, first=50),
    ]
    frames = decoding.frames(join(tmp_path / "joined.ts", parts))
    assert numbers_of(frames, read_number) == list(range(75))
    assert [f.stamp.width for f in frames] == [320] * 25 + [480] * 25 + [320] * 25


@pytest.mark.parametrize(("tag", "drawn"), [(BT709, BT709), (BT601, BT601), (None, BT601)])
def test_interlaced_pictures_keep_their_colours(decoding, write_clip, tmp_path, tag, drawn):
    path = write_clip(
        tmp_path / "colour.mkv", n=3, picture=patch, matrix=drawn, tagged=tag is not None,
        options=INTERLACED,
    )  # fmt: skip
    for frame in decoding.frames(path):
        assert colour_at(frame.image, 0.25, 0.25) == pytest.approx((230, 120, 30), abs=6)


def test_an_anamorphic_interlaced_video_filmed_sideways_is_made_whole(
    decoding, write_clip, tmp_path
):
    path = write_clip(
        tmp_path / "all.mp4", n=3, size=(160, 240), aspect=Fraction(2), rotation=90,
        picture=square, options=INTERLACED,
    )  # fmt: skip
    for frame in decoding.frames(path):
        assert tuple(frame.image.shape) == (320, 240, 3)
        assert sides_of_the_square(frame.image) == pytest.approx((120, 120), abs=4)


def test_a_picture_file_is_a_video_of_one_frame(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "1.jpg", n=1, codec="mjpeg", pix_fmt="yuvj420p")
    for name in ("2.jpg", "%d.jpg"):
        shutil.copy(path, tmp_path / name)
    frames = decoding.frames(tmp_path / "%d.jpg")  # a name, not a pattern for the others
    assert (len(frames), times_of(frames), decoding.error) == (1, [0.0], None)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [
        ("libx264", "yuv420p", (320, 240)),
        ("libx264", "yuv420p", (326, 240)),  # FFmpeg pads the rows
        ("qtrle", "rgb24", (320, 240)),  # the decoder's own picture, which it goes on to change
    ],
)
def test_images_belong_to_their_frames(
    decoding, write_clip, read_number, tmp_path, codec, pix_fmt, size
):
    path = write_clip(tmp_path / "clip.mov", codec=codec, pix_fmt=pix_fmt, size=size, n=20)
    frames = []
    with closing(decoding.open(path)) as decoder:
        for frame in decoder.frames():
            if frame is not None:
                frames.append(frame)
                if frame.stamp.index % 2:
                    frame.image.zero_()
    assert numbers_of(frames, read_number) == [0 if i % 2 else i for i in range(20)]
    assert all(f.image.is_contiguous() and f.image.dtype == torch.uint8 for f in frames)


# --- streams that change, or are damaged ---


def join(path: Path, parts: list[Path]) -> Path:
    """Write MPEG transport streams one after the other, as recorders do."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def damage(path: Path, packets: range) -> Path:
    """Overwrite a part of some packets of a clip."""
    with av.open(str(path)) as container:
        places = [(p.pos or 0, p.size) for p in container.demux() if p.size]
    data = bytearray(path.read_bytes())
    generator = random.Random(5)
    for start, size in (places[i] for i in packets):
        middle, length = start + size // 2, min(size // 4, 40)
        data[middle : middle + length] = generator.randbytes(length)
    path.write_bytes(data)
    return path


def noisy(number: int, width: int, height: int):
    """A numbered picture with texture, so that its packets are not tiny."""
    noise = np.random.default_rng(number).integers(0, 12, (height, width, 3), np.uint8)
    picture = np.full((height, width, 3), 40, np.uint8)
    for bit in range(8):
        if number >> bit & 1:
            picture[:, bit * width // 8 : (bit + 1) * width // 8] = 215
    return picture + noise


def test_frames_of_another_size_follow_when_the_resolution_changes(
    decoding, write_clip, read_number, tmp_path
):
    parts = [
        write_clip(tmp_path / "a.ts", n=25),
        write_clip(tmp_path / "b.ts", n=25, size=(480, 352), first=25),
    ]
    frames = decoding.frames(join(tmp_path / "joined.ts", parts))
    assert [f.stamp.width for f in frames] == [320] * 25 + [480] * 25
    assert numbers_of(frames, read_number) == list(range(50))


def test_a_file_whose_codec_changes_ends_with_a_reason(decoding, write_clip, read_number, tmp_path):
    hevc = {"x265-params": "log-level=none"}
    parts = [
        write_clip(tmp_path / "a.ts", n=25),
        write_clip(tmp_path / "b.ts", n=25, codec="libx265", options=hevc),
    ]
    frames = decoding.frames(join(tmp_path / "joined.ts", parts))
    assert numbers_of(frames, read_number)[:20] == list(range(20))
    assert decoding.error is not None
    assert decoding.error.code is SourceCode.INVALID_DATA


@pytest.mark.parametrize("suffix", [".ts", ".mp4", ".mkv"])
def test_damage_in_the_middle_costs_only_the_pictures_there(
    decoding, write_clip, read_number, tmp_path, suffix
):
    sharp = {"preset": "ultrafast", "crf": "10", "g": "25", "sc_threshold": "0"}
    path = write_clip(tmp_path / f"clip{suffix}", n=100, picture=noisy, options=sharp)
    frames = decoding.frames(damage(path, range(30, 45)))
    numbers = numbers_of(frames, read_number)
    assert decoding.error is None
    assert numbers[:25] == list(range(25))
    assert numbers[-50:] == list(range(50, 100))
    assert len(numbers) < 100
    assert times_of(frames) == sorted(times_of(frames))
    assert times_of(frames)[-50:] == pytest.approx([n / 25 for n in range(50, 100)], abs=0.001)


def test_a_stream_that_starts_amid_a_picture_starts_at_the_next_whole_one(
    decoding, write_clip, read_number, tmp_path
):
    whole = write_clip(tmp_path / "whole.ts", n=75)
    data = whole.read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(data[: 188 * 3] + data[len(data) // 5 // 188 * 188 :])
    frames = decoding.frames(cut)
    numbers = numbers_of(frames, read_number)
    assert decoding.error is None
    assert numbers == list(range(numbers[0], 75))
    assert numbers[0] in {25, 50}
    assert frames[0].stamp.pts_s == 0


def test_a_name_in_another_encoding_is_escaped_in_errors(decoding, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/T\xfcr\n.mp4")
    Path(name).write_bytes(b"not a video" * 100)
    message = str(decoding.refused(name))
    message.encode("utf-8")
    assert r"T\udcfcr\n.mp4" in message


def test_a_title_in_another_encoding_is_no_obstacle(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", n=3, metadata={"title": "Kueche"})
    path.write_bytes(path.read_bytes().replace(b"Kueche", b"K\xfcche "))
    assert len(decoding.frames(path)) == 3


def test_what_a_truncated_file_still_holds_comes_before_the_error(
    decoding, write_clip, read_number, tmp_path
):
    path = write_clip(tmp_path / "cut.mp4", n=100, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    frames = decoding.frames(path)
    assert 40 < len(frames) < 90
    assert numbers_of(frames, read_number)[:40] == list(range(40))
    assert decoding.error is not None
    assert decoding.error.code is SourceCode.INVALID_DATA
    assert f"after {decoding.frames_seen} frames" in str(decoding.error)


LENGTH_KNOWN = [
    (".mkv", "libx264", {}),
    (".webm", "libvpx-vp9", {}),
    (".flv", "libx264", {}),
    (".avi", "mpeg4", {}),
    (".mov", "libx264", {"movflags": "faststart"}),
    (".mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
]


def write_textured(write_clip, path, codec, container_options):
    options = {
        "libx264": {"preset": "ultrafast", "crf": "10", "g": "25"},
        "libvpx-vp9": {"cpu-used": "8", "g": "25"},
        "mpeg4": {"qscale": "4", "flags": "+qscale"},
    }
    return write_clip(
        path,
        picture=noisy,
        codec=codec,
        options=options[codec],
        container_options=container_options,
        time_base=Fraction(1, 25) if path.suffix == ".avi" else None,
    )


@pytest.mark.parametrize(("suffix", "codec", "container_options"), LENGTH_KNOWN)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_a_part_of_a_file_is_not_taken_for_the_whole(
    decoding, write_clip, tmp_path, suffix, codec, container_options, part
):
    path = write_textured(write_clip, tmp_path / f"cut{suffix}", codec, container_options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    frames = decoding.frames(path)
    assert len(frames) < 45
    assert decoding.error is not None
    assert decoding.error.code is SourceCode.INVALID_DATA


@pytest.mark.parametrize(("suffix", "codec", "container_options"), LENGTH_KNOWN)
def test_a_whole_file_is_not_taken_for_a_part(
    decoding, write_clip, tmp_path, suffix, codec, container_options
):
    path = write_textured(write_clip, tmp_path / f"whole{suffix}", codec, container_options)
    assert len(decoding.frames(path)) == 50
    assert decoding.error is None


@pytest.mark.parametrize("suffix", [".mkv", ".flv", ".mp4"])
@pytest.mark.parametrize("seconds", [1, 2, 6])
def test_a_file_whose_sound_is_longer_or_shorter_is_whole(
    decoding, write_sound, clip, tmp_path, suffix, seconds
):
    path = write_sound(tmp_path / f"talk{suffix}", clip=clip, seconds=seconds)
    assert len(decoding.frames(path)) == 50
    assert decoding.error is None


@pytest.mark.parametrize("suffix", [".mkv", ".flv", ".mp4"])
def test_a_recording_that_motion_started_is_whole_although_its_last_picture_stands(
    decoding, write_clip, tmp_path, suffix
):
    clip = write_clip(tmp_path / "clip.mp4", times_s=[0, 0.04, 30, 30.04])
    path = tmp_path / f"motion{suffix}"
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                stands_s = 20 if packet.pts * packet.time_base > 30 else Fraction(1, 25)
                packet.duration = int(stands_s / packet.time_base)
                packet.stream = video
                target.mux(packet)
    assert len(decoding.frames(path)) == 4
    assert decoding.error is None


def test_a_recording_that_was_never_finished_has_no_length_to_miss(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "live.mkv", container_options={"live": "1"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert decoding.frames(path)
    assert decoding.error is None


def test_a_file_that_lost_its_index_is_refused(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "cut.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert decoding.refused(path).code is SourceCode.INVALID_DATA


@pytest.mark.parametrize("packets", [1, 2])
def test_a_file_too_short_to_tell_what_it_is_is_no_video(decoding, write_clip, tmp_path, packets):
    path = write_clip(tmp_path / "short.ts")
    path.write_bytes(path.read_bytes()[: 188 * packets])
    assert decoding.refused(path).code is SourceCode.INVALID_DATA


def test_a_file_without_one_whole_picture_ends_with_a_reason(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "noise.mp4", n=5, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + b"\xff" * (len(data) - start))
    assert decoding.frames(path) == []
    assert decoding.error is not None
    assert decoding.error.code is SourceCode.INVALID_DATA


# --- what can't be decoded ---


def test_a_picture_above_the_limit_is_refused_by_its_header(decoding, write_clip, tmp_path):
    path = write_clip(
        tmp_path / "8k.avi", n=1, codec="mjpeg", pix_fmt="yuvj420p", size=(7680, 4320)
    )
    error = decoding.refused(path)
    assert error.code is SourceCode.TOO_LARGE
    assert "7680x4320" in str(error)


def test_a_picture_above_the_limit_is_refused_in_mid_stream(decoding, write_clip, tmp_path):
    parts = [
        write_clip(tmp_path / "a.ts", n=25),
        write_clip(tmp_path / "b.ts", n=25, size=(640, 480)),
    ]
    frames = decoding.frames(join(tmp_path / "joined.ts", parts), max_pixels=320 * 240)
    assert 20 < len(frames) <= 25
    assert decoding.error is not None
    assert decoding.error.code is SourceCode.TOO_LARGE


def test_a_file_with_sound_only_has_no_video(decoding, write_sound, tmp_path):
    assert decoding.refused(write_sound(tmp_path / "sound.mp4")).code is SourceCode.NO_VIDEO


def test_a_song_with_a_cover_picture_has_no_video(decoding, tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=48_000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        container.mux(cover.encode(av.VideoFrame(64, 64, "yuvj420p")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 48_000), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 48_000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.best("video") is not None
    assert decoding.refused(path).code is SourceCode.NO_VIDEO


def test_an_unknown_codec_is_named_as_the_reason(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "new.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    assert decoding.refused(path).code is SourceCode.UNSUPPORTED_CODEC


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.mp4", b"not a video\n" * 200),
        ("zero.mp4", b""),
        ("notes.txt", b"FFmpeg would show this as a teletype\n" * 200),
        ("list.mp4", b"ffconcat version 1.0\nfile other.mp4\n"),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.ts\n"),
        ("camera.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
    ],
)
def test_a_file_that_is_no_video_is_refused(decoding, write_clip, tmp_path, name, content):
    write_clip(tmp_path / "other.mp4", n=5)
    write_clip(tmp_path / "other.ts", n=5)
    (tmp_path / name).write_bytes(content)
    error = decoding.refused(tmp_path / name)
    assert error.code is SourceCode.INVALID_DATA
    assert name in str(error)


@pytest.mark.parametrize(
    "name",
    ["missing.mp4", ".", "/dev/video99", "/dev/v4l/by-id/x", "subfile,,start,0,end,0,,:a.mp4"],
)
def test_what_is_not_there_is_not_found(decoding, tmp_path, name):
    assert decoding.refused(tmp_path / name).code is SourceCode.NOT_FOUND


def test_a_pipe_without_a_writer_does_not_block(decoding, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert decoding.refused(tmp_path / "pipe.mp4").code is SourceCode.NOT_FOUND


# --- URIs ---


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("clip.mp4", SourceKind.FILE),
        ("/data/a b.mp4", SourceKind.FILE),
        ("./a:b.mp4", SourceKind.FILE),
        ("file:///data/clip.mp4", SourceKind.FILE),
        ("/dev/video0", SourceKind.WEBCAM),
        ("rtsp://cam/1", SourceKind.RTSP),
        ("RTSPS://cam/1", SourceKind.RTSP),
        ("https://cam/1", SourceKind.HTTP),
        ("/dev/v4l/by-id/usb-046d_C920-video-index0", SourceKind.WEBCAM),
        ("/dev/null", SourceKind.WEBCAM),
        ("/dev/shm/clip.mp4", SourceKind.FILE),
        ("a\0b.mp4", SourceKind.FILE),
    ],
)
def test_the_kind_of_a_source_follows_from_its_uri(uri, kind):
    assert source_kind(SourceConfig(id="cam", uri=uri, allow_http=True)) is kind


def test_a_name_of_ones_own_for_a_camera_is_a_webcam_plugged_in_or_not(tmp_path):
    for name, device in (("door", "/dev/null"), ("gate", "/dev/video99")):
        (tmp_path / name).symlink_to(device)
        config = SourceConfig(id="cam", uri=str(tmp_path / name))
        assert source_kind(config) is SourceKind.WEBCAM


def test_a_device_that_is_no_camera_has_no_video(decoding):
    error = decoding.refused("/dev/null")
    assert error.code is SourceCode.NO_VIDEO
    assert "/dev/null: not a video device" in str(error)


@pytest.mark.parametrize(
    "uri",
    [
        "concat:a.mp4|b.mp4",
        "data:video/mp4;base64,AAAA",
        "pipe:0",
        "ftp://host/a.mp4",
        "rtmp://host/live",
        "udp://239.0.0.1:1234",
        "lavfi://testsrc",
        "file://host/a.mp4",
        "file:a.mp4",
        "gopher://x",
        "http://host/a.mp4",
        "https://host/a.mp4",
        "cam 1=rtsp://host/a",
        "://",
    ],
)
def test_other_schemes_are_refused_before_anything_is_opened(decoding, uri):
    with pytest.raises(ConfigError, match="source cam"):
        decoding.open(uri)


def test_a_file_uri_names_a_path_with_spaces_and_umlauts(decoding, write_clip, tmp_path):
    path = write_clip(tmp_path / "zwei Gesichter für 100%.mp4", n=3)
    assert len(decoding.frames(path.as_uri())) == 3
    assert len(decoding.frames(path)) == 3


# --- resources ---


def open_files() -> set[Path]:
    return {Path(file.path) for file in psutil.Process().open_files()}


def test_closing_twice_and_reading_after_closing_are_harmless(decoding, clip):
    decoder = decoding.open(clip)
    events = decoder.frames()
    next(frame for frame in events if frame is not None)
    decoder.close()
    decoder.close()
    assert [frame for frame in events if frame is not None] == []
    assert decoder.frames_seen < 5


def test_a_reader_that_stops_half_way_leaves_no_open_file(decoding, clip):
    frames = decoding.open(clip).frames()
    next(frames)
    assert clip in open_files()
    frames.close()
    assert clip not in open_files()


def test_opening_a_file_without_video_leaves_no_open_file(decoding, write_sound, tmp_path):
    path = write_sound(tmp_path / "sound.mp4")
    decoding.refused(path)
    assert path not in open_files()


def test_ffmpeg_says_nothing_on_its_own(write_clip, tmp_path, capfd):
    # It would print the URI it was given, password and all.
    path = damage(write_clip(tmp_path / "clip.ts", picture=noisy), range(10, 20))
    capfd.readouterr()
    for uri in (str(path), "rtsp://admin:hunter2@127.0.0.1:9/x"):
        try:
            decoder = open_decoder(SourceConfig(id="cam", uri=uri), DecodeConfig(), session=0)
            for _ in decoder.frames():
                pass
        except SourceError as error:
            assert "hunter2" not in repr(error)
    assert capfd.readouterr() == ("", "")


# --- real material ---


def test_real_clips_decode_without_error(decoding, shared_data):
    for path in sorted((shared_data / "videos").iterdir()):
        with closing(decoding.open(path, fps=5)) as decoder:
            frames = []
            for frame in decoder.frames():
                frames += [frame] if frame is not None else []
                if frames and frames[-1].stamp.pts_s >= 1:
                    break
        assert len(frames) == pytest.approx(6, abs=1), path.name


def test_portraits_stored_sideways_are_turned_upright(decoding, shared_data):
    sizes = {
        path.name: tuple(decoding.frames(path)[0].image.shape[:2])
        for path in (shared_data / "attacks").glob("minivision_*.jpg")
    }
    assert sizes
    assert set(sizes.values()) == {(640, 480)}
