"""Which faces are looked at, and when; no network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import InputSpec
from stream.config import QualityConfig
from stream.records import (
    FaceDetection,
    Frame,
    FrameStamp,
    QualityProblem,
    Track,
    TrackKey,
    TrackUpdate,
)
from stream.stages.crop import Cropper, View

SPEC = InputSpec(size_px=32, margin=1.0)
ANY_QUALITY = QualityConfig(
    min_face_px=1, min_sharpness=0, min_brightness=0, max_brightness=1, max_turn=1, min_window=0
)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def cropper(*, interval_s=0.4, quality=ANY_QUALITY):
    return Cropper([View(SPEC, interval_s)], quality)


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


def seen(pts_s=0.0, *, track=1, source="cam", confirmed=True, right_px=0):
    """Return what the tracker says of a frontal face, 60 px wide and 80 px high."""
    landmarks = [(65, 45), (95, 45), (80, 60), (68, 78), (92, 78)]
    detection = FaceDetection(
        box=np.array([50 + right_px, 20, 110 + right_px, 100], np.float32),
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
    (look_,) = looks.rejected
    assert looks.crops == ()
    assert look_.sighting.key == key()
    assert look_.problem is look_.sighting.quality.problem is QualityProblem.TOO_SMALL
    assert look_.sighting.quality.face_px == 80


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


# --- faces that keep their place ---

TENTHS = [n / 5 for n in range(41)]  # 8 s at 5 frames a second


def looks_at(shown, *, still_interval_s=1.6, stands=lambda _: True):
    """Return when a face is cut, given where it is, pixels to the right, at each media time."""
    cut = Cropper([View(SPEC, 0.4, still_interval_s)], ANY_QUALITY)
    frames = [(t, frame(t), seen(t, right_px=x)) for t, x in shown.items()]
    return [t for t, image, face in frames if cut.crop([image], [face], stands).crops]


def test_a_face_that_keeps_its_place_and_verdict_is_looked_at_ever_less_often_up_to_the_bound():
    still = dict.fromkeys(TENTHS, 0)
    assert looks_at(still) == [0.0, 0.4, 1.2, 2.8, 4.4, 6.0, 7.6]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"stands": lambda _: False}, id="its verdict is open"),
        pytest.param({"still_interval_s": 0.0}, id="the option is off"),
    ],
)
def test_otherwise_it_is_looked_at_as_often_as_any(change):
    still = dict.fromkeys(TENTHS[:9], 0)
    assert looks_at(still, **change) == [0.0, 0.4, 0.8, 1.2, 1.6]


def test_a_face_that_moves_is_looked_at_at_once_and_often_until_it_keeps_its_place_again():
    moves = {t: 0 if t < 5.0 else 9 if t < 5.5 else 18 for t in TENTHS}  # 8 px are a tenth of it
    assert looks_at(moves) == [0.0, 0.4, 1.2, 2.8, 4.4, 5.0, 5.4, 5.8, 6.2, 7.0]


def test_a_face_that_sways_a_little_keeps_its_place():
    sways = {t: 7 * (n % 2) for n, t in enumerate(TENTHS)}
    assert looks_at(sways) == [0.0, 0.4, 1.2, 2.8, 4.4, 6.0, 7.6]


def test_a_verdict_that_is_doubted_has_the_face_looked_at_often_at_once():
    doubted = iter([True] * 14)
    still = dict.fromkeys(TENTHS[:21], 0)
    # 13 frames between the second look and the doubt: 0.2, 0.4, ... 2.8, of which 2.8 was a look.
    assert looks_at(still, stands=lambda _: next(doubted, False)) == [0, 0.4, 1.2, 2.8, 3.2, 3.6, 4]


# --- several detectors ---


def several(*views, quality=ANY_QUALITY):
    return Cropper([View(*view) for view in views], quality)


def test_each_detector_looks_as_often_as_it_is_asked_to():
    cut = several((SPEC, 0.4), (SPEC, 1.0))
    found = {t: [c.detector for c in look(cut, t).crops] for t in (0.0, 0.4, 0.8, 1.2, 2.2)}
    assert found == {0.0: [0, 1], 0.4: [0], 0.8: [0], 1.2: [0, 1], 2.2: [0, 1]}


def test_each_detector_gets_a_crop_of_its_own_window_and_size():
    wide = InputSpec(size_px=48, margin=1.5, window="inside", resize="bilinear")
    crops = look(several((SPEC, 0.4), (wide, 0.4)), 0.0).crops
    assert [tuple(crop.image.shape) for crop in crops] == [(3, 32, 32), (3, 48, 48)]
    assert crops[0].sighting is crops[1].sighting


@pytest.mark.parametrize(
    ("change", "shared"),
    [({}, True), ({"dtype": "float32"}, True), ({"margin": 1.1}, False)],
)
def test_detectors_that_want_the_same_pixels_share_one_crop(change, shared):
    other = SPEC.model_copy(update=change)
    first, second = look(several((SPEC, 0.4), (other, 0.4)), 0.0).crops
    assert (first.image is second.image) is shared


def test_a_face_that_fails_the_gate_is_rejected_for_every_detector_that_was_due():
    cut = several(
        (SPEC, 0.4), (SPEC, 1.0), quality=ANY_QUALITY.model_copy(update={"min_face_px": 100.0})
    )
    assert [r.detector for r in look(cut, 0.0).rejected] == [0, 1]
    assert [r.detector for r in look(cut, 0.4).rejected] == [0]


def test_a_window_that_the_frame_hardly_holds_is_rejected_for_its_detector_alone():
    # 60 x 80 px of a face in 160 x 120: 4 times as much shrinks to 1.49 times, 0.14 by area.
    wide = InputSpec(size_px=32, margin=4.0, window="inside")
    asked = ANY_QUALITY.model_copy(update={"min_window": 0.15})
    looks = look(several((wide, 0.4), (SPEC, 0.4), quality=asked), 0.0)
    assert [(r.detector, r.problem) for r in looks.rejected] == [(0, QualityProblem.CUT_OFF)]
    assert looks.rejected[0].sighting.quality.problem is None
    assert [crop.detector for crop in looks.crops] == [1]
    assert not look(several((wide, 0.4), (SPEC, 0.4)), 0.0).rejected
