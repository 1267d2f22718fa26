"""The folder of all bundles: written whole or not at all, and deleted for good.

A bundle is written to a folder `.part-<name>`, which its process holds locked, and renamed when all
of it is on the disk. So a folder of that kind that nobody holds was left by a process that died,
and goes with the next look at the store. Deletion is the same way back: renamed first, so that
nobody takes a half deleted bundle for a forged one.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stream.errors import ConfigError
from stream.evidence.seal import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_PARTIAL: Final = ".part-"
_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, order=True)
class Kept:
    """A bundle in the store."""

    written_at: float  # Unix seconds, by this machine's clock, as its file system noted
    name: str
    size: int  # bytes of its files


class Store:
    """A folder of bundles, for this user alone.

    Args:
        folder: made if it is missing.

    Raises:
        ConfigError: it can't be used: of another user, open to others, a link, not to be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = folder.lstat()
        except OSError as error:
            raise ConfigError(
                f"evidence {folder}: can't be made ({error.strerror}); name a folder that this "
                "user may write"
            ) from error
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            raise ConfigError(
                f"evidence {folder}: expected a folder, no link, of the user who runs this "
                f"({os.geteuid()}), found one of user {facts.st_uid}"
            )
        if facts.st_mode & 0o077:
            raise ConfigError(
                f"evidence {folder}: others may enter it (mode {stat.S_IMODE(facts.st_mode):o}), "
                "and it holds faces: chmod 700"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"evidence {folder}: this user may not write there")

    def put(self, name: str, files: Mapping[str, bytes]) -> Path:
        """Write a bundle; return its folder, which is there whole, on the disk, or not at all.

        Args:
            name: of the bundle.
            files: by path within it, `/` between folders.

        Raises:
            OSError: the disk is full, or there is one of that name.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"not the name of a bundle: {name!r}")
        with self._partial(name) as partial:
            for path, data in files.items():
                target = partial / path
                target.parent.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
            for folder in {partial, *(path for path in partial.iterdir() if path.is_dir())}:
                _sync(folder)
            partial.rename(self.folder / name)
            _sync(self.folder)
        return self.folder / name

    def bundles(self) -> list[Kept]:
        """Return what is in the store, oldest first."""
        found = []
        for folder in self.folder.iterdir():
            if _NAME.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                with suppress(FileNotFoundError):  # deleted by another process
                    written_at = (folder / MANIFEST).stat().st_mtime
                    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                    found.append(Kept(written_at, folder.name, size))
        return sorted(found)

    def prune(self, *, keep_days: float, keep_gb: float, now: float) -> list[str]:
        """Delete what is too old, then the oldest until the rest is small enough.

        What dead processes left half written goes, too.

        Args:
            keep_days: age, days.
            keep_gb: size of all bundles, GB.
            now: Unix seconds.

        Returns:
            The names of the bundles that were deleted.
        """
        self._sweep()
        bundles = self.bundles()
        total = sum(kept.size for kept in bundles)
        gone = []
        for kept in bundles:
            if now - kept.written_at > keep_days * _DAY_S or total > keep_gb * 1e9:
                self._delete(kept.name)
                total -= kept.size
                gone.append(kept.name)
        return gone

    def _delete(self, name: str) -> None:
        condemned = self.folder / f"{_PARTIAL}{name}"
        with suppress(FileNotFoundError):  # another process was faster
            (self.folder / name).rename(condemned)
            shutil.rmtree(condemned)
            _sync(self.folder)

    def _sweep(self) -> None:
        """Delete what no living process is writing or deleting."""
        with _locked(self.folder, fcntl.LOCK_EX):  # nobody is between making one and holding it
            for folder in self.folder.glob(f"{_PARTIAL}*"):
                with (
                    suppress(FileNotFoundError, BlockingIOError),
                    _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB),
                ):
                    shutil.rmtree(folder)

    @contextmanager
    def _partial(self, name: str) -> Iterator[Path]:
        """Yield a new folder that this process holds; what is left of it afterwards is deleted."""
        folder = self.folder / f"{_PARTIAL}{name}"
        with ExitStack() as held:
            with _locked(self.folder, fcntl.LOCK_SH):
                folder.mkdir(mode=0o700)
                held.enter_context(_locked(folder, fcntl.LOCK_EX))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Lock a folder; the system unlocks what a process held that died.

    Raises:
        BlockingIOError: another process holds it, and `how` says not to wait.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
