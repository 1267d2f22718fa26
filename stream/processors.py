"""How many processors this process may use: what a container or service manager leaves it, too."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def processors(root: Path = Path("/")) -> int:
    """Return how many processors this process may use: by affinity, and by its cgroup's quota.

    Args:
        root: of the file system, for `proc/self/cgroup` and `sys/fs/cgroup`.
    """
    affine = hasattr(os, "sched_getaffinity")  # Linux
    allowed = len(os.sched_getaffinity(0)) if affine else os.cpu_count() or 1
    return max(1, math.floor(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> list[float]:
    """Return the quotas of this process' cgroup and those above it, in processors."""
    quotas = []
    for number, controllers, path in _cgroups(root):
        names: tuple[str, ...]
        if number == "0":  # version 2
            top, names = root / "sys/fs/cgroup", ("cpu.max",)
        elif "cpu" in controllers:
            top, names = root / "sys/fs/cgroup/cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        # In a container the path may be that of the host, and the container's own the top.
        below = top / path.strip("/")
        for folder in (below, *below.parents):
            if folder.is_relative_to(top):
                quotas += _quota(folder, names)
    return quotas


def _cgroups(root: Path) -> list[tuple[str, list[str], str]]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    parts = [line.split(":", 2) for line in lines]
    return [(part[0], part[1].split(","), part[2]) for part in parts if len(part) == 3]


def _quota(folder: Path, names: Sequence[str]) -> list[float]:
    try:
        text = " ".join((folder / name).read_text(encoding="ascii") for name in names)
        quota, period = map(float, text.split())
    except (OSError, ValueError):  # no such file, or `max`
        return []
    return [quota / period] if quota > 0 and period > 0 else []
