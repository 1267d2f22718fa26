"""Runs the analysis on a bundle's video again, and compares.

The very frames that were analysed are found again by their media times, from the one that first
showed the face on: there a whole frame was searched, so detection, looks and fusion go the way they
went. Networks run by ONNX Runtime on the CPU, pictures are decoded by FFmpeg, whatever the run
used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import SecretStr, ValidationError

from models import one_line
from stream.analyse import open_analyser
from stream.config import DecodeConfig, SourceConfig, StreamConfig
from stream.decode import open_decoder
from stream.errors import ConfigError
from stream.evidence.bundle import (
    ANALYSIS,
    CONFIG,
    CUT,
    DETECTOR_NETS,
    PRODUCER,
    Analysis,
    Network,
    Part,
    Producer,
    network,
)
from stream.records import Alert
from trt_engines.errors import EngineError
from trt_engines.manifest import SHIPPED, shipped_engines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from stream.evidence.bundle import Look
    from stream.records import AttackScore, Frame

# Largest difference of a probability that counts as none: where FFmpeg on a CPU made the pixels
# then, too, and where something else did, whose colours differ by a few levels.
TOLERANCE: Final = 0.02
TOLERANCE_OF_OTHERS: Final = 0.1
_SAME_BOX: Final = 0.5  # intersection over union
_SAME_TIME_S: Final = 0.002  # Matroska rounds stamps to 1 ms
_MOST_FPS: Final = 1000.0
# What decides: the rest of a configuration says where video comes from and messages go.
_OF_ANALYSIS: Final = ("detect", "track", "quality", "score", "fuse")

_Part = TypeVar("_Part", bound=Part)


@dataclass(slots=True)
class Replay:
    """What became of a replay."""

    is_whole: bool  # the video begins before the face was first seen
    tolerance: float
    looks: int = 0  # that the video should show
    found: int = 0  # of those, taken again
    largest: float = 0.0  # difference of the probability of one look
    verdict_again: bool = False
    probability_then: float | None = None
    probability_now: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether verdict and scores came again."""
        return not self.problems

    def report(self) -> str:
        """Return some lines for people."""
        lines = [
            f"{self.found} of {self.looks} looks taken again, probabilities differ by "
            f"{self.largest:.6f} at most (tolerance {self.tolerance:g})",
            f"verdict {'came again' if self.verdict_again else 'did not come again'}: p "
            f"{_shown(self.probability_then)} then, {_shown(self.probability_now)} now",
        ]
        if not self.is_whole:
            lines.append(
                "the face was there before the video begins: its fused score then rested on looks "
                "that can't be taken again, and is not compared"
            )
        return "\n".join([*lines, *self.problems, "agrees" if self.agrees else "DIFFERS"])


def replay(folder: Path, models: Sequence[Path] = ()) -> Replay:
    """Run the analysis on the video of a bundle again.

    Args:
        folder: of the bundle; see `broken_seals` for whether it is genuine.
        models: manifests of engines to look among, beside those that ship and those that were
            named then.

    Raises:
        ConfigError: the bundle holds no video, is damaged, or a network of it is not here.
        SourceError: its video can't be decoded.
    """
    analysis = _read(folder / ANALYSIS, Analysis)
    if analysis.cut is None:
        raise ConfigError(f"{folder.name}: holds no video, nothing can be analysed again")
    config = _config(folder, models)
    # A face is first seen where the whole frame was searched, and only there.
    is_whole = analysis.first_seen_s >= analysis.cut.starts_s - _SAME_TIME_S
    from_s = analysis.first_seen_s if is_whole else analysis.cut.starts_s
    tolerance = TOLERANCE if analysis.decoder == "pyav" else TOLERANCE_OF_OTHERS
    result = Replay(is_whole, tolerance, probability_then=analysis.probability)
    scores: list[AttackScore] = []
    alerts: list[Alert] = []
    expected = [f for f in analysis.frames if f.pts_s >= from_s - _SAME_TIME_S]
    frames = 0
    with open_analyser(config) as analyser:
        for frame in _frames(folder / CUT, config.sources[0], analysis, from_s):
            step = analyser.step([frame])
            for error in step.failures.values():
                raise error
            frames += 1
            scores += step.scores
            alerts += [record for record in step.records if isinstance(record, Alert)]
    if frames < sum(f.pts_s <= analysis.at_s for f in expected):
        result.problems.append(
            f"{frames} of {len(expected)} frames that were analysed are in the video"
        )
    _compare_looks(analysis, from_s, scores, result)
    _compare_verdict(analysis, alerts, result)
    return result


def _compare_looks(
    analysis: Analysis, from_s: float, scores: Sequence[AttackScore], result: Replay
) -> None:
    """Compare the looks up to the verdict."""
    by_frame: dict[tuple[int, int], list[AttackScore]] = {}
    for score in scores:
        by_frame.setdefault((score.sighting.stamp.index, score.detector), []).append(score)
    for look in analysis.looks:
        if not from_s - _SAME_TIME_S <= look.pts_s <= analysis.at_s:
            continue
        result.looks += 1
        same = [s for s in by_frame.get((look.frame, look.detector), ()) if _is_same(s, look)]
        if same:
            result.found += 1
            difference = abs(same[0].probability - look.probability)
            result.largest = max(result.largest, difference)
    if result.is_whole and result.found < result.looks:
        result.problems.append(f"{result.looks - result.found} looks were not taken again")
    if result.largest > result.tolerance:
        result.problems.append(f"a look's probability differs by {result.largest:.3f}")


def _compare_verdict(analysis: Analysis, alerts: Iterable[Alert], result: Replay) -> None:
    """Compare the alert that the bundle is about."""
    last = [look for look in analysis.looks if look.pts_s <= analysis.at_s][-1:]
    for alert in alerts:
        track = alert.track
        if track.verdict is not analysis.verdict:
            continue
        at_once = abs(track.sighting.stamp.pts_s - analysis.at_s) <= _SAME_TIME_S
        here = not last or _overlap(track.sighting.detection.box, last[0].box) >= _SAME_BOX
        if here and (at_once or not result.is_whole):
            result.verdict_again = True
            result.probability_now = track.probability
            break
    if not result.verdict_again:
        result.problems.append(f"the verdict {analysis.verdict} did not come again")
    elif result.is_whole and analysis.probability is not None:
        difference = abs(analysis.probability - (result.probability_now or 0.0))
        if difference > result.tolerance:
            result.problems.append(f"the fused probability differs by {difference:.3f}")


def _frames(cut: Path, source: SourceConfig, analysis: Analysis, from_s: float) -> Iterator[Frame]:
    """Yield the frames that were analysed, with the stamps that they had.

    Raises:
        ConfigError: the pictures have another size than they had.
    """
    assert analysis.cut is not None
    starts_s = analysis.cut.starts_s
    wanted = [f for f in analysis.frames if f.pts_s >= max(from_s, starts_s) - _SAME_TIME_S]
    spans = tuple(
        (f.pts_s - starts_s - _SAME_TIME_S, f.pts_s - starts_s + _SAME_TIME_S) for f in wanted
    )
    if not spans:
        return
    decode = DecodeConfig(analyse_fps=_MOST_FPS, spans=spans)
    from_file = source.model_copy(update={"uri": SecretStr(str(cut.resolve()))})
    decoder = open_decoder(from_file, decode, session=analysis.session)
    for frame in decoder.frames():
        if frame is None:
            continue
        stamp = frame.stamp
        pts_s = stamp.pts_s + starts_s
        known = min(wanted, key=lambda f: abs(f.pts_s - pts_s))
        if abs(known.pts_s - pts_s) > 2 * _SAME_TIME_S:
            continue
        if (stamp.width, stamp.height) != (analysis.width, analysis.height):
            raise ConfigError(
                f"{cut}: pictures of {stamp.width}x{stamp.height}, and then of "
                f"{analysis.width}x{analysis.height}: can't be compared"
            )
        yield replace(frame, stamp=replace(stamp, pts_s=known.pts_s, index=known.index))


def _config(folder: Path, models: Sequence[Path]) -> StreamConfig:
    """Return the configuration of the analysis, with networks that are here.

    Raises:
        ConfigError: a network is not here.
    """
    then = _read(folder / PRODUCER, Producer)
    analysis = _read(folder / ANALYSIS, Analysis)
    recorded = _json(folder / CONFIG)
    try:
        parts: dict[str, Any] = {name: recorded[name] for name in _OF_ANALYSIS}
        sources = [s for s in recorded["sources"] if s["id"] == analysis.source_id]
        pixels = {key: sources[0][key] for key in ("pixel_aspect", "max_pixels")}
        named = [engine["manifest"] for engine in parts["score"]["engines"]]
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{folder / CONFIG}: lacks {error}") from error
    here = [*models, *map(Path, named), *(engine.path for engine in shipped_engines())]
    for engine, wanted in zip(parts["score"]["engines"], then.engines, strict=True):
        engine["manifest"] = _found(wanted, here)
    parts["detect"]["engines"] = _detector(then.detector, Path(parts["detect"]["engines"]))
    try:
        return StreamConfig.model_validate(
            {**parts, "sources": [{"id": analysis.source_id, "uri": "cut", **pixels}]}
        )
    except ValidationError as error:
        raise ConfigError(f"{folder / CONFIG}: {one_line(error, StreamConfig)}") from error


def _found(wanted: Network, here: Iterable[Path]) -> Path:
    """Return the manifest of a network, known by its graph.

    Raises:
        ConfigError: it is not here.
    """
    for path in here:
        try:
            if network(path).onnx_sha256 == wanted.onnx_sha256:
                return path
        except (EngineError, OSError):
            continue  # whatever lies there, it is not the network
    raise ConfigError(
        f"the engine {wanted.name} (graph {wanted.onnx_sha256[:12]}) is not here; name its "
        "manifest by --model"
    )


def _detector(wanted: Sequence[Network], named: Path) -> Path:
    """Return the folder of the networks that find faces."""
    for folder in (named, SHIPPED / "mtcnn"):
        paths = [folder / f"{net}.manifest.json" for net in DETECTOR_NETS]
        try:
            if [network(path).onnx_sha256 for path in paths] == [w.onnx_sha256 for w in wanted]:
                return folder
        except (EngineError, OSError):
            continue  # likewise
    raise ConfigError(
        "the face detector of the bundle is not here: other networks lie in its place"
    )


def _is_same(score: AttackScore, look: Look) -> bool:
    return _overlap(score.sighting.detection.box, look.box) >= _SAME_BOX


def _overlap(a: NDArray[Any], b: tuple[float, float, float, float]) -> float:
    """Return intersection over union of two boxes x1 y1 x2 y2."""
    width = min(float(a[2]), b[2]) - max(float(a[0]), b[0])
    height = min(float(a[3]), b[3]) - max(float(a[1]), b[1])
    common = max(width, 0.0) * max(height, 0.0)
    own = float((a[2] - a[0]) * (a[3] - a[1])) + (b[2] - b[0]) * (b[3] - b[1])
    return common / (own - common)


def _read(path: Path, cls: type[_Part]) -> _Part:
    """Read a part of a bundle.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        return cls.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: damaged: {one_line(error, cls)}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected an object, found a {type(data).__name__}")
    return data


def _shown(probability: float | None) -> str:
    return "none" if probability is None else f"{probability:.6f}"
