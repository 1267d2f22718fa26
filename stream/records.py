"""The data that passes between the stages; a later stage makes a new type.

Conventions, stated once:

- Pixels are `torch.Tensor`; boxes and landmarks are float32 numpy arrays on the CPU.
- Coordinates are continuous pixels of the source frame, x right, y down; pixel (0, 0) covers [0, 1)
  x [0, 1).
- Attack is the positive class: scores lie in 0..1 and grow with the evidence of an attack.
- Durations are seconds of media time (`pts_s`), never frame counts. `captured_at` is wall-clock
  Unix time and serves latency figures and time stamps only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStamp:
    """Where and when a frame was taken: all of it but the pixels."""

    source_id: str
    session: int  # 0 at first, +1 with every reconnect
    index: (
        int  # 0-based, in decode order of the session, counting frames that were not analysed too
    )
    pts_s: float  # media time, never decreasing within a session
    captured_at: (
        float  # Unix seconds: when its packet was read, or a played file was due to show it
    )
    width: int  # px, of the picture as analysed: upright, with square pixels
    height: int  # px
    decoder: str  # name of what made the pixels: "pyav", "nvdec", "nvdec_pyav", "dali"
    encoding: str = ""  # codec and digest of the parameter sets; empty: not known


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """A decoded picture."""

    stamp: FrameStamp
    image: Tensor  # (H, W, 3) uint8 RGB, owned by the frame

    def __post_init__(self) -> None:
        expected = (self.stamp.height, self.stamp.width, 3)
        if tuple(self.image.shape) != expected:
            raise ValueError(f"image must have shape {expected}, got {tuple(self.image.shape)}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaceDetection:
    """A face in one frame; what can't be one is refused."""

    box: NDArray[np.float32]  # (4,) x1 y1 x2 y2, px, x1 < x2, y1 < y2; may reach outside the frame
    landmarks: NDArray[np.float32]  # (5, 2) px: viewer's left eye, right eye, nose, mouth corners
    confidence: float  # 0..1

    def __post_init__(self) -> None:
        if self.box.shape != (4,) or self.landmarks.shape != (5, 2):
            raise ValueError(
                f"box must have shape (4,) and landmarks (5, 2), got {self.box.shape} and "
                f"{self.landmarks.shape}"
            )
        x1, y1, x2, y2 = box = self.box.tolist()
        if not (all(map(math.isfinite, box)) and x1 < x2 and y1 < y2):
            raise ValueError(f"box must be finite with x1 < x2 and y1 < y2, got {box}")
        if not all(map(math.isfinite, self.landmarks.flat)):
            raise ValueError(f"landmarks must be finite, got {self.landmarks.tolist()}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must lie in 0..1, got {self.confidence}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TrackKey:
    """Names one face's track; never reused within a process."""

    source_id: str
    session: int
    track_id: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Track:
    """A track that was seen in the present frame."""

    key: TrackKey
    detection: FaceDetection  # as detected in this frame, not as predicted
    first_pts_s: float
    pts_s: float
    confirmed: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrackUpdate:
    """What one frame changed."""

    tracks: tuple[Track, ...] = ()  # seen in this frame
    ended: tuple[TrackKey, ...] = ()  # never seen again


class QualityProblem(StrEnum):
    """Why a face can't be judged."""

    TOO_SMALL = "too_small"
    BLURRED = "blurred"
    DARK = "dark"
    OVER_EXPOSED = "over_exposed"
    TURNED_AWAY = "turned_away"
    CUT_OFF = "cut_off"  # the frame holds too little of the window that a detector looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceQuality:
    """How well a face can be judged; see `stream.stages.quality` for the measures."""

    face_px: float  # longer side of the face box
    sharpness: float  # 0..1, 0 = no detail at the scale of the crop
    brightness: float  # 0..1, mean luma of the face
    turn: float  # 0 = frontal, 1 = the nose is level with an eye (profile)
    problem: QualityProblem | None  # None: the face can be scored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sighting:
    """One look at a track's face, in one frame."""

    key: TrackKey
    stamp: FrameStamp
    detection: FaceDetection
    first_pts_s: float  # of the track
    quality: FaceQuality


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaceCrop:
    """A face that is due for scoring, cut to a detector's input."""

    sighting: Sighting
    detector: int  # 0-based, in the order of the configuration
    image: Tensor  # (3, S, S) uint8 RGB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rejection:
    """A look that a detector was due for and could not be given."""

    sighting: Sighting
    detector: int  # as in `FaceCrop`
    problem: QualityProblem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CropBatch:
    """Crops that run through a detector together."""

    crops: tuple[FaceCrop, ...]
    images: Tensor  # (N, 3, S, S) uint8 RGB, same order


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttackScore:
    """What a detector says of one crop."""

    sighting: Sighting
    detector: int  # as in `FaceCrop`
    probability: float  # 0..1, calibrated, that the face is an attack


class AttackFamily(StrEnum):
    """What kind of attack a face is."""

    PRESENTATION = "presentation"  # shown to the camera: a print, a screen, a mask
    DIGITAL = "digital"  # made in the picture: swapped or generated
    UNSURE = "unsure"  # of verdicts only: what carries the verdict does not tell


class Verdict(StrEnum):
    """What is said of a track."""

    UNDECIDED = "undecided"
    BONA_FIDE = "bona_fide"
    ATTACK = "attack"
    ABSTAIN = "abstain"  # no detector could be shown the face


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorScore:
    """What one detector says of a track."""

    name: str  # of its engine
    method: str
    family: AttackFamily | None  # that it was trained to see; None: both, or unknown
    n_scores: int
    probability: float | None  # 0..1, on its own scale; None before its first score
    problem: QualityProblem | None  # why it abstains; None: it does not


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrackScore:
    """The fused evidence of a track."""

    sighting: Sighting  # the latest
    n_scores: int  # of the detector that scored most
    n_effective: float  # independent looks that those are worth
    probability: float | None  # 0..1; None before the first score
    verdict: Verdict
    problem: QualityProblem | None  # set when, and only when, the verdict is ABSTAIN
    method: str  # of the detector that the probability rests on
    family: AttackFamily | None  # set when, and only when, the verdict is ATTACK
    detectors: tuple[DetectorScore, ...]  # all, in the order of the configuration
    ended: bool  # True in the last message of a track
    peak: float | None = None  # highest that a verdict could have rested on; None: none could


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alert:
    """A track's verdict changed."""

    track: TrackScore
    previous: Verdict
    ordinal: int  # 1 for a track's first change; with the key it makes the event id deterministic
    threshold: float  # on `track.probability`, that applied


class SourceState(StrEnum):
    """Life of a source."""

    OPEN = "open"
    IDLE = "idle"  # open, but decoded at its key frames alone, for it shows nobody
    PAUSED = "paused"  # on request; nothing is read until it is resumed
    LOST = "lost"  # will be tried again
    ENDED = "ended"  # will not

    @property
    def is_up(self) -> bool:
        """Whether the source is connected and gives pictures."""
        return self in (SourceState.OPEN, SourceState.IDLE)


class SourceCode(StrEnum):
    """Why a source is in its state."""

    OK = "ok"
    END_OF_FILE = "end_of_file"
    STOPPED = "stopped"  # we were asked to stop
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    UNAUTHORISED = "unauthorised"
    UNTRUSTED = "untrusted"  # its TLS certificate is not one that we were told to trust
    UNSUPPORTED_TRANSPORT = "unsupported_transport"  # neither TCP nor UDP, as far as allowed
    UNREACHABLE = "unreachable"  # no answer within the time limit, or no route
    FROZEN = "frozen"  # connected, but no frame for `stall_s`, or no key frame for `key_frame_s`
    DISCONNECTED = "disconnected"  # the far end went away
    NO_VIDEO = "no_video"
    UNSUPPORTED_CODEC = "unsupported_codec"
    TOO_LARGE = "too_large"
    INVALID_DATA = "invalid_data"
    DECODING_FAILED = "decoding_failed"  # by an error that should not occur; the log has its stack
    ANALYSIS_FAILED = "analysis_failed"  # of its frames, by such an error
    WORKER_FAILED = "worker_failed"  # the process that watched it died; see stream.workers


class Need(StrEnum):
    """What the latest analysed frame of a source showed, as far as it makes the next one urgent."""

    UNDECIDED = "undecided"  # a face without a verdict
    NOBODY = "nobody"
    DECIDED = "decided"  # faces with verdicts, or none that could be judged


class DropReason(StrEnum):
    """Why a frame that was due was not analysed."""

    OVERTAKEN = "overtaken"  # a newer one of the source came before its turn
    LATE = "late"  # it had waited for too long
    UNDECODED = "undecoded"  # decoding was behind: it was never a picture


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFates:
    """What became of the frames that a source gave, in all sessions."""

    overtaken: int = 0  # dropped, as `DropReason` says
    late: int = 0  # the same
    failed: int = 0  # their analysis raised an error
    failing: bool = False  # that of the latest did
    occupied: bool = False  # the latest left a live track


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """Sent on change and every `heartbeat_s`: no alert must never be mistaken for no attack."""

    source_id: str
    session: int
    state: SourceState
    code: SourceCode
    detail: str  # one line for people, credentials removed
    changed: bool  # False in a heartbeat
    frames_seen: int  # decoded, in all sessions
    frames_due: int  # selected for analysis, or meant to be and not decoded
    # Of those due, dropped because the machine was behind, as `DropReason` says:
    frames_overtaken: int
    frames_late: int
    frames_undecoded: int
    frames_failed: int  # of those due, not analysed because of an error
    at: float  # Unix seconds

    @property
    def frames_dropped(self) -> int:
        """Of the frames that were due, those dropped for any reason."""
        return self.frames_overtaken + self.frames_late + self.frames_undecoded

    @property
    def failed(self) -> bool:
        """Whether the source is over by a failure: no end of a file, nor a stop on request."""
        good = (SourceCode.OK, SourceCode.END_OF_FILE, SourceCode.STOPPED)
        return self.state is SourceState.ENDED and self.code not in good


class SourceEventKind(StrEnum):
    """What people must hear of a source."""

    LOST = "lost"  # and will be tried again; said once, however often the attempts fail
    REGAINED = "regained"  # and has stood for a while
    FLAPPING = "flapping"  # lost again and again; said once in place of every loss and return
    ENDED = "ended"  # by a failure


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAlert:
    """A source was lost, came back, comes and goes, or failed for good."""

    kind: SourceEventKind
    ordinal: int  # 1 for a source's first; with source and session it names the event
    status: SourceStatus  # at this moment
    losses: int  # how often the source was lost...
    within_s: float  # ...in the latest so many seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceHistory:
    """What a process must know of a source to go on where another left off."""

    status: SourceStatus | None = None  # the latest
    sessions: int = 0  # that brought a picture
    alerts: int = 0
    has_end: bool = False  # as far as is known
    raised: SourceEventKind | None = None  # LOST or FLAPPING, until it is REGAINED
    lost_at: tuple[float, ...] = ()  # on the machine's monotonic clock


class FeedCondition(StrEnum):
    """What can be wrong with the picture that a source gives."""

    FROZEN = "frozen"  # the same picture again and again
    LOOPED = "looped"  # what was shown before is shown again
    COVERED = "covered"  # nothing can be seen: dark, washed out, or something before the lens
    SWAPPED = "swapped"  # from one picture to the next, another scene; and it stays
    CHANGED = "changed"  # another size or encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedAlert:
    """Something is wrong with the feed of a source, or is over."""

    condition: FeedCondition
    cleared: bool  # it is over; never of SWAPPED and CHANGED, which are moments
    ordinal: int  # 1 for the first of a session; with source and session it names the event
    stamp: FrameStamp  # of the frame that settled it
    lasted_s: float  # so far, seconds of media time over all sessions
    measure: float | None  # what was measured; `stream.stages.feed` has the units. None: CHANGED
    limit: float | None  # that the measure was held against
    lag_s: float | None  # LOOPED: how long ago the same was shown, media time
    before: str | None  # CHANGED: size and encoding until now
    after: str | None  # CHANGED: from now on


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How one measure of a camera's visits differs from what was learned."""

    measure: str  # see `stream.learned.MEASURES`
    learned: float  # median
    lately: float  # median
    distance: float  # Kolmogorov-Smirnov, 0..1
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftAlert:
    """A camera's visits no longer look like those that its thresholds were learned from, or do."""

    source_id: str
    session: int
    at: float  # Unix seconds
    raised: bool  # False: it is over
    ordinal: int  # 1 for a source's first
    visits: int  # that were compared, the latest
    drifts: tuple[Drift, ...]  # of all measures, those that differ most first


SourceOutput: TypeAlias = Frame | SourceStatus | SourceAlert
Message: TypeAlias = FeedAlert | TrackScore | Alert | SourceStatus | SourceAlert | DriftAlert
