"""MSU-MFSD: Wen et al., TIFS 2015.

    <root>/real/real_clientCCC_{android,laptop}_SD_scene01.{mp4,mov}
    <root>/attack/attack_clientCCC_{android,laptop}_SD_{ipad_video,iphone_video,printed_photo}_scene01.*
    <root>/train_sub_list.txt, test_sub_list.txt        optional: only compared

8 videos a client. 20 clients are the test split, the other 15 train; no official development split.
Some clips are stored rotated.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import CarvedDevOptions, Dataset, ListedVideo
from train.data.datasets._tree import (
    check_present,
    expect_folders,
    media_in,
    read_lines,
    some,
    unexpected,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Collection

_TEST: Final = frozenset(
    (1, 13, 14, 23, 24, 26, 28, 29, 30, 32, 33, 35, 36, 37, 39, 42, 48, 49, 50, 51)
)
_CAMERAS: Final = ("android", "laptop")
_INSTRUMENTS: Final = {
    "ipad_video": ("replay", "ipad"),
    "iphone_video": ("replay", "iphone"),
    "printed_photo": ("print", "paper"),
}
_NAME: Final = re.compile(
    r"(?P<kind>real|attack)_client(?P<client>\d{3})_(?P<camera>android|laptop)_SD_"
    r"((?P<instrument>ipad_video|iphone_video|printed_photo)_)?scene01"
)


def _scan(root: Path, options: CarvedDevOptions) -> list[ListedVideo]:
    expect_folders(root, "real", "attack")
    videos = [
        _parse(f"{kind}/{name}", kind)
        for kind in ("real", "attack")
        for name in media_in(root / kind)
    ]
    clients = {int(video.source_id.rpartition(":")[2]) for video in videos}
    _compare_lists(root, clients)
    present = {video.path.rpartition(".")[0] for video in videos}
    check_present("msu_mfsd", _recorded(clients | _TEST), present, options.max_missing)
    return videos


def _parse(path: str, kind: str) -> ListedVideo:
    match = _NAME.fullmatch(Path(path).stem)
    if match is None or match["kind"] != kind or (match["instrument"] is None) != (kind == "real"):
        raise unexpected(path, f"a name of {kind}, as in the module's docstring")
    subject = f"msu_mfsd:{match['client']}"
    attack_type, medium = _INSTRUMENTS.get(match["instrument"] or "", (None, ""))
    return ListedVideo(
        dataset="msu_mfsd",
        path=path,
        kind="video",
        attack_type=attack_type,
        split="test" if int(match["client"]) in _TEST else "train",
        source_id=subject,
        subject=subject,
        attributes={"camera": match["camera"]} | ({"medium": medium} if medium else {}),
    )


def _recorded(clients: Collection[int]) -> set[str]:
    pairs = list(product(sorted(clients), _CAMERAS))
    real = {f"real/real_client{client:03}_{camera}_SD_scene01" for client, camera in pairs}
    return real | {
        f"attack/attack_client{client:03}_{camera}_SD_{instrument}_scene01"
        for client, camera in pairs
        for instrument in _INSTRUMENTS
    }


def _compare_lists(root: Path, clients: Collection[int]) -> None:
    """Check the official lists of clients, where they lie, against ours."""
    for name, ours in (("train", set(clients) - _TEST), ("test", _TEST)):
        path = root / f"{name}_sub_list.txt"
        if path.is_file():
            other = {f"{client:03}" for client in {int(x) for x in read_lines(path)} ^ ours}
            if other:
                raise TrainError(f"{path}: contradicts our {name} split in client {some(other)}")


DATASET = Dataset(
    name="msu_mfsd",
    description="MSU-MFSD (2015)",
    source_label_of_bona_fide="folder real",
    scan=_scan,
    options=CarvedDevOptions,
)
