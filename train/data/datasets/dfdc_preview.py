"""DFDC preview: Dolhansky et al., 2019.

    <root>/dataset.json
    <root>/{method_A,method_B}/.../*.mp4, original_videos/<actor>/*.mp4

`dataset.json`: path -> {label: real | fake, set: train | test, target_id, swapped_id, ...}. A
widely used re-pack lacks method_B: reading it fails, naming what is absent, unless allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from train.data.datasets._sample import CarvedDevOptions, Dataset, ListedVideo, Split
from train.data.datasets._tree import (
    check_present,
    contradiction,
    list_file,
    read_json,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "test": "test"}


def _scan(root: Path, options: CarvedDevOptions) -> list[ListedVideo]:
    table = list_file(root, "dataset.json", given=None, get_from="the data set's archive")
    listed: dict[str, dict[str, Any]] = read_json(table)
    present = {path for path in listed if (root / path).is_file()}
    check_present("dfdc_preview", listed, present, options.max_missing)
    return [_parse(path, listed[path]) for path in present]


def _parse(path: str, row: Mapping[str, Any]) -> ListedVideo:
    label, split = row.get("label"), str(row.get("set"))
    if label not in ("real", "fake") or split not in _SPLITS:
        raise TrainError(f"dataset.json: {path}: unknown label {label!r} or set {split!r}")
    top = path.partition("/")[0]
    if (top == "original_videos") != (label == "real"):
        raise contradiction(path, label, top)
    target = row.get("target_id")
    return ListedVideo(
        dataset="dfdc_preview",
        path=path,
        kind="video",
        attack_type=None if label == "real" else "deepfake",
        split=_SPLITS[split],
        source_id=f"dfdc_preview:{path if target is None else target}",
        subject=None if target is None else f"dfdc_preview:{target}",
        attributes={} if label == "real" else {"method": top.removeprefix("method_")},
    )


DATASET = Dataset(
    name="dfdc_preview",
    description="DFDC preview (2019)",
    source_label_of_bona_fide="real in dataset.json",
    scan=_scan,
    options=CarvedDevOptions,
)
