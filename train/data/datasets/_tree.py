"""Reading a data set's folder: the checks and messages that all readers share."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

VIDEO_SUFFIXES: Final = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})
IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


def some(names: Collection[str]) -> str:
    """Name the first few, for a message."""
    shown = ", ".join(islice(sorted(names), 5))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def expect_folders(root: Path, *names: str) -> None:
    """Check that these folders lie in the root.

    Raises:
        TrainError: one does not; the message says what does.
    """
    missing = [name for name in names if not (root / name).is_dir()]
    if missing:
        found = [entry.name for entry in root.iterdir()] if root.is_dir() else []
        raise TrainError(
            f"{root}: expected the folder {some(missing)}, found {some(found) or 'nothing'};"
            " is this the root that docs/datasets.md describes?"
        )


def list_file(root: Path, *candidates: str, given: Path | None, get_from: str) -> Path:
    """Return the first of the candidates that exists, or the given file.

    Args:
        root: of the data set.
        candidates: paths below the root.
        given: file named by the caller instead.
        get_from: where the file can be had, for the message.

    Raises:
        TrainError: there is none.
    """
    for path in [given] if given is not None else [root / name for name in candidates]:
        if path.is_file():
            return path
    looked = str(given) if given is not None else f"{root}: {' or '.join(candidates)}"
    raise TrainError(f"{looked}: missing; get it from {get_from}")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list, without blank ones.

    Raises:
        TrainError: unreadable.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"{path}: can't be read: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        TrainError: unreadable, or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TrainError(f"{path}: can't be read: {error}") from error


def read_table(path: Path, *columns: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header; a cell that a row lacks is empty.

    Raises:
        TrainError: unreadable, or one of the columns is not there.
    """
    reader = csv.DictReader(read_lines(path), restval="")
    missing = set(columns) - set(reader.fieldnames or ())
    if missing:
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        raise TrainError(f"{path}: expected the column {some(missing)}, found {found}")
    return list(reader)


def media_in(folder: Path, suffixes: Collection[str] = VIDEO_SUFFIXES) -> list[str]:
    """Return the sorted names of a folder's media files; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in suffixes and not entry.name.startswith(".")
    )


def check_present(
    what: str, listed: Collection[str], present: Collection[str], max_missing: float = 0.0
) -> None:
    """Check that what is listed is there; a tolerated share is logged.

    Raises:
        TrainError: more than the tolerated share is absent.
    """
    missing = set(listed) - set(present)
    if not missing:
        return
    message = f"{what}: {len(missing)} of {len(listed)} listed videos are absent: {some(missing)}"
    if len(missing) > max_missing * len(listed):
        raise TrainError(f"{message}; complete the download, or allow it by max_missing")
    log.warning("%s", message)


def log_unlisted(what: str, names: Collection[str]) -> None:
    """Say which videos are there but in no split; nothing is dropped silently."""
    if names:
        log.warning("%s: %d videos are in no split: %s", what, len(names), some(names))


def check_once(where: Path | str, names: Iterable[str]) -> None:
    """Check that no name is listed twice.

    Raises:
        TrainError: some are.
    """
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise TrainError(f"{where}: listed more than once: {some(twice)}")


def unexpected(path: str, expected: str) -> TrainError:
    """Return the error for a file whose name the layout does not know; its label is unknown too."""
    return TrainError(f"{path}: expected {expected}; remove the file or rename it")


def contradiction(path: str, listed: str, layout: str) -> TrainError:
    """Return the error for a label that the place or the name of the file contradicts."""
    return TrainError(f"{path}: listed as {listed}, but its name or folder says {layout}")
