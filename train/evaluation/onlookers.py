"""Several engines look at the same clips and pictures: faces are found once, each engine judges.

Clips go the way of `stream.analyse`, pictures through its detector and quality gate; every engine
cuts its own window.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from zipfile import BadZipFile

import numpy as np
import torch

from models import crop_faces
from stream.analyse import open_analyser
from stream.stages.detect import open_detector
from stream.stages.quality import assess, window_problem
from train.data.frames import read_picture
from train.errors import TrainError
from train.evaluation.clip_tracks import tracks_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from stream.analyse import Analyser
    from stream.config import StreamConfig
    from stream.records import Alert, FaceDetection, Frame, TrackScore
    from stream.stages.detect import FaceDetector
    from stream.stages.infer import Classifier
    from train.evaluation.clip_tracks import ClipTrack
    from train.evaluation.shipped_sets import Picture
    from trt_engines.manifest import DecisionThresholds, Manifest

NO_FACE = "no face"


@dataclass(frozen=True, slots=True)
class Onlooker:
    """One engine, ready to look at clips and at pictures."""

    config: StreamConfig  # of a stream with this engine alone
    analyser: Analyser

    @property
    def manifest(self) -> Manifest:
        """What it is."""
        return self._classifier.manifest

    def probability(self, crop: Tensor) -> float:
        """Return what it says of one crop (1, 3, S, S), 0..1."""
        (said,) = self._classifier.probabilities(crop)
        return said

    @property
    def _classifier(self) -> Classifier:
        (classifier,) = self.analyser.classifiers
        return classifier

    @property
    def thresholds(self) -> DecisionThresholds:
        """The operating point that it ships with."""
        assert self.manifest.thresholds is not None  # `open_analyser` refuses it without
        return self.manifest.thresholds


@dataclass(frozen=True, slots=True)
class Onlookers:
    """Engines by name, and the detector that they share."""

    detector: FaceDetector
    of: Mapping[str, Onlooker]


@dataclass(frozen=True, slots=True)
class Look:
    """What one engine says of one picture."""

    probability: float | None  # of the largest face
    problem: str | None  # why there is none: `NO_FACE`, or that of the quality gate


class _SharedDetector:
    """Asked the same of the same pictures again, it remembers the answer."""

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self._images: Sequence[Tensor] = ()
        self._expected: Sequence[NDArray[np.float32] | None] = ()
        self._faces: list[list[FaceDetection]] = []

    def detect(
        self, images: Sequence[Tensor], expected: Sequence[NDArray[np.float32] | None]
    ) -> list[list[FaceDetection]]:
        """See `FaceDetector.detect`."""
        if not (_same_pictures(images, self._images) and _same_boxes(expected, self._expected)):
            self._faces = self._detector.detect(images, expected)
            self._images, self._expected = tuple(images), tuple(expected)
        return self._faces


def _same_pictures(now: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    return len(now) == len(before) and all(map(_is, now, before))


def _is(now: Tensor, before: Tensor) -> bool:
    return now is before


def _same_boxes(
    now: Sequence[NDArray[np.float32] | None], before: Sequence[NDArray[np.float32] | None]
) -> bool:
    return len(now) == len(before) and all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(now, before, strict=True)
    )


@contextmanager
def opened_onlookers(configs: Mapping[str, StreamConfig]) -> Iterator[Onlookers]:
    """Load engines.

    Args:
        configs: name -> configuration of a stream with that engine alone; nothing else differs.

    Raises:
        EngineError: an engine is missing, damaged, or no attack detector.
        ConfigError: a threshold is out of every track's reach.
    """
    first = next(iter(configs.values()))
    with ExitStack() as resources:
        detector = resources.enter_context(open_detector(first.detect, first.backend))
        shared = cast("FaceDetector", _SharedDetector(detector))
        of = {}
        for name, config in configs.items():
            analyser = resources.enter_context(open_analyser(config, shared))
            of[name] = Onlooker(config, analyser)
        yield Onlookers(detector, of)


def watch(frames: Iterable[Frame], onlookers: Onlookers) -> dict[str, list[ClipTrack]]:
    """Run the frames of one source through every engine; returns its tracks by engine.

    Tracks that no look was taken at are not among them.
    """
    said: dict[str, list[TrackScore | Alert]] = {name: [] for name in onlookers.of}
    source_id = None
    for frame in frames:
        source_id = frame.stamp.source_id
        for name, onlooker in onlookers.of.items():
            said[name] += onlooker.analyser.analyse([frame])
    if source_id is not None:
        for name, onlooker in onlookers.of.items():
            said[name] += onlooker.analyser.finish(source_id)
    return {name: tracks_of(source_id or "", messages) for name, messages in said.items()}


def look_at(pictures: Sequence[Picture], onlookers: Onlookers) -> dict[str, list[Look]]:
    """Let every engine look once at the largest face of each picture.

    Raises:
        TrainError: a picture is missing or damaged.
    """
    looks: dict[str, list[Look]] = {name: [] for name in onlookers.of}
    for picture in pictures:
        image = torch.from_numpy(read(picture))
        largest = largest_face(image, onlookers)
        for name, onlooker in onlookers.of.items():
            looks[name].append(_look(image, largest, onlooker))
    return looks


def largest_face(image: Tensor, onlookers: Onlookers) -> FaceDetection | None:
    """Return the face of a picture (H, W, 3) that is looked at; None: it shows none."""
    (faces,) = onlookers.detector.detect([image], [None])
    return max(faces, key=_width, default=None)


def read(picture: Picture) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) RGB.

    Raises:
        TrainError: it is missing or damaged.
    """
    try:
        return read_picture(picture.read())
    except (OSError, KeyError, BadZipFile) as error:
        raise TrainError(
            f"{picture.name}: listed, but can't be read ({error}): check --root, or name the parts "
            "that you have with --part"
        ) from error
    except TrainError as error:
        raise TrainError(f"{picture.name}: {error}") from error


def _width(face: FaceDetection) -> float:
    return float(face.box[2] - face.box[0])


def _look(image: Tensor, face: FaceDetection | None, onlooker: Onlooker) -> Look:
    if face is None:
        return Look(None, NO_FACE)
    gate, spec = onlooker.config.quality, onlooker.manifest.input
    height, width = image.shape[:2]
    problem = assess(image, face, gate).problem
    problem = problem or window_problem(face.box, spec, (width, height), gate)
    if problem is not None:
        return Look(None, problem.value.replace("_", " "))
    crop = crop_faces(image, face.box[None], spec)
    return Look(onlooker.probability(crop), None)
