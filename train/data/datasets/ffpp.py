"""FaceForensics++ with FaceShifter and DeepFakeDetection: Roessler et al., ICCV 2019.

    <root>/original_sequences/{youtube,actors}/{raw,c23,c40}/videos/*.mp4
    <root>/manipulated_sequences/<method>/{raw,c23,c40}/videos/*.mp4
    train.json, val.json, test.json: pairs [a, b] of 3-digit ids, from the official repository

A pair puts the originals a and b and, of every method, a_b and b_a (target first) into its split.
DeepFakeDetection and its actors have no official split. What is not downloaded (a method, a
compression) is left out; what is must be complete.

The pairs are the official unit, so `source_id` is the target's 3-digit id. `conversion_dict.json`
gives 977 YouTube ids for the 1000 clips, and by it 2 are shared by train and test, 5 by train and
val: other stretches of the same upload.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import Field

from train.data.datasets._sample import Dataset, ListedVideo, ReadOptions, Split
from train.data.datasets._tree import (
    check_once,
    check_present,
    expect_folders,
    list_file,
    log_unlisted,
    media_in,
    read_json,
    unexpected,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_METHODS: Final = {
    "Deepfakes": "deepfakes",
    "Face2Face": "face2face",
    "FaceSwap": "faceswap",
    "NeuralTextures": "neuraltextures",
    "FaceShifter": "faceshifter",
    "DeepFakeDetection": "deepfake_detection",
}
_COMPRESSIONS: Final = {"raw": "raw", "c0": "raw", "c23": "c23", "c40": "c40"}
_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "val": "dev", "test": "test"}

_YOUTUBE: Final = re.compile(r"(?P<target>\d{3})(_(?P<donor>\d{3}))?")
_ACTORS: Final = re.compile(
    r"(?P<target>\d\d)(_(?P<donor>\d\d))?__(?P<scene>.+?)(__[0-9A-Za-z]{8})?"
)


class Options(ReadOptions, frozen=True, extra="forbid"):
    """Options of FaceForensics++."""

    splits: Path | None = Field(
        None, description="Folder of the JSON files; default: the root, or `splits` in it."
    )


def _scan(root: Path, options: Options) -> list[ListedVideo]:
    expect_folders(root, "original_sequences")
    folders = list(_folders(root))
    by_id = any(kind not in ("actors", "DeepFakeDetection") for _, kind, _ in folders)
    split_of = _read_splits(root, options.splits) if by_id else {}
    videos: list[ListedVideo] = []
    for folder, kind, compression in folders:
        relative = folder.relative_to(root).as_posix()
        of_folder = [
            _parse(f"{relative}/{name}", kind, compression, split_of)
            for name in media_in(folder, {".mp4"})
        ]
        if kind not in ("actors", "DeepFakeDetection"):
            pairs = kind != "youtube"
            listed = {name for name in split_of if ("_" in name) == pairs}
            stems = {Path(video.path).stem for video in of_folder}
            check_present(relative, listed, stems, options.max_missing)
            log_unlisted(relative, stems - listed)
        videos += of_folder
    return videos


def _folders(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield every folder of videos that exists, with origin or method and compression."""
    tops = [("original_sequences", kind) for kind in ("youtube", "actors")]
    tops += [("manipulated_sequences", kind) for kind in _METHODS]
    for top, kind in tops:
        if all((root / top / kind / name).is_dir() for name in ("raw", "c0")):
            raise TrainError(f"{root / top / kind}: raw and c0 mean the same; keep one of them")
        for name, compression in _COMPRESSIONS.items():
            folder = root / top / kind / name / "videos"
            if folder.is_dir():
                yield folder, kind, compression


def _read_splits(root: Path, given: Path | None) -> dict[str, Split]:
    """Return the split of every id and every pair of ids."""
    split_of: dict[str, Split] = {}
    ids: list[str] = []
    for name, split in _SPLITS.items():
        path = list_file(
            root,
            f"{name}.json",
            f"splits/{name}.json",
            given=None if given is None else given / f"{name}.json",
            get_from="dataset/splits of the official repository, ondyari/FaceForensics",
        )
        for pair in read_json(path):
            match pair:
                case [str(a), str(b)]:
                    ids += [a, b]
                    split_of |= dict.fromkeys((a, b, f"{a}_{b}", f"{b}_{a}"), split)
                case _:
                    raise TrainError(f"{path}: expected pairs of ids, found {pair!r}")
    check_once("the splits of FaceForensics++", ids)
    return split_of


def _parse(path: str, kind: str, compression: str, split_of: Mapping[str, Split]) -> ListedVideo:
    stem = Path(path).stem
    filmed = kind in ("actors", "DeepFakeDetection")
    match = (_ACTORS if filmed else _YOUTUBE).fullmatch(stem)
    if match is None or (match["donor"] is None) != (kind not in _METHODS):
        raise unexpected(path, f"a name of {kind}, as in the module's docstring")
    attributes = {"origin": "actors" if filmed else "youtube"}
    if match["donor"] is not None:
        attributes["donor"] = match["donor"]
    if filmed:
        source = f"ffpp:actors/{match['target']}__{match['scene']}"
    else:
        source = youtube_source(match["target"])
    return ListedVideo(
        dataset="ffpp",
        path=path,
        kind="video",
        attack_type=_METHODS.get(kind),
        split=split_of.get(stem) if not filmed else None,
        source_id=source,
        subject=f"ffpp:actors/{match['target']}" if filmed else None,
        compression=compression,
        attributes=attributes,
    )


def youtube_source(target: str) -> str:
    """Return the `source_id` of an original, and of everything made from it, by its 3-digit id."""
    return f"ffpp:youtube/{target}"


DATASET = Dataset(
    name="ffpp",
    description="FaceForensics++, with FaceShifter and DeepFakeDetection (2019)",
    source_label_of_bona_fide="folder original_sequences",
    scan=_scan,
    options=Options,
)
