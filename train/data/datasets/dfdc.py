"""DeepFake Detection Challenge: Dolhansky et al., 2020.

    <root>/dfdc_train_part_<0..49>/<10 letters>.mp4 + metadata.json     some parts one folder deeper
    <root>/test/<10 letters>.mp4 + labels.csv                           filename,label; 1 = fake

`metadata.json`: file -> {label: REAL | FAKE, split: train, original: file of the real, or null}.
What is downloaded (single parts, the test set) is read. Fakes of one original stay together.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import CarvedDevOptions, Dataset, ListedVideo
from train.data.datasets._tree import (
    check_present,
    contradiction,
    list_file,
    log_unlisted,
    media_in,
    read_json,
    read_table,
    some,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

_PART: Final = re.compile(r"dfdc_train_part_(\d+)")
_GET_FROM: Final = "the data set's archive"


def _scan(root: Path, options: CarvedDevOptions) -> list[ListedVideo]:
    parts = [entry for entry in sorted(root.iterdir()) if _PART.fullmatch(entry.name)]
    test = root / "test"
    if not parts and not test.is_dir():
        found = some([entry.name for entry in root.iterdir()])
        raise TrainError(
            f"{root}: expected dfdc_train_part_<n> or test, found {found or 'nothing'}"
        )
    videos = [video for part in parts for video in _train_part(root, part, options)]
    return videos + (_test(root, test, options) if test.is_dir() else [])


def _train_part(root: Path, part: Path, options: CarvedDevOptions) -> list[ListedVideo]:
    inner = [entry for entry in sorted(part.iterdir()) if _PART.fullmatch(entry.name)]
    folder = inner[0] if len(inner) == 1 and not media_in(part) else part
    metadata = read_json(list_file(folder, "metadata.json", given=None, get_from=_GET_FROM))
    relative = folder.relative_to(root).as_posix()
    present = set(media_in(folder))
    check_present(relative, metadata.keys(), present, options.max_missing)
    log_unlisted(relative, present - metadata.keys())
    videos = []
    for file in sorted(present & metadata.keys()):
        label, original = metadata[file].get("label"), metadata[file].get("original")
        if label not in ("REAL", "FAKE"):
            raise TrainError(f"{relative}/metadata.json: {file}: unknown label {label!r}")
        if (label == "FAKE") != (original is not None):
            raise contradiction(f"{relative}/{file}", label, f"original {original}")
        videos.append(
            ListedVideo(
                dataset="dfdc",
                path=f"{relative}/{file}",
                kind="video",
                attack_type="deepfake" if label == "FAKE" else None,
                split="train",
                source_id=f"dfdc:{original or file}",
                attributes={"part": part.name.rpartition("_")[2]},
            )
        )
    return videos


def _test(root: Path, folder: Path, options: CarvedDevOptions) -> list[ListedVideo]:
    path = list_file(root, "test/labels.csv", "labels.csv", given=None, get_from=_GET_FROM)
    labels = {row["filename"]: row["label"] for row in read_table(path, "filename", "label")}
    unknown = {label for label in labels.values() if label not in ("0", "1")}
    if unknown:
        raise TrainError(f"{path}: expected the labels 0 and 1, found {some(unknown)}")
    present = set(media_in(folder))
    check_present("test", labels, present, options.max_missing)
    log_unlisted("test", present - labels.keys())
    return [
        ListedVideo(
            dataset="dfdc",
            path=f"test/{file}",
            kind="video",
            attack_type="deepfake" if labels[file] == "1" else None,
            split="test",
            source_id=f"dfdc:test/{file}",  # originals are not told
        )
        for file in sorted(present & labels.keys())
    ]


DATASET = Dataset(
    name="dfdc",
    description="DeepFake Detection Challenge (2020)",
    source_label_of_bona_fide="REAL in metadata.json, 0 in labels.csv",
    scan=_scan,
    options=CarvedDevOptions,
)
