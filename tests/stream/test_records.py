from __future__ import annotations

import math

import numpy as np
import pytest

from stream.records import FaceDetection

LANDMARKS = np.full((5, 2), 30, np.float32)


@pytest.mark.parametrize(
    ("box", "landmark", "confidence", "says"),
    [
        ([60, 20, 20, 60], 30, 0.9, "x1 < x2"),
        ([20, 60, 60, 20], 30, 0.9, "y1 < y2"),
        ([20, 20, 20, 60], 30, 0.9, "x1 < x2"),
        ([20, 20, 60, 20], 30, 0.9, "y1 < y2"),
        ([20, math.nan, 60, 60], 30, 0.9, "finite"),
        ([-math.inf, 20, 60, 60], 30, 0.9, "finite"),
        ([20, 20, 60, 60], math.nan, 0.9, "landmarks"),
        ([20, 20, 60, 60], math.inf, 0.9, "landmarks"),
        ([20, 20, 60, 60], 30, 1.01, "confidence"),
        ([20, 20, 60, 60], 30, -0.01, "confidence"),
        ([20, 20, 60, 60], 30, math.nan, "confidence"),
        ([20, 20, 60], 30, 0.9, "shape"),
    ],
)
def test_a_detection_that_can_be_no_face_is_refused(box, landmark, confidence, says):
    landmarks = LANDMARKS.copy()
    landmarks[2, 1] = landmark
    with pytest.raises(ValueError, match=says):
        FaceDetection(box=np.array(box, np.float32), landmarks=landmarks, confidence=confidence)


def test_a_face_may_reach_outside_the_frame():
    FaceDetection(box=np.float32([-5, -5, 60, 60]), landmarks=LANDMARKS, confidence=1.0)
