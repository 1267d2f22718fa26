"""WildDeepfake: Zi et al., ACM MM 2020. Aligned 224 x 224 face crops, no videos.

    <root>/{real,fake}_{train,test}/<n>.tar.gz      root: the folder deepfake_in_the_wild
        ./<n>/{real,fake}/<sequence>/<frame>.png

An archive may be plain tar in spite of its name; unpacked beside it, the folder <n> is read
instead. One sequence is one `ListedVideo`; one source video <n> holds many. The crops leave no room
for a margin around the face.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import (
    CarvedDevOptions,
    Dataset,
    FramesOptions,
    ListedVideo,
    Split,
)
from train.data.datasets._tree import (
    NotRead,
    contradiction,
    expect_folders,
    files_below,
    is_litter,
    is_picture,
    printable,
    unexpected,
)
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


class Options(CarvedDevOptions, FramesOptions, frozen=True, extra="forbid"):
    """Options of WildDeepfake."""


def _scan(root: Path, options: Options) -> list[ListedVideo]:
    expect_folders(root, *_FOLDERS)
    return [
        _sequence(folder, place, inside, options)
        for folder in _FOLDERS
        for place, inside in _sequences(root / folder)
    ]


def _sequences(folder: Path) -> list[tuple[str, PurePosixPath]]:
    """Return, for each sequence, the archive's name or nothing, and the path of its folder."""
    sequences: list[tuple[str, PurePosixPath]] = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            sequences += [("", inside) for inside in _unpacked(entry)]
        elif match := _ARCHIVE.fullmatch(entry.name):
            if not (folder / match["n"]).is_dir():
                sequences += [(entry.name, inside) for inside in _packed(entry)]
        elif not is_litter(entry.name):
            raise unexpected(str(entry), "<n>.tar.gz or a folder <n>")
    return sequences


def _packed(archive: Path) -> list[PurePosixPath]:
    try:
        with tarfile.open(archive) as members:  # tells gzip from plain tar by content
            names = [PurePosixPath(member.name) for member in members if member.isfile()]
    except (OSError, EOFError, tarfile.TarError) as error:
        raise TrainError(f"{archive}: can't read the archive: {error}") from error
    pictures = (name for name in names if is_picture(name.name))
    return sorted({name.parent for name in pictures if not any(map(is_litter, name.parts))})


def _unpacked(folder: Path) -> list[PurePosixPath]:
    not_read = NotRead()
    places = [
        folder.name / place
        for place, names in files_below(folder, not_read)
        if any(map(is_picture, names))
    ]
    not_read.tell(str(folder))
    return sorted(places)


def _sequence(folder: str, archive: str, inside: PurePosixPath, options: Options) -> ListedVideo:
    path = f"{folder}/{archive or inside}"
    named = printable(f"{path}//{inside}" if archive else path)
    label, split = _FOLDERS[folder]
    match inside.parts:
        case (n, kind, _sequence_name) if kind in ("real", "fake"):
            if kind != label:
                raise contradiction(named, folder, kind)
        case _:
            raise unexpected(named, "<n>/<real or fake>/<sequence>")
    return ListedVideo(
        dataset="wild_deepfake",
        path=path,
        member=str(inside) if archive else None,
        kind="frames",
        fps=options.frames_fps,
        attack_type=None if label == "real" else "deepfake",
        split=split,
        source_id=f"wild_deepfake:{folder}/{n}",
    )


DATASET = Dataset(
    name="wild_deepfake",
    description="WildDeepfake (2020)",
    source_label_of_bona_fide="folders real_train, real_test and real in the archives",
    scan=_scan,
    options=Options,
)
