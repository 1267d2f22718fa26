"""HQ-WMCA: Mostaani et al., Idiap 2020. HDF5 recordings of several streams; colour is used.

    <root>/.../<site>_<session>_<client>_<presenter>_<type>_<subtype>_<pai>-<hash>.hdf5
    <root>/PROTOCOL-grand_test-curated.csv      path,0 = bona fide,attack/<Type>,...,train|dev|eval

Only what the curated protocol lists is read.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from pydantic import Field

from train.data.datasets._sample import Dataset, FramesOptions, ListedVideo, Split
from train.data.datasets._tree import (
    check_once,
    check_present,
    contradiction,
    list_file,
    read_lines,
    unexpected,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PROTOCOL: Final = "PROTOCOL-grand_test-curated.csv"
_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "dev": "dev", "eval": "test"}
_TYPES: Final = {  # code in the name -> type, word in the protocol
    "01": ("glasses", "glasses"),
    "02": ("mask_mannequin", "mannequin"),
    "03": ("print", "print"),
    "04": ("replay", "replay"),
    "05": ("mask_rigid", "rigidmask"),
    "06": ("mask_flexible", "flexiblemask"),
    "07": ("mask_paper", "papermask"),
    "08": ("wig", "wig"),
    "09": ("tattoo", "tattoo"),
    "10": ("makeup", "makeup"),
}
_NAME: Final = re.compile(
    r"(?P<site>\d+)_(?P<session>\d+)_(?P<client>\d+)_(?P<presenter>\d+)_(?P<type>\d\d)"
    r"_(?P<subtype>\d\d)_(?P<pai>\d+)-[0-9a-f]+"
)


class Options(FramesOptions, frozen=True, extra="forbid"):
    """Options of HQ-WMCA."""

    protocol: Path | None = Field(None, description=f"Default: {_PROTOCOL} in the root.")


def _scan(root: Path, options: Options) -> list[ListedVideo]:
    table = list_file(
        root, _PROTOCOL, given=options.protocol, get_from="the data set's owner, Idiap"
    )
    rows = list(csv.reader(read_lines(table)))
    if rows and rows[0][-1] not in _SPLITS:
        rows = rows[1:]  # a header
    listed = {f"{row[0].removesuffix('.hdf5')}.hdf5": row for row in rows}
    check_once(table, (row[0] for row in rows))
    present = {path for path in listed if (root / path).is_file()}
    check_present("hq_wmca", listed, present, options.max_missing)
    return [_parse(path, listed[path], table, options) for path in sorted(present)]


def _parse(path: str, row: Sequence[str], table: Path, options: Options) -> ListedVideo:
    match = _NAME.fullmatch(PurePosixPath(path).stem)
    if match is None or (match["type"] != "00" and match["type"] not in _TYPES):
        raise unexpected(
            path, "<site>_<session>_<client>_<presenter>_<type>_<subtype>_<pai>-<hash>.hdf5"
        )
    if len(row) < 4 or row[-1] not in _SPLITS:
        raise TrainError(f"{table}: {path}: expected path, label, type, ..., train|dev|eval")
    attack_type, word = _TYPES.get(match["type"], (None, ""))
    listed = "" if row[1] == "0" else row[2].removeprefix("attack/").lower()
    if listed != word:
        raise contradiction(path, row[2], attack_type or "bona fide")
    subject = f"hq_wmca:{match['client']}"
    return ListedVideo(
        dataset="hq_wmca",
        path=path,
        kind="hdf5",
        fps=options.frames_fps,
        attack_type=attack_type,
        split=_SPLITS[row[-1]],
        source_id=subject,
        subject=subject,
        attributes={key: match[key] for key in ("site", "session", "presenter", "subtype", "pai")},
    )


DATASET = Dataset(
    name="hq_wmca",
    description="HQ-WMCA (2020)",
    source_label_of_bona_fide="0 in the protocol's second column, type 00 in the name",
    scan=_scan,
    options=Options,
)
