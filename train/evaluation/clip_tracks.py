"""Tracks of a clip as the streaming path sees them: what users get is what is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stream.config import SourceConfig
from stream.decode import open_decoder
from stream.records import Alert, AttackFamily, DetectorScore, TrackScore, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from stream.analyse import Analyser
    from stream.config import DecodeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTrack:
    """One face of one clip, from its first to its last look."""

    clip: str
    track_id: int
    centre_x: float  # of the face, 0..1 of the frame's width, at the last look
    centre_y: float
    seen_s: float
    n_scores: int
    peak: (
        float | None
    )  # highest fused probability that could have decided; None: never scored enough
    last: float | None  # fused probability at the end
    alarmed: bool  # its verdict was ATTACK at some time
    family: AttackFamily | None  # when its verdict was last ATTACK; None: it never was
    verdict: Verdict  # at the end
    detectors: tuple[DetectorScore, ...]  # what each said at the end


def tracks_of_clip(path: Path, analyser: Analyser, decode: DecodeConfig) -> list[ClipTrack]:
    """Run one clip through an analyser; returns its tracks that were looked at.

    Raises:
        SourceError: the clip can't be read.
    """
    source = SourceConfig.model_validate({"id": "clip", "uri": str(path)})
    decoder = open_decoder(source, decode, session=0)
    messages: list[TrackScore | Alert] = []
    try:
        for frame in decoder.frames():
            if frame is not None:
                messages += analyser.analyse([frame])
    finally:
        decoder.close()
        messages += analyser.finish(source.id)
    tracks: dict[int, list[TrackScore]] = {}
    for message in messages:
        score = message if isinstance(message, TrackScore) else message.track
        tracks.setdefault(score.sighting.key.track_id, []).append(score)
    return [_track(path.name, number, scores) for number, scores in tracks.items()]


def _track(clip: str, number: int, scores: list[TrackScore]) -> ClipTrack:
    last = scores[-1]
    families = [score.family for score in scores if score.verdict is Verdict.ATTACK]
    stamp, box = last.sighting.stamp, last.sighting.detection.box
    decided = [s.probability for s in scores if s.verdict in (Verdict.ATTACK, Verdict.BONA_FIDE)]
    return ClipTrack(
        clip=clip,
        track_id=number,
        centre_x=float(box[0] + box[2]) / 2 / stamp.width,
        centre_y=float(box[1] + box[3]) / 2 / stamp.height,
        seen_s=stamp.pts_s - last.sighting.first_pts_s,
        n_scores=last.n_scores,
        peak=max((p for p in decided if p is not None), default=None),
        last=last.probability,
        alarmed=bool(families),
        family=families[-1] if families else None,
        verdict=last.verdict,
        detectors=last.detectors,
    )
