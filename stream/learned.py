"""What was learned of a camera: its thresholds, and what its visits looked like.

The file is written by `run_stream.py --learn` (`stream/learn/`) and named by `sources[].learned`.
It holds for the networks and settings that it was learned with, and for no others.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from models import one_line, whole_file
from stream.errors import ConfigError
from stream.stages.fuse import Detector, attack_detector, check_reach
from trt_engines.errors import EngineError
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from stream.config import SourceConfig, StreamConfig

MEASURES: Final = ("score", "face_px", "sharpness", "brightness", "turn")
# Options that change what a face's fused probability is; the others only say what becomes of it.
_FUSION: Final = ("correlation_s", "memory_s", "prior_looks", "min_scores", "min_effective")


class Engine(BaseModel, frozen=True, extra="forbid"):
    """An attack detector that scored."""

    name: str
    onnx_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Learned(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Thresholds of one camera, and what they rest on."""

    schema_version: Literal["facewarden-learned/v1"] = "facewarden-learned/v1"
    source_id: str
    learned_at: str = Field(description="ISO 8601, UTC.")
    engines: tuple[Engine, ...]
    settings_sha256: str = Field(description="Of the options that change a score.")
    enter: float = Field(ge=0.5, le=1, description="At or above: ATTACK.")
    leave: float = Field(ge=0, le=0.5, description="Below: BONA_FIDE.")
    budget: float = Field(gt=0, description="False alarms a week, at most, that were asked for.")
    confidence: float = Field(gt=0, lt=1, description="That they are no more than `at_most`.")
    at_most: float = Field(ge=0, description="False alarms a week: the bound at `enter`.")
    rule: Literal["counted", "tail"] = Field(
        description="`counted`: without an assumption; `tail`: extrapolated, see docs/learn.md."
    )
    watched_s: float = Field(gt=0, description="Media time that was watched.")
    visits: int = Field(ge=1, description="Seen in that time.")
    judged: int = Field(ge=0, description="Of those, with looks enough for a verdict.")
    highest: float = Field(ge=0, le=1, description="Highest probability of a visit.")
    reference: dict[str, tuple[float, ...]] = Field(
        description="By measure: its mean in each visit, sorted; of many visits some."
    )


def engines_of(config: StreamConfig) -> tuple[Engine, ...]:
    """Return the attack detectors of a run.

    Raises:
        EngineError: a manifest is missing or damaged.
    """
    manifests = [load_manifest(engine.manifest) for engine in config.score.engines]
    return tuple(Engine(name=m.name, onnx_sha256=m.onnx_sha256) for m in manifests)


def settings_sha256(config: StreamConfig) -> str:
    """Return the digest of the options that change what a face's fused probability is."""
    settings = {
        "detect": config.detect.model_dump(mode="json", exclude={"engines"}),
        "track": config.track.model_dump(mode="json"),
        "quality": config.quality.model_dump(mode="json"),
        "look_every_s": [config.look_every_s(engine) for engine in config.score.engines],
        "fuse": {name: getattr(config.fuse, name) for name in _FUSION},
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def save_learned(path: Path, learned: Learned) -> None:
    """Write what was learned, replacing an old file in one step.

    Raises:
        ConfigError: it can't be written.
    """
    try:
        with whole_file(path) as partial:
            partial.write_text(learned.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror})") from error


def load_learned(path: Path, source_id: str, config: StreamConfig) -> Learned:
    """Read what was learned of a source.

    Raises:
        ConfigError: it can't be read, or was learned of another source, with other detectors or
            other settings: its thresholds would mean something else; or no track can reach them.
        EngineError: a manifest of `config` is missing or damaged.
    """
    try:
        learned = Learned.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: not what --learn writes: {one_line(error, Learned)}") from error
    again = f"learn again: run_stream.py --learn {source_id}"
    if learned.source_id != source_id:
        raise ConfigError(
            f"{path}: learned of the source {learned.source_id}, named for {source_id}; every "
            f"camera has its own: {again}"
        )
    engines = engines_of(config)
    if learned.engines != engines:
        then, now = (", ".join(f"{e.name} {e.onnx_sha256[:12]}" for e in each)
                     for each in (learned.engines, engines))  # fmt: skip
        raise ConfigError(f"{path}: learned with the detectors {then}, found {now}; {again}")
    if learned.settings_sha256 != settings_sha256(config):
        raise ConfigError(
            f"{path}: learned with other options of detect, track, quality, score.interval_s, "
            f"decode.analyse_fps or fuse, which change scores; restore them, or {again}"
        )
    own = config.fuse.model_copy(update={"enter": learned.enter, "leave": learned.leave})
    try:
        check_reach(own, _detectors_of(config))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return learned


def _detectors_of(config: StreamConfig) -> list[Detector]:
    return [
        attack_detector(load_manifest(engine.manifest), config.look_every_s(engine))
        for engine in config.score.engines
    ]


def learned_of(source: SourceConfig, config: StreamConfig) -> Learned | None:
    """Read what was learned of a source, if it names anything.

    Args:
        source: which; need not be of `config`.
        config: of the run.

    Raises:
        ConfigError: see `load_learned`; or a manifest is missing or damaged.
    """
    if source.learned is None:
        return None
    try:
        return load_learned(source.learned, source.id, config)
    except EngineError as error:
        raise ConfigError(str(error)) from error
