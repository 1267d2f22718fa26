"""Decoding by DALI, for real on the CPU, where it knows VP8, VP9 and MJPEG, against PyAV."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import torch

from stream.config import DecodeConfig, SourceConfig
from stream.decode import dali_gop, open_decoder
from stream.errors import SourceError
from stream.records import Frame, SourceCode
from tests.stream.decode.rtp_camera import RtpCamera

if TYPE_CHECKING:
    from pathlib import Path

VP9 = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
VP8 = {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "deadline": "good", "cpu-used": "5"}
# As RTP wants it: the usual Huffman tables, two matrices, no restart markers.
MJPEG = {"huffman": "default", "force_duplicated_matrix": "1", "threads": "1"}
SMALL: dict[str, Any] = {"n": 40, "size": (160, 96)}
BT709, BT601 = 1, 5  # AVColorSpace


def open_one(path: Path | str, kind: str = "dali", fps: float = 1000, **options: Any):
    source = SourceConfig.model_validate({"id": "cam", "uri": str(path)} | options)
    config = DecodeConfig.model_validate({"kind": kind, "analyse_fps": fps})
    return open_decoder(source, config, session=0)


def frames_of(path: Path | str, kind: str = "dali", **how: Any) -> list[Frame]:
    with closing(open_one(path, kind, **how)) as decoder:
        return [frame for frame in decoder.frames() if frame is not None]


def stamps_of(frames: list[Frame]) -> list[tuple[int, float]]:
    return [(frame.stamp.index, frame.stamp.pts_s) for frame in frames]


def mean_difference(found: list[Frame], wanted: list[Frame]) -> float:
    pairs = zip(found, wanted, strict=True)
    return max(float((a.image.cpu().float() - b.image.float()).abs().mean()) for a, b in pairs)


def assert_no_thread_is_left() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "dali"]


@pytest.fixture(scope="module")
def vp9(write_clip, tmp_path_factory) -> Path:
    """Forty pictures, key frames every twelve."""
    folder = tmp_path_factory.mktemp("clip")
    path: Path = write_clip(folder / "clip.webm", codec="libvpx-vp9", options=VP9, **SMALL)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options", "pix_fmt"),
    [
        ("clip.webm", "libvpx-vp9", VP9, "yuv420p"),
        ("clip.mp4", "libvpx-vp9", VP9, "yuv420p"),
        ("clip.webm", "libvpx", VP8, "yuv420p"),
        ("clip.mkv", "mjpeg", MJPEG, "yuvj420p"),
        ("clip.mov", "mjpeg", MJPEG, "yuvj422p"),
    ],
)
def test_frames_and_their_times_are_those_of_pyav(
    write_clip, read_number, tmp_path, name, codec, options, pix_fmt
):
    path = write_clip(tmp_path / name, codec=codec, options=options, pix_fmt=pix_fmt, **SMALL)
    found, wanted = frames_of(path), frames_of(path, "pyav")
    assert stamps_of(found) == stamps_of(wanted)
    assert [read_number(frame.image) for frame in found] == list(range(40))
    assert mean_difference(found, wanted) < 3
    assert {frame.stamp.decoder for frame in found} == {"dali"}
    assert_no_thread_is_left()


def test_pictures_of_avi_are_timed_as_pyavs_are(write_clip, tmp_path):
    path = write_clip(tmp_path / "c.avi", codec="mjpeg", options=MJPEG, pix_fmt="yuvj420p", **SMALL)
    assert stamps_of(frames_of(path)) == stamps_of(frames_of(path, "pyav"))


def test_due_frames_and_gaps_are_those_of_pyav(write_clip, tmp_path):
    times = [10 * burst + i / 25 for burst in range(3) for i in range(15)]
    path = write_clip(
        tmp_path / "clip.webm", codec="libvpx-vp9", options=VP9, times_s=times, size=(160, 96)
    )
    found = frames_of(path, fps=5)
    assert stamps_of(found) == stamps_of(frames_of(path, "pyav", fps=5))
    assert len(found) == 9


def test_frames_own_their_pixels(vp9):
    (frame, *_) = frames_of(vp9)
    assert frame.image.untyped_storage().nbytes() == 96 * 160 * 3


@pytest.mark.parametrize("matrix", [BT601, BT709])
@pytest.mark.parametrize("size", [(320, 180), (640, 600)])
def test_colours_are_those_of_pyav(write_clip, tmp_path, matrix, size):
    def orange(number: int, width: int, height: int):
        return torch.tensor([230, 120, 30]).expand(height, width, 3).byte().numpy()

    for tagged in (True, False):
        path = write_clip(
            tmp_path / "clip.webm",
            n=2,
            size=size,
            codec="libvpx-vp9",
            options=VP9,
            matrix=matrix,
            tagged=tagged,
            picture=orange,
        )
        found, wanted = frames_of(path)[0], frames_of(path, "pyav")[0]
        assert (found.image.float() - wanted.image.float()).abs().max() <= 3


def test_pictures_are_upright_and_have_square_pixels(write_clip, tmp_path):
    path = write_clip(
        tmp_path / "clip.mov", codec="mjpeg", options=MJPEG, pix_fmt="yuvj420p",
        aspect=2, rotation=90, n=3, size=(160, 96),
    )  # fmt: skip
    found, wanted = frames_of(path), frames_of(path, "pyav")
    assert found[0].image.shape == wanted[0].image.shape == (320, 96, 3)
    assert mean_difference(found, wanted) < 3


def test_pictures_may_change_in_size_in_mid_stream(write_clip, tmp_path):
    sizes = [(160, 96), (320, 240), (96, 64)]
    pictures = [
        write_clip(tmp_path / f"{i}.mjpeg", n=3, size=size, codec="mjpeg", pix_fmt="yuvj420p")
        for i, size in enumerate(sizes)
    ]
    path = tmp_path / "all.mjpeg"
    path.write_bytes(b"".join(picture.read_bytes() for picture in pictures))
    found, wanted = frames_of(path), frames_of(path, "pyav")
    assert [f.image.shape for f in found] == [f.image.shape for f in wanted]
    assert [f.image.shape for f in found[::3]] == [(h, w, 3) for w, h in sizes]
    assert mean_difference(found, wanted) < 3


def test_what_is_played_as_a_camera_is_paced(vp9):
    now = [500.0]
    source = SourceConfig.model_validate({"id": "cam", "uri": str(vp9), "realtime": True})
    decoder = open_decoder(
        source,
        DecodeConfig(kind="dali", analyse_fps=5),
        session=0,
        monotonic=lambda: now[0],
        wait=lambda seconds: now.append(now.pop() + seconds),
    )
    assert len([frame for frame in decoder.frames() if frame is not None]) == 8
    assert now[0] == pytest.approx(500 + 39 / 25)


@pytest.mark.rtsp
@pytest.mark.parametrize(
    ("codec", "options", "pix_fmt"),
    [("libvpx-vp9", VP9, "yuv420p"), ("mjpeg", MJPEG, "yuvj420p")],
)
def test_a_camera_gives_its_frames_in_order_and_in_time(
    write_clip, read_number, tmp_path, codec, options, pix_fmt
):
    path = write_clip(tmp_path / "c.mkv", codec=codec, options=options, pix_fmt=pix_fmt, **SMALL)
    with RtpCamera(path) as camera:
        seen = {}
        for kind in ("dali", "pyav"):
            with closing(open_one(camera.url, kind)) as decoder:
                frames = filter(None, decoder.frames())
                seen[kind] = list(itertools.islice(frames, 30))
    assert [read_number(f.image) for f in seen["dali"]] == list(range(30))
    assert [i for i, _ in stamps_of(seen["dali"])] == list(range(30))
    times = [[t for _, t in stamps_of(frames)] for frames in seen.values()]
    assert times[0] == pytest.approx(times[1], abs=0.001)
    assert_no_thread_is_left()


@pytest.mark.rtsp
def test_a_camera_that_is_lost_is_told_and_found_again(write_clip, tmp_path):
    path = write_clip(tmp_path / "c.mkv", codec="libvpx-vp9", options=VP9, **SMALL)
    for _ in range(2):
        with RtpCamera(path) as camera:
            decoder = open_one(camera.url, read_timeout_s=2)
            frames = decoder.frames()
            assert next(filter(None, frames)).stamp.pts_s == 0
        with pytest.raises(SourceError) as raised:
            list(frames)
        assert raised.value.code in {SourceCode.DISCONNECTED, SourceCode.FROZEN}
        assert_no_thread_is_left()


# --- what goes wrong ---


def expecting_more(monkeypatch, more: int) -> None:
    """Let DALI seem to lose pictures at the end of each group, after a whole sequence."""
    monkeypatch.setattr(dali_gop, "SEQUENCE_LENGTH", 4)
    real = dali_gop._Pipeline.feed
    monkeypatch.setattr(
        dali_gop._Pipeline, "feed", lambda self, file, n: real(self, file, n + more)
    )


def test_closing_ends_a_run_that_waits_for_pictures(vp9, monkeypatch):
    expecting_more(monkeypatch, 4)
    decoder = open_one(vp9, read_timeout_s=30)
    assert len(list(itertools.islice(filter(None, decoder.frames()), 12))) == 12
    decoder.close()
    assert_no_thread_is_left()


def test_a_decoder_that_loses_pictures_is_not_waited_for_without_end(vp9, monkeypatch, caplog):
    expecting_more(monkeypatch, 4)
    found = [frame.stamp.pts_s for frame in frames_of(vp9, read_timeout_s=2)]
    wanted = [frame.stamp.pts_s for frame in frames_of(vp9, "pyav")]
    assert found == wanted[:12] + wanted[24:36]  # every other group is lost with the first's run
    assert caplog.text.count("no picture for 2 s") == 2
    assert_no_thread_is_left()


def test_a_group_that_can_not_be_decoded_is_left_out(write_clip, tmp_path, caplog):
    path = write_clip(
        tmp_path / "c.mkv", codec="mjpeg", options=MJPEG, pix_fmt="yuvj420p", n=20, size=(160, 96)
    )
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 3] == b"\xff\xd8\xff"]
    data[starts[7] : starts[8] - 40] = bytes(starts[8] - 40 - starts[7])
    path.write_bytes(data)
    found = frames_of(path)
    wanted = frames_of(path, "pyav")
    assert [t for _, t in stamps_of(found)] == [t for _, t in stamps_of(wanted)]
    assert len(found) == 19
    assert "DALI could not decode a group of 1 pictures" in caplog.text


def test_a_cut_file_gives_what_is_there_and_then_the_error(write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", codec="libvpx-vp9", options=VP9, **SMALL)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found: list[Frame] = []
    with closing(open_one(path)) as decoder, pytest.raises(SourceError) as raised:
        found.extend(frame for frame in decoder.frames() if frame is not None)
    assert raised.value.code is SourceCode.INVALID_DATA
    assert 12 <= len(found) < 40


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_codec_that_dali_lacks_is_told(clip):
    with pytest.raises(SourceError, match="DALI decodes no h264 on a cpu, only") as raised:
        open_one(clip)
    assert raised.value.code is SourceCode.UNSUPPORTED_CODEC


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_frames_of_a_gpu_are_those_of_pyav(clip):
    found, wanted = frames_of(clip), frames_of(clip, "pyav")
    assert stamps_of(found) == stamps_of(wanted)
    assert mean_difference(found, wanted) < 3
    assert all(frame.image.is_cuda for frame in found)
