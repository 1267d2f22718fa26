"""Looks at clips and pictures with the quality gate wide open: what engines say, and the measures.

Whatever is asked of a gate or a way to decide is then asked of the record: faces are searched and
test data looked at once. A record holds single scores of test data: it stays out of the repository,
and nothing is chosen on it (docs/decisions/0036).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch
from pydantic import Field, ValidationError

from models import crop_faces, one_line, whole_file
from stream.config import QualityConfig
from stream.stages.crop import Cropper, View
from stream.stages.follow import Follower
from stream.stages.quality import MAX_TURN, assess, window_share
from train.data.datasets._registry import load_dataset
from train.errors import TrainError
from train.evaluation.clip_tracks import frames_of
from train.evaluation.ladder import degraded
from train.evaluation.measures import ReportPart
from train.evaluation.onlookers import largest_face, read
from train.evaluation.provenance import Origin
from train.evaluation.shipped import LookedAt
from train.evaluation.shipped_measures import BONA_FIDE
from train.evaluation.shipped_sets import labelled_stills, measured_pictures
from trt_engines.manifest import DecisionThresholds, Family

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from stream.records import FaceDetection, FaceQuality, Frame, Sighting
    from train.data.datasets._sample import ListedVideo
    from train.evaluation.clips import LabelledClips
    from train.evaluation.onlookers import Onlookers
    from train.evaluation.shipped_sets import Picture, ShippedSets

log = logging.getLogger(__name__)

RecordedPart: TypeAlias = Literal["clips", "stills", "measure", "dev", "degraded_dev"]
_TEST_PARTS: Final[tuple[RecordedPart, ...]] = ("clips", "stills", "measure")
_OPEN_GATE: Final = QualityConfig(
    min_face_px=1,
    min_sharpness=0,
    min_brightness=0,
    max_brightness=1,
    max_turn=MAX_TURN,
    min_window=0,
)


class RecordedLook(ReportPart):
    """One look at one face: how well it could be seen, and what each engine said."""

    part: RecordedPart
    set: str
    label: str = Field(description="`bona_fide`, or an attack's.")
    person: str
    sample: str = Field(description="Track of a clip, or picture.")
    pts_s: float = Field(description="Media time; 0 of a picture.")
    first_s: float = Field(description="Media time at which the track began.")
    face_px: float
    sharpness: float
    brightness: float
    turn: float
    window: dict[str, float] = Field(
        description="Engine -> share of its window in the frame, 0..1."
    )
    probability: dict[str, float] = Field(description="Engine -> what it says of this look, 0..1.")


@dataclass(frozen=True, slots=True)
class _ClipLook:
    """One look at a track of a clip."""

    sighting: Sighting
    probability: dict[str, float]  # engine -> what it says, 0..1


class RecordedEngine(ReportPart):
    """An engine that looked."""

    onnx_sha256: str
    family: Family | None = Field(description="Of the attacks that it was trained to see.")
    thresholds: DecisionThresholds


class RecordHead(ReportPart):
    """First line of a record."""

    format: Literal["facewarden/looks/v1"] = "facewarden/looks/v1"
    made: Origin
    parts: tuple[RecordedPart, ...]
    engines: dict[str, RecordedEngine]


def record_looks(
    sets: ShippedSets,
    labelled: LabelledClips,
    collection: Path,
    root: Path,
    onlookers: Onlookers,
    parts: Sequence[RecordedPart],
) -> Iterator[RecordedLook]:
    """Look at all faces of some parts.

    Args:
        sets: what test data there are.
        labelled: the clips among them.
        collection: list of the bona fide footage (data set `real_faces`), of which split dev is
            looked at.
        root: folder of the data.
        onlookers: the engines.
        parts: which; `degraded_dev` is the dev footage on the rungs of `sets.ladder`.

    Raises:
        TrainError: data are missing or damaged.
        SourceError: a clip can't be read.
    """
    decode = next(iter(onlookers.of.values())).config.decode
    for part in parts:
        match part:
            case "clips":
                yield from _of_clips(sets, labelled, root, onlookers)
            case "stills":
                yield from _of_pictures(part, labelled_stills(sets, labelled, root), onlookers)
            case "measure":
                yield from _of_pictures(part, measured_pictures(sets.measure, root), onlookers)
            case "dev":
                for video in _dev_videos(collection, root):
                    frames = frames_of(root / video.path, decode)
                    yield from _of_dev(part, "as filmed", video, frames, onlookers)
            case "degraded_dev":
                seconds = sets.ladder.seconds
                for video, (how, rungs) in product(
                    _dev_videos(collection, root), sets.ladder.rungs.items()
                ):
                    for rung in rungs:
                        frames = degraded(root / video.path, decode, seconds, how, rung)
                        yield from _of_dev(part, f"{how} {rung:g}", video, frames, onlookers)
        log.info("%s: looked at", part)


def _of_clips(
    sets: ShippedSets, labelled: LabelledClips, root: Path, onlookers: Onlookers
) -> Iterator[RecordedLook]:
    decode = next(iter(onlookers.of.values())).config.decode
    for clip in labelled.clips:
        looks = list(_look_over(frames_of(root / clip.path, decode), onlookers))
        # As `evaluate-shipped` has it: a track is where it was at its last look.
        right_of = {look.sighting.key: _centre_x(look.sighting) > 0.5 for look in looks}
        for look in looks:
            key = look.sighting.key
            label = clip.right if clip.right and right_of[key] else clip.label
            yield _recorded(
                look,
                onlookers,
                part="clips",
                set=clip.group,
                label=label,
                person=sets.person(clip.path),
                sample=f"{clip.path}#{key.track_id}",
            )


def _centre_x(sighting: Sighting) -> float:
    box = sighting.detection.box
    return float(box[0] + box[2]) / 2 / sighting.stamp.width


def _of_dev(
    part: RecordedPart,
    of_set: str,
    video: ListedVideo,
    frames: Iterable[Frame],
    onlookers: Onlookers,
) -> Iterator[RecordedLook]:
    for look in _look_over(frames, onlookers):
        yield _recorded(
            look,
            onlookers,
            part=part,
            set=of_set,
            label=BONA_FIDE,
            person=video.subject or video.path,
            sample=f"{of_set}/{video.path}#{look.sighting.key.track_id}",
        )


def _dev_videos(collection: Path, root: Path) -> list[ListedVideo]:
    """Return the bona fide footage of split dev.

    Raises:
        TrainError: the list or a clip is missing.
    """
    listed = load_dataset("real_faces").read(root, {"collection": collection})
    return [video for video in listed if video.split == "dev" and video.kind == "video"]


def _look_over(frames: Iterable[Frame], onlookers: Onlookers) -> Iterator[_ClipLook]:
    """Yield every look that streaming would take at a clip.

    The gate is open, so that faces which streaming turns away are looked at, too, and at the same
    times: it takes a look that is turned away for one. A face that keeps its place is looked at as
    often as any: there are no verdicts here that could stand.
    """
    config = next(iter(onlookers.of.values())).config
    follower = Follower(
        onlookers.detector, config.track, detect_every_s=config.detect.detect_every_s
    )
    views = [View(o.manifest.input, config.score.interval_s) for o in onlookers.of.values()]
    cropper = Cropper(views, _OPEN_GATE)
    for frame in frames:
        (update,), _ = follower.follow([frame])
        crops = cropper.crop([frame], [update]).crops
        for n in range(0, len(crops), len(views)):
            of_face = crops[n : n + len(views)]
            said = {
                name: o.probability(crop.image[None])
                for crop, (name, o) in zip(of_face, onlookers.of.items(), strict=True)
            }
            yield _ClipLook(of_face[0].sighting, said)


def _of_pictures(
    part: RecordedPart, pictures: Sequence[Picture], onlookers: Onlookers
) -> Iterator[RecordedLook]:
    for picture in pictures:
        image = torch.from_numpy(read(picture))
        face = largest_face(image, onlookers)
        if face is None:
            continue
        said = {}
        for name, o in onlookers.of.items():
            crop = crop_faces(image, face.box[None], o.manifest.input)
            said[name] = o.probability(crop)
        height, width = image.shape[:2]
        yield RecordedLook(
            part=part,
            set=picture.set,
            label=picture.label,
            person=picture.person,
            sample=picture.name,
            pts_s=0.0,
            first_s=0.0,
            **_measured(assess(image, face, _OPEN_GATE), face, (width, height), onlookers),
            probability=said,
        )


def _recorded(look: _ClipLook, onlookers: Onlookers, **what: Any) -> RecordedLook:
    sighting = look.sighting
    frame_px = sighting.stamp.width, sighting.stamp.height
    return RecordedLook(
        **what,
        pts_s=sighting.stamp.pts_s,
        first_s=sighting.first_pts_s,
        **_measured(sighting.quality, sighting.detection, frame_px, onlookers),
        probability=look.probability,
    )


def _measured(
    quality: FaceQuality, face: FaceDetection, frame_px: tuple[int, int], onlookers: Onlookers
) -> dict[str, Any]:
    """Return all that the gate looks at."""
    return {
        "face_px": quality.face_px,
        "sharpness": quality.sharpness,
        "brightness": quality.brightness,
        "turn": quality.turn,
        "window": {
            name: window_share(face.box, o.manifest.input, frame_px)
            for name, o in onlookers.of.items()
        },
    }


def describe(onlookers: Onlookers, made: Origin, parts: Sequence[RecordedPart]) -> RecordHead:
    """Say who looked at what."""
    return RecordHead(
        made=made,
        parts=tuple(parts),
        engines={
            name: RecordedEngine(
                onnx_sha256=o.manifest.onnx_sha256,
                family=o.manifest.family,
                thresholds=o.thresholds,
            )
            for name, o in onlookers.of.items()
        },
    )


def look_of(head: RecordHead, note: str) -> LookedAt:
    """Return the line of the log of looks that tells of a record."""
    return LookedAt(
        date=head.made.date.date().isoformat(),
        engines={name: engine.onnx_sha256[:12] for name, engine in head.engines.items()},
        parts=tuple(part for part in head.parts if part in _TEST_PARTS),
        code=head.made.code,
        note=note,
    )


def write_looks(path: Path, head: RecordHead, looks: Iterable[RecordedLook]) -> int:
    """Write a record, whole or not at all; returns how many looks it has.

    Raises:
        OSError: the folder can't be made, is full, or may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    n = 0
    with whole_file(path) as whole, whole.open("w", encoding="utf-8") as file:
        file.write(head.model_dump_json() + "\n")
        for look in looks:
            file.write(look.model_dump_json() + "\n")
            n += 1
    return n


def read_looks(path: Path) -> tuple[RecordHead, list[RecordedLook]]:
    """Read a record.

    Raises:
        TrainError: unreadable, or none of ours.
    """
    try:
        first, *others = path.read_text(encoding="utf-8").splitlines()
        head = RecordHead.model_validate_json(first)
        return head, [RecordedLook.model_validate_json(line) for line in others]
    except ValidationError as error:
        raise TrainError(f"{path}: {one_line(error, RecordedLook)}") from error
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{path}: expected what `python -m train record-looks` wrote: {error}"
        ) from error
