"""What analysis says of a file, gathered to its row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stream.records import Alert, Verdict
from stream.scan.rows import BoxRow, DetectorRow, FileVerdict, TrackRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from stream.records import Frame, TrackScore


@dataclass(slots=True)
class _Track:
    latest: TrackScore
    attack_at_s: float | None = None
    p_highest: float | None = None
    boxes: list[BoxRow] = field(default_factory=list)
    crop: Tensor | None = None


class Tally:
    """Gathers the records of one file; media time in seconds throughout."""

    def __init__(self, *, is_still: bool) -> None:
        self.frames_analysed = 0
        self.frames_failed = 0
        self.last_frame: Frame | None = None  # its pixels are let go of at the end
        self.seconds = 0.0
        self._is_still = is_still
        self._tracks: dict[int, _Track] = {}
        self._looked_at: set[int] = set()  # seconds
        self._usable: set[int] = set()
        self._times: list[float] = []  # of the frames
        self._with_face: set[float] = set()

    def closer(self) -> Tally:
        """Return the tally of a second look at the same file, which finds the tracks anew."""
        tally = Tally(is_still=self._is_still)
        tally.frames_analysed, tally.frames_failed = self.frames_analysed, self.frames_failed
        tally.last_frame, tally.seconds = self.last_frame, self.seconds
        tally._looked_at, tally._usable = {*self._looked_at}, {*self._usable}
        return tally

    def spans_with_faces(self, end_s: float) -> tuple[tuple[float, float], ...]:
        """Return the stretches of time around frames with a face, up to the frames beside them.

        Args:
            end_s: where the stretch of the last frame ends.
        """
        spans: list[tuple[float, float]] = []
        edges = [0.0, *self._times, end_s]
        for before, now, after in zip(edges, edges[1:], edges[2:], strict=False):
            if now not in self._with_face:
                continue
            if spans and spans[-1][1] >= before:
                spans[-1] = spans[-1][0], after
            else:
                spans.append((before, after))
        return tuple(spans)

    def add_frame(self, frame: Frame, error: Exception | None) -> None:
        """Count a frame whose analysis is over."""
        self.last_frame = frame
        self.seconds = max(self.seconds, frame.stamp.pts_s)
        self._times.append(frame.stamp.pts_s)
        self._looked_at.add(math.floor(frame.stamp.pts_s))
        if error is None:
            self.frames_analysed += 1
        else:
            self.frames_failed += 1

    def add_records(self, records: Iterable[TrackScore | Alert]) -> list[int]:
        """Take in what was said of tracks; return those that never looked worse than now."""
        worse = []
        for record in records:
            score = record.track if isinstance(record, Alert) else record
            number = score.sighting.key.track_id
            track = self._tracks.setdefault(number, _Track(score))
            track.latest = score
            at_s, p = score.sighting.stamp.pts_s, score.probability
            self._with_face.add(at_s)
            if isinstance(record, Alert):
                if score.verdict is Verdict.ATTACK and track.attack_at_s is None:
                    track.attack_at_s = at_s
                continue
            if score.sighting.quality.problem is None:
                self._usable.add(math.floor(at_s))
            if not track.boxes or track.boxes[-1].at_s < round(at_s, 3):
                track.boxes.append(_box(score))
            if p is not None and (track.p_highest is None or p > track.p_highest):
                track.p_highest = p
                worse.append(number)
        return worse

    def keep_crop(self, track: int, crop: Tensor) -> None:
        """Take the picture of the worst look at a track."""
        self._tracks[track].crop = crop

    def crops(self) -> dict[int, Tensor]:
        """Return the pictures of tracks, the likeliest attack first."""
        worst = sorted(self._tracks.items(), key=lambda each: -(each[1].p_highest or 0.0))
        return {number: track.crop for number, track in worst if track.crop is not None}

    def score_of(self, track: int) -> TrackScore:
        """Return the latest of a track."""
        return self._tracks[track].latest

    @property
    def coverage(self) -> float | None:
        """Share of the seconds looked at that hold a usable face; None: nothing was looked at."""
        if not self._looked_at:
            return None
        return len(self._usable & self._looked_at) / len(self._looked_at)

    def rows(self, crops: Mapping[int, str]) -> tuple[TrackRow, ...]:
        """Return the rows of the tracks, the likeliest attack first.

        Args:
            crops: names of the pictures that were kept, by track.
        """
        rows = [
            self._row(number, track, crops.get(number)) for number, track in self._tracks.items()
        ]
        return tuple(sorted(rows, key=lambda row: (-(row.p_highest or 0.0), row.track)))

    def _row(self, number: int, track: _Track, crop: str | None) -> TrackRow:
        score = track.latest
        return TrackRow(
            track=number,
            verdict=score.verdict,
            attack_at_s=_rounded(track.attack_at_s, 3),
            p_attack=_rounded(score.probability, 6),
            p_highest=_rounded(track.p_highest, 6),
            method=score.method,
            family=score.family,
            reason=score.problem,
            n_scores=score.n_scores,
            n_effective=round(score.n_effective, 3),
            single_look=self._is_still,
            first_s=round(score.sighting.first_pts_s, 3),
            last_s=round(score.sighting.stamp.pts_s, 3),
            detectors=tuple(
                DetectorRow(
                    name=each.name,
                    method=each.method,
                    p_attack=_rounded(each.probability, 6),
                    n_scores=each.n_scores,
                    abstains=each.problem,
                )
                for each in score.detectors
            ),
            boxes=tuple(track.boxes),
            crop=crop,
        )


def was_attack(track: TrackRow) -> bool:
    """Return whether a track was called an attack at some time."""
    return track.attack_at_s is not None


def file_verdict(tracks: Sequence[TrackRow]) -> FileVerdict:
    """Return what is said of a file with these tracks; see `FileVerdict`."""
    if any(map(was_attack, tracks)):
        return FileVerdict.ATTACK
    said = {track.verdict for track in tracks}
    for verdict in (Verdict.BONA_FIDE, Verdict.UNDECIDED, Verdict.ABSTAIN):
        if verdict in said:
            return FileVerdict(verdict)
    return FileVerdict.NO_FACE


def _box(score: TrackScore) -> BoxRow:
    stamp = score.sighting.stamp
    size = (stamp.width, stamp.height) * 2
    left, top, right, bottom = (
        min(max(float(v) / n, 0.0), 1.0)
        for v, n in zip(score.sighting.detection.box, size, strict=True)
    )
    return BoxRow(
        at_s=round(stamp.pts_s, 3),
        x=round(left, 4),
        y=round(top, 4),
        w=round(right - left, 4),
        h=round(bottom - top, 4),
        p_attack=_rounded(score.probability, 4),
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
