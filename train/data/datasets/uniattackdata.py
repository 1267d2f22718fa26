"""UniAttackData: Fang et al., IJCAI 2024. Pictures. Not UniAttack (Cao et al., IJCV 2024).

    <root>/{p1,p2.1,p2.2}/{train,dev,test}/<n>.{png,jpg}
    <root>/<protocol>/train_label.txt, dev_label.txt        path label; 0 = live, 1 = spoof
    <root>/<protocol>/test_label.txt        the challenge keeps it back; without it, no test split

P1 has all types everywhere; in P2.1 the test attacks are physical and unseen, in P2.2 digital and
unseen. The lists do not name types, so `attack_type` is `unspecified` and the family is not known.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import Dataset, ListedVideo, ReadOptions, Split
from train.data.datasets._tree import (
    IMAGE_SUFFIXES,
    check_once,
    check_present,
    list_file,
    log,
    log_unlisted,
    media_in,
    read_lines,
    some,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PROTOCOLS: Final = ("p1", "p2.1", "p2.2")
_SPLITS: Final[tuple[Split, ...]] = ("train", "dev", "test")
_TYPES: Final[Mapping[str, str | None]] = {"0": None, "1": "unspecified"}


def _scan(root: Path, options: ReadOptions) -> list[ListedVideo]:
    protocols = [name for name in _PROTOCOLS if (root / name).is_dir()]
    if not protocols:
        found = some([entry.name for entry in root.iterdir()])
        raise TrainError(f"{root}: expected {', '.join(_PROTOCOLS)}, found {found or 'nothing'}")
    return [
        video
        for protocol in protocols
        for split in _SPLITS
        for video in _pictures(root, protocol, split, options)
    ]


def _pictures(root: Path, protocol: str, split: Split, options: ReadOptions) -> list[ListedVideo]:
    folder = f"{protocol}/{split}"
    present = set(media_in(root / folder, IMAGE_SUFFIXES))
    table = f"{protocol}/{split}_label.txt"
    if split == "test" and not (root / table).is_file():
        log.warning("%s: no labels, so %d test pictures are left out", table, len(present))
        return []
    path = list_file(root, table, given=None, get_from="the challenge's organisers")
    rows = [line.split() for line in read_lines(path)]
    for row in rows:
        if len(row) != 2 or row[1] not in _TYPES:
            raise TrainError(f"{path}: expected '<path> <0 or 1>', found {' '.join(row)!r}")
        if PurePosixPath(row[0]).parent.name not in ("", split):
            raise TrainError(f"{path}: {row[0]} lies in another split")
    labels = {PurePosixPath(name).name: label for name, label in rows}
    check_once(path, (name for name, _ in rows))
    check_present(folder, labels, present, options.max_missing)
    log_unlisted(folder, present - labels.keys())
    return [
        ListedVideo(
            dataset="uniattackdata",
            path=f"{folder}/{name}",
            kind="image",
            attack_type=_TYPES[labels[name]],
            split=split,
            source_id=f"uniattackdata:{folder}/{name}",
            attributes={"protocol": protocol},
        )
        for name in sorted(present & labels.keys())
    ]


DATASET = Dataset(
    name="uniattackdata",
    description="UniAttackData (Fang et al., 2024)",
    source_label_of_bona_fide="0",
    scan=_scan,
)
