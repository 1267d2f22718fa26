"""Our tracker against ByteTrack of the `trackers` package, as a check on both.

Not part of the ordinary suite: `trackers` brings OpenCV and much else. To run it, in a virtual
environment of its own:

    pip install -r requirements/dev.txt -r requirements/crosscheck.txt
    pytest tests/stream/stages/test_track_crosscheck.py

ByteTrack matches by overlap and counts frames, so the faces here move less than their own size from
frame to frame, none is dropped, and its frames are converted from our seconds.
"""

import numpy as np
import pytest

from stream.config import TrackConfig
from stream.records import FaceDetection
from stream.stages.track import FaceTracker

trackers = pytest.importorskip("trackers", reason="needs the extra crosscheck: see the docstring")
supervision = pytest.importorskip("supervision", reason="needs the extra crosscheck")

CONFIG = TrackConfig()
FPS = 25.0


def _scene(seed):
    """Return frames of detections: rows of x1 y1 x2 y2, confidence; people walk and cross."""
    rng = np.random.default_rng(seed)
    n = 5
    size = rng.uniform(50, 90, n)
    start = np.stack([rng.uniform(0, 1200, n), 120.0 * np.arange(n) + 100], axis=1)
    velocity = rng.uniform(-2, 2, (n, 2)) * size[:, None] * (1, 0.1)
    appears = rng.uniform(0, 3, n)
    frames = []
    for i in range(int(8 * FPS)):
        t = i / FPS
        rows = []
        for person in range(n):
            # Seen from 1 s on after each start, missed now and then, hidden for a second.
            if t < appears[person] or rng.random() < 0.05 or 5 < t - appears[person] < 6:
                continue
            centre = start[person] + velocity[person] * (t - appears[person])
            centre = centre + rng.normal(0, 0.02, 2) * size[person]
            half = size[person] / 2 * np.exp(rng.normal(0, 0.02, 2)) * (1, 1.25)
            confidence = 0.8 if rng.random() < 0.1 else 0.99
            rows.append([*(centre - half), *(centre + half), confidence])
        frames.append(np.array(rows).reshape(-1, 5))
    return frames


def _ours(frames):
    tracker = FaceTracker("scene", 0, CONFIG)
    ids = []
    for i, rows in enumerate(frames):
        detections = [
            FaceDetection(
                box=row[:4].astype(np.float32),
                landmarks=np.zeros((5, 2), np.float32),
                confidence=row[4],
            )
            for row in rows
        ]
        found = {
            id(t.detection): t.key.track_id for t in tracker.update(i / FPS, detections).tracks
        }
        ids += [found.get(id(detection), -1) for detection in detections]
    return ids


def _theirs(frames):
    tracker = trackers.ByteTrackTracker(
        lost_track_buffer=round(30 * CONFIG.lost_after_s),  # counted at 30 frames per second
        frame_rate=FPS,
        track_activation_threshold=CONFIG.high_confidence,
        high_conf_det_threshold=CONFIG.high_confidence,
        minimum_consecutive_frames=1,
    )
    ids = []
    for rows in frames:
        detections = supervision.Detections(
            xyxy=rows[:, :4].astype(np.float32),
            confidence=rows[:, 4].astype(np.float32),
            data={"row": np.arange(len(rows))},
        )
        tracked = tracker.update(detections)
        # Detections without rows lose their data.
        numbers = tracked.data.get("row", np.empty(0, int))
        found = dict(zip(numbers.tolist(), tracked.tracker_id.tolist(), strict=True))
        ids += [found.get(row, -1) for row in range(len(rows))]
    return ids


@pytest.mark.parametrize("seed", range(20))
def test_detections_are_grouped_into_the_same_identities_as_by_bytetrack(seed):
    frames = _scene(seed)
    pairs = list(zip(_ours(frames), _theirs(frames), strict=True))
    both = [(ours, theirs) for ours, theirs in pairs if ours >= 0 and theirs >= 0]
    assert len(both) >= 0.95 * len(pairs)
    assert len(set(both)) == len({ours for ours, _ in both}) == len({theirs for _, theirs in both})
