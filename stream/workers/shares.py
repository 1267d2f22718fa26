"""Which sources go together, on how many processors, with how many threads."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stream.config import StreamConfig


def shares(sources: Sequence[str], costs: Mapping[str, float], parts: int) -> list[list[str]]:
    """Divide sources so that the parts cost about the same.

    The dearest goes first, each to the part that is cheapest so far; so without costs the parts
    differ by one source at most.

    >>> shares(["a", "b", "c", "d"], {"a": 0.3, "b": 0.1, "c": 0.1, "d": 0.1}, 2)
    [['a'], ['b', 'c', 'd']]

    Args:
        sources: ids.
        costs: processor seconds a second, of those that are known; another counts as their mean.
        parts: 1 or more; no part is empty if there are as many sources.

    Returns:
        A list of each part, in the order of `sources`.
    """
    known = [costs[source] for source in sources if source in costs]
    usual = sum(known) / len(known) if known else 1.0
    cost = {source: costs.get(source, usual) for source in sources}
    taken: list[list[str]] = [[] for _ in range(parts)]
    for source in sorted(sources, key=lambda source: -cost[source]):
        min(taken, key=lambda part: (sum(cost[s] for s in part), len(part))).append(source)
    place = {source: number for number, source in enumerate(sources)}
    return [sorted(part, key=lambda source: place[source]) for part in taken]


def processors(root: Path = Path("/")) -> int:
    """Return how many processors this process may use: by affinity, and by its cgroup's quota.

    Args:
        root: of the file system, for `proc/self/cgroup` and `sys/fs/cgroup`.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.floor(min([allowed, *_quotas(root)])))


def bounded(config: StreamConfig, threads: int) -> StreamConfig:
    """Return the configuration with at most so many threads a network run, and a decoder."""
    decode = config.decode.model_copy(update={"threads": min(config.decode.threads, threads)})
    wanted = getattr(config.backend, "threads", threads)  # on a GPU there are none
    of_backend = {"threads": min(wanted, threads)} if hasattr(config.backend, "threads") else {}
    backend = config.backend.model_copy(update=of_backend)
    return config.model_copy(update={"decode": decode, "backend": backend})


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
