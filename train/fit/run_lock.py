"""One run has one folder, and a folder one run."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from train.fit.ranks import Ranks

log = logging.getLogger(__name__)


@contextmanager
def locked(run: Path, ranks: Ranks) -> Iterator[None]:
    """Keep a run's folder for these ranks; the lock ends with rank 0, however that ends.

    A record lock, not `flock` (as the package filelock has): loader workers inherit the latter, and
    would hold it for some seconds after a run that was killed.

    Raises:
        TrainError: another process has it, or the folder can't be written; on every rank.
    """
    held: list[int] = []
    try:
        ranks.on_first(lambda: held.append(_lock(run)))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _lock(run: Path) -> int:
    path = run / ".lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise TrainError(f"{run}: can't be the folder of a run: {error}") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise TrainError(
            f"{run}: another training run is writing there ({holder or 'it does not say which'}); "
            "wait for it, or use another folder (--out). Processes that should train together are "
            "started by torchrun, or by srun"
        ) from error
    except OSError as error:
        log.warning("%s: can't be locked (%s): two runs in it would not notice", path, error)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor
