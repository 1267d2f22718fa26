from __future__ import annotations

from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
import torch
from scipy import ndimage

from demo.clip import (
    BONA_FIDE,
    FPS,
    HEIGHT,
    REPLAY,
    SECONDS,
    WIDTH,
    faces_at,
    true_face,
)
from stream.config import DetectConfig
from stream.stages.detect import open_detector
from trt_engines.backends import OnnxRuntimeConfig

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TIMES_S = np.arange(0, SECONDS, 1 / FPS)


@pytest.fixture(scope="module")
def pictures(demo_clip: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(demo_clip)) as container:
        frames = container.decode(video=0)
        return [frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False) for frame in frames]


def test_clip_is_h264_of_720p_at_25_fps_and_as_long_as_asked(demo_clip):
    with av.open(str(demo_clip)) as container:
        (stream,) = container.streams.video
        assert (stream.name, stream.width, stream.height) == ("h264", 1280, 720)
        assert stream.average_rate == 25
        assert stream.frames == 25


def test_clip_lasts_between_20_and_30_seconds_by_default():
    assert 20 <= SECONDS <= 30


def test_clip_says_that_it_is_a_simulation_in_its_title_and_in_every_frame(demo_clip, pictures):
    with av.open(str(demo_clip)) as container:
        assert container.metadata["title"].startswith("SIMULATION")
    for picture in pictures:
        caption = picture[24:64, 24:232].mean(axis=2)
        assert np.median(caption) < 40  # a dark plate...
        assert 0.05 < (caption > 200).mean() < 0.3  # ...with light letters


def test_both_faces_are_found_where_the_clip_says_they_are(pictures):
    with open_detector(DetectConfig(), OnnxRuntimeConfig()) as detector:
        for number in range(0, len(pictures), 8):
            (found,) = detector.detect([torch.from_numpy(pictures[number])], [None])
            truth = faces_at(number / FPS)
            assert len(found) == len(truth) == 2
            for box in truth.values():
                assert min(np.abs(face.box - box).max() for face in found) < 0.1 * (box[3] - box[1])


def test_faces_move_on_paths_of_their_own_in_the_frame_and_never_meet():
    paths = {BONA_FIDE: [], REPLAY: []}
    for pts_s in TIMES_S:
        for name, box in faces_at(pts_s).items():
            x1, y1, x2, y2 = box
            assert 90 <= y2 - y1 <= 200
            assert x1 > 0
            assert y1 > 0
            assert x2 < WIDTH
            assert y2 < HEIGHT
            paths[name].append(((x1 + x2) / 2, (y1 + y2) / 2, y2 - y1))
    person, tablet = (np.array(path) for path in paths.values())
    assert (tablet[:, 0] - person[:, 0]).min() > 250
    for path in (person, tablet):
        assert (np.ptp(path, axis=0) > (90, 90, 25)).all()  # px: pan, tilt, zoom
    steps = np.diff(person, axis=0), np.diff(tablet, axis=0)
    assert abs(np.corrcoef(steps[0][:, 0], steps[1][:, 0])[0, 1]) < 0.5


def test_light_changes_over_the_person_and_not_over_the_screen(pictures):
    first, last = pictures[0].astype(float), pictures[-1].astype(float)

    def change(name: str) -> float:
        means = []
        for picture, pts_s in ((first, 0), (last, (len(pictures) - 1) / FPS)):
            x1, y1, x2, y2 = faces_at(pts_s)[name].astype(int)
            means.append(picture[y1:y2, x1:x2].mean())
        return float(means[1] / means[0] - 1)

    assert change(BONA_FIDE) > 0.05
    assert abs(change(REPLAY)) < 0.02


def test_only_the_replay_shows_the_coloured_bands_of_a_screen(pictures):
    def bands(name: str) -> float:
        x1, y1, x2, y2 = faces_at(0)[name].astype(int)
        red, _, blue = np.moveaxis(pictures[0][y1:y2, x1:x2].astype(float), 2, 0)
        return float(np.std(red - blue - ndimage.gaussian_filter(red - blue, 6)))

    assert bands(REPLAY) > 2 * bands(BONA_FIDE)


def test_a_point_of_the_frame_is_told_to_be_on_one_face_the_other_or_none():
    for name, (x1, y1, x2, y2) in faces_at(3.0).items():
        assert true_face(3.0, (x1 + x2) / 2, (y1 + y2) / 2) == name
        assert true_face(3.0, x2 + 5, y2 + 5) is None
