"""Reading a data set's folder: the checks and messages that all readers share."""

from __future__ import annotations

import csv
import difflib
import json
import logging
import re
from collections import Counter, defaultdict
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)


def _heif_suffixes() -> set[str]:
    """Return the suffixes of an iPhone's pictures where their decoder is installed."""
    try:
        import pillow_heif
    except ImportError:
        return set()
    pillow_heif.register_heif_opener()
    return {".heic", ".heif", ".hif"}


# What the streaming path's decoder opens, and Pillow.
VIDEO_SUFFIXES: Final = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"}
    | {".m2v", ".vob", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".mxf"}
    | {".gif"}
)
IMAGE_SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".jp2"}
    | {".j2k", ".ppm", ".pgm", ".pnm", ".tga", ".mpo", ".avif"}
    | _heif_suffixes()
)
_LITTER: Final = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
    | {"__pycache__"}
)
_BESIDE: Final = frozenset(  # what data sets lay beside their media: boxes, labels, checksums
    {".txt", ".face", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".pdf", ".html"}
    | {".npy", ".npz", ".mat", ".pts", ".md5", ".sha1", ".sha256", ".lst", ".log", ".docx"}
)


def is_litter(name: str) -> bool:
    """Say whether a file or folder was left by an operating system or a tool, and means nothing."""
    return name.startswith(".") or name.lower() in _LITTER


def is_picture(name: str) -> bool:
    """Say whether a file is a picture, by its name."""
    return not is_litter(name) and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def is_video(name: str) -> bool:
    """Say whether a file is a video, by its name."""
    return not is_litter(name) and PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def printable(name: str) -> str:
    r"""Return a name of a file system as text: bytes that are no UTF-8 become `\xff`.

    What is printable already stays as it is.
    """
    if name.isascii():
        return name
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


class NotRead:
    """What lies in a data set's folder and is not read, by reason."""

    def __init__(self) -> None:
        self._names: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        """Note a file or folder."""
        self._names[reason].append(printable(name))

    def file(self, name: str) -> None:
        """Note a file that is neither video nor picture by its suffix."""
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in (".heic", ".heif", ".hif"):
            self.add(f"{suffix}, which needs the package pillow-heif", name)
        else:
            self.add(f"{suffix}, no video or picture" if suffix else "no suffix", name)

    def tell(self, where: str) -> None:
        """Log what was noted: nothing is left out in silence."""
        for reason, names in sorted(self._names.items()):
            log.warning("%s: not read: %d (%s): %s", where, len(names), reason, some(names))


def files_below(folder: Path, not_read: NotRead) -> Iterator[tuple[PurePosixPath, list[str]]]:
    """Yield each folder below a folder, itself first, and the names of its files, both sorted.

    Links are followed, each folder once; litter is left out.

    Args:
        folder: to walk.
        not_read: is told of links that lead nowhere or back.

    Yields:
        A path relative to `folder`, and names.
    """
    above = folder.resolve().parents  # a link to one of them would read its other folders, too
    seen = {(stat.st_dev, stat.st_ino) for stat in (parent.stat() for parent in above)}
    places = [(folder, PurePosixPath())]
    while places:
        place, relative = places.pop()
        stat = place.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            not_read.add("a link to a folder that is read already", str(place))
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders, files = [], []
        for entry in sorted(place.iterdir()):
            if is_litter(entry.name):
                continue
            if entry.is_dir():
                folders.append((entry, relative / entry.name))
            elif entry.is_file():
                files.append(entry.name)
            elif entry.is_symlink():
                not_read.add("a link that leads nowhere", str(entry))
            else:
                not_read.add("no file", str(entry))
        places += folders[::-1]
        yield relative, files


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
    """Return the lines of a list, without blank ones; bytes that are no UTF-8 as in file names.

    Raises:
        TrainError: unreadable, or UTF-16.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise TrainError(f"{path}: can't be read: {error}") from error
    if "\0" in text:
        raise TrainError(f"{path}: can't be read: it is no UTF-8; save it as such")
    lines = re.split(r"\r\n|\r|\n", text)
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
    return table_rows(str(path), read_lines(path), *columns)


def table_rows(
    where: str, lines: Iterable[str], *columns: str, only: Collection[str] = ()
) -> list[dict[str, str]]:
    """Return the rows of a table with a header, as `read_table`.

    Args:
        where: it came from, for messages.
        lines: of CSV.
        columns: that must be there.
        only: all that may be there; empty: any.

    Raises:
        TrainError: a column is missing, twice, or not one of `only`, or a row has more cells.
    """
    reader = csv.DictReader(lines, restval="")
    header = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    missing = set(columns) - set(header)
    if missing:
        found = ", ".join(header) or "nothing"
        raise TrainError(f"{where}: expected the column {some(missing)}, found {found}")
    check_once(f"{where}: columns", header)
    for name in header if only else ():
        if name not in only:
            near = difflib.get_close_matches(name, only, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(only))}"
            raise TrainError(f"{where}: unknown column {name!r}; {hint}")
    rows = []
    for row in reader:
        if None in row:
            raise TrainError(f"{where}: line {reader.line_num}: more cells than columns")
        rows.append(row)
    return rows


def media_in(folder: Path, suffixes: Collection[str] = VIDEO_SUFFIXES) -> list[str]:
    """Return the sorted names of a folder's media files; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    names, not_read = [], NotRead()
    for entry in folder.iterdir():
        if is_litter(entry.name) or entry.is_dir():
            continue
        if entry.suffix.lower() in suffixes:
            names.append(entry.name)
        elif entry.suffix.lower() not in _BESIDE:
            not_read.file(entry.name)
    not_read.tell(str(folder))
    return sorted(names)


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
