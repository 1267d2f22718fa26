"""What a scan says of a file and of a track; the columns of its results, which docs/scan.md lists.

Within `facewarden-scan/1` the columns only grow.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from stream.records import AttackFamily, QualityProblem, Verdict
from stream.scan.child import ReadStatus

SCHEMA: Final = "facewarden-scan/1"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class FileVerdict(StrEnum):
    """What is said of a file: the gravest that is said of one of its tracks."""

    ATTACK = "attack"  # a track was one at some time, as a live alert would have said
    BONA_FIDE = "bona_fide"  # at least one track, and no attack
    UNDECIDED = "undecided"  # faces, but not enough looks at any
    ABSTAIN = "abstain"  # faces, none fit to be judged
    NO_FACE = "no_face"


class DetectorRow(_Row):
    """What one detector says of a track."""

    name: str = Field(description="Of its engine.")
    method: str = Field(description="Of its network.")
    p_attack: float | None = Field(description="Fused over its looks, 0..1; null before the first.")
    n_scores: int = Field(description="Looks that it scored.")
    abstains: QualityProblem | None = Field(description="Why it has no say; else null.")


class BoxRow(_Row):
    """Where a face was at a time: fractions of the frame, x right, y down."""

    at_s: float = Field(description="Media time, seconds.")
    x: float = Field(description="Left edge, 0..1.")
    y: float = Field(description="Upper edge, 0..1.")
    w: float = Field(description="Width, 0..1.")
    h: float = Field(description="Height, 0..1.")
    p_attack: float | None = Field(description="Fused until then, 0..1.")


class TrackRow(_Row):
    """One face, followed through a file."""

    track: int = Field(description="Number within the file.")
    verdict: Verdict = Field(description="When the track ended.")
    attack_at_s: float | None = Field(
        description="Media time of the first attack verdict, seconds; null: there was none."
    )
    p_attack: float | None = Field(description="Fused and calibrated, at the end, 0..1.")
    p_highest: float | None = Field(description="The highest that it was, 0..1.")
    method: str = Field(description="Of the detector that p_attack rests on.")
    family: AttackFamily | None = Field(description="Kind of attack; null unless it is one.")
    reason: QualityProblem | None = Field(description="Why the verdict is abstain; else null.")
    n_scores: int = Field(description="Looks scored by the detector that scored most.")
    n_effective: float = Field(description="Independent looks that those are worth.")
    single_look: bool = Field(description="Whether it is judged by one look: a still picture.")
    first_s: float = Field(description="Media time of the first sighting, seconds.")
    last_s: float = Field(description="Media time of the last look, seconds.")
    detectors: tuple[DetectorRow, ...] = Field(description="Evidence of each detector.")
    boxes: tuple[BoxRow, ...] = Field(description="The face about every second that it was seen.")
    crop: str | None = Field(description="File of its worst look, in crops/; null: none kept.")


class FileRow(_Row):
    """One file."""

    path: str = Field(description="As named, or below the folder named; odd characters escaped.")
    path_hex: str | None = Field(description="The bytes of a path that is not plain text; or null.")
    kind: str = Field(description="video or still.")
    status: ReadStatus = Field(description="How reading ended.")
    reason: str | None = Field(description="Why it is not ok, or what of it could not be analysed.")
    attempts: int = Field(description="How often reading was started: 1 or 2.")
    verdict: FileVerdict = Field(description="The gravest of its tracks'.")
    p_attack: float | None = Field(description="The highest p_highest of its tracks.")
    n_tracks: int = Field(description="Faces followed and looked at.")
    n_attack: int = Field(description="Of those, attacks at some time.")
    n_bona_fide: int = Field(description="Of the others, bona fide at the end.")
    n_undecided: int = Field(description="Of the others, undecided at the end.")
    n_abstain: int = Field(description="Of the others, unfit to be judged.")
    coverage: float | None = Field(
        description="Share of the seconds looked at that hold a face fit to be judged, 0..1."
    )
    seconds: float = Field(description="Media time up to the last frame analysed.")
    frames_seen: int = Field(description="Decoded.")
    frames_analysed: int = Field(description="Of those, analysed.")
    frames_failed: int = Field(description="Analysis of so many raised an error.")
    width: int | None = Field(description="Pixels, of the last frame, upright.")
    height: int | None = Field(description="Pixels.")
    media: str | None = Field(description="Codec, size and frame rate, for people.")
    decoder: str | None = Field(description="What made the pixels.")
    mode: str = Field(
        description="keyframes, sample, full, or keyframes+sample: key frames showed a face, and "
        "the seconds around were looked at again."
    )
    fps: float = Field(description="Frames a second of media time that were due at most.")
    size: int = Field(description="Bytes of the file.")
    mtime_ns: int = Field(description="When it was last changed, Unix time.")
    sha256: str | None = Field(description="Of its content; null: it could not be read.")
    etag: str | None = Field(
        None, description="Of an object: what its store calls this content; else null."
    )
    models: tuple[str, ...] = Field(description="name:sha256 of each detector.")
    run_key: str = Field(description="Digest of models and options; another asks for a new scan.")
    version: str = Field(description="Of facewarden.")
    at: str = Field(description="When it was finished, ISO 8601, UTC.")
    tracks: tuple[TrackRow, ...] = Field(description="Its faces.")

    @property
    def raw_path(self) -> bytes:
        """The path as the file system has it."""
        return self.path.encode() if self.path_hex is None else bytes.fromhex(self.path_hex)
