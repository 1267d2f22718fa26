"""Decoding only what is due: what is left out, and that what is left is the same to the bit."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import pytest
import torch

from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder, sampled
from stream.errors import SourceError
from stream.records import Frame, SourceCode

if TYPE_CHECKING:
    from pathlib import Path

X264 = {"preset": "veryfast", "sc_threshold": "0", "threads": "1", "qp": "22"}
B_FRAMES = X264 | {"g": "25", "x264-params": "bframes=3:b-adapt=0:b-pyramid=none"}


def decode(path: Path, fps: float, **how: Any) -> tuple[list[Frame], int]:
    """Return the due frames, and how many pictures were decoded."""
    source = SourceConfig.model_validate({"id": "file", "uri": str(path)})
    decoder = open_decoder(source, DecodeConfig(analyse_fps=fps, **how), session=0)
    try:
        frames = [frame for frame in decoder.frames() if frame is not None]
    finally:
        decoder.close()
    return frames, decoder.frames_seen


def sample(path: Path, fps: float, pictures: str) -> tuple[list[Frame], int]:
    return decode(path, fps, kind="sampled", pictures=pictures)


def assert_same(found: list[Frame], wanted: list[Frame]) -> None:
    assert [f.stamp.pts_s for f in found] == [f.stamp.pts_s for f in wanted]
    assert all(torch.equal(f.image, w.image) for f, w in zip(found, wanted, strict=True))


def by_time(frames: list[Frame]) -> dict[float, Frame]:
    return {round(frame.stamp.pts_s, 3): frame for frame in frames}


CODECS = [
    (".mp4", "libx264", B_FRAMES),
    (".mkv", "libx264", B_FRAMES),
    (".ts", "libx264", B_FRAMES),
    (
        ".mp4",
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=none:keyint=25:bframes=3:open-gop=0"},
    ),
    (".mp4", "mpeg4", {"g": "25", "qmin": "4", "qmax": "4"}),
    (".webm", "libvpx-vp9", {"g": "25", "deadline": "realtime", "cpu-used": "8"}),
]


@pytest.mark.parametrize(("suffix", "codec", "options"), CODECS)
def test_due_pictures_are_those_of_full_decoding_to_the_bit(
    write_clip, tmp_path, suffix, codec, options
):
    path = write_clip(
        tmp_path / f"clip{suffix}", n=110, size=(160, 96), codec=codec, options=options
    )
    for fps, n in ((0.4, 2), (2.0, 9)):
        whole, seen = decode(path, fps)
        found, decoded = sample(path, fps, "due")
        assert_same(found, whole)
        assert len(found) == n
        assert decoded < seen


@pytest.fixture(scope="module")
def two_groups(write_clip, tmp_path_factory) -> Path:
    """Pictures of 4 s at 25 fps, a key frame every 2 s, three in four of them not referred to."""
    folder = tmp_path_factory.mktemp("clip")
    path: Path = write_clip(folder / "clip.mp4", n=100, options=B_FRAMES | {"g": "50"})
    return path


def test_reference_pictures_are_bit_exact_and_the_first_at_or_after_their_time(two_groups):
    every = by_time(decode(two_groups, 1000)[0])
    found, decoded = sample(two_groups, 1, "reference")
    for due_s, frame in zip(range(4), found, strict=True):
        assert 0 <= frame.stamp.pts_s - due_s <= 0.16
        assert torch.equal(frame.image, every[round(frame.stamp.pts_s, 3)].image)
    assert decoded < 30  # of 100


def test_a_group_without_a_due_frame_is_not_decoded(two_groups):
    assert sample(two_groups, 0.25, "due")[1] <= 4


def test_key_frames_are_bit_exact_and_nothing_else_is_decoded(two_groups):
    every = by_time(decode(two_groups, 1000)[0])
    found, decoded = sample(two_groups, 1, "keyframes")
    assert [frame.stamp.pts_s for frame in found] == [0, 2]
    assert all(torch.equal(f.image, every[f.stamp.pts_s].image) for f in found)
    assert decoded == 2


def test_of_a_file_of_key_frames_alone_only_due_ones_are_decoded(write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mov", n=50, codec="mjpeg", pix_fmt="yuvj420p")
    found, decoded = sample(path, 2, "keyframes")
    assert_same(found, decode(path, 2)[0])
    assert decoded == len(found) == 4


@pytest.mark.parametrize("pictures", ["due", "reference"])
def test_open_groups_give_only_whole_pictures(write_clip, tmp_path, pictures):
    options = X264 | {"x264-params": "open-gop=1:keyint=25:bframes=3:b-adapt=0:scenecut=0"}
    path = write_clip(tmp_path / "clip.mp4", n=100, options=options)
    every = by_time(decode(path, 1000)[0])
    found, _ = sample(path, 5, pictures)
    assert len(found) >= 18  # a slot of time may hold nothing but pictures that lead a group
    assert all(torch.equal(f.image, every[round(f.stamp.pts_s, 3)].image) for f in found)


def test_a_group_that_would_fill_the_memory_is_decoded_as_it_comes(two_groups, monkeypatch):
    monkeypatch.setattr(sampled, "MAX_GROUP_BYTES", 2000)
    assert_same(sample(two_groups, 5, "due")[0], decode(two_groups, 5)[0])


def test_where_time_goes_back_no_group_is_lost(write_clip, tmp_path):
    half = write_clip(tmp_path / "half.ts", n=50, options=B_FRAMES).read_bytes()
    path = tmp_path / "twice.ts"
    path.write_bytes(half + half)
    found, _ = sample(path, 2, "due")
    assert [frame.stamp.pts_s for frame in found] == [f.stamp.pts_s for f in decode(path, 2)[0]]


def test_formats_without_times_in_their_packets_are_decoded_whole(write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.avi", time_base=Fraction(1, 25))
    found, decoded = sample(path, 2, "reference")
    assert_same(found, decode(path, 2)[0])
    assert decoded == 50


def test_interlaced_pictures_are_made_whole_from_themselves_alone(write_clip, tmp_path):
    options = X264 | {"g": "25", "flags": "+ildct+ilme", "x264-params": "tff=1"}
    path = write_clip(tmp_path / "clip.mp4", options=options)
    found, _ = sample(path, 2, "due")
    assert [frame.stamp.pts_s for frame in found] == [0, 0.52, 1, 1.52]


def test_a_cut_file_gives_what_is_there_and_then_the_error_of_full_decoding(two_groups, tmp_path):
    path = tmp_path / "cut.mkv"
    with av.open(str(two_groups)) as whole, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    source = SourceConfig.model_validate({"id": "file", "uri": str(path)})
    config = DecodeConfig(kind="sampled", analyse_fps=1)
    decoder = open_decoder(source, config, session=0)
    found = []
    with pytest.raises(SourceError) as raised:
        found += [frame for frame in decoder.frames() if frame is not None]
    assert raised.value.code is SourceCode.INVALID_DATA
    assert decoder.frames_seen > 0


@pytest.mark.parametrize("kind", ["pyav", "sampled"])
def test_only_the_seconds_asked_for_are_due_and_their_times_are_those_of_the_file(
    write_clip, tmp_path, kind
):
    path = write_clip(tmp_path / "clip.mp4", n=250, size=(160, 96), options=B_FRAMES)
    every = by_time(decode(path, 1000)[0])
    spans = ((4.5, 6.0), (8.2, 99.0))
    found, decoded = decode(path, 2, kind=kind, pictures="due", spans=spans)
    assert [frame.stamp.pts_s for frame in found] == [4.52, 5.0, 5.52, 6.0, 8.2, 8.52, 9.0, 9.52]
    assert all(torch.equal(f.image, every[round(f.stamp.pts_s, 3)].image) for f in found)
    if kind == "sampled":
        assert decoded < 120  # of 250
