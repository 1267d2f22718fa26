"""SiW-Mv2: Guo et al., ECCV 2022. 14 types of attack.

    <root>/Live/Live_<n>.mov
    <root>/Spoof/<14 folders>/<token>_<n>.mov
    trainlist_all.txt, trainlist_live.txt, testlist_all.txt, testlist_live.txt: stems, from the
    official repository

The lists repeat stems to balance classes (each counts once here) and name some that the release
does not hold, so up to a tenth may be absent; some released videos are in no list. Subjects are not
told: that they differ between splits can't be checked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import Field

from train.data.datasets._sample import CarvedDevOptions, Dataset, ListedVideo, Split
from train.data.datasets._tree import (
    check_present,
    contradiction,
    expect_folders,
    list_file,
    log_unlisted,
    media_in,
    read_lines,
    some,
    unexpected,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPES: Final[Mapping[str, tuple[str, frozenset[str]]]] = {  # token -> type, folders
    "Makeup_Co": ("makeup_cosmetic", frozenset({"Makeup_Cosmetic"})),
    "Makeup_Im": ("makeup_impersonation", frozenset({"Makeup_Impersonation"})),
    "Makeup_Ob": ("makeup_obfuscation", frozenset({"Makeup_Obfuscation"})),
    "Mask_Half": ("mask_half", frozenset({"Mask_HalfMask"})),
    "Mask_Mann": ("mask_mannequin", frozenset({"Mannequin"})),
    "Mask_Paper": ("mask_paper", frozenset({"Mask_PaperMask"})),
    "Mask_Silicone": ("mask_silicone", frozenset({"Silicone"})),
    "Mask_Trans": ("mask_transparent", frozenset({"Mask_TransparentMask"})),
    "Paper": ("print", frozenset({"Print", "Paper"})),  # releases differ
    "Partial_Eye": ("partial_eye", frozenset({"Partial_Eye"})),
    "Partial_Funnyeye": ("partial_funny_eye", frozenset({"Partial_FunnyeyeGlasses"})),
    "Partial_Mouth": ("partial_mouth", frozenset({"Partial_Mouth"})),
    "Partial_Paperglass": ("partial_paper_glasses", frozenset({"Partial_PaperGlasses"})),
    "Replay": ("replay", frozenset({"Replay"})),
}
_STEM: Final = re.compile(r"(?P<token>[A-Za-z_]+)_\d+")
_SPLITS: Final[Mapping[str, Split]] = {"trainlist": "train", "testlist": "test"}


class Options(CarvedDevOptions, frozen=True, extra="forbid"):
    """Options of SiW-Mv2."""

    max_missing: float = Field(
        0.1, ge=0, le=1, description="Share of the listed videos that may be absent, logged."
    )
    lists: Path | None = Field(
        None, description="Folder of the lists; default: the root, or `pro_3_text` in it."
    )


def _scan(root: Path, options: Options) -> list[ListedVideo]:
    expect_folders(root, "Live", "Spoof")
    split_of = _read_lists(root, options.lists)
    folders = ["Live", *(f"Spoof/{entry.name}" for entry in sorted((root / "Spoof").iterdir()))]
    videos = [
        _parse(f"{folder}/{name}", split_of)
        for folder in folders
        for name in media_in(root / folder)
    ]
    stems = {Path(video.path).stem for video in videos}
    check_present("siw_mv2", split_of, stems, options.max_missing)
    log_unlisted("siw_mv2", stems - split_of.keys())
    return videos


def _read_lists(root: Path, given: Path | None) -> dict[str, Split]:
    split_of: dict[str, Split] = {}
    for name, split in _SPLITS.items():
        for part in ("all", "live"):
            path = list_file(
                root,
                f"{name}_{part}.txt",
                f"pro_3_text/{name}_{part}.txt",
                given=None if given is None else given / f"{name}_{part}.txt",
                get_from="source_SiW_Mv2/pro_3_text of the official repository,"
                " CHELSEA234/Multi-domain-learning-FAS",
            )
            stems = set(read_lines(path))
            both = {stem for stem in stems if split_of.get(stem, split) != split}
            if both:
                raise TrainError(f"{path}: in another split too: {some(both)}")
            wrong = {stem for stem in stems if stem.startswith("Live_") != (part == "live")}
            if wrong:
                raise TrainError(f"{path}: expected {part} videos, found {some(wrong)}")
            split_of |= dict.fromkeys(stems, split)
    return split_of


def _parse(path: str, split_of: Mapping[str, Split]) -> ListedVideo:
    stem, folder = Path(path).stem, Path(path).parent.name
    match = _STEM.fullmatch(stem)
    token = match["token"] if match else ""
    attack_type, folders = (
        (None, frozenset({"Live"})) if token == "Live" else _TYPES.get(token, (None, frozenset()))
    )
    if not folders:
        raise unexpected(path, f"Live_<n> or <one of {', '.join(_TYPES)}>_<n>")
    if folder not in folders:
        raise contradiction(path, token, folder)
    return ListedVideo(
        dataset="siw_mv2",
        path=path,
        kind="video",
        attack_type=attack_type,
        split=split_of.get(stem),
        source_id=f"siw_mv2:{stem}",
    )


DATASET = Dataset(
    name="siw_mv2",
    description="SiW-Mv2 (2022)",
    source_label_of_bona_fide="folder Live, list of live videos",
    scan=_scan,
    options=Options,
)
