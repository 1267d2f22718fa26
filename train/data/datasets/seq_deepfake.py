"""Seq-DeepFake: Shao et al., ECCV 2022. Pictures, edited one to five times in sequence.

    <root>/{facial_components,facial_attributes}/annotations/{train,val,test}.csv   file_path,label
    <root>/<part>/images/{train,val,test}/<sequence | original>/<name>.jpg

The label is a list of five steps padded with 0; any step makes an attack. Where a picture lies says
the same: folder `original` or the sequence. Made from CelebA-HQ and FFHQ, like other sets.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import Dataset, ListedVideo, ReadOptions, Split
from train.data.datasets._tree import (
    IMAGE_SUFFIXES,
    check_once,
    check_present,
    contradiction,
    list_file,
    log_unlisted,
    media_in,
    read_table,
    some,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PARTS: Final = ("facial_components", "facial_attributes")
_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "val": "dev", "test": "test"}


def _scan(root: Path, options: ReadOptions) -> list[ListedVideo]:
    parts = [part for part in _PARTS if (root / part).is_dir()]
    if not parts:
        found = some([entry.name for entry in root.iterdir()])
        raise TrainError(f"{root}: expected {' or '.join(_PARTS)}, found {found or 'nothing'}")
    return [
        video
        for part in parts
        for name in _SPLITS
        for video in _pictures(root, part, name, options)
    ]


def _pictures(root: Path, part: str, split: str, options: ReadOptions) -> list[ListedVideo]:
    table = list_file(
        root, f"{part}/annotations/{split}.csv", given=None, get_from="the data set's archive"
    )
    images = root / part / "images" / split
    present = {
        f"{folder.name}/{name}"
        for folder in (images.iterdir() if images.is_dir() else ())
        for name in media_in(folder, IMAGE_SUFFIXES)
    }
    rows = read_table(table, "file_path", "label")
    # However much of the path the table gives, its end is <sequence>/<name>.
    steps = {"/".join(row["file_path"].split("/")[-2:]): row["label"] for row in rows}
    check_once(table, (row["file_path"] for row in rows))
    check_present(f"{part}/{split}", steps, present, options.max_missing)
    log_unlisted(f"{part}/{split}", present - steps.keys())
    return [_parse(part, split, name, steps[name]) for name in sorted(present & steps.keys())]


def _parse(part: str, split: str, name: str, label: str) -> ListedVideo:
    path = f"{part}/images/{split}/{name}"
    folder, _, file = name.partition("/")
    try:
        steps = [int(step) for step in json.loads(label)]
    except (ValueError, TypeError) as error:
        raise TrainError(f"{path}: expected a list of numbers as label, found {label!r}") from error
    if any(steps) != (folder != "original"):
        raise contradiction(path, label, folder)
    return ListedVideo(
        dataset="seq_deepfake",
        path=path,
        kind="image",
        attack_type="sequential_edit" if any(steps) else None,
        split=_SPLITS[split],
        # Whether a name means the same face in another split is not documented.
        source_id=f"seq_deepfake:{part}/{split}/{file}",
        attributes={"part": part.removeprefix("facial_"), "sequence": folder},
    )


DATASET = Dataset(
    name="seq_deepfake",
    description="Seq-DeepFake (2022)",
    source_label_of_bona_fide="[0, 0, 0, 0, 0]",
    scan=_scan,
)
