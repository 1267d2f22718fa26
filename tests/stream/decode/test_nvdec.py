"""Decoding by NVDEC: on what stands for it here, and unchanged, marked `gpu`, on the real one.

`pynvvideocodec_signatures.json` was read from the wheel of PyNvVideoCodec 2.2.4 with
record_pynvvideocodec.py.
"""

from __future__ import annotations

import inspect
import json
import logging
from contextlib import closing
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
import torch

from stream.config import DecodeConfig, SourceConfig
from stream.decode import nvdec, open_decoder
from stream.decode.colours import Colour, Planes, from_bt601, rgb_of
from stream.errors import SourceError
from stream.records import Frame, SourceCode
from tests.stream.decode.stand_in_nvdec import Faults, StandIn, stacked, stand_in_machine

if TYPE_CHECKING:
    from collections.abc import Callable

SIGNATURES = json.loads(Path(__file__).with_name("pynvvideocodec_signatures.json").read_text())
X264 = {"preset": "veryfast", "sc_threshold": "0", "threads": "1", "qp": "18", "g": "12"}
OPEN = X264 | {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:bframes=3"}
VP9 = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
SMALL: dict[str, Any] = {"n": 30, "size": (160, 96)}
BT709, BT601 = 1, 5  # AVColorSpace


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def anywhere(request, faults, monkeypatch) -> None:
    """NVDEC, or what stands for it."""
    if request.param == "gpu":
        pytest.importorskip("PyNvVideoCodec", reason="needs PyNvVideoCodec")
    else:
        monkeypatch.setattr(nvdec, "this_machine", lambda: stand_in_machine(faults))


@pytest.fixture
def here(faults, monkeypatch) -> None:
    """What stands for NVDEC: for faults that a GPU does not have on demand."""
    monkeypatch.setattr(nvdec, "this_machine", lambda: stand_in_machine(faults))


def open_one(path: Path | str, kind: str = "nvdec", fps: float = 1000, **options: Any):
    source = SourceConfig.model_validate({"id": "cam", "uri": str(path)} | options)
    config = DecodeConfig.model_validate({"kind": kind, "analyse_fps": fps})
    return open_decoder(source, config, session=0)


def frames_of(path: Path | str, kind: str = "nvdec", **how: Any) -> list[Frame]:
    with closing(open_one(path, kind, **how)) as decoder:
        return [frame for frame in decoder.frames() if frame is not None]


def times_of(frames: list[Frame]) -> list[float]:
    return [frame.stamp.pts_s for frame in frames]


def assert_close(found: list[Frame], wanted: list[Frame], most: int = 2) -> None:
    """The same pictures at the same times, but for how FFmpeg's scaler rounds."""
    assert times_of(found) == times_of(wanted)
    assert [f.stamp.index for f in found] == [f.stamp.index for f in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.image.cpu().int() - theirs.image.int()).abs().max() <= most


CLIPS = [
    ("clip.mp4", "libx264", X264 | {"bf": "3"}),
    ("clip.mkv", "libx264", OPEN),
    ("clip.ts", "libx264", X264),
    ("clip.mp4", "libx265", X265),
    ("clip.webm", "libvpx-vp9", VP9),
    ("clip.h264", "libx264", X264 | {"bf": "0"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CLIPS)
def test_frames_are_those_of_pyav(anywhere, write_clip, tmp_path, name, codec, options):
    path = write_clip(tmp_path / name, codec=codec, options=options, **SMALL)
    found = frames_of(path)
    assert len(found) == 30
    assert {frame.stamp.decoder for frame in found} == {"nvdec"}
    assert_close(found, frames_of(path, "pyav"))


def test_frames_lie_on_the_device(anywhere, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", **SMALL)
    (frame, *_) = frames_of(path)
    assert frame.image.device.type == nvdec.this_machine().device.type
    assert frame.image.dtype == torch.uint8


def test_due_frames_are_those_of_pyav(anywhere, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", options=X264 | {"bf": "2"}, n=30, size=(160, 96))
    assert_close(frames_of(path, fps=5), frames_of(path, "pyav", fps=5))


@pytest.mark.parametrize(
    ("pix_fmt", "matrix", "size"),
    [
        ("yuv420p", BT601, (160, 96)),
        ("yuv420p", BT709, (160, 96)),
        ("yuv420p", None, (160, 96)),
        ("yuv420p", None, (320, 600)),  # untagged and high: BT.709
        ("yuvj420p", None, (160, 96)),
        ("yuv444p", BT709, (160, 96)),
    ],
)
def test_colours_are_those_of_pyav(anywhere, write_clip, tmp_path, pix_fmt, matrix, size):
    def colourful(number: int, width: int, height: int):
        ramp = torch.linspace(0, 255, width).expand(height, width)
        return torch.stack((ramp, ramp.flip(1), ramp.roll(width // 3, 1)), -1).byte().numpy()

    path = write_clip(
        tmp_path / "clip.mkv",
        n=2,
        size=size,
        pix_fmt=pix_fmt,
        matrix=matrix,
        tagged=matrix is not None,
        picture=colourful,
        options={"preset": "ultrafast", "qp": "4"},
    )
    assert_close(frames_of(path), frames_of(path, "pyav"), most=4)


def test_ten_bits_become_eight(anywhere, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pix_fmt="yuv420p10le", options=X264, **SMALL)
    assert_close(frames_of(path), frames_of(path, "pyav"), most=6)


def test_pictures_are_upright_and_have_square_pixels(anywhere, write_clip, read_number, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", aspect=2, rotation=90, n=3, size=(160, 96))
    found, wanted = frames_of(path), frames_of(path, "pyav")
    assert [f.image.shape for f in found] == [f.image.shape for f in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.image.cpu().float() - theirs.image.float()).abs().mean() < 2.5


def test_a_picture_that_is_too_large_is_refused(anywhere, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", aspect=2, n=3, size=(160, 96))
    with pytest.raises(SourceError) as raised:
        frames_of(path, max_pixels=160 * 96)
    assert raised.value.code is SourceCode.TOO_LARGE


def joined(path: Path, *clips: Path) -> Path:
    path.write_bytes(b"".join(clip.read_bytes() for clip in clips))
    return path


def test_pictures_may_grow_and_shrink_in_mid_stream(anywhere, write_clip, faults, tmp_path):
    options = X264 | {"bf": "0"}
    sizes = [(160, 96), (320, 240), (160, 96)]
    parts = [
        write_clip(
            tmp_path / f"{i}.ts",
            times_s=[(12 * i + j) / 25 for j in range(12)],
            size=size,
            options=options,
        )
        for i, size in enumerate(sizes)
    ]
    path = joined(tmp_path / "all.ts", *parts)
    found, wanted = frames_of(path), frames_of(path, "pyav")
    assert [f.image.shape for f in wanted[::12]] == [(h, w, 3) for w, h in sizes]
    assert len(found) >= len(wanted) - 4  # what the old decoder held is lost with it
    by_time = {frame.stamp.pts_s: frame for frame in wanted}
    assert all(f.image.shape == by_time[f.stamp.pts_s].image.shape for f in found)


def test_a_damaged_file_gives_what_is_there_and_then_the_error(anywhere, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", options=X264, **SMALL)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = []
    with closing(open_one(path)) as decoder, pytest.raises(SourceError) as raised:
        found.extend(frame for frame in decoder.frames() if frame is not None)
    assert raised.value.code is SourceCode.INVALID_DATA
    assert 10 <= len(found) < 30


# --- what goes wrong; on the stand-in alone ---


def test_a_bad_packet_spoils_its_picture_alone(here, write_clip, faults, tmp_path):
    faults.bad_packets = {7}
    path = write_clip(tmp_path / "clip.mov", codec="libx264", options=X264 | {"g": "1"}, **SMALL)
    found, wanted = frames_of(path), frames_of(path, "pyav")
    assert times_of(found) == [t for i, t in enumerate(times_of(wanted)) if i != 7]


def test_what_pynvvideocodec_refuses_is_decoded_by_ffmpeg(
    here, write_clip, faults, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "stream.decode")
    faults.unsupported = True
    path = write_clip(tmp_path / "clip.mp4", options=X264 | {"bf": "2"}, **SMALL)
    found = frames_of(path)
    assert {frame.stamp.decoder for frame in found} == {"nvdec_pyav"}
    assert_close(found, frames_of(path, "pyav"))
    (line,) = [r.getMessage() for r in caplog.records if "nvdec" in r.getMessage()]
    assert line == (
        "source cam: decoded by nvdec_pyav; not by nvdec: Codec not supported on this GPU"
    )


def test_without_a_decoder_the_reasons_are_told(here, write_clip, faults, tmp_path):
    faults.no_codec, faults.no_ffmpeg = "driver too old", True
    path = write_clip(tmp_path / "clip.mp4", **SMALL)
    with pytest.raises(SourceError) as raised:
        open_one(path)
    assert raised.value.code is SourceCode.UNSUPPORTED_CODEC
    assert "nvdec: driver too old; nvdec_pyav: " in str(raised.value)


def test_a_form_that_ffmpeg_has_no_tensor_for_is_unsupported(here, write_clip, faults, tmp_path):
    faults.unsupported = True
    path = write_clip(tmp_path / "clip.mkv", pix_fmt="yuv444p", options=X264, **SMALL)
    with pytest.raises(SourceError) as raised:
        frames_of(path)
    assert raised.value.code is SourceCode.UNSUPPORTED_CODEC


def test_a_codec_that_nvdec_lacks_is_left_to_ffmpeg(here, write_clip, faults, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", codec="mpeg4", **SMALL)
    assert {frame.stamp.decoder for frame in frames_of(path)} == {"nvdec_pyav"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_is_said(write_clip, tmp_path):
    with pytest.raises(SourceError, match="torch finds no GPU") as raised:
        open_one(write_clip(tmp_path / "clip.mp4", **SMALL))
    assert raised.value.code is SourceCode.UNSUPPORTED_CODEC


def test_without_a_gpu_no_source_is_asked_for_anything(tmp_path):
    with pytest.raises(SourceError, match="torch finds no GPU"):
        open_one(tmp_path / "not-there.mp4")


def test_pictures_of_a_camera_are_not_waited_for(here, rtsp_camera, camera_clip, faults):
    with closing(open_one(rtsp_camera(camera_clip).url)) as decoder:
        frames = decoder.frames()
        assert next(frame for frame in frames if frame is not None).stamp.decoder == "nvdec"
        frames.close()
    assert set(faults.flags) == {StandIn.VideoPacketFlag.ENDOFPICTURE}


# --- the stand-in against the real names ---


@pytest.mark.parametrize("name", ["cudaVideoCodec", "OutputColorType", "DisplayDecodeLatencyType",
                                  "VideoPacketFlag", "Pixel_Format"])  # fmt: skip
def test_values_are_pynvvideocodecs(name):
    ours: type[IntEnum] = getattr(StandIn, name)
    assert {member.name: member.value for member in ours}.items() <= SIGNATURES[name].items()
    if name == "cudaVideoCodec":
        assert set(nvdec.CODECS.values()) == set(ours.__members__)


def arguments_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_arguments_are_pynvvideocodecs():
    assert all(
        set(arguments_of(StandIn.CreateDecoder)) <= set(overload)
        for overload in SIGNATURES["CreateDecoder"]
    )
    for cls, methods in SIGNATURES["methods"].items():
        for name, arguments in methods.items():
            assert arguments_of(getattr(getattr(StandIn, cls), name)) == arguments
    assert set(vars(StandIn.PacketData())) <= set(SIGNATURES["PacketData"])
    assert SIGNATURES["bases"] == {
        name: [base.__name__ for base in getattr(StandIn, name).__mro__[1:]]
        for name in SIGNATURES["bases"]
    }


# --- colours ---


def test_rgb_by_bt601_becomes_that_of_another_matrix():
    luma = torch.randint(40, 200, (32, 32), dtype=torch.uint8)
    chroma = torch.randint(110, 146, (2, 32, 32), dtype=torch.uint8)
    planes = Planes(luma, *chroma)
    by_601 = rgb_of(planes, Colour(BT601, full_range=False))
    by_709 = rgb_of(planes, Colour(BT709, full_range=False))
    assert (from_bt601(by_601, BT709).int() - by_709.int()).abs().max() <= 3
    assert from_bt601(by_601, BT601) is by_601
    assert (by_601.int() - by_709.int()).abs().max() > 5


def test_chroma_of_an_odd_size_covers_the_last_row_and_column():
    picture = av.VideoFrame(33, 17, "yuv420p")
    for plane, value in zip(picture.planes, (120, 90, 160), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    luma = torch.full((17, 33), 120, dtype=torch.uint8)
    blue, red = (torch.full((8, 16), value, dtype=torch.uint8) for value in (90, 160))
    ours = rgb_of(Planes(luma, blue, red), Colour(BT601, full_range=False))
    theirs = torch.from_numpy(picture.to_ndarray(format="rgb24", src_colorspace=BT601))
    assert (ours.int() - theirs.int()).abs().max() <= 2


def test_ten_bits_lie_at_the_upper_end(write_clip):
    picture = av.VideoFrame(16, 8, "yuv420p10le")
    for plane in picture.planes:
        plane.update(bytes([0, 2]) * (plane.buffer_size // 2))  # 512 of 1024
    pixels, kind = stacked(picture)
    assert (kind.name, int(pixels[0, 0])) == ("P016", 512 << 6)
