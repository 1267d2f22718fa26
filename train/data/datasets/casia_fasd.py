"""CASIA-FASD (also CASIA-MFSD): Zhang et al., ICB 2012.

    <root>/train_release/<1..20>/*.avi
    <root>/test_release/<1..30>/*.avi       subject n of the test set is subject n + 20

Twelve clips a subject, three qualities (1st, 2nd, HR_) each: bona fide 1, 2, HR_1; warped photo 3,
4, HR_2; cut photo 5, 6, HR_3; video 7, 8, HR_4. No official development split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import CarvedDevOptions, Dataset, ListedVideo, Split
from train.data.datasets._tree import check_present, expect_folders, media_in, unexpected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FOLDERS: Final[Mapping[str, tuple[Split, int, int]]] = {  # split, subjects, first subject - 1
    "train_release": ("train", 20, 0),
    "test_release": ("test", 30, 20),
}
_TYPES: Final = (None, "warped_print", "cut_print", "replay")
# Write-ups differ on which of 1 and 2 is the better camera; nothing here depends on it.
_CLIPS: Final = {
    f"{name}.avi": (attack_type, quality)
    for i, attack_type in enumerate(_TYPES)
    for quality, name in (
        ("low", f"{2 * i + 1}"),
        ("normal", f"{2 * i + 2}"),
        ("high", f"HR_{i + 1}"),
    )
}


def _scan(root: Path, options: CarvedDevOptions) -> list[ListedVideo]:
    expect_folders(root, *_FOLDERS)
    videos: list[ListedVideo] = []
    for folder, (split, subjects, offset) in _FOLDERS.items():
        recorded = {f"{n}/{clip}" for n in range(1, subjects + 1) for clip in _CLIPS}
        present = {
            f"{entry.name}/{name}"
            for entry in (root / folder).iterdir()
            for name in media_in(entry)
        }
        check_present(folder, recorded, present, options.max_missing)
        for name in sorted(present):
            if name not in recorded:
                raise unexpected(f"{folder}/{name}", f"<1..{subjects}>/<clip>.avi")
            number, _, clip = name.partition("/")
            attack_type, quality = _CLIPS[clip]
            subject = f"casia_fasd:{int(number) + offset}"
            videos.append(
                ListedVideo(
                    dataset="casia_fasd",
                    path=f"{folder}/{name}",
                    kind="video",
                    attack_type=attack_type,
                    split=split,
                    source_id=subject,
                    subject=subject,
                    attributes={"quality": quality},
                )
            )
    return videos


DATASET = Dataset(
    name="casia_fasd",
    description="CASIA-FASD (2012)",
    source_label_of_bona_fide="clips 1, 2 and HR_1",
    scan=_scan,
    options=CarvedDevOptions,
)
