"""What a scan does otherwise than the live stream: which frames it looks at, and how far apart."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from stream.config import Options, StreamConfig

# Cameras send a key frame every one to five seconds, mostly; nothing says so before decoding.
_KEY_FRAMES_APART_S: Final = 5.0
# Searching a whole frame costs seven times as much as finding a known face again.
_SEARCHED_EVERY: Final = 3  # looks
_KEY_FRAMES_SEARCHED_S: Final = 6.0


class Mode(StrEnum):
    """Which frames of a video are looked at."""

    KEYFRAMES = "keyframes"
    SAMPLE = "sample"
    FULL = "full"  # those that the live stream looks at


class Look(StrEnum):
    """For what an analyser is set up; see `config_for`."""

    STILL = "still"
    VIDEO = "video"
    CLOSER = "closer"  # at seconds of a video where key frames showed faces


class ScanLimits(Options):
    """What one file may cost before it is given up, each in a process of its own."""

    cpu_s: float = Field(7200.0, gt=0, description="Processor time to read a file, seconds.")
    wall_s: float = Field(
        21600.0, gt=0, description="Time to read a file, seconds; waiting for the analysis counts."
    )
    silent_s: float = Field(
        120.0, gt=0, description="Longest time in which reading gets nowhere, seconds."
    )
    memory_mb: int = Field(
        2048, ge=64, description="Memory to read a file, MiB, beside that of the program."
    )
    max_pixels: int = Field(
        4096 * 2304, gt=0, description="Width times height of a video; larger ones are refused."
    )
    still_pixels: int = Field(
        100_000_000, gt=0, description="The same of a still picture, as stored."
    )
    duration_s: float = Field(
        86400.0, gt=0, description="Longest video, seconds of media time; what follows is left out."
    )
    temporary_mb: int = Field(
        32768,
        ge=1,
        description="Disk for what is fetched from object stores, MiB, all files together; a "
        "larger object is refused.",
    )


def config_for(look: Look, config: StreamConfig, mode: Mode, fps: float) -> StreamConfig:
    """Return the configuration of a kind of look; see `for_videos` and `for_stills`."""
    match look:
        case Look.STILL:
            return for_stills(config)
        case Look.VIDEO:
            return for_videos(config, mode, fps)
        case Look.CLOSER:
            return for_videos(config, Mode.SAMPLE, fps)


def for_videos(config: StreamConfig, mode: Mode, fps: float) -> StreamConfig:
    """Return the configuration for videos.

    With looks far apart, a face counts from its first sighting, and durations that were chosen for
    several looks a second grow with the step. Whole frames are searched at every third look, and
    whenever a known face is not found again or none is known.

    Args:
        config: of the live stream; `full` leaves it as it is, but looks at still faces as often as
            at others, since the coverage of a file counts looks.
        mode: which frames.
        fps: frames a second of media time that `sample` looks at, and `keyframes` at most.
    """
    score = config.score.model_copy(update={"still_interval_s": 0.0})
    config = config.model_copy(update={"score": score})
    if mode is Mode.FULL:
        return config
    pictures = "reference" if mode is Mode.SAMPLE else "keyframes"
    step_s = 1 / fps if mode is Mode.SAMPLE else max(1 / fps, _KEY_FRAMES_APART_S)
    search_s = _SEARCHED_EVERY / fps if mode is Mode.SAMPLE else _KEY_FRAMES_SEARCHED_S
    detect, track, fuse = config.detect, config.track, config.fuse
    return config.model_copy(
        update={
            "decode": config.decode.model_copy(
                update={"kind": "sampled", "pictures": pictures, "analyse_fps": fps}
            ),
            "detect": detect.model_copy(
                update={
                    "detect_every_s": max(detect.detect_every_s, search_s),
                    "search_lost": True,
                }
            ),
            "track": track.model_copy(
                update={
                    "confirm_hits": 1,
                    "confirm_s": 0.0,
                    "lost_after_s": max(track.lost_after_s, 2.5 * step_s),
                }
            ),
            "fuse": fuse.model_copy(
                update={
                    "memory_s": max(fuse.memory_s, 8 * step_s),
                    "reach_s": max(fuse.reach_s, 10 * step_s),
                }
            ),
        }
    )


def for_stills(config: StreamConfig) -> StreamConfig:
    """Return the configuration for still pictures: one look decides, or the face abstains."""
    return config.model_copy(
        update={
            "track": config.track.model_copy(update={"confirm_hits": 1, "confirm_s": 0.0}),
            "fuse": config.fuse.model_copy(
                update={"min_scores": 1, "min_effective": 1.0, "abstain_after_s": 0.0}
            ),
        }
    )
