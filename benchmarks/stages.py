"""What each stage costs, and what plain decoding and a naive loop reach, all on one clip."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final, cast

import av
import torch
from facenet_pytorch import MTCNN
from pydantic import SecretStr

from benchmarks.clips import FPS
from models import build_model, crop_faces
from stream.analyse import Analyser
from stream.config import SourceConfig
from stream.decode import open_decoder
from stream.stages.crop import Cropper, View
from stream.stages.detect import open_detector
from stream.stages.follow import Follower
from stream.stages.fuse import Fuser, attack_detector
from stream.stages.infer import open_classifier
from trt_engines.graphs import AttackGraph
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stream.config import StreamConfig

# The smallest face that ours finds in a 1280x720 frame: 40 px of a copy 640 px wide.
_SMALLEST_FACE_PX: Final = 80
DECODE: Final = "decode, with RGB of frames that are due"
_NO_MORE: Final = object()


class _Stopwatch:
    """CPU time of this thread, by stage: other load on the machine hardly counts."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def timed(
        self, stage: Callable[[Any, Any], str], work: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return the function, timed; `stage` names a call by its last argument and its result."""

        def run(*arguments: Any) -> Any:
            started = time.thread_time()
            result = work(*arguments)
            spent = time.thread_time() - started
            name = stage(arguments[-1] if arguments else None, result)
            self.seconds[name] += spent
            self.calls[name] += 1
            return result

        return run


class _Timed:
    """A stage of which one method is timed."""

    def __init__(self, stage: object, **method: Callable[..., Any]) -> None:
        self._stage = stage
        self.__dict__.update(method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)


def stage_costs(clip: Path, config: StreamConfig, seconds: float) -> dict[str, dict[str, float]]:
    """Run the straight line over a clip in one thread.

    Args:
        clip: shows faces.
        config: of a trial, with one detector; its sources don't matter.
        seconds: of media to go through, at most.

    Returns:
        Stage -> CPU ms per call, calls per second of one camera, CPU ms per such second.
    """
    torch.set_num_threads(1)
    watch = _Stopwatch()
    decoder = open_decoder(
        SourceConfig(id="clip", uri=SecretStr(str(clip))), config.decode, session=0
    )
    frames = decoder.frames()
    (engine,) = config.score.engines
    with (
        open_detector(config.detect, config.backend) as detector,
        open_classifier(engine.manifest, config.backend) as classifier,
    ):
        view = View(classifier.manifest.input, config.score.interval_of(engine))
        cropper = Cropper([view], config.quality)
        detecting: Any = _Timed(detector, detect=watch.timed(_detection, detector.detect))
        cropping: Any = _Timed(cropper, crop=watch.timed(_cropping, cropper.crop))
        scoring: Any = _Timed(classifier, score=watch.timed(_scoring, classifier.score))
        analyser = Analyser(
            Follower(detecting, config.track, detect_every_s=config.detect.detect_every_s),
            cropping,
            [scoring],
            Fuser(config.fuse, [attack_detector(classifier.manifest, config.look_every_s(engine))]),
        )
        analyse = watch.timed(lambda *_: "all", analyser.analyse)
        read = watch.timed(lambda *_: DECODE, lambda: next(frames, "end"))
        while decoder.frames_seen < seconds * FPS and (frame := read()) != "end":
            if frame is not None:
                analyse([frame])
    n_seen = decoder.frames_seen
    decoder.close()
    watch.calls[DECODE] = n_seen
    watch.seconds["track, fuse, the rest"] = 2 * watch.seconds["all"] - sum(
        spent for name, spent in watch.seconds.items() if name != DECODE
    )
    watch.calls["track, fuse, the rest"] = watch.calls["all"]
    del watch.seconds["all"]
    return {
        name: {
            "ms": round(1000 * spent / watch.calls[name], 2),
            "per_camera_second": round(watch.calls[name] * FPS / n_seen, 2),
            "ms_per_camera_second": round(1000 * spent * FPS / n_seen, 1),
        }
        for name, spent in watch.seconds.items()
    }


def decoded_fps(clip: Path, threads: int, seconds: float) -> float:
    """Return how many frames a second one decoder reaches that does nothing else."""
    with av.open(str(clip)) as container:
        (video,) = container.streams.video
        video.codec_context.thread_count = threads
        video.thread_type = "AUTO"
        return _rate(container.decode(video), seconds)


def naive_fps(clip: Path, manifest_path: Path, threads: int, seconds: float) -> float:
    """Return how many frames a second the loop reaches that one would write first.

    facenet-pytorch's MTCNN looks at every whole frame, and the detector's network, in eager torch,
    at every face. The network's weights are random: they do not change the time.

    Args:
        clip: to read.
        manifest_path: names the network.
        threads: of torch.
        seconds: to run for.
    """
    torch.set_num_threads(threads)
    manifest = load_manifest(manifest_path)
    graph = AttackGraph(build_model(cast("str", manifest.method), manifest.options)).eval()
    mtcnn = MTCNN(keep_all=True, min_face_size=_SMALLEST_FACE_PX, device="cpu")

    def scored() -> Iterator[object]:
        with av.open(str(clip)) as container:
            for frame in container.decode(video=0):
                picture = frame.to_ndarray(format="rgb24")
                boxes, _ = mtcnn.detect(picture)
                if boxes is None:
                    yield None
                    continue
                crops = crop_faces(torch.from_numpy(picture), boxes, manifest.input)
                yield graph(crops)

    with torch.inference_mode():
        return _rate(scored(), seconds)


def _rate(items: Iterator[object], seconds: float) -> float:
    """Return items per second, over at least so many seconds; a first item does not count."""
    next(items)
    started = time.perf_counter()
    count, elapsed_s = 0, 0.0
    while elapsed_s < seconds and next(items, _NO_MORE) is not _NO_MORE:
        count += 1
        elapsed_s = time.perf_counter() - started
    return count / elapsed_s


def _detection(expected: list[Any], _: Any) -> str:
    return "detect: search" if expected[0] is None else "detect: refresh"


def _cropping(_: Any, looks: Any) -> str:
    return "quality, crop" if looks.crops or looks.rejected else "no face due"


def _scoring(*_: Any) -> str:
    return "classify"
