"""Idiap Replay-Attack: Chingovska et al., BIOSIG 2012.

    <root>/{train,devel,test}/real/clientCCC_session01_webcam_authenticate_<light>_<1|2>.mov
    <root>/<split>/attack/{fixed,hand}/
        attack_{print,mobile,highdef}_clientCCC_session01_<camera>_{photo,video}_<light>.mov

Some downloads put `replayattack-` before the split's folder. 4 bona fide and 20 attack videos a
client; enrolment videos are not listed.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from train.data.datasets._sample import Dataset, ListedVideo, ReadOptions, Split
from train.data.datasets._tree import expect_folders, log, media_in, some, unexpected
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "devel": "dev", "test": "test"}
_REAL: Final = re.compile(
    r"client(?P<client>\d{3})_session01_webcam_authenticate_(?P<light>adverse|controlled)_[12]"
)
_ATTACK: Final = re.compile(
    r"attack_(?P<device>print|mobile|highdef)_client(?P<client>\d{3})_session01_(highdef|mobile)_"
    r"(?P<medium>photo|video)_(?P<light>adverse|controlled)"
)
_PER_CLIENT: Final = {False: 4, True: 20}  # bona fide, attacks


def _scan(root: Path, options: ReadOptions) -> list[ListedVideo]:
    prefix = "replayattack-" if (root / "replayattack-train").is_dir() else ""
    expect_folders(root, *(f"{prefix}{name}" for name in _SPLITS))
    videos = [
        _parse(f"{prefix}{name}/{kind}/{file}", split, kind)
        for name, split in _SPLITS.items()
        for kind in ("real", "attack/fixed", "attack/hand")
        for file in media_in(root / f"{prefix}{name}" / kind, {".mov"})
    ]
    _check_complete(videos, options.max_missing)
    return videos


def _parse(path: str, split: Split, kind: str) -> ListedVideo:
    stem = Path(path).stem
    match = (_REAL if kind == "real" else _ATTACK).fullmatch(stem)
    if match is None:
        raise unexpected(path, f"a name of {kind}, as in the module's docstring")
    attributes = {"light": match["light"]}
    attack_type = None
    if kind != "real":
        attributes |= {"device": match["device"], "support": kind.rpartition("/")[2]}
        on_screen = "replay" if match["medium"] == "video" else "digital_photo"
        attack_type = "print" if match["device"] == "print" else on_screen
    subject = f"replay_attack:{match['client']}"
    return ListedVideo(
        dataset="replay_attack",
        path=path,
        kind="video",
        attack_type=attack_type,
        split=split,
        source_id=subject,
        subject=subject,
        attributes=attributes,
    )


def _check_complete(videos: Iterable[ListedVideo], max_missing: float) -> None:
    """Check that every client has all its videos; the names of absent ones follow from no list."""
    found = Counter((v.subject or "", v.attack_type is not None) for v in videos)
    clients = {client for client, _ in found}
    short = {
        f"{client} has {found[client, attack]} of {n} {'attacks' if attack else 'bona fide'}"
        for client in clients
        for attack, n in _PER_CLIENT.items()
        if found[client, attack] < n
    }
    if not short:
        return
    wanted = len(clients) * sum(_PER_CLIENT.values())
    message = (
        f"replay_attack: {wanted - found.total()} of {wanted} videos are absent: {some(short)}"
    )
    if wanted - found.total() > max_missing * wanted:
        raise TrainError(f"{message}; complete the download, or allow it by max_missing")
    log.warning("%s", message)


DATASET = Dataset(
    name="replay_attack",
    description="Idiap Replay-Attack (2012)",
    source_label_of_bona_fide="folder real",
    scan=_scan,
)
