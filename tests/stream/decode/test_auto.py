"""Which decoder a source gets, what is said of it, and what `--probe` prints."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from stream.config import DecodeConfig, SourceConfig
from stream.decode import nvdec, open_decoder
from stream.decode.probe import Facts, Probe, lines_of, probe
from stream.errors import SourceError
from stream.records import SourceCode
from tests.stream.decode.stand_in_nvdec import Faults, stand_in_machine

if TYPE_CHECKING:
    from pathlib import Path

B_FRAMES = {"preset": "veryfast", "g": "12", "sc_threshold": "0", "threads": "1", "bf": "2"}
INTERLACED = B_FRAMES | {"flags": "+ildct+ilme", "x264-params": "tff=1"}
SMALL: dict[str, Any] = {"n": 30, "size": (160, 96), "options": B_FRAMES}


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def with_gpu(faults, monkeypatch) -> None:
    monkeypatch.setattr(nvdec, "this_machine", lambda: stand_in_machine(faults))


@pytest.fixture
def without_gpu(monkeypatch) -> None:
    def refuse() -> None:
        raise nvdec.NotOnGpuError("torch finds no GPU")

    monkeypatch.setattr(nvdec, "this_machine", refuse)


def read(path: Path | str) -> list[tuple[str, float]]:
    """Return the decoder and the time of each frame."""
    source = SourceConfig.model_validate({"id": "cam", "uri": str(path)})
    with closing(
        open_decoder(source, DecodeConfig(kind="auto", analyse_fps=1000), session=0)
    ) as decoder:
        return [(f.stamp.decoder, f.stamp.pts_s) for f in decoder.frames() if f is not None]


def decoders_of(path: Path) -> set[str]:
    return {decoder for decoder, _ in read(path)}


@pytest.fixture(autouse=True)
def note_all(caplog) -> None:
    caplog.set_level(logging.INFO, "stream.decode")


def test_the_gpu_is_taken_where_it_can(with_gpu, write_clip, tmp_path, caplog):
    assert decoders_of(write_clip(tmp_path / "clip.mp4", **SMALL)) == {"nvdec"}
    assert caplog.messages == ["source cam: decoded by nvdec"]


def test_without_a_gpu_the_cpu_is_taken_and_the_log_says_why(
    without_gpu, write_clip, tmp_path, caplog
):
    assert decoders_of(write_clip(tmp_path / "clip.mp4", **SMALL)) == {"pyav"}
    # Of this logger alone: a thread that an earlier test left may still say something.
    (message,) = (r.getMessage() for r in caplog.records if r.name == "stream.decode.auto")
    assert message.startswith("source cam: decoded by pyav, on the CPU: ")
    assert "torch finds no GPU" in message


def test_what_shows_with_the_first_picture_costs_no_frame(with_gpu, faults, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", **SMALL)
    wanted = [time_s for _, time_s in read(path)]
    faults.unsupported = faults.no_ffmpeg = True
    assert read(path) == [("pyav", time_s) for time_s in wanted]


def test_a_source_that_the_gpu_can_not_decode_falls_back_alone(with_gpu, write_clip, tmp_path):
    interlaced = write_clip(tmp_path / "i.mp4", **SMALL | {"options": INTERLACED})
    plain = write_clip(tmp_path / "p.mp4", **SMALL)
    assert (decoders_of(interlaced), decoders_of(plain)) == ({"pyav"}, {"nvdec"})


def test_what_is_no_fault_of_the_decoder_is_not_tried_twice(with_gpu, tmp_path):
    with pytest.raises(SourceError) as raised:
        read(tmp_path / "none.mp4")
    assert raised.value.code is SourceCode.NOT_FOUND


def test_a_damaged_end_is_an_error_all_the_same(with_gpu, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", **SMALL)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError) as raised:
        read(path)
    assert raised.value.code is SourceCode.INVALID_DATA


# --- what `run_stream.py --probe` says ---


def probe_of(uri: object, kind: str = "pyav") -> Probe:
    source = SourceConfig.model_validate({"id": "door", "uri": str(uri)})
    return probe(source, DecodeConfig.model_validate({"kind": kind}))


def test_a_file_is_described(without_gpu, write_clip, write_sound, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", **SMALL, rotation=90, aspect=2)
    found = probe_of(write_sound(tmp_path / "door.mp4", clip=clip), "auto")
    assert (found.source, found.decoder, found.code) == ("door", "pyav", "ok")
    assert found.why.startswith("decode.kind is auto: ")
    assert "torch finds no GPU" in found.why
    assert found.facts == Facts(
        live=False,
        codec="h264",
        profile="High",
        chroma="4:2:0",
        bit_depth=8,
        width=160,
        height=96,
        fps=25.0,
        gop_pictures=12,
        gop_s=0.48,
        b_frames=True,
        sound=("aac",),
        rotation_deg=90,
        pixel_aspect=2.0,
        interlaced=False,
        full_range=False,
        matrix="BT.601",
        matrix_tagged=False,
    )


def test_the_same_is_written_for_people(write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", n=30, codec="mjpeg", pix_fmt="yuvj422p")
    lines = lines_of(probe_of(path))
    assert lines[0] == f"door: {path}"
    assert "  pixels       4:2:2, 8 bits" in lines
    assert "  key frames   1 pictures, 0.04 s" in lines
    assert "  colours      BT.601 (tagged), full range" in lines
    assert lines[-1] == "  decoder      pyav: decode.kind is pyav"


def test_the_gpus_choice_is_told(with_gpu, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", **SMALL | {"options": INTERLACED})
    found = probe_of(path, "auto")
    assert found.facts is not None
    assert found.facts.interlaced
    assert found.decoder == "pyav"
    assert "interlaced pictures" in found.why


def test_a_file_that_can_not_be_decoded_is_described_as_far_as_it_can(write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", codec="mpeg4", n=5, size=(160, 96))
    found = probe_of(path, "dali")
    assert found.facts is not None
    assert (found.facts.codec, found.facts.gop_s) == ("mpeg4", None)
    assert (found.decoder, found.code) == (None, "unsupported_codec")
    assert not found.is_fine
    assert probe_of(tmp_path / "none.mp4").facts is None


@pytest.mark.rtsp
def test_a_camera_is_described_without_its_password(rtsp_camera, camera_clip):
    camera = rtsp_camera(camera_clip, challenges=['Basic realm="cam"'], user="u", password="hush")
    found = probe_of(camera.url.replace("//", "//u:hush@"))
    assert found.facts is not None
    assert (found.facts.live, found.facts.sound, found.facts.gop_pictures) == (True, None, 25)
    assert found.decoder == "pyav"
    refused = probe_of(camera.url.replace("//", "//u:wrong-one@"))
    assert refused.code == "unauthorised"
    for shown in (found, refused):
        assert "hush" not in repr(shown) + "".join(lines_of(shown))
        assert "wrong-one" not in repr(shown) + "".join(lines_of(shown))
