"""Which faces are looked at, and when; no network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import InputSpec
from stream.config import QualityConfig, ScoreConfig
from stream.records import (
    FaceDetection,
    Frame,
    FrameStamp,
    QualityProblem,
    Track,
    TrackKey,
    TrackUpdate,
)
from stream.stages.crop import Cropper

SPEC = InputSpec(size_px=32, margin=1.0)
ANY_QUALITY = QualityConfig(
    min_face_px=1, min_sharpness=0, min_brightness=0, max_brightness=1, max_turn=1
)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def cropper(*, interval_s=0.4, quality=ANY_QUALITY):
    return Cropper(SPEC, ScoreConfig(interval_s=interval_s), quality)


def frame(pts_s=0.0, *, source="cam", colour=RED):
    stamp = FrameStamp(
        source_id=source,
        session=0,
        index=0,
        pts_s=pts_s,
        captured_at=0.0,
        width=160,
        height=120,
        decoder="pyav",
    )
    return Frame(stamp=stamp, image=torch.tensor(colour, dtype=torch.uint8).repeat(120, 160, 1))


def key(track=1, *, source="cam"):
    return TrackKey(source_id=source, session=0, track_id=track)


def seen(pts_s=0.0, *, track=1, source="cam", confirmed=True):
    """Return what the tracker says of a frontal face, 60 px wide and 80 px high."""
    landmarks = [(65, 45), (95, 45), (80, 60), (68, 78), (92, 78)]
    detection = FaceDetection(
        box=np.array([50, 20, 110, 100], np.float32),
        landmarks=np.array(landmarks, np.float32),
        confidence=0.99,
    )
    return TrackUpdate(
        tracks=(
            Track(
                key=key(track, source=source),
                detection=detection,
                first_pts_s=0.0,
                pts_s=pts_s,
                confirmed=confirmed,
            ),
        )
    )


def look(cropper, pts_s, **track):
    return cropper.crop([frame(pts_s)], [seen(pts_s, **track)])


@pytest.mark.parametrize(
    ("shown", "due"),
    [
        pytest.param([0.0, 0.2, 0.4, 0.6, 0.8], [0.0, 0.4, 0.8], id="evenly"),
        pytest.param([10.0, 10.1, 13.0, 13.3], [10.0, 13.0], id="frames were dropped"),
        pytest.param([0.0, 0.3996, 0.7], [0.0, 0.3996], id="rounded time base"),
    ],
)
def test_a_face_is_cut_again_once_the_interval_of_media_time_has_passed(shown, due):
    cut = cropper(interval_s=0.4)
    assert [t for t in shown if look(cut, t).crops] == due


def test_each_track_has_its_own_interval():
    cut = cropper(interval_s=0.4)
    look(cut, 0.0, track=1)
    assert look(cut, 0.2, track=2).crops
    assert look(cut, 0.4, track=1).crops
    assert not look(cut, 0.4, track=2).crops


def test_a_face_whose_track_is_not_confirmed_waits_and_is_cut_as_soon_as_it_is():
    cut = cropper()
    early = look(cut, 0.0, confirmed=False)
    assert (early.crops, early.rejected) == ((), ())
    assert look(cut, 0.1, confirmed=True).crops


def test_a_face_that_fails_the_gate_is_rejected_with_the_reason_and_not_cut():
    cut = cropper(quality=ANY_QUALITY.model_copy(update={"min_face_px": 100.0}))
    looks = look(cut, 0.0)
    (sighting,) = looks.rejected
    assert looks.crops == ()
    assert sighting.key == key()
    assert sighting.quality.problem is QualityProblem.TOO_SMALL
    assert sighting.quality.face_px == 80


def test_a_rejected_face_is_looked_at_as_rarely_as_any_other():
    cut = cropper(interval_s=0.4, quality=ANY_QUALITY.model_copy(update={"min_face_px": 100.0}))
    assert [t for t in (0.0, 0.2, 0.4) if look(cut, t).rejected] == [0.0, 0.4]


def test_nothing_is_remembered_of_a_track_that_ended():
    cut = cropper(interval_s=0.4)
    look(cut, 0.0, track=1)
    look(cut, 0.0, track=2)
    cut.forget([key(1), key(7)])
    assert look(cut, 0.1, track=1).crops
    assert not look(cut, 0.1, track=2).crops


def test_a_face_is_cut_from_the_frame_of_its_own_source():
    frames = [frame(source="left", colour=RED), frame(source="right", colour=BLUE)]
    updates = [seen(source="left"), seen(source="right")]
    crops = cropper().crop(frames, updates).crops
    assert [crop.sighting.key.source_id for crop in crops] == ["left", "right"]
    assert [crop.sighting.stamp.source_id for crop in crops] == ["left", "right"]
    for crop, colour in zip(crops, (RED, BLUE), strict=True):
        assert crop.image.dtype == torch.uint8
        assert crop.image.shape == (3, 32, 32)
        assert tuple(crop.image[:, 16, 16].tolist()) == colour
