"""Bona fide faces only, from clips and zipped pictures that a YAML lists: attacks are made of them.

    <root>/collection.yaml     or the file of the option `collection`

The YAML names every clip and archive with its split, so that no person is on both sides; model
cards are written from the same file. What is in neither `train` nor `dev` is not listed.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from models import one_line
from train.data.datasets._sample import Dataset, ListedVideo, ReadOptions
from train.data.datasets._tree import check_present, table_rows
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator


class RealFacesOptions(ReadOptions, frozen=True, extra="forbid"):
    """Options of this data set."""

    collection: Path | None = Field(None, description="YAML; default: collection.yaml in the root.")


class _Archive(BaseModel, frozen=True, extra="forbid"):
    """A zip of pictures with a `manifest.csv` inside: columns `file` and `split`."""

    path: str = Field(description="Zip file, relative to the root.")
    prefix: str = Field("", description="Only files whose name starts so.")
    group: str = Field(description="Kind of picture; a recipe may draw by it.")
    splits: dict[str, Literal["train", "dev"]] = Field(description="The archive's name -> ours.")
    licence: str = Field(description="Of the pictures, in words.")


class _Clip(BaseModel, frozen=True, extra="forbid"):
    """One video in which every face is bona fide."""

    path: str = Field(description="Relative to the root.")
    people: tuple[str, ...] = Field(min_length=1, description="Who is in it, any stable names.")
    split: Literal["train", "dev"] = Field(description="Where its faces go.")
    group: str = Field("clip", description="Kind of picture; a recipe may draw by it.")
    licence: str = Field(description="Of the video, in words.")


class _Collection(BaseModel, frozen=True, extra="forbid"):
    archives: tuple[_Archive, ...] = Field((), description="Zips of pictures.")
    clips: tuple[_Clip, ...] = Field((), description="Videos.")

    @model_validator(mode="after")
    def _nobody_on_both_sides(self) -> Self:
        where: dict[str, set[str]] = {}
        for clip in self.clips:
            for person in clip.people:
                where.setdefault(person, set()).add(clip.split)
        both = sorted(person for person, splits in where.items() if len(splits) > 1)
        if both:
            raise ValueError(f"in train and dev at once: {', '.join(both)}")
        return self


def _scan(root: Path, options: RealFacesOptions) -> list[ListedVideo]:
    path = options.collection or root / "collection.yaml"
    try:
        collection = _Collection.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f"{path}: can't read the collection: {error}") from error
    except ValidationError as error:
        raise TrainError(f"{path}: {one_line(error, _Collection)}") from error
    listed = {clip.path for clip in collection.clips}
    present = {name for name in listed if (root / name).is_file()}
    check_present(path.name, listed, present, options.max_missing)
    clips = [
        ListedVideo(
            dataset="real_faces",
            path=clip.path,
            kind="video",
            attack_type=None,
            split=clip.split,
            source_id=f"real_faces:{clip.path}",
            subject=f"real_faces:{'+'.join(sorted(clip.people))}",
            attributes={"group": clip.group, "licence": clip.licence},
        )
        for clip in collection.clips
        if clip.path in present
    ]
    return clips + [v for archive in collection.archives for v in _pictures(root, archive)]


def _pictures(root: Path, archive: _Archive) -> Iterator[ListedVideo]:
    path = root / archive.path
    try:
        with zipfile.ZipFile(path) as pictures:
            text = pictures.read("manifest.csv").decode("utf-8-sig")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TrainError(f"{path}: can't read the archive: {error}") from error
    rows = table_rows(f"{path}//manifest.csv", text.splitlines(), "file", "split")
    for row in rows:
        if row["file"].startswith(archive.prefix) and row["split"] in archive.splits:
            yield ListedVideo(
                dataset="real_faces",
                path=archive.path,
                member=row["file"],
                kind="image",
                attack_type=None,
                split=archive.splits[row["split"]],
                source_id=f"real_faces:{archive.path}//{row['file']}",
                attributes={"group": archive.group, "licence": archive.licence},
            )


DATASET = Dataset(
    name="real_faces",
    description="Bona fide faces of your own choice, for training with synthetic attacks",
    source_label_of_bona_fide="everything",
    scan=_scan,
    options=RealFacesOptions,
)
