"""Tracks of faces that walk, cross, hide and leave, and of faces in real clips."""

import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from stream.config import DetectConfig, TrackConfig
from stream.records import FaceDetection, TrackKey
from stream.stages.detect import open_detector
from stream.stages.track import FaceTracker
from trt_engines.backends import OnnxRuntimeConfig

VIDEOS = Path(__file__).parents[4] / "shared" / "data" / "videos"
CONFIG = TrackConfig()
SIZE = 60.0  # of a generated face, px
STEP_S = 0.2  # between analysed frames
STRONG, WEAK = 0.999, 0.8
ASL_WORDS = ["again", "bird", "book", "brother", "help", "learn", "milk", "please", "walk"]


def _face(x, y=0.0, *, scale=1.0, confidence=STRONG):
    """Return a face whose centre is at (x, y) in face sizes."""
    half = np.array([0.5, 0.5]) * SIZE * scale
    centre = np.array([x, y]) * SIZE
    return FaceDetection(
        box=np.concatenate([centre - half, centre + half]).astype(np.float32),
        landmarks=np.zeros((5, 2), np.float32),
        confidence=confidence,
    )


def _tracker(**options):
    return FaceTracker("cam1", 3, TrackConfig(**options))


def _ids(update):
    return [track.key.track_id for track in update.tracks]


def _follow(tracker, frames):
    """Feed frames of (pts_s, {name: detection}) and return the ids that each name was given."""
    ids = {}
    for pts_s, faces in frames:
        update = tracker.update(pts_s, list(faces.values()))
        for name, detection in faces.items():
            ids.setdefault(name, set()).update(
                track.key.track_id for track in update.tracks if track.detection is detection
            )
    return ids


def _steps(n, step_s=STEP_S):
    return [i * step_s for i in range(n)]


def test_ids_start_at_1_and_carry_source_and_session():
    update = _tracker().update(7.0, [_face(0), _face(5)])
    assert [track.key for track in update.tracks] == [
        TrackKey(source_id="cam1", session=3, track_id=1),
        TrackKey(source_id="cam1", session=3, track_id=2),
    ]
    assert update.ended == ()
    assert update.tracks[0].first_pts_s == update.tracks[0].pts_s == 7.0


@pytest.mark.parametrize(("step_s", "first_confirmed"), [(0.04, 8), (0.2, 2), (0.5, 2)])
def test_track_is_confirmed_after_enough_time_and_detections(step_s, first_confirmed):
    tracker = _tracker(confirm_s=0.3, confirm_hits=3)
    confirmed = [tracker.update(t, [_face(0)]).tracks[0].confirmed for t in _steps(10, step_s)]
    assert confirmed == [i >= first_confirmed for i in range(10)]


def test_tracks_come_in_order_of_their_ids_whatever_the_order_of_the_detections():
    tracker = _tracker()
    tracker.update(0.0, [_face(0), _face(5)])
    faces = [_face(9), _face(5), _face(0)]
    update = tracker.update(0.2, faces)
    assert _ids(update) == [1, 2, 3]
    assert [track.detection for track in update.tracks] == [faces[2], faces[1], faces[0]]


def test_frame_without_faces_is_no_problem():
    tracker = _tracker()
    assert tracker.update(0.0, []).tracks == ()
    assert tracker.expected_boxes(0.1).shape == (0, 4)
    tracker.update(0.2, [_face(0)])
    assert tracker.update(0.4, []).tracks == ()


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("speed", [1.0, 7.0])  # faces per second; 7 is a brisk walk, close by
def test_face_of_any_size_that_walks_past_keeps_its_track(speed, scale):
    frames = [(t, {"walker": _face(speed * t * scale, scale=scale)}) for t in _steps(20)]
    assert _follow(_tracker(), frames) == {"walker": {1}}


def test_face_that_comes_to_the_camera_keeps_its_track():
    frames = [(t, {"walker": _face(0, scale=np.exp(t))}) for t in _steps(12)]
    assert _follow(_tracker(), frames) == {"walker": {1}}


@pytest.mark.parametrize("hidden_s", [0.0, 1.0])
def test_crossing_faces_keep_their_tracks_though_one_hides_the_other(hidden_s):
    frames = []
    for t in _steps(21):
        faces = {"front": _face(1.5 * (t - 2), 0.1, scale=1.3)}
        if abs(t - 2) >= hidden_s / 2:
            faces["back"] = _face(1.5 * (2 - t))
        frames.append((t, faces))
    assert _follow(_tracker(), frames) == {"front": {1}, "back": {2}}


@pytest.mark.parametrize("speed", [0.0, 1.0])
def test_face_hidden_for_a_second_returns_to_its_track(speed):
    frames = [(t, {"face": _face(speed * t)} if not 1 < t < 2 else {}) for t in _steps(16)]
    assert _follow(_tracker(), frames) == {"face": {1}}


def test_track_unseen_for_long_ends_and_its_id_is_not_used_again():
    tracker = _tracker(lost_after_s=2.0)
    tracker.update(0.0, [_face(0)])
    assert [tracker.update(t, []).ended for t in (1.0, 1.9)] == [(), ()]
    update = tracker.update(2.0, [_face(0)])
    assert [key.track_id for key in update.ended] == [1]
    assert _ids(update) == [2]
    assert tracker.update(2.2, []).ended == ()


def test_track_ends_when_no_frame_came_for_long():
    tracker = _tracker(lost_after_s=2.0)
    tracker.update(0.0, [_face(0)])
    assert _ids(tracker.update(60.0, [_face(0)])) == [2]


def test_weak_detection_continues_a_track_but_opens_none():
    tracker = _tracker()
    assert tracker.update(0.0, [_face(0, confidence=WEAK)]).tracks == ()
    tracker.update(0.2, [_face(0)])
    weak = [_face(0.1, confidence=WEAK), _face(9, confidence=WEAK)]
    update = tracker.update(0.4, weak)
    assert [track.detection for track in update.tracks] == weak[:1]


def test_strong_detection_is_matched_before_a_weak_one_that_lies_nearer():
    tracker = _tracker()
    tracker.update(0.0, [_face(0)])
    near, far = _face(0.01, confidence=WEAK), _face(0.3)
    (track,) = tracker.update(0.2, [near, far]).tracks
    assert track.key.track_id == 1
    assert track.detection is far


def test_weak_detection_must_lie_nearer_than_a_strong_one():
    for x, strong_ids, weak_ids in ((0.6, [1], [1]), (1.2, [1], []), (1.8, [2], [])):
        for confidence, expected in ((STRONG, strong_ids), (WEAK, weak_ids)):
            tracker = _tracker()
            tracker.update(0.0, [_face(0)])
            assert _ids(tracker.update(0.2, [_face(x, confidence=confidence)])) == expected


def test_neighbour_does_not_inherit_the_track_of_a_face_that_left():
    tracker = _tracker()
    for t in _steps(5):
        tracker.update(t, [_face(0)])
    assert _ids(tracker.update(1.0, [_face(2)])) == [2]


def test_much_larger_face_at_the_same_place_is_another_track():
    tracker = _tracker()
    for t in _steps(5):
        tracker.update(t, [_face(0)])
    assert _ids(tracker.update(1.0, [_face(0, scale=3)])) == [2]


def test_row_of_faces_is_not_shifted_when_one_leaves_as_another_comes():
    tracker = _tracker()
    for t in _steps(5):
        tracker.update(t, [_face(0), _face(1.4), _face(2.8)])
    update = tracker.update(1.0, [_face(1.3), _face(2.7), _face(4.1)])
    assert _ids(update) == [2, 3, 4]


@pytest.mark.parametrize("step_s", [0.04, 0.1, 0.2])
def test_walking_faces_keep_their_tracks_at_any_frame_rate_with_jitter_and_drops(step_s):
    rng = np.random.default_rng(5)
    ids = {}
    frames = []
    for t in _steps(round(8 / step_s), step_s):
        if rng.random() < 0.2:  # the frame is dropped
            continue
        faces = {}
        for row in range(4):
            x, y, scale = rng.normal(0, 0.03, 3)
            swing = 0.2 * np.sin(3 * t + row)
            if rng.random() > 0.1:  # else the detector misses it
                faces[row] = _face(
                    1.2 * t * (-1) ** row + x, 2 * row + swing + y, scale=np.exp(scale)
                )
        frames.append((t, faces))
    ids = _follow(_tracker(), frames)
    assert all(len(found) == 1 for found in ids.values())
    assert len(set.union(*ids.values())) == 4


def test_expected_boxes_move_on_with_each_face_seen_or_not():
    tracker = _tracker()
    for t in _steps(11):
        hidden = t > 1.5
        tracker.update(t, [_face(2 * t)] if hidden else [_face(2 * t), _face(-t, 5)])
    expected = tracker.expected_boxes(2.4)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(expected, [_face(4.8).box, _face(-2.4, 5).box], atol=0.03 * SIZE)
    assert len(tracker.expected_boxes(3.7)) == 1, "the hidden face's track is over by then"


def test_expected_box_is_steadier_than_the_line_through_the_last_two_detections():
    rng = np.random.default_rng(1)
    tracker = _tracker()
    measured = rng.normal(0, 0.03, 200)
    expected = []
    for t, x in zip(_steps(200), measured, strict=True):
        if t:
            expected.append(tracker.expected_boxes(t)[0, [0, 2]].mean() / SIZE)
        tracker.update(t, [_face(x)])
    line = 2 * measured[1:-1] - measured[:-2]
    assert np.std(expected) < 0.85 * np.std(line)


def test_end_returns_every_live_track_and_forgets_them():
    tracker = _tracker()
    tracker.update(0.0, [_face(0), _face(5)])
    tracker.update(0.2, [_face(0)])
    assert [key.track_id for key in tracker.end()] == [1, 2]
    assert tracker.end() == ()
    assert _ids(tracker.update(0.4, [_face(0)])) == [3]


def test_ended_tracks_leave_no_trace():
    tracker = _tracker(lost_after_s=1.0)
    sizes = []
    for n in range(200):
        tracker.update(10.0 * n, [_face(x) for x in range(0, 30, 3)])
        sizes.append(len(pickle.dumps(tracker)))
    assert max(sizes) - sizes[0] < 100  # larger ids take some more bytes


@pytest.fixture(scope="module")
def detector():
    with open_detector(DetectConfig(), OnnxRuntimeConfig()) as detector:
        yield detector


def _track_clip(detector, path):
    """Return the boxes of each confirmed track, and the number of frames.

    As in production: five frames a second, the whole frame searched once a second.
    """
    tracker = FaceTracker("clip", 0, CONFIG)
    seen, confirmed = {}, set()
    frames, due_s, search_s = 0, 0.0, 0.0
    with av.open(path) as container:
        for frame in container.decode(video=0):
            if frame.time < due_s - 1e-3:
                continue
            due_s = frame.time + STEP_S
            frames += 1
            expected = tracker.expected_boxes(frame.time)
            if frame.time >= search_s - 1e-3:
                expected, search_s = None, frame.time + DetectConfig().detect_every_s
            image = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            (faces,) = detector.detect([image], [expected])
            for track in tracker.update(frame.time, faces).tracks:
                seen.setdefault(track.key, []).append(track.detection.box)
                if track.confirmed:
                    confirmed.add(track.key)
    return [np.array(seen[key]) for key in sorted(confirmed)], frames


@pytest.mark.parametrize(
    ("name", "people"),
    [
        *[(f"intel_asl_{word}.mkv", 1) for word in ASL_WORDS],
        ("intel_head-pose-face-detection-female.mp4", 1),
        ("intel_head-pose-face-detection-female-and-male.mp4", 2),
        ("intel_face-demographics-walking-and-pause.mp4", 3),
    ],
)
def test_every_person_of_a_real_clip_is_one_track(detector, name, people):
    if not (VIDEOS / name).is_file():
        pytest.skip("needs ../shared/data/videos")
    tracks, frames = _track_clip(detector, VIDEOS / name)
    assert len(tracks) == people
    for boxes in tracks:
        assert len(boxes) >= 0.8 * frames
        centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        steps = np.linalg.norm(np.diff(centres, axis=0), axis=1) / sides.mean()
        assert steps.max() < 0.5, "the track jumped to something else"
