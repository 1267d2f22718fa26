"""What engines are judged on before they ship: which clips and pictures, and who is in them."""

from __future__ import annotations

import csv
import io
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import yaml
from pydantic import BaseModel, Field, ValidationError

from models import one_line
from train.errors import TrainError
from train.evaluation.clips import LabelledClips, load_labelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Degradation: TypeAlias = Literal["bit_rate", "blur", "scale", "noise", "gamma"]


class MeasureSets(BaseModel, frozen=True, extra="forbid"):
    """Pictures of real attacks and bona fide faces with a manifest."""

    manifest: Path = Field(
        description="CSV with the columns file (relative to its folder), label, attack_kind, "
        "dataset and person; relative to the root."
    )
    sets: dict[str, str] = Field(description="`dataset` of the manifest -> name in the report.")


class PortraitSet(BaseModel, frozen=True, extra="forbid"):
    """Bona fide portraits in an archive, each of another person."""

    archive: Path = Field(
        description="Zip with a manifest.csv of the columns file, source and split; relative to "
        "the root."
    )
    split: str = Field(description="Which of them; never the one that training sees.")


class LadderRungs(BaseModel, frozen=True, extra="forbid"):
    """How bona fide footage is degraded, one thing at a time."""

    seconds: float = Field(gt=0, description="Of each clip, from its start.")
    rungs: dict[Degradation, tuple[float, ...]] = Field(
        description="bit_rate: bits a pixel; blur: standard deviation, px of a picture of 480 "
        "lines; scale: side over what it was; noise: standard deviation, grey levels of 256; "
        "gamma: exponent."
    )


class ShippedSets(BaseModel, frozen=True, extra="forbid"):
    """All that shipped engines are judged on."""

    clips: Path = Field(description="List of labelled clips, beside this file.")
    same_people: tuple[tuple[Path, ...], ...] = Field(
        (), description="Clips and pictures of the same person; any other is its own person."
    )
    measure: MeasureSets
    portraits: PortraitSet
    ladder: LadderRungs

    def person(self, path: Path) -> str:
        """Return who is in a clip or picture of the list, as far as is known."""
        of_path = next((group for group in self.same_people if path in group), (path,))
        return of_path[0].as_posix()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture to be looked at once."""

    name: str  # for errors
    set: str
    label: str
    kind: str  # "bona_fide", or the attack's
    person: str
    read: Callable[[], bytes]


def load_shipped_sets(path: Path) -> tuple[ShippedSets, LabelledClips]:
    """Read what to judge on, and the list of clips that it names.

    Raises:
        TrainError: unreadable or malformed.
    """
    try:
        sets = ShippedSets.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise TrainError(f"{path}: {one_line(error, ShippedSets)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f"{path}: can't read what to judge on: {error}") from error
    return sets, load_labelled(path.parent / sets.clips)


def labelled_stills(sets: ShippedSets, labelled: LabelledClips, root: Path) -> list[Picture]:
    """Return the single pictures of the labelled list."""
    return [
        Picture(
            name=str(root / still.path),
            set=still.group,
            label=still.label,
            kind=still.label,
            person=sets.person(still.path),
            read=(root / still.path).read_bytes,
        )
        for still in labelled.stills
    ]


def measured_pictures(sets: MeasureSets, root: Path) -> list[Picture]:
    """Return the pictures of the manifest, in its order.

    Raises:
        TrainError: the manifest is missing or malformed, or holds a set without a name.
    """
    path = root / sets.manifest
    with _told(path):
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return [
            Picture(
                name=str(path.parent / row["file"]),
                set=sets.sets[row["dataset"]],
                label=row["label"],
                kind=row["attack_kind"] or row["label"],
                person=row["person"],
                read=(path.parent / row["file"]).read_bytes,
            )
            for row in rows
        ]


@contextmanager
def opened_portraits(portraits: PortraitSet, root: Path) -> Iterator[list[Picture]]:
    """Give the portraits of the split; they can be read while the archive is open.

    Raises:
        TrainError: the archive or its manifest is missing or malformed.
    """
    path = root / portraits.archive
    with _told(path):
        archive = zipfile.ZipFile(path)
    with archive:
        with _told(path):
            text = archive.read("manifest.csv").decode()
            pictures = [
                Picture(
                    name=f"{path}//{row['file']}",
                    set=row["source"].replace("_", " "),
                    label="bona_fide",
                    kind="bona_fide",
                    person=row["file"],
                    read=partial(archive.read, row["file"]),
                )
                for row in csv.DictReader(io.StringIO(text))
                if row["split"] == portraits.split
            ]
        yield pictures


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say which file can't be used, and how to do without it."""
    try:
        yield
    except KeyError as error:
        raise TrainError(f"{path}: no {error} in its manifest, or no name given to it") from error
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile, csv.Error) as error:
        raise TrainError(
            f"{path}: can't be read ({error}); check --root, or name the parts that you have with "
            "--part"
        ) from error
