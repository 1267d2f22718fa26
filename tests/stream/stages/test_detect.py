"""The cascade against facenet-pytorch's own, and on its own.

Agreement with `facenet_pytorch.MTCNN.detect`, where both see the same pixels: the same faces, boxes
and landmarks within 0.5 px, probabilities within 0.001. Typical differences are below 0.001 px.
Larger ones come about where O-Net is equally sure of two candidates of one face (both round to
probability 1) and either may be chosen: once in 149 faces of the shared clips, by 0.32 px.
Two conventions differ. `MTCNN.detect` puts the largest face first, we the most probable. Our
landmarks are 0.5 px further left and up: see `stream.stages.detect`.
"""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from skimage.data import astronaut
from torch.nn import functional as F

from models import InputSpec, crop_faces
from stream.config import DetectConfig, QualityConfig, TrackConfig
from stream.stages.detect import MAX_PROPOSALS, MAX_REFINED, FaceDetector, open_detector
from stream.stages.quality import assess
from stream.stages.track import FaceTracker
from trt_engines.backends import OnnxRuntimeConfig, TorchConfig
from trt_engines.errors import EngineError
from trt_engines.mtcnn import load_network

VIDEOS = Path(__file__).parents[4] / "shared" / "data" / "videos"
PORTRAIT = astronaut()[0:260, 100:350]  # head and shoulders; the face is about 85 px wide
LANDMARK_SHIFT = 0.5


class RecordingBackend:
    """Counts the images that pass through a network."""

    def __init__(self, backend):
        self.backend = backend
        self.max_batch = backend.max_batch
        self.images = 0
        self.largest_batch = 0
        self.closed = False

    def infer(self, images):
        self.images += len(images)
        self.largest_batch = max(self.largest_batch, len(images))
        return self.backend.infer(images)

    def close(self):
        self.closed = True


class SureBackend:
    """Takes everything for a face, somewhat displaced."""

    max_batch = 8

    def __init__(self, size_px, stride_px=None):
        self._size_px = size_px
        self._stride_px = stride_px
        self._generator = torch.Generator().manual_seed(0)

    def infer(self, images):
        assert 1 <= len(images) <= self.max_batch
        shape = [len(images)]
        if self._stride_px is not None:
            shape += [(side - self._size_px) // self._stride_px + 1 for side in images.shape[2:]]
        offsets = torch.rand((shape[0], 4, *shape[1:]), generator=self._generator)
        probability = 0.9 + 0.1 * torch.rand(shape, generator=self._generator)
        return {
            "offsets": offsets * 0.8 - 0.4,
            "probability": probability,
            "landmarks": torch.rand((len(images), 10)),
        }

    def close(self):
        pass


class WildBackend(SureBackend):
    """Is as sure, and displaces boxes and landmarks by anything, infinity and NaN included."""

    def infer(self, images):
        outputs = super().infer(images)
        for name in ("offsets", "landmarks"):
            far = torch.rand(outputs[name].shape, generator=self._generator)
            outputs[name] = outputs[name] * 4.0
            outputs[name][far < 0.06] *= 1e4
            outputs[name][far < 0.04] *= 1e30
            outputs[name][far < 0.02] = torch.inf
            outputs[name][far > 0.98] = torch.nan
        return outputs


def _frame(width, height, *faces):
    """Return a grey, slightly grainy frame with portraits: left, top and height of each."""
    rng = np.random.default_rng(0)
    frame = rng.normal(110, 4, (height, width, 3)).clip(0, 255).astype(np.uint8)
    planes = torch.from_numpy(PORTRAIT.copy()).permute(2, 0, 1)[None]
    for left, top, size in faces:
        resized = F.interpolate(planes, (size, size * 25 // 26), mode="bilinear", antialias=True)
        portrait = resized[0].permute(1, 2, 0).numpy()
        frame[top : top + size, left : left + portrait.shape[1]] = portrait
    return torch.from_numpy(frame)


def _video_frames(name, step):
    with av.open(VIDEOS / name) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % step == 0:
                yield torch.from_numpy(frame.to_ndarray(format="rgb24"))


def _boxes(faces):
    return np.array([face.box for face in faces], np.float32).reshape(-1, 4)


def _iou(a, b):
    sides = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0)
    return sides.prod() / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - sides.prod())


def _assert_same(found, expected, *, atol):
    assert len(found) == len(expected)
    for face, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(face.box, other.box, atol=atol)
        np.testing.assert_allclose(face.landmarks, other.landmarks, atol=atol)
        assert face.confidence == pytest.approx(other.confidence, abs=1e-3)


def _assert_agrees(found, reference, image, *, scale=(1.0, 1.0), atol=0.5):
    """Compare with facenet-pytorch's faces of an image smaller by a scale; return how many."""
    boxes, probabilities, landmarks = reference.detect(image.numpy(), landmarks=True)
    if boxes is None:
        assert found == []
        return 0
    assert len(found) == len(boxes)
    for box, probability, points in zip(boxes, probabilities, landmarks, strict=True):
        box, points = box.astype(np.float32), points.astype(np.float32)
        face = max(found, key=lambda face: _iou(face.box / np.tile(scale, 2), box))
        np.testing.assert_allclose(face.box / np.tile(scale, 2), box, atol=atol)
        np.testing.assert_allclose(face.landmarks / scale, points - LANDMARK_SHIFT, atol=atol)
        assert face.confidence == pytest.approx(probability, abs=1e-3)
    return len(boxes)


@pytest.fixture(scope="module")
def reference():
    return MTCNN(keep_all=True, min_face_size=40, device="cpu")


@pytest.fixture(scope="module")
def detector():
    with open_detector(DetectConfig(detect_width=1280), OnnxRuntimeConfig()) as detector:
        yield detector


@pytest.fixture
def recorded():
    """A detector whose networks are recorded, and the three recorders."""
    with open_detector(DetectConfig(), OnnxRuntimeConfig()) as opened:
        networks = [RecordingBackend(n) for n in (opened._pnet, opened._rnet, opened._onet)]
        yield FaceDetector(*networks, DetectConfig()), networks


@pytest.mark.parametrize("size", [130, 180, 260, 420, 640])
def test_portrait_is_found_as_by_facenet_pytorch_at_every_size(detector, reference, size):
    image = _frame(960, 700, (230, 31, size))
    (found,) = detector.detect([image], [None])
    assert _assert_agrees(found, reference, image) == 1


def test_several_faces_one_cut_by_the_edge_are_found_as_by_facenet_pytorch(detector, reference):
    image = _frame(1003, 641, (20, 20, 200), (400, 100, 330), (760, 350, 180))[:, 60:]
    (found,) = detector.detect([image], [None])
    assert _assert_agrees(found, reference, image.contiguous()) == 3


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="needs ../shared/data/videos")
@pytest.mark.parametrize(
    ("name", "step", "least"),
    [
        ("intel_asl_again.mkv", 20, 3),
        ("intel_asl_book.mkv", 32, 3),  # holds the frame with the largest difference known
        ("intel_head-pose-face-detection-female-and-male.mp4", 14, 6),
        ("intel_face-demographics-walking-and-pause.mp4", 10, 9),
        ("intel_classroom.mp4", 30, 1),
        ("facenet_crowd.mp4", 52, 6),
        ("carphone_qcif.mp4", 40, 2),
    ],
)
def test_real_faces_are_found_as_by_facenet_pytorch(reference, name, step, least):
    compared = 0
    with open_detector(DetectConfig(detect_width=1920), OnnxRuntimeConfig()) as detector:
        for image in _video_frames(name, step):
            (found,) = detector.detect([image], [None])
            compared += _assert_agrees(found, reference, image)
    assert compared >= least


def test_faces_of_a_wide_frame_are_those_of_its_copy_scaled_up(reference):
    image = _frame(1277, 721, (100, 60, 300), (700, 200, 460))
    planes = image.permute(2, 0, 1)[None]
    copy = F.interpolate(planes, (361, 640), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    scale = (1277 / 640, 721 / 361)  # not quite the same: the copy has whole pixels
    with open_detector(DetectConfig(detect_width=640), OnnxRuntimeConfig()) as detector:
        (found,) = detector.detect([image], [None])
    copy = copy.contiguous()
    assert _assert_agrees(found, reference, copy, scale=scale, atol=0.1) == 2


def test_face_stays_in_place_when_an_odd_frame_is_shrunk_by_an_odd_factor(detector):
    image = _frame(1277, 719, (700, 130, 500))
    (exact,) = detector.detect([image], [None])
    with open_detector(DetectConfig(detect_width=437), OnnxRuntimeConfig()) as narrow:
        (found,) = narrow.detect([image], [None])
    assert len(found) == len(exact) == 1
    size = exact[0].box[2] - exact[0].box[0]
    np.testing.assert_allclose(found[0].landmarks, exact[0].landmarks, atol=0.03 * size)
    assert _iou(found[0].box, exact[0].box) > 0.8


def test_mirrored_frames_give_mirrored_faces(detector):
    # Pins the coordinate convention: if positions counted pixels' centres from 0 or from 1, the
    # mean would be -1 or +1. (The boxes of this one portrait lean to the left in either.)
    images = [_frame(400, 330, (60 + 3 * i, 10 + i, 150 + 4 * i)) for i in range(24)]
    plain = detector.detect(images, [None] * len(images))
    mirrored = detector.detect([image.flip(1) for image in images], [None] * len(images))
    left_and_right_swapped = [1, 0, 2, 4, 3]
    gaps = [
        face.landmarks[:, 0] + other.landmarks[left_and_right_swapped, 0] - 400
        for (face,), (other,) in zip(plain, mirrored, strict=True)
    ]
    assert abs(np.mean(gaps)) < 0.4


def test_landmarks_are_eyes_nose_and_mouth_as_the_viewer_sees_them(detector):
    ((face,),) = detector.detect([_frame(400, 400, (50, 50, 260))], [None])
    # Read off the portrait, which is pasted at its own size: pupils, tip of the nose, mouth.
    seen = [(104, 101), (146, 103), (123, 127), (103, 140), (145, 141)]
    np.testing.assert_allclose(face.landmarks - (50, 50), seen, atol=3)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10, 10), (1, 500), (2000, 3), (640, 39)])
def test_frame_too_small_for_a_face_has_none(detector, width, height):
    image = torch.full((height, width, 3), 127, dtype=torch.uint8)
    assert detector.detect([image], [None]) == [[]]
    assert detector.detect([image], [np.array([[0, 0, 5, 5]], np.float32)]) == [[]]


def test_noise_and_flat_colour_hold_no_face(detector):
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    images = [torch.from_numpy(noise), torch.zeros((360, 640, 3), dtype=torch.uint8)]
    assert detector.detect(images, [None, None]) == [[], []]


def test_nothing_to_look_at_gives_nothing(detector):
    assert detector.detect([], []) == []
    no_tracks = np.empty((0, 4), np.float32)
    assert detector.detect([_frame(400, 400, (50, 50, 260))], [no_tracks]) == [[]]


def test_frames_together_give_what_each_gives_alone(detector):
    images = [
        _frame(640, 360, (20, 20, 200)),
        _frame(480, 400, (100, 80, 260)),
        _frame(640, 360, (300, 60, 280), (50, 100, 180)),
        _frame(640, 360),
        _frame(640, 360, (300, 60, 280), (50, 100, 180)),
    ]
    known = np.array([[400, 140, 500, 270], [100, 160, 160, 240]], np.float32)
    expected = [None, None, None, None, known]
    together = detector.detect(images, expected)
    assert [len(faces) for faces in together] == [1, 1, 2, 0, 2]
    for faces, image, boxes in zip(together, images, expected, strict=True):
        _assert_same(faces, *detector.detect([image], [boxes]), atol=1e-3)


def test_best_face_comes_first(detector):
    image = _frame(1003, 641, (0, 20, 200), (400, 100, 330), (760, 350, 180))
    (faces,) = detector.detect([image], [None])
    confidences = [face.confidence for face in faces]
    assert len(faces) == 3
    assert confidences == sorted(confidences, reverse=True)


@pytest.mark.parametrize("shift", [-0.2, 0.0, 0.2])
@pytest.mark.parametrize("size", [150, 260, 600])
def test_face_is_refreshed_near_its_expected_box(detector, size, shift):
    image = _frame(1280, 720, (500, 60, size))
    ((face,),) = detector.detect([image], [None])
    width = face.box[2] - face.box[0]
    (found,) = detector.detect([image], [face.box[None] + np.float32(shift * width)])
    assert len(found) == 1
    assert _iou(found[0].box, face.box) > 0.75
    np.testing.assert_allclose(found[0].landmarks, face.landmarks, atol=0.08 * width)
    assert found[0].confidence > 0.9


def test_refresh_of_face_at_the_frame_edge_keeps_it(detector):
    image = _frame(600, 400, (0, 60, 300))[:, 70:]
    (searched,) = detector.detect([image], [None])
    (refreshed,) = detector.detect([image], [_boxes(searched)])
    assert len(searched) == len(refreshed) == 1
    assert _iou(refreshed[0].box, searched[0].box) > 0.75


def test_expected_box_without_a_face_yields_nothing(detector):
    image = _frame(1280, 720, (500, 60, 300))
    background = np.array([[50, 400, 150, 520], [1000, 500, 1100, 600]], np.float32)
    assert detector.detect([image], [background]) == [[]]


@pytest.mark.parametrize(
    "box",
    [(-200, 0, -100, 100), (0, 800, 100, 900), (300, 0, 100, 100), (50, 50, 50, 60), (np.nan,) * 4],
)
def test_expected_box_without_pixels_yields_nothing(detector, box):
    image = _frame(640, 360, (200, 60, 260))
    assert detector.detect([image], [np.array([box], np.float32)]) == [[]]


def test_two_tracks_expected_on_one_face_yield_it_once(detector):
    image = _frame(640, 360, (200, 60, 260))
    ((face,),) = detector.detect([image], [None])
    (found,) = detector.detect([image], [np.stack([face.box, face.box + 4])])
    assert len(found) == 1


def test_refresh_leaves_pnet_and_rnet_alone(recorded):
    detector, (pnet, rnet, onet) = recorded
    boxes = np.array([[280, 130, 380, 260]], np.float32)
    (found,) = detector.detect([_frame(640, 360, (200, 60, 260))], [boxes])
    assert len(found) == 1
    assert (pnet.images, rnet.images, onet.images) == (0, 0, 2)


def test_work_is_bounded_when_everything_looks_like_a_face():
    networks = [
        RecordingBackend(n)
        for n in (SureBackend(12, stride_px=2), SureBackend(24), SureBackend(48))
    ]
    detector = FaceDetector(*networks, DetectConfig())
    images = [torch.zeros((360, 640, 3), dtype=torch.uint8)] * 2

    faces = detector.detect(images, [None, None])

    _, rnet, onet = networks
    assert 0 < rnet.images <= 2 * MAX_PROPOSALS
    assert 0 < onet.images <= 2 * MAX_REFINED
    assert all(len(found) > 0 for found in faces)


@pytest.fixture(scope="module")
def picture_that_turns_a_box_inside_out():
    """A frame made against O-Net, and the expected box that it is made for.

    Where the box is, O-Net sees the face to the right of it; and there, a face whose right edge is
    left of its left one. Looks and their pixels match exactly: 96 px and 48 px, for 48 px of input.
    """
    onet = load_network("onet")
    looks = torch.rand((2, 3, 48, 48), generator=torch.Generator().manual_seed(0)) * 255
    looks.requires_grad_()
    optimiser = torch.optim.Adam([looks], lr=6)
    # The boxes within the 191 px that are cut around the expected one.
    to = torch.tensor([144.4, 72.4, 191.4, 119.4]) - torch.tensor([48, 48, 143, 143])
    for _ in range(400):
        offsets, probability, _ = onet(looks + (looks.round() - looks).detach())
        missed_px = offsets[0] * 96 - to
        overlap = 1 + offsets[1, 2] - offsets[1, 0]
        unsure = 4.5 - torch.logit(probability[1], eps=1e-6)
        if missed_px.abs().max() < 0.3 and overlap < -0.05 and unsure < 0.5:
            break
        loss = 20 * (missed_px / 96).square().sum() + (overlap + 0.1).relu() + unsure.relu()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            looks.clamp_(0, 255)
    first, second = looks.detach().round().to(torch.uint8).permute(0, 2, 3, 1)
    frame = torch.full((200, 200, 3), 110, dtype=torch.uint8)
    frame[48:144, 48:144] = first.repeat_interleave(2, 0).repeat_interleave(2, 1)
    frame[72:120, 144:192] = second
    return frame, np.array([[49, 49, 144, 144]], np.float32)


def test_picture_made_to_turn_a_box_inside_out_yields_no_face(
    detector, picture_that_turns_a_box_inside_out, monkeypatch
):
    frame, expected = picture_that_turns_a_box_inside_out
    assert detector.detect([frame], [expected]) == [[]]
    # Without the check, the face would have come through.
    monkeypatch.setattr("stream.stages.detect._sound", lambda boxes, *_: np.ones(len(boxes), bool))
    with pytest.raises(ValueError, match="x1 < x2"):
        detector.detect([frame], [expected])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("expected", [None, np.array([[40, 40, 140, 140]] * 8, np.float32)])
def test_whatever_the_networks_say_a_face_can_be_cropped_and_tracked(expected):
    networks = WildBackend(12, 2), WildBackend(24), WildBackend(48)
    detector = FaceDetector(*networks, DetectConfig())
    frame = _frame(200, 160, (30, 30, 100))
    tracker = FaceTracker("cam", 0, TrackConfig())
    n_faces = 0
    for step in range(20):
        (faces,) = detector.detect([frame], [expected])
        tracker.update(step / 5, faces)
        n_faces += len(faces)
        for face in faces:
            quality = assess(frame, face, QualityConfig())
            assert np.isfinite([quality.face_px, quality.sharpness, quality.turn]).all()
            assert quality.face_px <= 300
            crop_faces(frame, face.box[None], InputSpec(size_px=32))
    assert n_faces > 0


@pytest.mark.parametrize(
    "box",
    [
        [60, 20, 20, 60],
        [20, 60, 60, 20],
        [20, 20, 20, 60],
        [np.nan, 20, 60, 60],
        [-np.inf, -np.inf, np.inf, np.inf],
        [-3e38, -3e38, 3e38, 3e38],
    ],
)
def test_expected_box_that_is_none_yields_nothing(detector, box):
    frame = _frame(200, 160, (30, 30, 100))
    assert detector.detect([frame], [np.array([box], np.float32)]) == [[]]


def test_more_frames_than_a_network_takes_run_in_turns(recorded):
    detector, networks = recorded
    image = _frame(160, 120, (10, 0, 120))
    faces = detector.detect([image] * 35, [None] * 35)
    assert {len(found) for found in faces} == {1}
    for network in networks:
        assert network.images >= 35
        assert network.largest_batch <= network.max_batch


def test_torch_back_end_finds_the_same_faces(detector):
    threads = torch.get_num_threads()
    image = _frame(400, 400, (50, 50, 260))
    try:
        with open_detector(DetectConfig(), TorchConfig()) as other:
            (found,) = other.detect([image], [None])
    finally:
        torch.set_num_threads(threads)
    _assert_same(found, *detector.detect([image], [None]), atol=0.01)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros((3, 100, 100), dtype=torch.uint8),
        torch.zeros((100, 100, 3)),
        torch.zeros((0, 100, 3), dtype=torch.uint8),
        torch.zeros((100, 100), dtype=torch.uint8),
    ],
)
def test_other_than_colour_pixels_is_refused(detector, image):
    with pytest.raises(ValueError, match="expected an image"):
        detector.detect([image], [None])


def test_boxes_of_another_shape_are_refused(detector):
    with pytest.raises(ValueError, match="expected boxes"):
        detector.detect([_frame(64, 64)], [np.zeros(4, np.float32)])


def test_missing_engine_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"pnet\.manifest\.json"):
        open_detector(DetectConfig(engines=tmp_path), OnnxRuntimeConfig())


def test_closed_detector_has_closed_its_networks(recorded):
    detector, networks = recorded
    with detector:
        pass
    assert all(network.closed for network in networks)
