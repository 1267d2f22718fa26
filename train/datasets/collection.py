"""A collection: which archives and clips of bona fide faces to learn from, and who is kept back.

A YAML names every archive and clip with its split, so that no person is on both sides; the model
card is written from the same file. Splits: `train`; `calibration` (fits calibration and
thresholds); whatever is in neither is test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, TypeAlias

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from train.errors import TrainError

Split: TypeAlias = Literal["train", "calibration"]


class ArchiveConfig(BaseModel, frozen=True, extra="forbid"):
    """A zip of pictures with a `manifest.csv` inside: columns `file`, `split` and a face box."""

    path: Path = Field(description="Zip file, relative to the collection's root.")
    prefix: str = Field("", description="Only files whose name starts so.")
    group: str = Field(description="Name of the kind of picture; training draws by group.")
    box_columns: tuple[str, str, str, str] = Field(description="Columns of x, y, width, height.")
    splits: dict[str, Split] = Field(description="The archive's own split name -> ours.")
    licence: str


class ClipConfig(BaseModel, frozen=True, extra="forbid"):
    """One video in which every face is bona fide."""

    path: Path = Field(description="Video file, relative to the collection's root.")
    people: tuple[str, ...] = Field(min_length=1, description="Who is in it, any stable names.")
    split: Split
    group: str = "clip"
    licence: str


class Collection(BaseModel, frozen=True, extra="forbid"):
    """All of it."""

    archives: tuple[ArchiveConfig, ...] = ()
    clips: tuple[ClipConfig, ...] = ()
    min_face_px: int = Field(40, ge=20, description="Smaller faces are left out.")
    clip_every_s: float = Field(0.25, gt=0, description="Least time between frames of a clip.")
    clip_frames: int = Field(24, ge=1, description="Most frames of one clip, spread over it.")

    @model_validator(mode="after")
    def _nobody_on_both_sides(self) -> Self:
        where: dict[str, set[str]] = {}
        for clip in self.clips:
            for person in clip.people:
                where.setdefault(person, set()).add(clip.split)
        both = sorted(person for person, splits in where.items() if len(splits) > 1)
        if both:
            raise ValueError(f"in train and calibration at once: {', '.join(both)}")
        return self


def load_collection(path: Path) -> Collection:
    """Read a collection's YAML.

    Raises:
        TrainError: unreadable, or not a collection; the message names the key.
    """
    try:
        return Collection.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise TrainError(f"{path}: can't read the collection: {error}") from error
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise TrainError(f"{path}: " + "; ".join(lines)) from error
