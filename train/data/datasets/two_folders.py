"""Your own data, in two folders.

    <root>[/{train,dev,test}]/bona_fide/...
    <root>[/{train,dev,test}]/attack/<type>/...

`val` is dev, too. Without these folders everything is split train, of which a share becomes dev.

A video is one file, at any depth. A picture stands alone, at any depth; those of a folder below
`bona_fide` or `attack/<type>` stay on one side. Where such folders hold the frames of clips,
`frames_fps` says so: one folder is then one clip. `<type>` should be a name of
`_sample.ATTACK_FAMILY`, if one fits, or is your own word.

With `<root>/videos.csv` the files that it lists are read, and no others. Columns: `path`, `label`
(bona_fide or attack) and, as known, `attack_type`, `split`, `subject`, `source`, `first_frame` with
`last_frame`, `fps` (of a folder of frames). A folder that it lists is one clip.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic import Field

from train.data.datasets._sample import (
    BONA_FIDE_TYPE,
    CarvedDevOptions,
    Dataset,
    Kind,
    ListedVideo,
    Split,
)
from train.data.datasets._tree import (
    NotRead,
    check_present,
    contradiction,
    files_below,
    is_litter,
    is_picture,
    is_video,
    log,
    log_unlisted,
    printable,
    read_lines,
    some,
    table_rows,
    unexpected,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_TABLE: Final = "videos.csv"
_COLUMNS: Final = (
    *("path", "label", "attack_type", "split", "subject", "source"),
    *("first_frame", "last_frame", "fps"),
)
_SPLITS: Final[Mapping[str, Split]] = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "devel": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
    "testing": "test",
}
_CLASSES: Final = {"bonafide": "bona_fide", "attack": "attack", "attacks": "attack"}


class Options(CarvedDevOptions, frozen=True, extra="forbid"):
    """Options of your own data."""

    frames_fps: float | None = Field(
        None,
        gt=0,
        description="Folders of pictures are clips, extracted at so many frames per second; None: "
        "each picture stands alone.",
    )


class _Top(NamedTuple):
    """A folder that holds `bona_fide` or `attack`."""

    path: str  # with a slash at its end, or empty
    split: Split | None
    classes: dict[str, str]  # bona_fide and attack -> name of the folder


def _scan(root: Path, options: Options) -> list[ListedVideo]:
    if (root / _TABLE).is_file():
        return _from_table(root, options)
    not_read = NotRead()
    tops = _tops(root, not_read)
    videos = [
        video
        for top in tops
        for name in top.classes
        for video in _of_class(root, top, name, options, not_read)
    ]
    not_read.tell(str(root))
    _tell_sides(root, tops, videos)
    return videos


def _tops(root: Path, not_read: NotRead) -> list[_Top]:
    """Return the folders to read: those of splits, or the root itself."""
    folders = [entry.name for entry in sorted(root.iterdir()) if not is_litter(entry.name)]
    flat = _classes(root, folders)
    tops: list[_Top] = []
    for name in folders:
        split = _SPLITS.get(name.lower())
        inside = root / name
        if split is None or not inside.is_dir():
            if name not in flat.values():
                not_read.add("neither a split nor a class", name)
            continue
        classes = _classes(inside, [entry.name for entry in sorted(inside.iterdir())])
        for entry in sorted(inside.iterdir()):
            if entry.name not in classes.values() and not is_litter(entry.name):
                not_read.add("neither bona_fide nor attack", f"{name}/{entry.name}")
        if same := [top.path for top in tops if top.split == split]:
            raise TrainError(
                f"{root}: {same[0]} and {name}/ both mean {split}; put them into one folder"
            )
        if classes:
            tops.append(_Top(f"{name}/", split, classes))
    if flat:
        # Beside folders of splits, the rest belongs to none.
        tops.append(_Top("", None if tops else "train", flat))
    if not tops:
        raise TrainError(
            f"{root}: expected the folders bona_fide and attack, directly or in train, dev and"
            f" test, or {_TABLE}; found {some([printable(n) for n in folders]) or 'nothing'}"
        )
    return tops


def _classes(folder: Path, names: list[str]) -> dict[str, str]:
    """Return which of these folders are `bona_fide` and `attack`, however they are spelt."""
    classes: dict[str, str] = {}
    for name in names:
        label = _CLASSES.get(name.lower().replace("_", "").replace("-", "").replace(" ", ""))
        if label is None or not (folder / name).is_dir():
            continue
        if label in classes:
            raise TrainError(f"{folder}: {classes[label]} and {name} mean the same; keep one")
        classes[label] = name
    return classes


def _of_class(
    root: Path, top: _Top, label: str, options: Options, not_read: NotRead
) -> Iterator[ListedVideo]:
    folder = f"{top.path}{top.classes[label]}"
    if label == BONA_FIDE_TYPE:
        yield from _below(root, folder, None, top.split, options, not_read)
        return
    for entry in sorted((root / folder).iterdir()):
        path = f"{folder}/{entry.name}"
        if is_litter(entry.name):
            continue
        if entry.is_dir():
            yield from _below(root, path, printable(entry.name), top.split, options, not_read)
        elif is_picture(entry.name) or is_video(entry.name):
            raise unexpected(printable(path), "a folder for each type of attack")
        else:
            not_read.file(path)


def _below(
    root: Path,
    folder: str,
    attack_type: str | None,
    split: Split | None,
    options: Options,
    not_read: NotRead,
) -> Iterator[ListedVideo]:
    for relative, names in files_below(root / folder, not_read):
        deeper = relative != PurePosixPath()
        place = f"{folder}/{relative}" if deeper else folder
        clip = deeper and options.frames_fps is not None
        if clip and any(map(is_picture, names)):
            yield _listed(place, "frames", attack_type, split, fps=options.frames_fps)
        for name in names:
            path = f"{place}/{name}"
            if is_video(name):
                yield _listed(path, "video", attack_type, split)
            elif is_picture(name):
                if not clip:
                    source = printable(place) if deeper else None
                    yield _listed(path, "image", attack_type, split, source=source)
            else:
                not_read.file(path)


def _tell_sides(root: Path, tops: list[_Top], videos: list[ListedVideo]) -> None:
    """Log what a reader of the folder names would not expect."""
    for top in tops:
        labels = {v.label for v in videos if v.split == top.split}
        if len(labels) == 1:
            there, lacks = (
                ("bona fide faces", "attack") if 0 in labels else ("attacks", "bona_fide")
            )
            log.warning(
                "%s: %s holds %s only; %s%s is missing or empty",
                *(root, top.path or "the folder", there, top.path, lacks),
            )
    log_unlisted("two_folders", [v.path for v in videos if v.split is None])


def _from_table(root: Path, options: Options) -> list[ListedVideo]:
    table = root / _TABLE
    rows = table_rows(str(table), read_lines(table), "path", "label", only=_COLUMNS)
    present = {row["path"] for row in rows if (root / row["path"]).exists()}
    listed = {printable(row["path"]) for row in rows}
    check_present(_TABLE, listed, set(map(printable, present)), options.max_missing)
    # A table that names no split at all is one that trains.
    split: Split | None = None if any(row.get("split") for row in rows) else "train"
    videos = [_parse(root, row, split, options) for row in rows if row["path"] in present]
    log_unlisted(_TABLE, [printable(video.path) for video in videos if video.split is None])
    return videos


def _parse(
    root: Path, row: Mapping[str, str], default: Split | None, options: Options
) -> ListedVideo:
    path, label = row["path"], row["label"]
    where = f"{_TABLE}: {printable(path)}"
    attack_type = printable(row.get("attack_type") or "") or None
    word = row.get("split") or ""
    if label not in ("bona_fide", "attack") or (word and word not in _SPLITS):
        raise TrainError(
            f"{where}: expected label bona_fide or attack and split train, dev, test or none;"
            f" found {label!r} and {word!r}"
        )
    folders = set(PurePosixPath(path).parts) & {"bona_fide", "attack"}
    if (attack_type and label == "bona_fide") or folders - {label}:
        raise contradiction(printable(path), label, attack_type or some(folders))
    if (root / path).is_dir():
        kind: Kind = "frames"
    else:
        kind = "video" if is_video(PurePosixPath(path).name) else "image"
    fps = _number(where, "fps", row.get("fps"))
    if fps is not None and (not fps > 0 or kind != "frames"):
        raise TrainError(f"{where}: fps is of a folder of frames, and more than 0; found {fps:g}")
    return _listed(
        path,
        kind,
        (attack_type or "unspecified") if label == "attack" else None,
        _SPLITS[word] if word else default,
        subject=printable(row.get("subject") or "") or None,
        source=printable(row.get("source") or "") or None,
        frames=_frames(where, row),
        fps=(fps or options.frames_fps) if kind == "frames" else None,
    )


def _frames(where: str, row: Mapping[str, str]) -> tuple[int, int] | None:
    first, last = (_number(where, name, row.get(name)) for name in ("first_frame", "last_frame"))
    if first is None and last is None:
        return None
    if first is None or last is None:
        raise TrainError(f"{where}: first_frame and last_frame belong together; give both")
    if not 0 <= first <= last or first % 1 or last % 1:
        raise TrainError(f"{where}: no frame from {first:g} to {last:g}")
    return int(first), int(last) + 1


def _number(where: str, name: str, cell: str | None) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError as error:
        raise TrainError(f"{where}: {name} is a number, found {cell!r}") from error


def _listed(
    path: str,
    kind: Kind,
    attack_type: str | None,
    split: Split | None,
    *,
    subject: str | None = None,
    source: str | None = None,
    frames: tuple[int, int] | None = None,
    fps: float | None = None,
) -> ListedVideo:
    return ListedVideo(
        dataset="two_folders",
        path=path,
        kind=kind,
        attack_type=attack_type,
        split=split,
        source_id=f"two_folders:{source or subject or printable(path)}",
        subject=f"two_folders:{subject}" if subject else None,
        frames=frames,
        fps=fps,
    )


DATASET = Dataset(
    name="two_folders",
    description="Your own videos and pictures",
    source_label_of_bona_fide="folder bona_fide, or the label bona_fide",
    scan=_scan,
    options=Options,
)
