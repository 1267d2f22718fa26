"""What a data set is here: a list of videos, each with label, attack type, split and group.

A data set's module holds the layout, the names, the official splits and the meaning of the labels
of one benchmark, and ends in `DATASET = Dataset(...)`. Nothing is decoded: reading lists files.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, Field, ValidationError

from models import ATTACK, BONA_FIDE, one_line
from train.data.datasets._tree import log, printable, some
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

Split: TypeAlias = Literal["train", "dev", "test"]
Kind: TypeAlias = Literal["video", "image", "frames", "hdf5"]
Family: TypeAlias = Literal["presentation", "digital"]
Level: TypeAlias = Literal["subject", "source", "video"]
"""What two sides must not share; `subject` includes `source`, and `source` includes `video`."""
LEVELS: Final[tuple[Level, ...]] = ("video", "source", "subject")

BONA_FIDE_TYPE: Final = "bona_fide"  # stands for "no attack" where attack types are named in text

_PRESENTATION: Final = (
    # on paper: flat, bent around the face, with holes for the eyes
    *("print", "warped_print", "cut_print"),
    # on a screen: a video, a still picture
    *("replay", "digital_photo"),
    # over the whole face
    *("mask_half", "mask_mannequin", "mask_paper", "mask_silicone", "mask_transparent"),
    *("mask_rigid", "mask_flexible", "mask_3d"),
    # on part of it
    *("partial_eye", "partial_funny_eye", "partial_mouth", "partial_paper_glasses"),
    *("glasses", "wig", "tattoo"),
    *("makeup", "makeup_cosmetic", "makeup_impersonation", "makeup_obfuscation"),
)
_DIGITAL: Final = (
    # FaceForensics++ names its methods
    *("deepfakes", "face2face", "faceswap", "neuraltextures", "faceshifter", "deepfake_detection"),
    "deepfake",  # another face, the method not told apart
    "sequential_edit",  # face parts or attributes edited one after the other
)
ATTACK_FAMILY: Final[Mapping[str, Family]] = MappingProxyType(
    {
        **dict.fromkeys(_PRESENTATION, "presentation"),
        **dict.fromkeys(_DIGITAL, "digital"),
    }
)
"""Every attack type that our readers of benchmarks give -> its family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedVideo:
    """One video, picture or folder of frames, as its data set lists it.

    Attributes:
        dataset: name of the data set's module.
        path: relative to the data set's root, with `/`, as the file system spells it.
        member: what of it, where `path` is an archive: a picture, or a folder of frames.
        kind: `video` file, one `image`, folder of `frames` sorted by number, or `hdf5` recording.
        attack_type: a key of `ATTACK_FAMILY` or a user's own word; None: bona fide.
        split: None: in no official split.
        source_id: the recording it was made from, or the subject where that is not known.
        subject: whose face it is; None: the data set does not tell.
        compression: where the data set comes in several.
        attributes: what else protocols ask for (phone, session, medium, ...).
        frames: first and one past the last frame to use; None: all.
        fps: of `frames` and `hdf5`, pictures per second; None: not known, so each is looked at.

    `source_id` and `subject` are unique over all data sets: `dataset:name`. A data set made from
    another (DeeperForensics from FaceForensics++) names the other's source, so that leaks show.
    """

    dataset: str
    path: str
    kind: Kind
    attack_type: str | None
    split: Split | None
    source_id: str
    subject: str | None = None
    compression: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    frames: tuple[int, int] | None = None
    member: str | None = None
    fps: float | None = None

    @property
    def label(self) -> int:
        """`BONA_FIDE` or `ATTACK`."""
        return BONA_FIDE if self.attack_type is None else ATTACK

    @property
    def family(self) -> Family | None:
        """Kind of attack; None: bona fide, or a type that is no key of `ATTACK_FAMILY`."""
        return ATTACK_FAMILY.get(self.attack_type or "")

    @property
    def video_id(self) -> str:
        """Unique over all data sets, and printable; scores of one video are fused by it.

        No path holds `//`, so nothing else is named as `archive//member`.
        """
        inside = "" if self.member is None else f"//{self.member}"
        part = "" if self.frames is None else f"#{self.frames[0]}-{self.frames[1]}"
        return f"{self.dataset}:{printable(f'{self.path}{inside}{part}')}"

    @property
    def group(self) -> str:
        """What must not be torn apart: key for home-made splits and for the bootstrap."""
        return self.subject or self.source_id


class ReadOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of every data set."""

    max_missing: float = Field(
        0.0, ge=0, le=1, description="Share of the listed videos that may be absent, logged."
    )


class CarvedDevOptions(ReadOptions, frozen=True, extra="forbid"):
    """Options of a data set without an official development split."""

    dev_share: float = Field(
        0.1, ge=0, lt=1, description="Share of the groups of split train that become split dev."
    )
    dev_seed: int = Field(0, description="Chooses which.")


class FramesOptions(ReadOptions, frozen=True, extra="forbid"):
    """Options of a data set whose clips are pictures without time."""

    frames_fps: float | None = Field(
        None,
        gt=0,
        description="Pictures per second, so that `analyse_fps` of them are looked at; None: all.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One data set: what `train.data.datasets.<name>.DATASET` is.

    Attributes:
        name: of the module.
        description: full name, authors, year.
        source_label_of_bona_fide: how the data set itself says "bona fide".
        scan: lists the videos below a root; gets an instance of `options`.
        options: class of the options.
        disjoint: what its own splits do not share; less than subjects only where the official lists
            are known to share them.
    """

    name: str
    description: str
    source_label_of_bona_fide: str
    scan: Callable[[Path, Any], list[ListedVideo]]
    options: type[ReadOptions] = ReadOptions
    disjoint: Level = "subject"

    def read(
        self, root: Path, options: Mapping[str, object] = MappingProxyType({})
    ) -> list[ListedVideo]:
        """Return every video below `root`, sorted by `video_id`.

        Raises:
            TrainError: wrong root, unknown option, missing split file, listed videos absent, a
                label that contradicts the layout, a video listed twice.
        """
        try:
            wanted = self.options.model_validate(dict(options))
        except ValidationError as error:
            raise TrainError(
                f"options of {self.name}: {one_line(error, self.options)} (known: "
                f"{', '.join(self.options.model_fields)})"
            ) from error
        if not root.is_dir():
            raise TrainError(f"{root}: expected the folder of {self.name}, found none")
        try:
            videos = sorted(self.scan(root, wanted), key=lambda video: video.video_id)
        except OSError as error:
            raise TrainError(f"{root}: can't be listed: {error}") from error
        if not videos:
            raise TrainError(f"{root}: no video of {self.name} found; see docs/datasets.md")
        twice = [name for name, n in Counter(v.video_id for v in videos).items() if n > 1]
        if twice:
            raise TrainError(f"{self.name}: listed more than once: {some(twice)}")
        if isinstance(wanted, CarvedDevOptions) and all(v.split != "dev" for v in videos):
            videos = carve_dev(videos, wanted.dev_share, wanted.dev_seed)
            dev = [video for video in videos if video.split == "dev"]
            groups = len({video.group for video in dev})
            log.info(
                "%s: no split dev, so %d videos of %d subjects or sources are carved from train",
                *(self.name, len(dev), groups),
            )
        return videos


def carve_dev(videos: Sequence[ListedVideo], share: float, seed: int) -> list[ListedVideo]:
    """Move whole groups from split train to split dev, the same ones whatever else is listed.

    Groups with the same attack types are drawn from together, so that dev holds every kind that
    train holds, unless there are fewer than two groups of a kind.
    """
    kinds: dict[str, set[str]] = defaultdict(set)
    for video in videos:
        if video.split == "train":
            kinds[video.group].add(video.attack_type or BONA_FIDE_TYPE)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group, types in kinds.items():
        strata[tuple(sorted(types))].append(group)
    chosen: set[str] = set()
    for groups in strata.values():
        n = min(math.ceil(share * len(groups)), len(groups) - 1)
        chosen.update(sorted(groups, key=lambda group: _draw(seed, group))[:n])
    return [
        replace(video, split="dev") if video.split == "train" and video.group in chosen else video
        for video in videos
    ]


def _draw(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def count_by(videos: Iterable[ListedVideo]) -> Counter[tuple[str, str]]:
    """Return how many videos there are by split (`-`: none) and attack type."""
    return Counter((v.split or "-", v.attack_type or BONA_FIDE_TYPE) for v in videos)
