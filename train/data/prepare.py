"""Cut the faces of a data set once, by the streaming path's own detection, tracking and cropping.

Videos are taken in a shuffled order, so that every shard holds many of them. A run that was killed
goes on after its last complete shard. What is written depends on the videos and the settings alone,
not on the number of processes.

Prepared again, a folder is brought up to date: videos that are new, or whose file changed, are cut;
where only a label, a split or another fact changed, the faces stay; what is no longer listed goes.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from tqdm import tqdm

import stream
from models import InputSpec, box_in_crop, crop_faces, crop_window, one_line, whole_file
from stream.config import DetectConfig, QualityConfig, TrackConfig
from stream.stages.detect import open_detector
from stream.stages.follow import Follower
from stream.stages.quality import assess
from train.data.contact_sheet import write_contact_sheet
from train.data.datasets._registry import disjoint_level
from train.data.datasets._sample import BONA_FIDE_TYPE, ListedVideo
from train.data.datasets._tree import some
from train.data.frames import VideoFrames, file_state
from train.data.manifest import PreparedConfig
from train.data.overlap import Identity, find_shared, identities, told
from train.data.shard_writer import ShardWriter
from train.data.shards import FaceRecord, encode_crop
from train.errors import TrainError
from trt_engines.backends import OnnxRuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from stream.records import Frame, Track
    from stream.stages.detect import FaceDetector
    from train.data.datasets._sample import Level

log = logging.getLogger(__name__)

_DETECT = DetectConfig(detect_width=1280)
_PROBLEMS = "problems.jsonl"
_ATTEMPTS = 2  # at a video that fails in a way nobody foresaw


class PrepareConfig(BaseModel, frozen=True, extra="forbid"):
    """How the faces of a data set are cut."""

    size_px: int = Field(256, ge=32, description="Side of the stored crop.")
    margin: float = Field(
        2.0, ge=1, description="Side of the stored crop over the face box; more than any network's."
    )
    window: Literal["pad", "inside"] = Field(
        "pad",
        description="As the network's: `pad` repeats the border of the frame, `inside` shifts the "
        "window into it (models.InputSpec).",
    )
    resize: Literal["area", "bilinear"] = Field(
        "area",
        description="As the network's: `bilinear` keeps what aliases of fine texture "
        "(models.InputSpec).",
    )
    frames_per_video: int = Field(32, ge=1, description="Evenly spaced over the face's track.")
    faces: Literal["main", "all"] = Field(
        "main", description="`main`: the track with the most face area; `all`: every track."
    )
    analyse_fps: float = Field(5.0, gt=0, description="Frames looked at per second of media.")
    min_face_px: int = Field(
        40, ge=20, description="Longer side of the smallest face to store, px of the frame."
    )
    samples_per_shard: int = Field(1024, ge=1, description="Faces, after which a shard is full.")
    seed: int = Field(0, description="Of the order of the faces in the shards.")


class Problem(BaseModel, frozen=True, extra="forbid"):
    """A listed video that could not be read, or not wholly."""

    dataset: str
    path: str = Field(description="`video_id` without the data set's name.")
    source_id: str
    subject: str | None
    split: Literal["train", "dev", "test"] | None
    attack_type: str | None
    compression: str | None
    attributes: dict[str, str]
    problem: str
    faces: int = Field(
        0, description="Given in spite of it. Evaluation counts the videos that gave none."
    )
    state: str = Field("", description="Of the file; empty: try again whenever asked.")

    @property
    def video_id(self) -> str:
        """As `ListedVideo.video_id`."""
        return f"{self.dataset}:{self.path}"


class Prepared(NamedTuple):
    """What a folder of shards holds after `prepare`, and what was done for it."""

    faces: int
    videos: int  # listed
    problems: tuple[Problem, ...]
    cut: int  # videos
    relabelled: int  # videos
    dropped: int  # videos


class _Look(NamedTuple):
    track: Track
    frame: int  # index
    frame_px: tuple[int, int]  # width, height
    crop: NDArray[np.uint8]  # (S, S, 3) RGB
    quality: dict[str, float]


class _Cut(NamedTuple):
    """What became of one video."""

    faces: list[tuple[FaceRecord, bytes]]  # with their PNG
    problem: str | None
    foreseen: bool = True  # the problem is the file's


class _Work(NamedTuple):
    """What is to do for a folder."""

    cut: list[ListedVideo]
    changed: dict[str, dict[str, Any]]  # stored videos -> fields with their new values
    touched: list[str]  # stored videos whose file was touched, and has the same content
    dropped: list[str]  # stored videos that are no longer listed, or are to be cut
    problems: list[Problem]  # that remain as they are
    states: dict[str, str]  # of the files of all listed videos


def prepare(
    videos: Sequence[ListedVideo],
    root: Path,
    out: Path,
    config: PrepareConfig,
    *,
    workers: int,
    allow_overlap: bool = False,
) -> Prepared | None:
    """Write the shards of a data set, or bring them up to date; None: there was nothing to do.

    Beside the shards stand `problems.jsonl`, every video that gave no face or was damaged, and why,
    and `contact-sheet.png`: look at it.

    Args:
        videos: as their data set lists them.
        root: folder of the data set.
        out: folder for the shards; it belongs to this data set and this `config`.
        config: how to cut.
        workers: processes; 0: this one.
        allow_overlap: only log what train, dev and test share.

    Raises:
        TrainError: sources or subjects are on two sides; the folder holds shards of other settings,
            or can't be written (what is done is kept); no face was found at all; or, the folder
            being complete, files on two sides are byte-identical.
    """
    level = disjoint_level({video.dataset for video in videos})
    known = [(v.split, Identity(v.video_id, "", v.source_id, v.subject)) for v in videos]
    _check_sides(known, level, allow_overlap=allow_overlap)
    about = PreparedConfig(
        size_px=config.size_px,
        margin=config.margin,
        window=config.window,
        code_version=stream.__version__,
        options=config.model_dump(mode="json"),
    )
    with ShardWriter(out, about, samples_per_shard=config.samples_per_shard) as shards:
        old_problems = _old_problems(out) if shards.finished else []
        work = _to_do(videos, root, shards, old_problems)
        complete = shards.finished and work.problems == old_problems
        complete = complete and not (work.cut or work.changed or work.dropped)
        for video_id in work.touched:
            shards.change(video_id, work.states[video_id])
        problems = old_problems if complete else _do(work, videos, root, shards, config, workers)
        if not shards.faces:
            raise TrainError(f"{out}: no face found in {len(videos)} videos; see {_PROBLEMS}")
    if not complete:
        write_contact_sheet(out)
    stored = [video.known for video in shards.stored.values()]
    named = [(k["split"], Identity(*(k[name] for name in Identity._fields))) for k in stored]
    _check_sides(named, level, allow_overlap=allow_overlap)
    if complete:
        return None
    dropped = set(work.dropped) - {video.video_id for video in work.cut}
    return Prepared(
        shards.faces, len(videos), tuple(problems), len(work.cut), len(work.changed), len(dropped)
    )


def read_problems(folder: Path) -> list[ListedVideo]:
    """Return the videos of a prepared folder that gave no face.

    Raises:
        TrainError: the list is missing or damaged.
    """
    return [
        ListedVideo(kind="video", **problem.model_dump(exclude={"problem", "faces", "state"}))
        for problem in _read_problems(folder)
        if not problem.faces
    ]


def _read_problems(folder: Path) -> list[Problem]:
    path = folder / _PROBLEMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Problem.model_validate_json(line) for line in lines]
    except ValidationError as error:
        what = one_line(error, Problem)
    except (OSError, UnicodeDecodeError) as error:
        what = str(error)
    raise TrainError(f"{path}: can't read it: {what}; prepare the folder again")


def _old_problems(folder: Path) -> list[Problem]:
    try:
        return _read_problems(folder)
    except TrainError as error:
        log.warning("%s: the videos without a face are tried again", error)
        return []


def _check_sides(
    videos: Iterable[tuple[str | None, Identity]], level: Level, *, allow_overlap: bool
) -> None:
    sides: dict[str, list[Identity]] = {"train": [], "dev": [], "test": []}
    for split, identity in videos:
        if split is not None:
            sides[split].append(identity)
    shared = find_shared({name: identities(side) for name, side in sides.items()}, level)
    messages = [told(overlaps, *names) for names, overlaps in shared.items()]
    if messages and not allow_overlap:
        raise TrainError(
            f"{'; '.join(messages)}. Move them to one side and prepare again (only what changed is "
            "done again), or go on all the same with --allow-overlap"
        )
    for message in messages:
        log.warning("overlap allowed: %s", message)


def _to_do(
    videos: Sequence[ListedVideo], root: Path, shards: ShardWriter, problems: Sequence[Problem]
) -> _Work:
    """Compare what is listed with what is stored."""
    old_problems = {problem.video_id: problem for problem in problems}
    work = _Work([], {}, [], [], [], {})
    for video in videos:
        video_id = video.video_id
        state = work.states[video_id] = file_state(video, root)
        stored, problem = shards.stored.get(video_id), old_problems.get(video_id)
        fields = _fields(video)
        if stored is not None and _same_content(video, root, stored.state, state, stored.known):
            differ = {name: value for name, value in fields.items() if stored.known[name] != value}
            if differ:
                work.changed[video_id] = differ
            elif state != stored.state:
                work.touched.append(video_id)
            if problem is not None:
                work.problems.append(_problem(video, problem.problem, problem.faces, state))
        elif stored is None and problem is not None and problem.state == state:
            work.problems.append(_problem(video, problem.problem, 0, state))
        else:
            work.cut.append(video)
            if stored is not None:
                work.dropped.append(video_id)
    work.problems.sort(key=lambda problem: problem.video_id)
    listed = work.states.keys()
    work.dropped.extend(video_id for video_id in shards.stored if video_id not in listed)
    return work


def _same_content(
    video: ListedVideo, root: Path, before: str, now: str, known: Mapping[str, Any]
) -> bool:
    """Say whether a stored video would be cut as it was: by the disk's word, else by reading it."""
    if before == now:
        return True
    if before.partition("|")[0] != now.partition("|")[0] or now.endswith("|absent"):
        return False
    try:
        digest: str = known["source_sha256"]
        return VideoFrames(video, root, 1.0).sha256() == digest
    except TrainError:
        return False  # cutting it will say why


def _do(
    work: _Work,
    videos: Sequence[ListedVideo],
    root: Path,
    shards: ShardWriter,
    config: PrepareConfig,
    workers: int,
) -> list[Problem]:
    """Bring the folder up to date; return its problems."""
    cut_ids = {video.video_id for video in work.cut}
    gone = [video_id for video_id in work.dropped if video_id not in cut_ids]
    kept = len(videos) - len(work.cut)
    log.info(
        "%d videos: %d to cut, %d kept, %d of them relabelled",
        *(len(videos), len(work.cut), kept, len(work.changed)),
    )
    if gone:
        log.warning("%d videos are no longer listed and are dropped: %s", len(gone), some(gone))
    shards.drop(work.dropped)
    for video_id, fields in work.changed.items():
        shards.change(video_id, work.states[video_id], **fields)
    problems = list(work.problems)
    order = sorted(work.cut, key=lambda v: _shuffled(config.seed, v.video_id))
    for video, done in zip(order, _cut_all(order, root, config, workers), strict=True):
        state = work.states[video.video_id]
        if done.faces:
            shards.add(done.faces, state)
        if done.problem is not None:
            n = len(done.faces)
            problems.append(_problem(video, done.problem, n, state if done.foreseen else ""))
    problems.sort(key=lambda problem: problem.video_id)
    with whole_file(shards.folder / _PROBLEMS) as path:
        lines = (problem.model_dump_json() + "\n" for problem in problems)
        path.write_text("".join(lines), encoding="utf-8")
    counted = Counter((p.attack_type or BONA_FIDE_TYPE, p.faces > 0) for p in problems)
    for (kind, some_faces), n in sorted(counted.items()):
        what = "are damaged, and gave what could be read" if some_faces else "gave no face"
        log.warning("%d videos (%s) %s: %s", n, kind, what, _PROBLEMS)
    return problems


def _problem(video: ListedVideo, problem: str, faces: int, state: str) -> Problem:
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
        faces=faces,
        state=state,
    )


def _cut_all(
    videos: Sequence[ListedVideo], root: Path, config: PrepareConfig, workers: int
) -> Iterator[_Cut]:
    """Yield what becomes of each video, in order; a few videos are cut ahead."""
    if workers == 0:
        _start_worker(config)
        yield from (_cut_video(video, root, config) for video in tqdm(videos, unit="video"))
        return
    pool = _pool(workers, config)
    ahead: deque[tuple[ListedVideo, Future[_Cut] | _Cut]] = deque()
    rest = iter(videos)
    try:
        for _ in tqdm(videos, unit="video", mininterval=2):
            while len(ahead) < 4 * workers and (video := next(rest, None)) is not None:
                ahead.append((video, pool.submit(_cut_video, video, root, config)))
            video, done = ahead.popleft()
            try:
                yield done if isinstance(done, _Cut) else done.result()
            except BrokenProcessPool:
                # A file killed a process, and with it the pool. Which one did is not known.
                log.warning("a worker process died; the videos that it may have had are cut alone")
                pool.shutdown(cancel_futures=True)
                yield _cut_alone(video, root, config)
                ahead = deque(
                    (waiting, its if _is_done(its) else _cut_alone(waiting, root, config))
                    for waiting, its in ahead
                )
                pool = _pool(workers, config)
    finally:
        pool.shutdown(cancel_futures=True)


def _is_done(cut: Future[_Cut] | _Cut) -> bool:
    return isinstance(cut, _Cut) or (cut.done() and cut.exception() is None)


def _cut_alone(video: ListedVideo, root: Path, config: PrepareConfig) -> _Cut:
    """Cut a video in a process of its own, which it may kill."""
    with _pool(1, config) as pool:
        try:
            return pool.submit(_cut_video, video, root, config).result()
        except BrokenProcessPool:
            return _Cut([], "reading it kills the process", foreseen=False)


def _pool(workers: int, config: PrepareConfig) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's locked threads
    return ProcessPoolExecutor(workers, context, _start_worker, (config,))


_detector: FaceDetector  # of a worker process


def _start_worker(config: PrepareConfig) -> None:
    global _detector
    torch.set_num_threads(1)
    wanted = _DETECT.model_copy(update={"min_face_px": config.min_face_px})
    _detector = open_detector(wanted, OnnxRuntimeConfig())


def _cut_video(video: ListedVideo, root: Path, config: PrepareConfig) -> _Cut:
    failure = ""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            frames = VideoFrames(video, root, config.analyse_fps)
            untimed = video.kind in ("frames", "hdf5") and video.fps is None
            looks = cut(iter(frames), _detector, config, search_all=untimed)
            if not looks:
                nothing = f"no face of {config.min_face_px} px or more"
                return _Cut([], f"{nothing}; {frames.damage}" if frames.damage else nothing)
            sha256 = frames.sha256()
            faces = [
                (_record(video, look, sha256, config), encode_crop(look.crop)) for look in looks
            ]
            return _Cut(faces, frames.damage)
        except TrainError as error:
            return _Cut([], str(error))
        except Exception as error:  # one file must not end hours of work
            failure = f"{type(error).__name__}: {error}"
            log.warning("%s, attempt %d:", video.video_id, attempt, exc_info=True)
    return _Cut([], f"an error that was not foreseen, twice: {failure}", foreseen=False)


def cut(
    frames: Iterator[Frame],
    detector: FaceDetector,
    config: PrepareConfig,
    *,
    search_all: bool = False,
) -> list[_Look]:
    """Follow the faces of a video and cut them, evenly over each track.

    Args:
        frames: of one source, in order.
        detector: of whole frames.
        config: how many, how large.
        search_all: search every frame as a whole: between pictures without time, faces may jump.
    """
    every_s = 0.0 if search_all else DetectConfig().detect_every_s
    follower = Follower(detector, TrackConfig(), detect_every_s=every_s)
    spec = _stored(config)
    tracks: dict[int, _Sampled] = {}
    for frame in frames:
        (update,), _ = follower.follow([frame])
        for track in update.tracks:
            # The detector counts in pixels of its own copy, and refines what it finds.
            if np.ptp(track.detection.box.reshape(2, 2), axis=0).max() < config.min_face_px:
                continue
            sampled = tracks.setdefault(track.key.track_id, _Sampled(config.frames_per_video))
            if sampled.wants():
                quality = assess(frame.image, track.detection, QualityConfig())
                crop = crop_faces(frame.image, track.detection.box[None], spec)[0]
                sampled.looks.append(
                    _Look(
                        track=track,
                        frame=frame.stamp.index,
                        frame_px=(frame.stamp.width, frame.stamp.height),
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


def _stored(config: PrepareConfig) -> InputSpec:
    return InputSpec(
        size_px=config.size_px, margin=config.margin, window=config.window, resize=config.resize
    )


def _record(video: ListedVideo, look: _Look, sha256: str, config: PrepareConfig) -> FaceRecord:
    detection = look.track.detection
    window = crop_window(detection.box, _stored(config), look.frame_px)
    scale = config.size_px / np.array([window.width, window.height])
    landmarks = (detection.landmarks - (window.left, window.top)) * scale
    x1, y1, x2, y2 = map(float, detection.box)
    track = look.track.key.track_id
    return FaceRecord.model_validate(
        {
            **_fields(video),
            "sample_id": f"{video.video_id}@{look.frame}.{track}",
            "video_id": video.video_id,
            "frame": look.frame,
            "pts_s": look.track.pts_s,
            "track": track,
            "box": (x1, y1, x2, y2),
            "face": box_in_crop(detection.box, window, config.size_px),
            "landmarks": landmarks.tolist(),
            "face_px": max(x2 - x1, y2 - y1),
            "quality": look.quality,
            "source_sha256": sha256,
        }
    )


def _fields(video: ListedVideo) -> dict[str, Any]:
    """Return what a record says of a video besides its name, and a listing may change."""
    return {
        "dataset": video.dataset,
        "source_id": video.source_id,
        "subject": video.subject,
        "split": video.split,
        "label": video.label,
        "attack_type": video.attack_type,
        "compression": video.compression,
        "attributes": dict(video.attributes),
        "licence": video.attributes.get("licence", f"terms of {video.dataset}"),
    }


def _shuffled(seed: int, video_id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{video_id}".encode()).digest()
