"""Cut the faces of a data set once, by the streaming path's own detection, tracking and cropping.

Videos are taken in a shuffled order, so that every shard holds many of them. A run that was killed
goes on after its last complete shard. What is written depends on the videos and the settings alone,
not on the number of processes.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from tqdm import tqdm

import stream
from models import InputSpec, crop_faces, crop_window
from stream.config import DetectConfig, QualityConfig, TrackConfig
from stream.stages.detect import open_detector
from stream.stages.follow import Follower
from stream.stages.quality import assess
from train.data.datasets._sample import ListedVideo
from train.data.frames import frames_of, source_sha256
from train.data.shards import FaceRecord, PreparedConfig, ShardWriter, encode_crop
from train.errors import TrainError
from trt_engines.backends import OnnxRuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from stream.records import Frame, Track
    from stream.stages.detect import FaceDetector

log = logging.getLogger(__name__)

_DETECT = DetectConfig(detect_width=1280)
_PROBLEMS = "problems.jsonl"
_Faces = list[tuple[FaceRecord, bytes]]  # of one video, with their PNG


class PrepareConfig(BaseModel, frozen=True, extra="forbid"):
    """How the faces of a data set are cut."""

    size_px: int = Field(256, ge=32, description="Side of the stored crop.")
    margin: float = Field(
        2.0, ge=1, description="Side of the stored crop over the face box; more than any network's."
    )
    frames_per_video: int = Field(32, ge=1, description="Evenly spaced over the face's track.")
    faces: Literal["main", "all"] = Field(
        "main", description="`main`: the track with the most face area; `all`: every track."
    )
    analyse_fps: float = Field(5.0, gt=0, description="Frames looked at per second of media.")
    min_face_px: int = Field(40, ge=20, description="Longer side of the smallest face.")
    samples_per_shard: int = Field(1024, ge=1, description="Faces, after which a shard is full.")
    seed: int = Field(0, description="Of the order of the faces in the shards.")


class Problem(BaseModel, frozen=True, extra="forbid"):
    """A listed video that gave no face; evaluation must count it."""

    dataset: str
    path: str
    source_id: str
    subject: str | None
    split: Literal["train", "dev", "test"] | None
    attack_type: str | None
    compression: str | None
    attributes: dict[str, str]
    problem: str


class Prepared(NamedTuple):
    """What a folder of shards holds after `prepare`."""

    faces: int
    videos: int
    problems: tuple[Problem, ...]


class _Look(NamedTuple):
    track: Track
    frame: int  # index
    crop: NDArray[np.uint8]  # (S, S, 3) RGB
    quality: dict[str, float]


def prepare(
    videos: Sequence[ListedVideo], root: Path, out: Path, config: PrepareConfig, *, workers: int
) -> Prepared | None:
    """Write the shards of a data set; None where they are complete already.

    Beside the shards stands `problems.jsonl`: every video that gave no face, and why.

    Args:
        videos: as their data set lists them.
        root: folder of the data set.
        out: folder for the shards; it belongs to these videos and this `config`.
        config: how to cut.
        workers: processes; 0: this one.

    Raises:
        TrainError: the folder holds shards of other videos or settings, it can't be written (what
            is done is kept), or no face was found at all.
    """
    about = PreparedConfig(
        size_px=config.size_px,
        margin=config.margin,
        code_version=stream.__version__,
        options={"videos_sha256": _digest(videos), **config.model_dump(mode="json")},
    )
    shards = ShardWriter(out, about, samples_per_shard=config.samples_per_shard)
    if (out / "manifest.jsonl").exists():
        return None
    done = {record.video_id for record in shards.records}
    order = sorted(videos, key=lambda v: _shuffled(config.seed, v.video_id))
    left = [video for video in order if video.video_id not in done]
    log.info("%s: %d videos, %d of them done before", out, len(videos), len(done))
    problems = []
    with shards:
        for video, found in zip(left, _cut_all(left, root, config, workers), strict=True):
            if isinstance(found, str):
                problems.append(_problem(video, found))
            else:
                shards.add(found)
        (out / _PROBLEMS).write_text(
            "".join(problem.model_dump_json() + "\n" for problem in problems), encoding="utf-8"
        )
        if not shards.records:
            raise TrainError(f"{out}: no face found in {len(videos)} videos; see problems.jsonl")
    for kind, n in sorted(
        Counter(problem.attack_type or "bona fide" for problem in problems).items()
    ):
        log.warning("%s: %d videos (%s) gave no face: problems.jsonl", out, n, kind)
    return Prepared(len(shards.records), len(videos), tuple(problems))


def read_problems(folder: Path) -> list[ListedVideo]:
    """Return the videos of a prepared folder that gave no face.

    Raises:
        TrainError: the list is missing or damaged.
    """
    path = folder / _PROBLEMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        problems = [Problem.model_validate_json(line) for line in lines]
    except (OSError, ValidationError) as error:
        raise TrainError(f"{path}: can't read it: {error}; prepare the folder again") from error
    return [
        ListedVideo(kind="video", **problem.model_dump(exclude={"problem"})) for problem in problems
    ]


def _problem(video: ListedVideo, problem: str) -> Problem:
    return Problem(
        dataset=video.dataset,
        path=video.video_id.removeprefix(f"{video.dataset}:"),
        source_id=video.source_id,
        subject=video.subject,
        split=video.split,
        attack_type=video.attack_type,
        compression=video.compression,
        attributes=dict(video.attributes),
        problem=problem,
    )


def _cut_all(
    videos: Sequence[ListedVideo], root: Path, config: PrepareConfig, workers: int
) -> Iterator[_Faces | str]:
    """Yield the faces of each video in order, or its problem; a few videos are cut ahead."""
    if workers == 0:
        _start_worker(config)
        yield from (_cut_video(video, root, config) for video in tqdm(videos, unit="video"))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's locked threads
    with ProcessPoolExecutor(workers, context, _start_worker, (config,)) as pool:
        ahead: deque[Future[_Faces | str]] = deque()
        rest = iter(videos)
        try:
            for _ in tqdm(videos, unit="video", mininterval=2):
                while len(ahead) < 4 * workers and (video := next(rest, None)) is not None:
                    ahead.append(pool.submit(_cut_video, video, root, config))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


_detector: FaceDetector  # of a worker process


def _start_worker(config: PrepareConfig) -> None:
    global _detector
    torch.set_num_threads(1)
    wanted = _DETECT.model_copy(update={"min_face_px": config.min_face_px})
    _detector = open_detector(wanted, OnnxRuntimeConfig())


def _cut_video(video: ListedVideo, root: Path, config: PrepareConfig) -> _Faces | str:
    try:
        looks = cut(frames_of(video, root, config.analyse_fps), _detector, config)
        if not looks:
            return f"no face of {config.min_face_px} px or more"
        sha256 = source_sha256(video, root)
    except TrainError as error:
        return str(error)
    return [(_record(video, look, sha256, config), encode_crop(look.crop)) for look in looks]


def cut(frames: Iterator[Frame], detector: FaceDetector, config: PrepareConfig) -> list[_Look]:
    """Follow the faces of a video and cut them, evenly over each track.

    Args:
        frames: of one source, in order.
        detector: of whole frames.
        config: how many, how large.
    """
    follower = Follower(detector, TrackConfig(), detect_every_s=DetectConfig().detect_every_s)
    spec = InputSpec(size_px=config.size_px, margin=config.margin)
    tracks: dict[int, _Sampled] = {}
    for frame in frames:
        (update,), _ = follower.follow([frame])
        for track in update.tracks:
            sampled = tracks.setdefault(track.key.track_id, _Sampled(config.frames_per_video))
            if sampled.wants():
                quality = assess(frame.image, track.detection, QualityConfig())
                crop = crop_faces(frame.image, track.detection.box[None], spec)[0]
                sampled.looks.append(
                    _Look(
                        track=track,
                        frame=frame.stamp.index,
                        crop=crop.permute(1, 2, 0).contiguous().numpy(),
                        quality={
                            "sharpness": quality.sharpness,
                            "brightness": quality.brightness,
                            "turn": quality.turn,
                        },
                    )
                )
            sampled.area += float(np.prod(track.detection.box[2:] - track.detection.box[:2]))
    if config.faces == "main" and tracks:
        tracks = {0: max(tracks.values(), key=lambda sampled: sampled.area)}
    return [look for sampled in tracks.values() for look in sampled.evenly()]


class _Sampled:
    """Looks at one track, at most twice as many as wanted, however long the track."""

    def __init__(self, wanted: int) -> None:
        self.looks: list[_Look] = []
        self.area = 0.0  # of the face, px^2, summed over all frames
        self._wanted = wanted
        self._stride = 1
        self._seen = 0

    def wants(self) -> bool:
        """Return whether to look at the next frame."""
        self._seen += 1
        if len(self.looks) == 2 * self._wanted:
            self.looks = self.looks[::2]
            self._stride *= 2
        return (self._seen - 1) % self._stride == 0

    def evenly(self) -> list[_Look]:
        """Return the wanted number of looks, evenly spaced, or all if there are fewer."""
        n = min(self._wanted, len(self.looks))
        return [self.looks[i] for i in np.linspace(0, len(self.looks) - 1, n).round().astype(int)]


def _record(video: ListedVideo, look: _Look, sha256: str, config: PrepareConfig) -> FaceRecord:
    detection = look.track.detection
    left, top, side = crop_window(detection.box, config.margin)
    landmarks = (detection.landmarks - (left, top)) * (config.size_px / side)
    x1, y1, x2, y2 = map(float, detection.box)
    track = look.track.key.track_id
    return FaceRecord.model_validate(
        {
            "sample_id": f"{video.video_id}@{look.frame}.{track}",
            "dataset": video.dataset,
            "video_id": video.video_id,
            "source_id": video.source_id,
            "subject": video.subject,
            "split": video.split,
            "label": video.label,
            "attack_type": video.attack_type,
            "compression": video.compression,
            "attributes": dict(video.attributes),
            "frame": look.frame,
            "pts_s": look.track.pts_s,
            "track": track,
            "box": (x1, y1, x2, y2),
            "landmarks": landmarks.tolist(),
            "face_px": max(x2 - x1, y2 - y1),
            "quality": look.quality,
            "source_sha256": sha256,
            "licence": video.attributes.get("licence", f"terms of {video.dataset}"),
        }
    )


def _digest(videos: Sequence[ListedVideo]) -> str:
    """Return what changes when a video is added, taken away or labelled otherwise."""
    lines = sorted(f"{v.video_id} {v.split} {v.attack_type}" for v in videos)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _shuffled(seed: int, video_id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{video_id}".encode()).digest()
