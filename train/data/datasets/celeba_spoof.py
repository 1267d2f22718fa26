"""CelebA-Spoof: Zhang et al., ECCV 2020. Pictures.

    <root>/Data/{train,test}/<subject>/{live,spoof}/<id>.{png,jpg}      beside it <id>_BB.txt
    <root>/metas/intra_test/{train,test}_label.json     path -> 44 numbers

Of the 44, [40] is the type of attack and [43] the label, 1 = spoof. The live pictures are CelebA's,
like those behind Seq-DeepFake. No official development split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from train.data.datasets._sample import CarvedDevOptions, Dataset, ListedVideo, Split
from train.data.datasets._tree import (
    IMAGE_SUFFIXES,
    check_present,
    contradiction,
    expect_folders,
    list_file,
    log_unlisted,
    media_in,
    read_json,
    unexpected,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "test": "test"}
_TYPES: Final = (  # by number: type, medium; 0 is live
    (None, ""),
    ("print", "photo"),
    ("print", "poster"),
    ("print", "a4"),
    ("mask_paper", "face"),
    ("mask_paper", "upper_body"),
    ("mask_paper", "region"),
    ("replay", "pc"),
    ("replay", "pad"),
    ("replay", "phone"),
    ("mask_3d", ""),
)
_ILLUMINATIONS: Final = ("live", "normal", "strong", "back", "dark")
_ENVIRONMENTS: Final = ("live", "indoor", "outdoor")


def _scan(root: Path, options: CarvedDevOptions) -> list[ListedVideo]:
    expect_folders(root, "Data")
    videos: list[ListedVideo] = []
    for name, split in _SPLITS.items():
        table = list_file(
            root,
            f"metas/intra_test/{name}_label.json",
            given=None,
            get_from="the data set's archive",
        )
        labels: dict[str, Any] = read_json(table)
        present = _pictures(root, name)
        check_present(f"Data/{name}", labels, present, options.max_missing)
        log_unlisted(f"Data/{name}", present - labels.keys())
        videos += [_parse(path, split, labels[path]) for path in sorted(present & labels.keys())]
    return videos


def _pictures(root: Path, name: str) -> set[str]:
    top = root / "Data" / name
    return {
        f"Data/{name}/{subject.name}/{kind}/{file}"
        for subject in (top.iterdir() if top.is_dir() else ())
        for kind in ("live", "spoof")
        for file in media_in(subject / kind, IMAGE_SUFFIXES)
    }


def _parse(path: str, split: Split, numbers: Sequence[int]) -> ListedVideo:
    match path.split("/"):
        case ["Data", _, subject, ("live" | "spoof") as kind, _]:
            pass
        case _:
            raise unexpected(path, "Data/<split>/<subject>/<live or spoof>/<id>")
    try:
        number, illumination, environment, spoof = numbers[40:]
        attack_type, medium = _TYPES[number]
        attributes = {
            "illumination": _ILLUMINATIONS[illumination],
            "environment": _ENVIRONMENTS[environment],
        }
    except (ValueError, IndexError) as error:
        raise TrainError(f"{path}: not a label of 44 numbers: {numbers}") from error
    if (spoof == 1) != (kind == "spoof") or (attack_type is None) != (kind == "live"):
        raise contradiction(path, f"spoof {spoof}, type {number}", kind)
    return ListedVideo(
        dataset="celeba_spoof",
        path=path,
        kind="image",
        attack_type=attack_type,
        split=split,
        source_id=f"celeba_spoof:{subject}",
        subject=f"celeba_spoof:{subject}",
        attributes=attributes | ({"medium": medium} if medium else {}),
    )


DATASET = Dataset(
    name="celeba_spoof",
    description="CelebA-Spoof (2020)",
    source_label_of_bona_fide="0 in the label's last number, folder live",
    scan=_scan,
    options=CarvedDevOptions,
)
