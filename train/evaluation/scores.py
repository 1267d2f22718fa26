"""Tables of scores: what a detector said of every sampled frame, and what was true.

A table is a JSON Lines file of `FrameScore`s. Everything that is reported about a detector is
computed from such tables, so it can be computed again, by others too.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from scipy.special import expit, logit

from train.errors import TrainError
from train.evaluation.metrics.roc import roc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Level: TypeAlias = Literal["frame", "video"]
NoFace: TypeAlias = Literal["half", "exclude", "error"]

_AGGREGATES: Final = re.compile(r"mean|median|max|logit_mean|confident|top[1-9]\d*")
_LOGIT_CLIP: Final = 1e-12
_REPEAT: Final = 1e-3  # scores of one sample in two batches may differ by rounding, not by more
_NAMED: Final = 5  # rows that an error names before it counts the rest


def _known_aggregate(name: str) -> str:
    if not _AGGREGATES.fullmatch(name):
        raise ValueError(
            f"unknown aggregate {name!r}; expected mean, median, max, top<k>, logit_mean or "
            "confident"
        )
    return name


Aggregate: TypeAlias = Annotated[str, AfterValidator(_known_aggregate)]


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
    """Write a table, replacing an old one only once the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{row.model_dump_json()}\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_scores(path: Path) -> list[FrameScore]:
    """Read a table as `checked_scores` passes it.

    Raises:
        TrainError: unreadable, or a row is wrong; the message names file and lines.
    """
    rows, wrong = [], []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    rows.append(FrameScore.model_validate_json(line))
                except ValidationError as error:
                    wrong.append(f"line {number}: {_first(error)}")
    except (OSError, UnicodeDecodeError) as error:
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
        elif row.logit is not None and np.isnan(row.logit):
            wrong.append(f"{_name(row)}: logit {row.logit}")
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
        scores: (N,) 0..1.
        attack_types: (N,) "" of bona fide samples.
        clusters: (N,) the person, or the source video where the person is not known.
        no_face: samples without any face, bona fide and attacks; whether they are among the N or
            not is the policy's choice.
    """

    level: Level
    names: NDArray[np.str_]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
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


def frame_samples(rows: Sequence[FrameScore]) -> Samples:
    """Return the frames with a face; those without are counted and left out."""
    seen = [row for row in rows if row.score is not None]
    blind = Counter[int](row.label for row in rows if row.score is None)
    scores = np.array([row.score for row in seen], float)
    names = [f"{row.dataset}/{row.video_id}#{row.frame}" for row in seen]
    return _samples("frame", seen, names, scores, blind)


def video_samples(
    rows: Sequence[FrameScore], aggregate: str = "mean", no_face: NoFace = "half"
) -> Samples:
    """Return the videos, each with one score made of its frames with a face.

    Args:
        rows: frames.
        aggregate: see `aggregated`.
        no_face: what a video without any face counts as: the score "half", nothing ("exclude"), or
            an "error" whatever the threshold.
    """
    videos: defaultdict[tuple[str, str], list[FrameScore]] = defaultdict(list)
    for row in rows:
        videos[row.dataset, row.video_id].append(row)
    kept, scores = [], []
    blind: Counter[int] = Counter()
    for frames in videos.values():
        first = frames[0]
        found = [row.score for row in frames if row.score is not None]
        if not found:
            blind[first.label] += 1
            if no_face == "exclude":
                continue
        kept.append(first)
        if found:
            scores.append(aggregated(np.array(found), aggregate))
        else:
            scores.append(0.5 if no_face == "half" else float(1 - first.label))
    names = [f"{row.dataset}/{row.video_id}" for row in kept]
    return _samples("video", kept, names, np.array(scores, float), blind)


def video_auc(rows: Sequence[FrameScore]) -> float:
    """Return the area under the ROC curve of the videos that have a face: "dev AUC" everywhere.

    A video's score is the mean of its frames' log-odds as the network gives them: it is the same
    before and after the calibration, and does not saturate as the mean of probabilities does.

    Args:
        rows: frames; where one has no `logit`, its score's log-odds stand in.

    Raises:
        TrainError: one class only, or log-odds that are no finite numbers.
    """
    videos: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    labels: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.score is not None:
            name = (row.dataset, row.video_id)
            labels[name] = row.label
            videos[name].append(float(_log_odds(row.score)) if row.logit is None else row.logit)
    if set(labels.values()) != {0, 1}:
        raise TrainError(
            "the AUC needs faces of both classes; found "
            f"{sum(label == 0 for label in labels.values())} bona fide videos and "
            f"{sum(label == 1 for label in labels.values())} attacks with a face"
        )
    means = np.array([np.mean(videos[name]) for name in labels])
    if not np.isfinite(means).all():
        raise TrainError("log-odds are no finite numbers; did the network diverge?")
    return float(roc(np.array([*labels.values()]), means).auc())


def aggregated(scores: NDArray[np.float64], how: str = "mean") -> float:
    """Return one score of a video from those of its frames.

    Args:
        scores: (N,) 0..1, N > 0.
        how: "mean", "median" or "max"; "top<k>", the mean of the k highest; "logit_mean", the mean
            of the log-odds; "confident", the rule of the DFDC's winner: the mean of the scores
            above 0.8 if there are more than 11 and more than a 2.5th of them; else of those below
            0.2 if they are more than nine tenths; else of all.

    Raises:
        ValueError: unknown aggregate.
    """
    _known_aggregate(how)
    if how == "median":
        return float(np.median(scores))
    if how == "max":
        return float(scores.max())
    if how == "logit_mean":
        return float(expit(_log_odds(scores).mean()))
    if how.startswith("top"):
        return float(np.sort(scores)[-int(how[3:]) :].mean())
    if how == "confident":
        high, low = scores > 0.8, scores < 0.2
        if high.sum() > scores.size // 2.5 and high.sum() > 11:
            return float(scores[high].mean())
        if low.sum() > 0.9 * scores.size:
            return float(scores[low].mean())
    return float(scores.mean())


def _log_odds(scores: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(logit(np.clip(scores, _LOGIT_CLIP, 1 - _LOGIT_CLIP)))


def _samples(
    level: Level,
    rows: Sequence[FrameScore],
    names: Sequence[str],
    scores: NDArray[np.float64],
    blind: Counter[int],
) -> Samples:
    return Samples(
        level=level,
        names=np.array(names, str),
        labels=np.array([row.label for row in rows], np.int64),
        scores=scores,
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
    free: dict[str, Any] = {"score": None, "logit": None}
    return a.model_copy(update=free) == b.model_copy(update=free)


def _name(row: FrameScore) -> str:
    return f"{row.dataset}/{row.video_id} frame {row.frame} ({row.sample_id})"


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def _listed(items: Sequence[str], what: str) -> str:
    rest = len(items) - _NAMED
    more = f" and {rest} more {what}" if rest > 0 else ""
    return "; ".join(items[:_NAMED]) + more
