"""The loop that a good engineer would write with public parts, beside ours in `make bench`.

PyAV decodes, in a thread per camera. facenet-pytorch's MTCNN searches copies 640 px wide, those of
all cameras that wait as one batch. ByteTrack of `trackers` follows the faces. ONNX Runtime scores
each track every 0.4 s: the same graph, on crops cut by the same rule, in batches. Cameras are dealt
out among processes, one per core, so that PyTorch needs one thread in each.

ByteTrack knows a face by where it was detected, so each frame that is analysed must be searched:
five a second, as ours analyses, or two and a half, as often as there is a score, which is the least
that gives the same scores. By then the face of the clip has moved by most of its width: by plain
IoU, ByteTrack makes 5 tracks of its first 20 s, by the DIoU that `trackers` offers, one.

`python -m benchmarks.public_loop CLIP MANIFEST SEARCH_EVERY_S SECONDS START_UP_S FIRST OF N` is one
such process: of N cameras it takes those from number FIRST on in steps of OF. It prints each score,
and at last what it used.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import av
import numpy as np
import torch
from facenet_pytorch import MTCNN

from benchmarks.clips import FPS
from benchmarks.held import Trial, Used, judged, largest_rss_mib
from benchmarks.record import ROOT
from models import crop_faces
from trt_engines.backends.onnx_session import open_session
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

INSTALL: Final = "pip install -r requirements/crosscheck.txt"
SEARCH_EVERY_S: Final = (0.2, 0.4)
_SMALL_PX: Final = 640  # width of the copy that is searched, and...
_SMALLEST_FACE_PX: Final = 40  # ...the smallest face in it, both as ours
_SCORE_EVERY_S: Final = 0.4
_LEAST_DIOU: Final = -0.4  # of faces of one size: a gap as wide as they are
_STAGGER_S: Final = 1.0  # as in `benchmarks.trial`
_WAITING_FRAMES: Final = 2  # per camera


def is_installed() -> bool:
    """Return whether the packages are there that only this needs."""
    return importlib.util.find_spec("trackers") is not None


class PublicLoop:
    """Runs trials.

    Args:
        clip: longer than a trial.
        manifest: of the detector.
        search_every_s: between two frames of a camera that are analysed.
        trial_s: of each trial.
        start_up_s: of these, left out.
    """

    def __init__(
        self, clip: Path, manifest: Path, search_every_s: float, trial_s: float, start_up_s: float
    ) -> None:
        self._arguments = [str(clip), str(manifest), str(search_every_s), str(trial_s)]
        self._start_up_s = start_up_s
        self.trials: list[Trial] = []
        self.tracks: list[float] = []  # scored per camera in each trial; each shows one face

    def held(self, n: int) -> bool:
        """Run so many cameras for a while, and judge."""
        processes = min(n, len(os.sched_getaffinity(0)))
        command = [sys.executable, "-m", "benchmarks.public_loop", *self._arguments]
        command.append(str(self._start_up_s))
        runs = [
            subprocess.Popen(
                [*command, str(first), str(processes), str(n)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for first in range(processes)
        ]
        printed = [run.communicate()[0].splitlines() for run in runs]
        if any(run.returncode for run in runs):
            raise RuntimeError("the loop of public parts failed; its own message is above")
        scores = [json.loads(line) for lines in printed for line in lines[:-1]]
        ends = [json.loads(lines[-1]) for lines in printed]
        self.tracks.append(len({(score["camera"], score["track"]) for score in scores}) / n)
        cameras = [camera for end in ends for camera in end["cameras"]]
        self.trials.append(
            judged(
                n,
                due=sum(camera["due"] for camera in cameras),
                dropped=sum(camera["dropped"] for camera in cameras),
                latencies_ms=[
                    score["latency_ms"] for score in scores if score["at_s"] >= self._start_up_s
                ],
                behind_s=max(camera["seconds"] - camera["seen"] / FPS for camera in cameras),
                cores_used=sum(end["cores_used"] for end in ends),
                stolen_cores=max(end["stolen_cores"] for end in ends),
                largest_rss_mib=sum(end["largest_rss_mib"] for end in ends),
            )
        )
        return self.trials[-1].held


@dataclass(frozen=True, slots=True, eq=False)
class _Due:
    """A frame that is due."""

    pts_s: float
    captured_s: float  # when it was shown, on the monotonic clock
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    small: NDArray[np.uint8]  # the same, 640 px wide


@dataclass(frozen=True, slots=True)
class _Counts:
    seconds: float
    seen: int
    due: int
    dropped: int

    def since(self, before: _Counts) -> dict[str, float]:
        """Return by how much each has grown."""
        earlier = asdict(before)
        return {name: value - earlier[name] for name, value in asdict(self).items()}


class _Camera:
    """A file that a thread plays at its own speed; of frames that wait the oldest is dropped."""

    def __init__(self, number: int, every_s: float, arrived: threading.Condition) -> None:
        import trackers

        self.number = number
        self.tracker = trackers.ByteTrackTracker(
            frame_rate=1 / every_s, iou=trackers.DIoU(), minimum_iou_threshold=_LEAST_DIOU
        )
        self.last_score_s: dict[int, float] = {}  # by track
        self.waiting: deque[_Due] = deque()
        self._every_s = every_s
        self._arrived = arrived
        self._seen = self._due = self._dropped = 0

    def play(self, clip: Path, delay_s: float) -> None:
        """Decode, and wait for each picture's time."""
        time.sleep(delay_s)
        began_s, due_s = time.monotonic(), 0.0
        with av.open(str(clip)) as container:
            (video,) = container.streams.video
            video.codec_context.thread_count = 1
            height = round(video.height * _SMALL_PX / video.width)
            for picture in container.decode(video):
                pts_s = picture.time or 0.0
                time.sleep(max(0.0, began_s + pts_s - time.monotonic()))
                self._seen += 1
                if pts_s < due_s - 0.001:
                    continue
                due_s += self._every_s
                captured_s = time.monotonic()
                small = picture.reformat(width=_SMALL_PX, height=height, format="rgb24")
                image, small_image = (
                    np.asarray(each.to_ndarray(format="rgb24"), np.uint8)
                    for each in (picture, small)
                )
                self._offer(_Due(pts_s, captured_s, image, small_image))
        raise RuntimeError("the clip is over; it must be longer than the trial")

    def _offer(self, frame: _Due) -> None:
        with self._arrived:
            self._due += 1
            if len(self.waiting) == _WAITING_FRAMES:
                self.waiting.popleft()
                self._dropped += 1
            self.waiting.append(frame)
            self._arrived.notify()

    def counts(self) -> _Counts:
        """Return what was counted so far."""
        with self._arrived:
            return _Counts(time.monotonic(), self._seen, self._due, self._dropped)


class _Scorer:
    """Finds, follows and scores the faces of frames."""

    def __init__(self, manifest_path: Path) -> None:
        self._manifest = load_manifest(manifest_path)
        self._mtcnn = MTCNN(keep_all=True, min_face_size=_SMALLEST_FACE_PX, device="cpu")
        self._session = open_session(manifest_path.with_name(self._manifest.onnx), threads=1)
        (self._input,) = (node.name for node in self._session.get_inputs())

    def scored(
        self, frames: Sequence[tuple[_Camera, _Due]]
    ) -> Iterator[tuple[_Camera, _Due, int, float]]:
        """Yield camera, frame, track and probability of an attack of each face that is due."""
        faces: list[tuple[_Camera, _Due, int]] = []
        crops: list[Tensor] = []
        for (camera, frame), boxes, confidences in zip(frames, *self._found(frames), strict=True):
            tracks, tracked = _followed(camera, frame, boxes, confidences)
            faces += [(camera, frame, track) for track in tracks]
            crops.append(crop_faces(torch.from_numpy(frame.image), tracked, self._manifest.input))
        images = torch.cat(crops).numpy()
        for start in range(0, len(images), self._manifest.max_batch):
            batch = images[start : start + self._manifest.max_batch]
            (probabilities,) = self._session.run(["probability"], {self._input: batch})
            for face, probability in zip(faces[start:], probabilities.tolist(), strict=False):
                yield *face, probability

    def _found(self, frames: Sequence[tuple[_Camera, _Due]]) -> tuple[Any, Any]:
        """Return the boxes, px of the small copies, and confidences of each frame's faces."""
        found: tuple[Any, Any] = self._mtcnn.detect(np.stack([due.small for _, due in frames]))
        return found


def _followed(
    camera: _Camera, frame: _Due, boxes: Any, confidences: Any
) -> tuple[list[int], NDArray[np.float32]]:
    """Return the tracks in a frame that are due for a score, and their boxes, px of the frame."""
    import supervision

    seen = 0 if boxes is None else len(boxes)
    scale = frame.image.shape[1] / _SMALL_PX
    tracked = camera.tracker.update(
        supervision.Detections(
            xyxy=np.asarray(boxes if seen else [], np.float32).reshape(-1, 4) * scale,
            confidence=np.asarray(confidences if seen else [], np.float32),
        ),
        timestamp=frame.pts_s,
    )
    assert tracked.tracker_id is not None
    due = [
        index
        for index, track in enumerate(tracked.tracker_id.tolist())
        if track >= 0 and frame.pts_s - camera.last_score_s.get(track, -1.0) > _SCORE_EVERY_S - 0.01
    ]
    tracks = tracked.tracker_id[due].tolist()
    camera.last_score_s |= dict.fromkeys(tracks, frame.pts_s)
    return tracks, tracked.xyxy[due].astype(np.float32)


def _run(
    clip: Path,
    manifest: Path,
    search_every_s: float,
    seconds: float,
    start_up_s: float,
    numbers: Sequence[int],
) -> None:
    torch.set_num_threads(1)
    arrived = threading.Condition()
    random = Random(2026)
    delays_s = [random.uniform(0, _STAGGER_S) for _ in range(max(numbers) + 1)]
    cameras = [_Camera(number, search_every_s, arrived) for number in numbers]
    scorer, used = _Scorer(manifest), Used()
    before: dict[int, _Counts] = {}
    for camera in cameras:
        arguments = (clip, delays_s[camera.number])
        threading.Thread(target=camera.play, args=arguments, daemon=True).start()
    began_s = time.monotonic()
    with torch.inference_mode():
        while (elapsed_s := time.monotonic() - began_s) < seconds:
            if not before and elapsed_s >= start_up_s:
                before = {camera.number: camera.counts() for camera in cameras}
                used.start()
            with arrived:
                arrived.wait_for(lambda: any(camera.waiting for camera in cameras), timeout=0.2)
                frames = [(c, c.waiting.popleft()) for c in cameras if c.waiting]
            for camera, frame, track, probability in scorer.scored(frames) if frames else ():
                latency_ms = 1000 * (time.monotonic() - frame.captured_s)
                score = {"camera": camera.number, "track": track, "pts_s": frame.pts_s}
                score |= {"p_attack": probability, "latency_ms": latency_ms, "at_s": elapsed_s}
                print(json.dumps(score), flush=True)
    result = used.cores() | {
        "cameras": [camera.counts().since(before[camera.number]) for camera in cameras],
        "largest_rss_mib": largest_rss_mib(),
    }
    print(json.dumps(result), flush=True)
    os._exit(0)  # decoders are at work, and are not awaited


if __name__ == "__main__":
    _every_s, _seconds, _start_up_s = map(float, sys.argv[3:6])
    _first, _of, _n = map(int, sys.argv[6:9])
    _run(
        Path(sys.argv[1]), Path(sys.argv[2]), _every_s, _seconds, _start_up_s,
        range(_first, _n, _of),
    )  # fmt: skip
