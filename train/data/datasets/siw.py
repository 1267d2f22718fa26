"""SiW, Spoof in the Wild: Liu et al., CVPR 2018.

    <root>/{Train,Test}/{live,spoof}/<subject>/<subject>-<sensor>-<type>-<medium>-<session>.mov

Type 1 is live, 2 print, 3 replay. 90 subjects train, 75 test; no official development split.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import CarvedDevOptions, Dataset, ListedVideo, Split
from train.data.datasets._tree import contradiction, expect_folders, media_in, unexpected

if TYPE_CHECKING:
    from collections.abc import Mapping

_FOLDERS: Final[Mapping[str, Split]] = {"Train": "train", "Test": "test"}
_NAME: Final = re.compile(
    r"(?P<subject>\d+)-(?P<sensor>\d+)-(?P<type>[123])-(?P<medium>\d+)-(?P<session>\d+)"
)
_TYPES: Final = {"1": None, "2": "print", "3": "replay"}


def _scan(root: Path, _options: CarvedDevOptions) -> list[ListedVideo]:
    expect_folders(root, *(f"{top}/{kind}" for top in _FOLDERS for kind in ("live", "spoof")))
    return [
        _parse(f"{top}/{kind}/{folder.name}/{name}", split, kind)
        for top, split in _FOLDERS.items()
        for kind in ("live", "spoof")
        for folder in sorted((root / top / kind).iterdir())
        for name in media_in(folder, {".mov"})
    ]


def _parse(path: str, split: Split, kind: str) -> ListedVideo:
    match = _NAME.fullmatch(Path(path).stem)
    if match is None or match["subject"] != Path(path).parent.name:
        raise unexpected(path, "<subject>/<subject>-<sensor>-<type>-<medium>-<session>.mov")
    attack_type = _TYPES[match["type"]]
    if (attack_type is None) != (kind == "live"):
        raise contradiction(path, kind, attack_type or "live")
    subject = f"siw:{match['subject']}"
    return ListedVideo(
        dataset="siw",
        path=path,
        kind="video",
        attack_type=attack_type,
        split=split,
        source_id=subject,
        subject=subject,
        attributes={key: match[key] for key in ("sensor", "medium", "session")},
    )


DATASET = Dataset(
    name="siw",
    description="SiW, Spoof in the Wild (2018)",
    source_label_of_bona_fide="folder live, type 1 in the name",
    scan=_scan,
    options=CarvedDevOptions,
)
