"""DeeperForensics-1.0: Jiang et al., CVPR 2020. Attacks only.

    <root>/lists/splits/{train,val,test}.txt            names of the 1000 videos of a variant
    <root>/manipulated_videos/<variant>/<FF++ target>_<actor>.mp4       11 variants

The bona fide class are FaceForensics++'s YouTube originals (c23) with the same ids. The videos in
`source_videos` are recordings of the face donors, not bona fide data, and are not listed. The split
is not that of FaceForensics++: `source_id` names the original there, so that a detector trained on
it can't be tested here unnoticed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import Field

from train.data.datasets._sample import Dataset, ListedVideo, ReadOptions, Split
from train.data.datasets._tree import (
    check_once,
    check_present,
    expect_folders,
    list_file,
    log_unlisted,
    media_in,
    read_lines,
    unexpected,
)
from train.data.datasets.ffpp import youtube_source

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME: Final = re.compile(r"(?P<target>\d{3})_(?P<donor>\w+)\.mp4")
_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "val": "dev", "test": "test"}


class Options(ReadOptions, frozen=True, extra="forbid"):
    """Options of DeeperForensics."""

    splits: Path | None = Field(None, description="Default: lists/splits in the root.")


def _scan(root: Path, options: Options) -> list[ListedVideo]:
    expect_folders(root, "manipulated_videos")
    split_of = _read_splits(root, options.splits)
    videos: list[ListedVideo] = []
    for folder in sorted((root / "manipulated_videos").iterdir()):
        names = media_in(folder)
        if names:
            relative = folder.relative_to(root).as_posix()
            check_present(relative, split_of, names, options.max_missing)
            log_unlisted(relative, set(names) - split_of.keys())
            videos += [_parse(relative, name, split_of.get(name)) for name in names]
    return videos


def _read_splits(root: Path, given: Path | None) -> dict[str, Split]:
    split_of: dict[str, Split] = {}
    names: list[str] = []
    for name, split in _SPLITS.items():
        path = list_file(
            root,
            f"lists/splits/{name}.txt",
            given=None if given is None else given / f"{name}.txt",
            get_from="the data set's archive",
        )
        lines = read_lines(path)
        names += lines
        split_of |= dict.fromkeys(lines, split)
    check_once("the splits of DeeperForensics", names)
    return split_of


def _parse(folder: str, name: str, split: Split | None) -> ListedVideo:
    match = _NAME.fullmatch(name)
    if match is None:
        raise unexpected(f"{folder}/{name}", "<3 digits>_<actor>.mp4")
    return ListedVideo(
        dataset="deeper_forensics",
        path=f"{folder}/{name}",
        kind="video",
        attack_type="deepfake",
        split=split,
        source_id=youtube_source(match["target"]),
        attributes={"variant": Path(folder).name, "donor": match["donor"]},
    )


DATASET = Dataset(
    name="deeper_forensics",
    description="DeeperForensics-1.0 (2020)",
    source_label_of_bona_fide="none: attacks only",
    scan=_scan,
    options=Options,
)
