"""WildDeepfake: Zi et al., ACM MM 2020. Aligned 224 x 224 face crops, no videos.

    <root>/{real,fake}_{train,test}/<n>.tar.gz      root: the folder deepfake_in_the_wild
        ./<n>/{real,fake}/<sequence>/<frame>.png

An archive may be plain tar in spite of its name; unpacked beside it, the folder <n> is read
instead. One sequence is one `ListedVideo`; one source video <n> holds many. The crops leave no room
for a margin around the face.
"""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import CarvedDevOptions, Dataset, ListedVideo, Split
from train.data.datasets._tree import IMAGE_SUFFIXES, contradiction, expect_folders, unexpected
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping

_FOLDERS: Final[Mapping[str, tuple[str, Split]]] = {
    "real_train": ("real", "train"),
    "fake_train": ("fake", "train"),
    "real_test": ("real", "test"),
    "fake_test": ("fake", "test"),
}
_ARCHIVE: Final = re.compile(r"(?P<n>\d+)\.tar(\.gz)?")


def _scan(root: Path, _options: CarvedDevOptions) -> list[ListedVideo]:
    expect_folders(root, *_FOLDERS)
    return [
        _sequence(folder, place, inside)
        for folder in _FOLDERS
        for place, inside in _sequences(root / folder)
    ]


def _sequences(folder: Path) -> list[tuple[str, PurePosixPath]]:
    """Return, for each sequence, the archive's name or nothing, and the path of its folder."""
    found: list[tuple[str, PurePosixPath]] = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            found += [("", inside) for inside in _unpacked(entry)]
        elif match := _ARCHIVE.fullmatch(entry.name):
            if not (folder / match["n"]).is_dir():
                found += [(entry.name, inside) for inside in _packed(entry)]
        elif not entry.name.startswith("."):
            raise unexpected(str(entry), "<n>.tar.gz or a folder <n>")
    return found


def _packed(archive: Path) -> list[PurePosixPath]:
    try:
        with tarfile.open(archive) as members:  # tells gzip from plain tar by content
            names = [PurePosixPath(member.name) for member in members if member.isfile()]
    except (OSError, EOFError, tarfile.TarError) as error:
        raise TrainError(f"{archive}: can't read the archive: {error}") from error
    return sorted({name.parent for name in names if name.suffix.lower() in IMAGE_SUFFIXES})


def _unpacked(folder: Path) -> list[PurePosixPath]:
    return sorted(
        PurePosixPath(Path(place).relative_to(folder.parent).as_posix())
        for place, _, names in os.walk(folder)
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names)
    )


def _sequence(folder: str, archive: str, inside: PurePosixPath) -> ListedVideo:
    path = f"{folder}/{archive}!{inside}" if archive else f"{folder}/{inside}"
    label, split = _FOLDERS[folder]
    match inside.parts:
        case (n, kind, _sequence_name) if kind in ("real", "fake"):
            if kind != label:
                raise contradiction(path, folder, kind)
        case _:
            raise unexpected(path, "<n>/<real or fake>/<sequence>")
    return ListedVideo(
        dataset="wild_deepfake",
        path=path,
        kind="frames",
        attack_type=None if label == "real" else "deepfake",
        split=split,
        source_id=f"wild_deepfake:{folder}/{n}",
    )


DATASET = Dataset(
    name="wild_deepfake",
    description="WildDeepfake (2020)",
    source_label_of_bona_fide="folders real_train, real_test and real in the archives",
    scan=_scan,
    options=CarvedDevOptions,
)
