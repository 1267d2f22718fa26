"""What it means that a number of cameras is held, and how the largest such number is found.

The same for our pipeline (`benchmarks.cameras`) and for what it is compared with.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_DROPPED: Final = 0.001  # of the frames due
SLOWEST_P95_MS: Final = 500.0
FARTHEST_BEHIND_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Trial:
    """What one run with N cameras showed, after its start-up."""

    n: int
    held: bool
    frames_due: int
    frames_dropped: int
    scores: int
    latency_p50_ms: float
    latency_p95_ms: float
    behind_s: float  # the slowest camera's media time, behind the clock
    cores_used: float
    cpu_ms_per_camera_second: float
    stolen_cores: float  # what the host took from this machine meanwhile
    largest_rss_mib: float


def judged(
    n: int,
    *,
    due: int,
    dropped: int,
    latencies_ms: Sequence[float],
    behind_s: float,
    cores_used: float,
    stolen_cores: float,
    largest_rss_mib: float,
) -> Trial:
    """Judge what a run with N cameras showed."""
    p50, p95 = np.percentile(latencies_ms, [50, 95]) if latencies_ms else (np.inf, np.inf)
    return Trial(
        n=n,
        held=bool(
            dropped <= MOST_DROPPED * due
            and p95 <= SLOWEST_P95_MS
            and behind_s <= FARTHEST_BEHIND_S
        ),
        frames_due=due,
        frames_dropped=dropped,
        scores=len(latencies_ms),
        latency_p50_ms=round(float(p50), 1),
        latency_p95_ms=round(float(p95), 1),
        behind_s=round(behind_s, 2),
        cores_used=round(cores_used, 2),
        cpu_ms_per_camera_second=round(1000 * cores_used / n, 1),
        stolen_cores=round(stolen_cores, 3),
        largest_rss_mib=round(largest_rss_mib),
    )


def largest_held(held: Callable[[int], bool], *, first: int, limit: int, step: int = 1) -> int:
    """Double until one number is not held, then halve the distance; 0 if not even one is.

    Args:
        held: tries a number of cameras.
        first: is tried first.
        limit: none larger is tried.
        step: so near is near enough.
    """
    good, bad = 0, first
    while held(bad):
        good, bad = bad, 2 * bad
        if bad > limit:
            return good
    return most_between(held, good, bad, step=step)


def most_between(held: Callable[[int], bool], good: int, bad: int, *, step: int = 1) -> int:
    """Halve the distance between a number that is held and one that is not; return the former."""
    while bad - good > step:
        middle = (good + bad) // 2
        if held(middle):
            good = middle
        else:
            bad = middle
    return good


def line(trial: Trial) -> str:
    """Return a trial for people to read."""
    stolen = f" ({trial.stolen_cores:.2f} stolen)" if trial.stolen_cores >= 0.005 else ""
    return (
        f"{trial.n:3d} cameras {'held    ' if trial.held else 'not held'}: "
        f"{trial.frames_dropped} of {trial.frames_due} dropped, "
        f"latency {trial.latency_p50_ms:g} / {trial.latency_p95_ms:g} ms (p50 / p95 of "
        f"{trial.scores}), {trial.behind_s:.2f} s behind, "
        f"{trial.cores_used:.2f} cores{stolen}, {trial.cpu_ms_per_camera_second:g} ms a camera and "
        f"second, {trial.largest_rss_mib:g} MiB"
    )


class Used:
    """Counts this process's time on processors, from the end of a start-up on."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self._began_s = time.monotonic()
        self._used_s, self._stolen_s = time.process_time(), _stolen_s()

    def cores(self) -> dict[str, float]:
        """Return what this process used, and what the host took from all, in processors."""
        elapsed_s = time.monotonic() - self._began_s
        return {
            "cores_used": (time.process_time() - self._used_s) / elapsed_s,
            "stolen_cores": (_stolen_s() - self._stolen_s) / elapsed_s,
        }


def largest_rss_mib() -> float:
    """Return the largest resident set of this process since its program began; Linux.

    What `getrusage` says is at least what its parent had when it started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) / 1024


def _stolen_s() -> float:
    """Return for how long the host let others have this machine's processors, seconds so far."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))  # Linux alone tells
