"""Tables of scores: what a detector said of every sampled frame, and what was true.

A table is a JSON Lines file of `FrameScore`s. Everything that is reported about a detector is
computed from such tables, so it can be computed again, by others too.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from models import logit, one_line, sigmoid, whole_file
from train.errors import TrainError
from train.evaluation.metrics.roc import roc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Level: TypeAlias = Literal["frame", "video"]
NoFace: TypeAlias = Literal["half", "exclude", "error"]

VIDEO_SCORE: Final = "logit_mean"  # how frames make a video's score, unless a report says otherwise

_AGGREGATES: Final = re.compile(r"mean|median|max|logit_mean|confident|top[1-9]\d*")
_CLIP: Final = 1e-16  # as near as a probability of 64 bits comes to 1
_CERTAIN: Final = 1e6  # log-odds of a video that counts as an error whatever the threshold
_REPEAT: Final = 1e-3  # scores of one sample in two batches may differ by rounding, not by more
_NAMED: Final = 5  # rows that an error names before it counts the rest


def known_aggregate(name: str) -> str:
    """Return the name of a way to make a video's score.

    Raises:
        ValueError: there is none of this name.
    """
    if not _AGGREGATES.fullmatch(name):
        raise ValueError(
            f"unknown aggregate {name!r}; expected mean, median, max, top<k>, logit_mean or "
            "confident"
        )
    return name


Aggregate: TypeAlias = Annotated[str, AfterValidator(known_aggregate)]


# By default NaN would be written as null, and a network that diverged would pass for no face.
class FrameScore(BaseModel, frozen=True, extra="forbid", ser_json_inf_nan="constants"):
    """One sampled frame of a video, or one picture."""

    sample_id: str = Field(description="Unique; a second row of the same id is taken out.")
    dataset: str
    video_id: str = Field(description="Unique within the dataset; a picture is its own video.")
    source_id: str | None = Field(None, description="The video an attack was made from.")
    subject: str | None = Field(None, description="The person, unique within the dataset.")
    label: Literal[0, 1] = Field(description="1 attack, 0 bona fide.")
    attack_type: str | None = Field(None, description="The species; of attacks only.")
    frame: int = Field(0, ge=0, description="Index in the video.")
    pts_s: float = Field(0.0, ge=0, description="Media time in the video, seconds.")
    track: int = Field(0, ge=0, description="Number of the face within its video.")
    logit: float | None = Field(None, description="The network's log-odds, not yet calibrated.")
    log_odds: float | None = Field(
        None,
        description="Log-odds of `score`, which tell apart what rounds to 0 or 1; null: those that "
        "follow from it.",
    )
    score: float | None = Field(description="Probability of an attack, 0..1; null: no face found.")

    @model_validator(mode="after")
    def _type_fits_label(self) -> FrameScore:
        if (self.attack_type is not None) != (self.label == 1):
            raise ValueError(
                f"label {self.label} with attack_type {self.attack_type!r}: attacks (label 1) have "
                "a type, bona fide samples (label 0) have none"
            )
        return self


def write_scores(path: Path, rows: Iterable[FrameScore]) -> None:
    """Write a table, replacing an old one only once the new one is complete.

    Raises:
        OSError: the folder can't be made, is full, or may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as whole, whole.open("w", encoding="utf-8") as file:
        file.writelines(f"{row.model_dump_json()}\n" for row in rows)


def read_scores(path: Path) -> list[FrameScore]:
    """Read a table as `checked_scores` passes it.

    Raises:
        TrainError: unreadable, or a row is wrong; the message names file and lines.
    """
    rows, wrong = [], []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.removeprefix(codecs.BOM_UTF8).decode()
                    if text.strip():
                        rows.append(FrameScore.model_validate_json(text))
                except UnicodeDecodeError as error:
                    wrong.append(f"line {number}: not UTF-8: {error.reason}, byte {error.start}")
                except ValidationError as error:
                    wrong.append(f"line {number}: {one_line(error, FrameScore)}")
    except OSError as error:
        raise TrainError(f"{path}: can't read the scores: {error}") from error
    if wrong:
        raise TrainError(f"{path}: {_listed(wrong, 'wrong rows')}")
    try:
        return checked_scores(rows)
    except TrainError as error:
        raise TrainError(f"{path}: {error}") from error


def checked_scores(rows: Iterable[FrameScore]) -> list[FrameScore]:
    """Return the rows in order of dataset, video and frame, each sample once.

    Distributed evaluation that pads its shards repeats samples; they would count twice.

    Raises:
        TrainError: no row, a score that is no number or outside 0..1, two different rows of one
            sample, or a video of both classes.
    """
    unique: dict[str, FrameScore] = {}
    wrong, contradictions = [], []
    for row in rows:
        if row.score is not None and not 0 <= row.score <= 1:  # false for NaN too
            wrong.append(f"{_name(row)}: score {row.score}")
        elif row.logit is not None and not np.isfinite(row.logit):
            wrong.append(f"{_name(row)}: logit {row.logit}")
        elif row.log_odds is not None and not _agrees(row.log_odds, row.score):
            wrong.append(f"{_name(row)}: log_odds {row.log_odds} with score {row.score}")
        first = unique.setdefault(row.sample_id, row)
        if first is not row and not _same(first, row):
            contradictions.append(f"{_name(row)}: also {_name(first)}, with other values")
    if not unique:
        raise TrainError("the table of scores is empty")
    if wrong:
        raise TrainError(
            f"{_listed(wrong, 'rows')}: scores are probabilities of an attack, 0..1; did the "
            "network diverge?"
        )
    if contradictions:
        raise TrainError(
            f"{_listed(contradictions, 'contradictions')}: sample ids are not unique, or two "
            "tables were mixed"
        )
    labels: dict[tuple[str, str], int] = {}
    mixed = {
        f"{row.dataset}/{row.video_id}"
        for row in unique.values()
        if labels.setdefault((row.dataset, row.video_id), row.label) != row.label
    }
    if mixed:
        raise TrainError(
            f"{_listed(sorted(mixed), 'videos of both labels')}: give bona fide and attack videos "
            "different video ids"
        )
    return sorted(unique.values(), key=lambda r: (r.dataset, r.video_id, r.frame, r.sample_id))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """What figures are computed from: frames or videos with a score.

    Attributes:
        level: what a sample is.
        names: (N,) dataset/video, with the frame where samples are frames.
        labels: (N,) 1 attack, 0 bona fide.
        scores: (N,) 0..1; what is compared with thresholds.
        evidence: (N,) finite; what ranks the samples: log-odds, or the scores where frames were
            averaged as probabilities. Log-odds tell apart what a score rounds to 0 or 1.
        attack_types: (N,) "" of bona fide samples.
        clusters: (N,) the person, or the source video where the person is not known.
        no_face: samples without any face, bona fide and attacks; whether they are among the N or
            not is the policy's choice.
    """

    level: Level
    names: NDArray[np.str_]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    evidence: NDArray[np.float64]
    attack_types: NDArray[np.str_]
    clusters: NDArray[np.str_]
    no_face: tuple[int, int]

    @property
    def n_bona_fide(self) -> int:
        """Bona fide samples with a score."""
        return int((self.labels == 0).sum())

    @property
    def n_attack(self) -> int:
        """Attacks with a score."""
        return int((self.labels == 1).sum())

    def threshold_at(self, evidence: float) -> float:
        """Return the score at which the samples of so much evidence, or more, count as attacks.

        Infinity where there are none, NaN for NaN.
        """
        if np.isnan(evidence):
            return float(evidence)
        return float(self.scores[self.evidence >= evidence].min(initial=np.inf))


def frame_samples(rows: Sequence[FrameScore]) -> Samples:
    """Return the frames with a face; those without are counted and left out."""
    seen = [row for row in rows if row.score is not None]
    blind = Counter[int](row.label for row in rows if row.score is None)
    scores = np.array([row.score for row in seen], float)
    names = [f"{row.dataset}/{row.video_id}#{row.frame}" for row in seen]
    return _samples("frame", seen, names, scores, _log_odds(seen, scores), blind)


def video_samples(
    rows: Sequence[FrameScore], aggregate: str = VIDEO_SCORE, no_face: NoFace = "half"
) -> Samples:
    """Return the videos, each with one score made of its frames with a face.

    Args:
        rows: frames.
        aggregate: "logit_mean", the mean of the log-odds; or see `aggregated`.
        no_face: what a video without any face counts as: the score "half", nothing ("exclude"), or
            an "error" whatever the threshold.
    """
    videos: defaultdict[tuple[str, str], list[FrameScore]] = defaultdict(list)
    for row in rows:
        videos[row.dataset, row.video_id].append(row)
    kept: list[FrameScore] = []
    scores: list[float] = []
    evidence: list[float] = []
    blind: Counter[int] = Counter()
    for frames in videos.values():
        first = frames[0]
        seen = [row for row in frames if row.score is not None]
        if seen:
            score, rank = _video_score(seen, aggregate)
        else:
            blind[first.label] += 1
            if no_face == "exclude":
                continue
            log_odds = 0.0 if no_face == "half" else _CERTAIN * (1 - 2 * first.label)
            score = float(sigmoid(log_odds))
            rank = log_odds if aggregate == "logit_mean" else score
        kept.append(first)
        scores.append(score)
        evidence.append(rank)
    names = [f"{row.dataset}/{row.video_id}" for row in kept]
    return _samples("video", kept, names, np.array(scores), np.array(evidence), blind)


def video_auc(rows: Sequence[FrameScore]) -> float:
    """Return the area under the ROC curve of the videos that have a face: "dev AUC" everywhere.

    The frames count with their `logit`, so it is the same number before and after the calibration
    and does not saturate as the mean of probabilities does.

    Args:
        rows: frames; where one has no `logit`, its score's log-odds stand in.

    Raises:
        TrainError: one class only, or log-odds that are no finite numbers.
    """
    raw = [row.model_copy(update={"log_odds": row.logit}) for row in rows]
    videos = video_samples(raw, VIDEO_SCORE, "exclude")
    if not (videos.n_bona_fide and videos.n_attack):
        raise TrainError(
            f"the AUC needs faces of both classes; found {videos.n_bona_fide} bona fide videos and "
            f"{videos.n_attack} attacks with a face"
        )
    if not np.isfinite(videos.evidence).all():
        raise TrainError("log-odds are no finite numbers; did the network diverge?")
    return float(roc(videos.labels, videos.evidence).auc())


def _video_score(frames: Sequence[FrameScore], aggregate: str) -> tuple[float, float]:
    """Return a video's score, and what ranks it, from its frames with a face."""
    scores = np.array([row.score for row in frames], float)
    if aggregate == "logit_mean":
        mean = float(_log_odds(frames, scores).mean())
        # A single frame's own: the sigmoid of its log-odds may lie below a threshold it reaches.
        return float(scores[0] if len(frames) == 1 else sigmoid(mean)), mean
    score = aggregated(scores, aggregate)
    return score, score


def _log_odds(frames: Sequence[FrameScore], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N,) the frames' log-odds; where a row has none, those of its score."""
    given = np.array([row.log_odds for row in frames], float)  # None becomes NaN
    return np.where(np.isnan(given), logit(scores, _CLIP), given)


def aggregated(scores: NDArray[np.float64], how: str) -> float:
    """Return one probability of a video from those of its frames.

    Args:
        scores: (N,) 0..1, N > 0.
        how: "mean", "median" or "max"; "top<k>", the mean of the k highest; "confident", the rule
            of the DFDC's winner: the mean of the scores above 0.8 if there are more than 11 and
            more than a 2.5th of them; else of those below 0.2 if they are more than nine tenths;
            else of all.

    Raises:
        ValueError: unknown aggregate.
    """
    known_aggregate(how)
    if how == "median":
        return float(np.median(scores))
    if how == "max":
        return float(scores.max())
    if how.startswith("top"):
        return float(np.sort(scores)[-int(how[3:]) :].mean())
    if how == "confident":
        high, low = scores > 0.8, scores < 0.2
        if high.sum() > scores.size // 2.5 and high.sum() > 11:
            return float(scores[high].mean())
        if low.sum() > 0.9 * scores.size:
            return float(scores[low].mean())
    return float(scores.mean())


def _samples(
    level: Level,
    rows: Sequence[FrameScore],
    names: Sequence[str],
    scores: NDArray[np.float64],
    evidence: NDArray[np.float64],
    blind: Counter[int],
) -> Samples:
    return Samples(
        level=level,
        names=np.array(names, str),
        labels=np.array([row.label for row in rows], np.int64),
        scores=scores,
        evidence=evidence,
        attack_types=np.array([row.attack_type or "" for row in rows], str),
        clusters=np.array([_cluster(row) for row in rows], str),
        no_face=(blind[0], blind[1]),
    )


def _cluster(row: FrameScore) -> str:
    if row.subject is not None:
        return f"{row.dataset}/person {row.subject}"
    return f"{row.dataset}/video {row.source_id or row.video_id}"


def _same(a: FrameScore, b: FrameScore) -> bool:
    """Whether two rows say the same, but for rounding."""
    if (a.score is None) != (b.score is None):
        return False
    if a.score is not None and b.score is not None and not abs(a.score - b.score) <= _REPEAT:
        return False
    free: dict[str, Any] = {"score": None, "logit": None, "log_odds": None}
    return a.model_copy(update=free) == b.model_copy(update=free)


def _name(row: FrameScore) -> str:
    return f"{row.dataset}/{row.video_id} frame {row.frame} ({row.sample_id})"


def _agrees(log_odds: float, score: float | None) -> bool:
    """Whether log-odds are finite, and those of the score but for rounding."""
    return (
        score is not None
        and bool(np.isfinite(log_odds))
        and abs(float(sigmoid(log_odds)) - score) <= _REPEAT
    )


def _listed(items: Sequence[str], what: str) -> str:
    rest = len(items) - _NAMED
    more = f" and {rest} more {what}" if rest > 0 else ""
    return "; ".join(items[:_NAMED]) + more
