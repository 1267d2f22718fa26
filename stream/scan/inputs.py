"""What to scan: paths, folders and lists to files, each once, in an order that does not change.

Names are bytes here: those of an archive need not be text.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Final

from stream.errors import ConfigError
from stream.redact import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

STILLS: Final = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"]
)
VIDEOS: Final = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".vob",
        ".flv",
        ".wmv",
        ".asf",
        ".3gp",
        ".ogv",
        ".mxf",
        ".gif",
        ".h264",
        ".264",
        ".hevc",
        ".265",
        ".mjpeg",
        ".mjpg",
        ".ivf",
        ".obu",
        ".dav",
    ]
)


@dataclass(frozen=True, slots=True)
class Item:
    """One file, or object of a store, to scan."""

    path: bytes  # as the user will see it: as named, or below the folder that was named
    size: int  # bytes
    mtime_ns: int
    problem: str | None = None  # why it can't be read at all
    etag: str | None = None  # of an object: what the store calls this content

    @property
    def is_still(self) -> bool:
        """Whether its name is that of a still picture."""
        return os.path.splitext(self.path)[1].lower().decode(errors="replace") in STILLS


def shown(path: bytes) -> str:
    r"""Return a path as text: one that is not UTF-8 or holds a line break gets escapes.

    >>> print(shown(b"clips/\xff\n.mp4"))
    clips/\udcff\n.mp4
    """
    return printable(path.decode("utf-8", "surrogateescape"))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of folders are taken."""

    include: tuple[str, ...] = ()  # globs; none: what has the suffix of a video or a picture
    exclude: tuple[str, ...] = ()
    follow_links: bool = False

    def takes(self, below: bytes) -> bool:
        """Return whether a file is taken; globs match its name, or its path below the folder."""
        text = os.fsdecode(below)
        names = text, os.path.basename(text)
        if any(fnmatch.fnmatchcase(name, glob) for name in names for glob in self.exclude):
            return False
        if self.include:
            return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in self.include)
        return os.path.splitext(text)[1].lower() in STILLS | VIDEOS


@dataclass(slots=True)
class Listing:
    """The files found, each path once, and how many were left out."""

    items: list[Item] = field(default_factory=list)
    left_out: int = 0  # of folders: not selected
    links: int = 0  # not followed


def is_object(path: bytes) -> bool:
    """Return whether a path is the address of an object, or of a folder, in an object store."""
    return path.startswith((b"s3://", b"gs://", b"az://"))


def list_files(paths: Iterable[bytes], selection: Selection) -> Listing:
    """Return what is to be scanned on this machine.

    Args:
        paths: files and folders.
        selection: of the files in folders; a path that is named itself is always taken.

    Raises:
        ConfigError: a folder can't be listed.
    """
    listing = Listing()
    found: dict[bytes, Item] = {}
    for path in paths:
        if os.path.isdir(path) and (selection.follow_links or not os.path.islink(path)):
            for below in _walk(path, b"", selection, listing):
                _add(found, os.path.join(path, below), selection)
        else:
            _add(found, path, selection)
    listing.items = list(found.values())
    return listing


def _add(found: dict[bytes, Item], path: bytes, selection: Selection) -> None:
    problem = None
    size = mtime_ns = 0
    try:
        status = os.stat(path, follow_symlinks=selection.follow_links)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    else:
        size, mtime_ns = status.st_size, status.st_mtime_ns
        if stat.S_ISLNK(status.st_mode):
            problem = "a symbolic link; not followed without --follow-links"
        elif not stat.S_ISREG(status.st_mode):
            problem = "not a regular file"
    found[path] = Item(path, size, mtime_ns, problem)


def _walk(root: bytes, below: bytes, selection: Selection, listing: Listing) -> Iterator[bytes]:
    """Yield the selected files under a folder, relative to it."""
    waiting = [below]
    seen: set[tuple[int, int]] = set()
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(os.path.join(root, folder)))
            status = os.stat(os.path.join(root, folder))
        except OSError as error:
            raise ConfigError(
                f"{shown(os.path.join(root, folder))}: can't list the folder ({error.strerror})"
            ) from error
        if (status.st_dev, status.st_ino) in seen:
            continue  # a link that leads back
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.is_symlink() and not selection.follow_links:
                listing.links += 1
            elif entry.is_dir():
                waiting.append(path)
            elif entry.is_file() and selection.takes(path):
                yield path
            else:
                listing.left_out += 1


def read_list(file: BinaryIO, *, null: bool) -> Sequence[bytes]:
    """Return the paths of a list.

    Args:
        file: a path a line; empty lines are left out.
        null: whether a NUL character ends each instead, as `find -print0` writes them.
    """
    return [path for path in file.read().split(b"\0" if null else b"\n") if path]
