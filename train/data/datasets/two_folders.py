"""Your own data, in two folders.

    <root>[/{train,dev,test}]/bona_fide/...
    <root>[/{train,dev,test}]/attack/<type>/...

A video is one file, at any depth. A picture directly in `bona_fide` or `attack/<type>` stands
alone; pictures in a deeper folder are the frames of one clip. `<type>` should be a name of
`_sample.ATTACK_FAMILY`, if one fits, or is your own word.

With `<root>/videos.csv` the files that it lists are read, and no others. Columns: `path`, `label`
(bona_fide or attack) and, as known, `attack_type`, `split`, `subject`, `source`, `first_frame`,
`last_frame`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from train.data.datasets._sample import (
    BONA_FIDE_TYPE,
    CarvedDevOptions,
    Dataset,
    Kind,
    ListedVideo,
    Split,
)
from train.data.datasets._tree import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    check_present,
    contradiction,
    read_table,
    some,
    unexpected,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TABLE: Final = "videos.csv"
_SPLITS: Final[tuple[Split, ...]] = get_args(Split)


def _scan(root: Path, options: CarvedDevOptions) -> list[ListedVideo]:
    if (root / _TABLE).is_file():
        return _from_table(root, options)
    tops: list[tuple[str, Split | None]] = [("", None), *((f"{s}/", s) for s in _SPLITS)]
    tops = [(top, split) for top, split in tops if (root / top / BONA_FIDE_TYPE).is_dir()]
    if not tops:
        found = some([entry.name for entry in root.iterdir()])
        raise TrainError(
            f"{root}: expected the folders bona_fide and attack, directly or in train, dev and"
            f" test, or {_TABLE}; found {found or 'nothing'}"
        )
    return [video for top, split in tops for video in _from_folders(root, top, split)]


def _from_folders(root: Path, top: str, split: Split | None) -> Iterator[ListedVideo]:
    for path, kind in _media(root, f"{top}{BONA_FIDE_TYPE}"):
        yield _listed(path, kind, None, split)
    attacks = root / top / "attack"
    for entry in sorted(attacks.iterdir()) if attacks.is_dir() else ():
        if not entry.is_dir():
            raise unexpected(f"{top}attack/{entry.name}", "a folder for each type of attack")
        for path, kind in _media(root, f"{top}attack/{entry.name}"):
            yield _listed(path, kind, entry.name, split)


def _media(root: Path, folder: str) -> Iterator[tuple[str, Kind]]:
    for place, _, names in os.walk(root / folder):
        relative = Path(place).relative_to(root).as_posix()
        pictures = False
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix in VIDEO_SUFFIXES:
                yield f"{relative}/{name}", "video"
            elif suffix in IMAGE_SUFFIXES:
                if relative == folder:
                    yield f"{relative}/{name}", "image"
                pictures = True
        if pictures and relative != folder:
            yield relative, "frames"


def _from_table(root: Path, options: CarvedDevOptions) -> list[ListedVideo]:
    rows = read_table(root / _TABLE, "path", "label")
    present = {row["path"] for row in rows if (root / row["path"]).exists()}
    check_present(_TABLE, {row["path"] for row in rows}, present, options.max_missing)
    return [_parse(root, row) for row in rows if row["path"] in present]


def _parse(root: Path, row: Mapping[str, str]) -> ListedVideo:
    path, label = row["path"], row["label"]
    attack_type, split = row.get("attack_type") or None, row.get("split") or None
    if label not in ("bona_fide", "attack") or split not in (None, *_SPLITS):
        raise TrainError(
            f"{_TABLE}: {path}: expected label bona_fide or attack and split train, dev, test or"
            f" none; found {label!r} and {split!r}"
        )
    folders = set(Path(path).parts) & {"bona_fide", "attack"}
    if (attack_type and label == "bona_fide") or folders - {label}:
        raise contradiction(path, label, attack_type or some(folders))
    if (root / path).is_dir():
        kind: Kind = "frames"
    else:
        kind = "video" if Path(path).suffix.lower() in VIDEO_SUFFIXES else "image"
    first, last = row.get("first_frame"), row.get("last_frame")
    try:
        frames = (int(first), int(last) + 1) if first and last else None
    except ValueError as error:
        raise TrainError(f"{_TABLE}: {path}: frames are numbers: {first!r}, {last!r}") from error
    if frames and not 0 <= frames[0] < frames[1]:
        raise TrainError(f"{_TABLE}: {path}: no frame from {first} to {last}")
    return _listed(
        path,
        kind,
        (attack_type or "unspecified") if label == "attack" else None,
        split,
        subject=row.get("subject"),
        source=row.get("source"),
        frames=frames,
    )


def _listed(
    path: str,
    kind: Kind,
    attack_type: str | None,
    split: Split | None,
    *,
    subject: str | None = None,
    source: str | None = None,
    frames: tuple[int, int] | None = None,
) -> ListedVideo:
    return ListedVideo(
        dataset="two_folders",
        path=path,
        kind=kind,
        attack_type=attack_type,
        split=split,
        source_id=f"two_folders:{source or subject or path}",
        subject=f"two_folders:{subject}" if subject else None,
        frames=frames,
    )


DATASET = Dataset(
    name="two_folders",
    description="Your own videos and pictures",
    source_label_of_bona_fide="folder bona_fide, or the label bona_fide",
    scan=_scan,
    options=CarvedDevOptions,
)
