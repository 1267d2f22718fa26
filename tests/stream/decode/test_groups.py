"""Groups of pictures as files: each decoded by itself, together they are the whole stream."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import av
import pytest
from av.packet import Packet

from stream.decode import groups
from stream.decode.groups import (
    Arrived,
    Group,
    GroupCutter,
    GroupTooLongError,
    is_key_frame,
    remuxed,
)

if TYPE_CHECKING:
    from pathlib import Path

X264 = {"preset": "veryfast", "sc_threshold": "0", "threads": "1", "qp": "22", "g": "12"}
CLOSED = X264 | {"x264-params": "bframes=3:b-adapt=0"}
OPEN = X264 | {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
HEVC = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:bframes=3:open-gop=1"}
VP9 = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
VP8 = {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "deadline": "good", "cpu-used": "5"}
CLIPS = [
    ("clip.mp4", "libx264", CLOSED),
    ("clip.mkv", "libx264", OPEN),
    ("clip.ts", "libx264", OPEN),
    ("clip.mp4", "libx265", HEVC),
    ("clip.webm", "libvpx-vp9", VP9),
    ("clip.webm", "libvpx", VP8),
    ("clip.h264", "libx264", X264 | {"bf": "0"}),
]


def cut(path: Path, first: int = 0) -> tuple[list[Group], list[bytes], str, list[Packet[Any]]]:
    """Return the groups of a clip from a packet on, their files, its codec and all packets."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context.codec
        cutter = GroupCutter(codec.canonical_name, intra_only=codec.intra_only)
        packets: list[Any] = [packet for packet in container.demux(stream) if packet.size][first:]
        found = [group for p in packets if (group := cutter.push(Arrived(p, 0, 0))) is not None]
        found += cutter.flush()
        size = stream.width, stream.height
        files = [remuxed(group, stream, size) for group in found]
    return found, files, codec.canonical_name, packets


def numbers_in(file: Any, read_number: Any) -> list[int]:
    import torch

    with av.open(file) as container:
        return [
            read_number(torch.from_numpy(picture.to_ndarray(format="rgb24")))
            for picture in container.decode(video=0)
        ]


def shown_numbers(found: list[Group], files: list[bytes], codec: str, read_number: Any):
    """Return what each group shows, and which packets are kept beside it, without the borrowed."""
    numbers, packets = [], []
    for group, file in zip(found, files, strict=True):
        pictures = numbers_in(io.BytesIO(file), read_number)
        shown = group.in_order_of_showing(codec)
        assert len(pictures) == len(shown)
        for number, each in zip(pictures, shown, strict=True):
            if each is not group.borrowed:
                numbers.append(number)
                packets.append(each.packet)
    return numbers, packets


@pytest.mark.parametrize(("name", "codec", "options"), CLIPS)
def test_groups_hold_every_picture_once_with_its_time(
    write_clip, read_number, tmp_path, name, codec, options
):
    path = write_clip(tmp_path / name, n=40, size=(160, 96), codec=codec, options=options)
    found, files, coded, _ = cut(path)
    numbers, packets = shown_numbers(found, files, coded, read_number)
    assert len(found) >= 3
    assert numbers == list(range(40))
    if name != "clip.h264":  # it has no times
        times = [float(packet.pts * packet.time_base) for packet in packets]
        start = times[0]
        assert [t - start for t in times] == pytest.approx([i / 25 for i in range(40)], abs=0.002)


def test_pictures_that_lead_an_open_group_go_with_the_group_before(write_clip, tmp_path):
    found, _, _, _ = cut(write_clip(tmp_path / "clip.mkv", n=40, size=(160, 96), options=OPEN))
    assert [group.borrowed is not None for group in found[:-1]] == [True] * (len(found) - 1)
    assert found[-1].borrowed is None
    assert found[0].borrowed is found[1].packets[0]


def test_where_a_stream_is_joined_nothing_is_shown_before_its_first_key_frame(
    write_clip, read_number, tmp_path
):
    path = write_clip(tmp_path / "clip.mkv", n=40, size=(160, 96), options=OPEN)
    found, files, codec, packets = cut(path, first=5)
    key = next(i for i, packet in enumerate(packets) if packet.is_keyframe)
    numbers, _ = shown_numbers(found, files, codec, read_number)
    first = round(float(packets[key].pts * packets[key].time_base) * 25)
    assert numbers == list(range(first, 40))


def test_where_all_are_key_frames_no_packet_waits_for_the_next(write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", n=4, codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(path)) as container:
        cutter = GroupCutter("mjpeg", intra_only=True)
        for packet in container.demux(video=0):
            assert not packet.size or cutter.push(Arrived(packet, 0, 0)) is not None
    assert cutter.flush() == []


def test_a_group_without_end_is_refused(write_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "MAX_GROUP_BYTES", 2000)
    with pytest.raises(GroupTooLongError, match="no key frame in"):
        cut(write_clip(tmp_path / "clip.mp4", options=X264 | {"g": "100"}))


@pytest.mark.parametrize(
    ("codec", "library", "options"), [("vp9", "libvpx-vp9", VP9), ("vp8", "libvpx", VP8)]
)
def test_key_frames_that_nobody_flags_are_seen(write_clip, tmp_path, codec, library, options):
    path = write_clip(tmp_path / "clip.webm", n=40, size=(160, 96), codec=library, options=options)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    flagged = [packet.is_keyframe for packet in packets]
    bare = [Packet(bytes(packet)) for packet in packets]
    assert [is_key_frame(packet, codec) for packet in bare] == flagged
    assert sum(flagged) >= 3
