"""Tracking: which detections of a source are one face over time.

Association in two stages as in ByteTrack (Zhang et al., ECCV 2022, arXiv:2110.06864): confident
detections are matched to all tracks, then weak ones to the tracks left over; weak ones never open a
track. Two differences: every duration is media time, because frames are dropped under load, and the
cost is a distance in face sizes instead of an overlap, because at five frames a second a walking
face leaves its own box between two of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from stream.records import Track, TrackKey, TrackUpdate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stream.config import TrackConfig
    from stream.records import FaceDetection

# Standard deviations in the motion of (cx, cy, log w, log h), lengths in face sizes. For the centre
# of people who sit and talk, maximum likelihood gives 0.015, 0.24 and 0.2; walkers need more.
_MEASUREMENT = np.array([0.03, 0.03, 0.03, 0.03])
_ACCELERATION = np.array([0.5, 0.5, 0.1, 0.1])  # white noise, per s^1.5
_FIRST_SPEED = np.array([3.0, 3.0, 0.3, 0.3])  # per s, of a face seen once


class FaceTracker:
    """Follows the faces of one source session.

    Args:
        source_id: of the frames.
        session: of the frames; a reconnected source gets a new tracker.
        config: limits and durations.
    """

    def __init__(self, source_id: str, session: int, config: TrackConfig) -> None:
        self._source_id = source_id
        self._session = session
        self._config = config
        self._live: list[_LiveTrack] = []  # by ascending id
        self._last_id = 0

    def update(self, pts_s: float, detections: Sequence[FaceDetection]) -> TrackUpdate:
        """Match the faces of one frame to the tracks.

        Args:
            pts_s: media time of the frame, not before the previous one's.
            detections: its faces, each once.

        Returns:
            The tracks seen in this frame, and the keys of those that ended by it.
        """
        ended = tuple(track.key for track in self._live if not self._lasts(track, pts_s))
        self._live = [track for track in self._live if self._lasts(track, pts_s)]
        distances = self._distances(pts_s, detections)
        strong = np.array([d.confidence >= self._config.high_confidence for d in detections], bool)
        free = np.ones(len(self._live), bool)
        matches: dict[int, _LiveTrack] = {}  # by index of the detection
        for stage, limit in (
            (strong, self._config.match_distance),
            (~strong, self._config.match_distance_weak),
        ):
            rows, columns = np.flatnonzero(free), np.flatnonzero(stage)
            if not (rows.size and columns.size):
                continue
            # A match at the limit costs as much as none. Without this, when one in a row of people
            # leaves as another comes, all could be shifted by a seat.
            cost = np.minimum(distances[rows[:, None], columns], limit)
            for row, column in zip(*linear_sum_assignment(cost), strict=True):
                if cost[row, column] < limit:
                    matches[int(columns[column])] = self._live[rows[row]]
                    free[rows[row]] = False
        seen = []
        for i, detection in enumerate(detections):
            if i in matches:
                matches[i].correct(pts_s, detection)
                seen.append(self._record(matches[i], detection))
            elif strong[i]:
                seen.append(self._record(self._open(pts_s, detection), detection))
        return TrackUpdate(tracks=tuple(sorted(seen, key=lambda track: track.key)), ended=ended)

    def expected_boxes(self, pts_s: float) -> NDArray[np.float32]:
        """Return (M, 4) boxes x1 y1 x2 y2, px, where the live tracks should be, lost ones too."""
        expected = _expected(pts_s, [t for t in self._live if self._lasts(t, pts_s)])
        half = np.exp(expected[:, 2:]) / 2
        centre = expected[:, :2]
        return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)

    def live(self) -> tuple[TrackKey, ...]:
        """Return the keys of the tracks that have not ended, lost ones too."""
        return tuple(track.key for track in self._live)

    def end(self) -> tuple[TrackKey, ...]:
        """End all tracks, because the session is over, and return their keys."""
        ended = tuple(track.key for track in self._live)
        self._live = []
        return ended

    def _lasts(self, track: _LiveTrack, pts_s: float) -> bool:
        return pts_s - track.pts_s < self._config.lost_after_s

    def _distances(self, pts_s: float, detections: Sequence[FaceDetection]) -> NDArray[np.float64]:
        """Return (tracks, detections) distances of faces from where they are expected.

        Distance of the centres in face sizes + |log of the ratio of the areas|. Size tells crossing
        faces apart, since they are at different distances from the camera.
        """
        expected = _expected(pts_s, self._live)[:, None]
        seen = np.array([_coordinates(d) for d in detections]).reshape(-1, 4)
        off = seen - expected
        dx, dy, dw, dh = (off[..., i] for i in range(4))
        size = np.exp((expected[..., 2] + expected[..., 3]) / 2)
        distances: NDArray[np.float64] = np.hypot(dx, dy) / size + np.abs(dw + dh)
        return distances

    def _open(self, pts_s: float, detection: FaceDetection) -> _LiveTrack:
        self._last_id += 1
        key = TrackKey(source_id=self._source_id, session=self._session, track_id=self._last_id)
        track = _LiveTrack(key, pts_s, detection)
        self._live.append(track)
        return track

    def _record(self, track: _LiveTrack, detection: FaceDetection) -> Track:
        old_enough = track.pts_s - track.first_pts_s >= self._config.confirm_s
        return Track(
            key=track.key,
            detection=detection,
            first_pts_s=track.first_pts_s,
            pts_s=track.pts_s,
            confirmed=old_enough and track.hits >= self._config.confirm_hits,
        )


class _LiveTrack:
    """A face's constant-velocity Kalman filter; its coordinates are independent of each other."""

    def __init__(self, key: TrackKey, pts_s: float, detection: FaceDetection) -> None:
        self.key = key
        self.first_pts_s = self.pts_s = pts_s
        self.hits = 1
        self._position = _coordinates(detection)
        self._velocity = np.zeros(4)
        # Of each coordinate: variance of the position, covariance, variance of the velocity.
        self._pp = (_MEASUREMENT * self._unit()) ** 2
        self._pv = np.zeros(4)
        self._vv = (_FIRST_SPEED * self._unit()) ** 2

    def expected(self, pts_s: float) -> NDArray[np.float64]:
        """Return (4,) where the face should be."""
        return self._position + (pts_s - self.pts_s) * self._velocity

    def correct(self, pts_s: float, detection: FaceDetection) -> None:
        """Move on to the time of a detection and take it in."""
        dt = pts_s - self.pts_s
        unit = self._unit()
        noise = (_ACCELERATION * unit) ** 2
        pp = self._pp + 2 * dt * self._pv + dt**2 * self._vv + dt**3 / 3 * noise
        pv = self._pv + dt * self._vv + dt**2 / 2 * noise
        vv = self._vv + dt * noise
        variance = pp + (_MEASUREMENT * unit) ** 2
        gain_p, gain_v = pp / variance, pv / variance
        expected = self.expected(pts_s)
        innovation = _coordinates(detection) - expected
        self._position = expected + gain_p * innovation
        self._velocity = self._velocity + gain_v * innovation
        self._pp, self._pv, self._vv = (1 - gain_p) * pp, (1 - gain_p) * pv, vv - gain_v * pv
        self.pts_s = pts_s
        self.hits += 1

    def _unit(self) -> NDArray[np.float64]:
        """Return (4,) what each coordinate's noise is measured in: face sizes for the centre."""
        size = np.exp((self._position[2] + self._position[3]) / 2)
        return np.array([size, size, 1.0, 1.0])


def _expected(pts_s: float, tracks: Sequence[_LiveTrack]) -> NDArray[np.float64]:
    """Return (M, 4) coordinates."""
    return np.array([track.expected(pts_s) for track in tracks]).reshape(-1, 4)


def _coordinates(detection: FaceDetection) -> NDArray[np.float64]:
    """Return (4,) cx, cy in px, log w, log h."""
    x1, y1, x2, y2 = detection.box.astype(np.float64)
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2, np.log(x2 - x1), np.log(y2 - y1)])
