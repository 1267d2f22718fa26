"""Every kind of file that a data set's folder may hold is one that can be read."""

import av
import numpy as np
import pytest
from PIL import Image

from train.data.datasets._sample import ListedVideo
from train.data.datasets._tree import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from train.data.frames import VideoFrames

_MUXERS = {  # suffix -> container and encoder, where they do not follow from it
    ".m4v": ("mp4", "mpeg4"),
    ".qt": ("mov", "mpeg4"),
    ".3gp": ("3gp", "mpeg4"),
    ".3g2": ("3g2", "mpeg4"),
    ".mpg": ("mpeg", "mpeg1video"),
    ".mpeg": ("mpeg", "mpeg1video"),
    ".vob": ("vob", "mpeg2video"),
    ".m2v": ("mpeg2video", "mpeg2video"),
    ".ts": ("mpegts", "mpeg2video"),
    ".mts": ("mpegts", "libx264"),
    ".m2ts": ("mpegts", "libx264"),
    ".wmv": ("asf", "wmv2"),
    ".asf": ("asf", "wmv2"),
    ".flv": ("flv", "flv"),
    ".f4v": ("f4v", "libx264"),
    ".ogv": ("ogg", "libvpx"),
    ".mxf": ("mxf", "mpeg2video"),
    ".webm": ("webm", "libvpx"),
    ".gif": ("gif", "gif"),
}
_FORMATS = {".j2k": "JPEG2000", ".mpo": "JPEG", ".pnm": "PPM", ".jpe": "JPEG", ".dib": "DIB"}


def _video(name, kind):
    about = {"dataset": "t", "attack_type": None, "split": None, "source_id": "t:x"}
    return ListedVideo(path=name, kind=kind, **about)


def _picture(shift):
    rows = np.linspace(20, 230, 240).astype(np.uint8)
    return np.stack([np.roll(rows, 8 * shift)[:, None].repeat(320, 1)] * 3, axis=2)


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_a_video_of_every_suffix_that_is_listed_can_be_read(tmp_path, suffix):
    container, codec = _MUXERS.get(suffix, (None, "mpeg4"))
    name = f"clip{suffix}"
    with av.open(str(tmp_path / name), "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = 320, 240
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for shift in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(_picture(shift), format="rgb24")))
        out.mux(stream.encode())
    frames = list(VideoFrames(_video(name, "video"), tmp_path, analyse_fps=50))
    assert len(frames) >= 10
    assert frames[0].image.shape == (240, 320, 3)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_a_picture_of_every_suffix_that_is_listed_can_be_read(tmp_path, suffix):
    Image.fromarray(_picture(0)).save(tmp_path / f"p{suffix}", _FORMATS.get(suffix))
    (frame,) = VideoFrames(_video(f"p{suffix}", "image"), tmp_path, analyse_fps=5)
    assert np.abs(frame.image.numpy().astype(int) - _picture(0)).mean() < 4
