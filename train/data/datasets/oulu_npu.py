"""OULU-NPU: Boulkenafet et al., FG 2017.

    <root>/{Train,Dev,Test}_files/<phone 1-6>_<session 1-3>_<user 01-55>_<file 1-5>.avi
    <root>/Protocols/Protocol_*/*.txt       `+1,1_1_01_1`; optional: only compared

File 1 is bona fide, 2 and 3 are prints (of two printers), 4 and 5 replays (on two displays). Users
1-20 train, 21-35 dev, 36-55 test. All four protocols follow from the names by rule.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import Dataset, ListedVideo, ReadOptions, Split
from train.data.datasets._tree import (
    check_present,
    contradiction,
    expect_folders,
    media_in,
    read_lines,
    unexpected,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping

_FOLDERS: Final[Mapping[str, tuple[Split, range]]] = {
    "Train_files": ("train", range(1, 21)),
    "Dev_files": ("dev", range(21, 36)),
    "Test_files": ("test", range(36, 56)),
}
_NAME: Final = re.compile(r"(?P<phone>[1-6])_(?P<session>[1-3])_(?P<user>\d\d)_(?P<file>[1-5])")
_ATTACKS: Final = {"2": "print", "3": "print", "4": "replay", "5": "replay"}


def _scan(root: Path, options: ReadOptions) -> list[ListedVideo]:
    expect_folders(root, *_FOLDERS)
    videos: list[ListedVideo] = []
    for folder, (split, users) in _FOLDERS.items():
        names = media_in(root / folder, {".avi"})
        recorded = {
            f"{phone}_{session}_{user:02}_{file}.avi"
            for phone, session, user, file in product(range(1, 7), range(1, 4), users, range(1, 6))
        }
        check_present(folder, recorded, names, options.max_missing)
        for name in names:
            if name not in recorded:
                raise unexpected(f"{folder}/{name}", f"a user of split {split}: {users}")
            videos.append(_parse(f"{folder}/{name}", split))
    _compare_protocols(root / "Protocols", {Path(video.path).stem: video for video in videos})
    return videos


def _parse(path: str, split: Split) -> ListedVideo:
    match = _NAME.fullmatch(Path(path).stem)
    if match is None:
        raise unexpected(path, "<phone>_<session>_<user>_<file>.avi")
    subject = f"oulu_npu:{match['user']}"
    return ListedVideo(
        dataset="oulu_npu",
        path=path,
        kind="video",
        attack_type=_ATTACKS.get(match["file"]),
        split=split,
        source_id=subject,
        subject=subject,
        attributes={key: match[key] for key in ("phone", "session", "file")},
    )


def _compare_protocols(folder: Path, videos: Mapping[str, ListedVideo]) -> None:
    """Check the official lists against the names.

    Raises:
        TrainError: a list gives a video a label or a split that its name contradicts.
    """
    # In lists of split test, -1 is a print and -2 a replay; elsewhere every attack is -1.
    meanings = {"test": {"+1": None, "-1": "print", "-2": "replay"}}
    for path in sorted(folder.glob("Protocol_*/*.txt")):
        split = path.stem.partition("_")[0].lower()
        for line in read_lines(path):
            label, _, name = line.partition(",")
            video = videos.get(name.strip())
            if video is None or video.split != split:
                raise TrainError(f"{path}: {name} is not a video of split {split}")
            meaning = meanings.get(split, {"+1": None, "-1": video.attack_type or "attack"})
            if label not in meaning or meaning[label] != video.attack_type:
                raise contradiction(f"{path}: {name}", label, video.attack_type or "bona fide")


DATASET = Dataset(
    name="oulu_npu",
    description="OULU-NPU (2017)",
    source_label_of_bona_fide="+1 in the protocols, file 1 in the name",
    scan=_scan,
)
