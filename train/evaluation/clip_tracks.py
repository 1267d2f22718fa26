"""Tracks of a clip as the streaming path sees them: what users get is what is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stream.config import SourceConfig
from stream.decode import open_decoder
from stream.records import Alert, AttackFamily, DetectorScore, TrackScore, Verdict
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from stream.analyse import Analyser
    from stream.config import DecodeConfig
    from stream.records import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTrack:
    """One face of one clip, from its first to its last look."""

    clip: str
    track_id: int
    centre_x: float  # of the face, 0..1 of the frame's width, at the last look
    centre_y: float
    first_s: float  # media time at which the track began
    seen_s: float  # from then to its last look
    n_scores: int
    peak: (
        float | None
    )  # highest fused probability that could have decided; None: never scored enough
    last: float | None  # fused probability at the end
    alarmed: bool  # its verdict was ATTACK at some time
    family: AttackFamily | None  # when its verdict was last ATTACK; None: it never was
    verdict: Verdict  # at the end
    changes: tuple[tuple[float, Verdict], ...]  # media time and new verdict
    detectors: tuple[DetectorScore, ...]  # what each said at the end

    @property
    def alarms(self) -> int:
        """How often its verdict became ATTACK."""
        return sum(verdict is Verdict.ATTACK for _, verdict in self.changes)

    def seconds_to(self, verdict: Verdict) -> float | None:
        """Return the time from its first sighting to a verdict; None: it never came."""
        return next((at_s - self.first_s for at_s, to in self.changes if to is verdict), None)


def frames_of(path: Path, decode: DecodeConfig) -> Iterator[Frame]:
    """Yield the frames of a clip that are due.

    Raises:
        TrainError: it is missing.
        SourceError: it can't be read.
    """
    if not path.is_file():
        raise TrainError(
            f"{path}: missing; the list of labelled clips names it: check --root, or name the "
            "parts that you have with --part"
        )
    source = SourceConfig.model_validate({"id": "clip", "uri": str(path.absolute())})
    decoder = open_decoder(source, decode, session=0)
    try:
        yield from (frame for frame in decoder.frames() if frame is not None)
    finally:
        decoder.close()


def tracks_of_clip(path: Path, analyser: Analyser, decode: DecodeConfig) -> list[ClipTrack]:
    """Run one clip through an analyser; returns its tracks that were looked at.

    Raises:
        TrainError: the clip is missing.
        SourceError: it can't be read.
    """
    messages: list[TrackScore | Alert] = []
    try:
        for frame in frames_of(path, decode):
            messages += analyser.analyse([frame])
    finally:
        messages += analyser.finish("clip")
    return tracks_of(path.name, messages)


def tracks_of(clip: str, messages: Sequence[TrackScore | Alert]) -> list[ClipTrack]:
    """Return the tracks that an analyser told of.

    Args:
        clip: its name.
        messages: all of that clip, in order.
    """
    scores: dict[int, list[TrackScore]] = {}
    changes: dict[int, list[tuple[float, Verdict]]] = {}
    for message in messages:
        score = message if isinstance(message, TrackScore) else message.track
        number = score.sighting.key.track_id
        scores.setdefault(number, []).append(score)
        if isinstance(message, Alert):
            changes.setdefault(number, []).append((score.sighting.stamp.pts_s, score.verdict))
    return [
        _track(clip, number, of_track, tuple(changes.get(number, ())))
        for number, of_track in scores.items()
    ]


def _track(
    clip: str,
    number: int,
    scores: list[TrackScore],
    changes: tuple[tuple[float, Verdict], ...],
) -> ClipTrack:
    last = scores[-1]
    families = [score.family for score in scores if score.verdict is Verdict.ATTACK]
    stamp, box = last.sighting.stamp, last.sighting.detection.box
    decided = [s.probability for s in scores if s.verdict in (Verdict.ATTACK, Verdict.BONA_FIDE)]
    return ClipTrack(
        clip=clip,
        track_id=number,
        centre_x=float(box[0] + box[2]) / 2 / stamp.width,
        centre_y=float(box[1] + box[3]) / 2 / stamp.height,
        first_s=last.sighting.first_pts_s,
        seen_s=stamp.pts_s - last.sighting.first_pts_s,
        n_scores=last.n_scores,
        peak=max((p for p in decided if p is not None), default=None),
        last=last.probability,
        alarmed=bool(families),
        family=families[-1] if families else None,
        verdict=last.verdict,
        changes=changes,
        detectors=last.detectors,
    )
