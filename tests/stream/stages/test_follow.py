"""Where whole frames are searched, and where known faces are only found again."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch

from stream.config import DetectConfig, TrackConfig
from stream.records import Frame, FrameStamp
from stream.stages.detect import FaceDetector, open_detector
from stream.stages.follow import Follower
from trt_engines.backends import OnnxRuntimeConfig


def frame(number: int, left: int | None) -> Frame:
    """Show a portrait at a place, or none, a second after the frame before."""
    picture = np.random.default_rng(number).integers(80, 100, (240, 640, 3), np.uint8)
    if left is not None:
        picture[5:235, left : left + 220] = skimage.data.astronaut()[:230, 115:335]
    stamp = FrameStamp(
        source_id="cam",
        session=0,
        index=number,
        pts_s=float(number),
        captured_at=0.0,
        width=640,
        height=240,
        decoder="pyav",
    )
    return Frame(stamp=stamp, image=torch.from_numpy(picture))


@pytest.mark.parametrize(
    ("search_lost", "found", "searches"),
    [(False, [1, 1, 0, 0, 0], 1), (True, [1, 1, 1, 0, 1], 4)],
)
def test_a_face_that_leapt_or_came_is_searched_for_at_once_if_asked(
    monkeypatch, search_lost, found, searches
):
    searched = []
    detect = FaceDetector.detect

    def noted(self, images, expected):
        searched.extend(boxes is None for boxes in expected)
        return detect(self, images, expected)

    monkeypatch.setattr(FaceDetector, "detect", noted)
    with open_detector(DetectConfig(), OnnxRuntimeConfig()) as detector:
        follower = Follower(detector, TrackConfig(), detect_every_s=60, search_lost=search_lost)
        faces = []
        for number, left in enumerate((10, 12, 400, None, 390)):
            (of_frame,) = follower.detect([frame(number, left)])
            follower.track(frame(number, left), of_frame)
            faces.append(len(of_frame))
    assert faces == found
    assert sum(searched) == searches
