"""What both releases of Celeb-DF share: layout, names and the test list.

    <root>/Celeb-real/idA_NNNN.mp4
    <root>/YouTube-real/NNNNN.mp4
    <root>/Celeb-synthesis/idA_idB_NNNN.mp4     made from Celeb-real/idA_NNNN.mp4
    <root>/List_of_testing_videos.txt           <label> <folder>/<file>.mp4, 1 = real

Everything that is not listed is training data. The list is by video: of v2's 340 test fakes, 234
are made from real videos that are not in it, so source and subject are on both sides.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import Field

from train.data.datasets._sample import CarvedDevOptions, ListedVideo
from train.data.datasets._tree import (
    check_once,
    check_present,
    contradiction,
    list_file,
    media_in,
    read_lines,
    some,
    unexpected,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Callable

_LIST: Final = "List_of_testing_videos.txt"
_NAMES: Final = {  # some copies spell Youtube-real: folders are compared in lower case
    "celeb-real": re.compile(r"(?P<target>id\d+)_(?P<number>\d+)"),
    "youtube-real": re.compile(r"(?P<number>\d+)"),
    "celeb-synthesis": re.compile(r"(?P<target>id\d+)_(?P<donor>id\d+)_(?P<number>\d+)"),
}


class Options(CarvedDevOptions, frozen=True, extra="forbid"):
    """Options of Celeb-DF."""

    test_list: Path | None = Field(None, description=f"Default: {_LIST} in the root.")


def scan_release(name: str) -> Callable[[Path, Options], list[ListedVideo]]:
    """Return the reader of the release whose module has this name."""

    def scan(root: Path, options: Options) -> list[ListedVideo]:
        folders = _folders(root)
        test = _read_test_list(root, options.test_list)
        videos = [
            _parse(name, folder, file, test)
            for folder in folders.values()
            for file in media_in(root / folder, {".mp4"})
        ]
        present = {video.path.lower() for video in videos}
        check_present(name, test, present, options.max_missing)
        return videos

    return scan


def _folders(root: Path) -> dict[str, str]:
    folders: dict[str, str] = {}
    for entry in sorted(root.iterdir()):
        key = entry.name.lower()
        if entry.is_dir() and key in _NAMES:
            if key in folders:
                raise TrainError(f"{root}: both {folders[key]} and {entry.name}; keep one of them")
            folders[key] = entry.name
    missing = _NAMES.keys() - folders.keys()
    if missing:
        names = some([entry.name for entry in root.iterdir()])
        raise TrainError(f"{root}: expected the folder {some(missing)}, found {names or 'nothing'}")
    return folders


def _read_test_list(root: Path, given: Path | None) -> frozenset[str]:
    """Return the listed paths in lower case."""
    path = list_file(root, _LIST, given=given, get_from="the archive of the data set")
    paths: list[str] = []
    for line in read_lines(path):
        label, _, file = line.partition(" ")
        synthetic = file.lower().startswith("celeb-synthesis/")
        if label not in ("0", "1"):
            raise TrainError(f"{path}: expected '<0 or 1> <folder>/<file>', found {line!r}")
        if synthetic != (label == "0"):
            raise contradiction(file, "real" if label == "1" else "fake", file.partition("/")[0])
        paths.append(file.lower())
    check_once(path, paths)
    return frozenset(paths)


def _parse(name: str, folder: str, file: str, test: frozenset[str]) -> ListedVideo:
    path = f"{folder}/{file}"
    match = _NAMES[folder.lower()].fullmatch(Path(file).stem)
    if match is None:
        raise unexpected(path, f"a name matching {_NAMES[folder.lower()].pattern}")
    parts = match.groupdict()
    target = parts.get("target")
    return ListedVideo(
        dataset=name,
        path=path,
        kind="video",
        attack_type="deepfake" if "donor" in parts else None,
        split="test" if path.lower() in test else "train",
        source_id=f"{name}:{target or 'youtube'}_{parts['number']}",
        subject=f"{name}:{target}" if target else None,
        attributes={"donor": parts["donor"]} if "donor" in parts else {},
    )
