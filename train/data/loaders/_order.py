"""Which rows make up a step: a function of seed, step and rank alone, so any step can be the first.

A group's stream is endless: epoch after epoch, each a new order of all its rows. Step i takes the
positions [i Q, (i + 1) Q) of the stream, Q = quota x world, and rank r the r-th part of them: the
ranks together see what one process with a quota of Q sees.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_RUN: Final = 8  # samples of one shard in a row: few enough to mix well, enough for few index files
_OF_A_SAMPLE: Final = 1  # last part of a seed; the seeds of epochs have no such part


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are drawn from together, such as the attacks of one data set.

    Attributes:
        name: for messages.
        rows: of the opened shards.
        quota: of a rank's samples in each step.
    """

    name: str
    rows: Sequence[int]
    quota: int


class Shuffled:
    """An endless stream over a group's rows."""

    def __init__(
        self, rows: Sequence[int], shard: NDArray[np.int32], seed: tuple[int, ...]
    ) -> None:
        """Take the rows, and the shard of every row of the folder."""
        self._rows = np.array(rows, np.int64)
        self._shard = shard[self._rows]
        self._seed = seed
        self._last = (0, self._shuffled(0))

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the rows at these positions of the stream."""
        n = len(self._rows)
        return np.concatenate(
            [
                self._epoch(epoch)[max(start - epoch * n, 0) : stop - epoch * n]
                for epoch in range(start // n, -(-stop // n))
            ]
        )

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._last[0] != epoch:
            self._last = (epoch, self._shuffled(epoch))
        return self._last[1]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        """Return all rows: shuffled within each shard, then in short runs over all shards."""
        rng = np.random.default_rng((*self._seed, epoch))
        order = rng.permutation(len(self._rows))
        order = order[np.argsort(self._shard[order], kind="stable")]
        runs = np.split(order, range(_RUN, len(order), _RUN))
        shuffled = np.concatenate([runs[i] for i in rng.permutation(len(runs))])
        return np.take(self._rows, shuffled)


class InOrder:
    """A group's rows, each once."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._rows = rows

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the rows at these positions, fewer at the end."""
        return self._rows[start:stop]


@dataclass(frozen=True, slots=True)
class Order:
    """What one rank loads.

    Attributes:
        streams: of the groups.
        quotas: of the groups, per rank and step.
        seed: of the run; with group and position it seeds the draws of a sample.
        rank: of this process.
        world: how many ranks there are.
        steps: after which the order ends; None: never.
        first: position of the first sample.
        pool: all rows that any rank reads, in order.
    """

    streams: tuple[Shuffled | InOrder, ...]
    quotas: tuple[int, ...]
    seed: int
    rank: int = 0
    world: int = 1
    steps: int | None = None
    first: int = 0
    pool: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def positions(self, group: int, step: int) -> range:
        """Return this rank's positions in a group's stream."""
        quota = self.quotas[group]
        start = self.first + (step * self.world + self.rank) * quota
        return range(start, start + quota)

    def rows(self, group: int, step: int) -> NDArray[np.int64]:
        """Return this rank's rows of a group."""
        positions = self.positions(group, step)
        return self.streams[group].rows(positions.start, positions.stop)

    def generators(self, group: int, step: int) -> list[np.random.Generator]:
        """Return a fresh generator for each of this rank's samples of a group."""
        return [
            np.random.default_rng((self.seed, group, position, _OF_A_SAMPLE))
            for position in self.positions(group, step)
        ]


def training_order(
    groups: Sequence[Group], shard: NDArray[np.int32], *, seed: int, rank: int, world: int
) -> Order:
    """Return the endless order of a training run.

    Args:
        groups: each gives its quota to every step.
        shard: (N,) of every row of the opened shards.
        seed: of the run.
        rank: of this process.
        world: number of processes.

    Raises:
        TrainError: a group is empty or takes nothing, or two have one name.
    """
    for group in groups:
        if len(group.rows) < 1 or group.quota < 1:
            raise TrainError(
                f"group {group.name!r}: {len(group.rows)} rows, quota {group.quota}; each must be "
                "1 or more"
            )
    if not groups or max(Counter(group.name for group in groups).values()) > 1:
        raise TrainError(f"groups need names of their own, got {[group.name for group in groups]}")
    return Order(
        tuple(Shuffled(group.rows, shard, (seed, i)) for i, group in enumerate(groups)),
        tuple(group.quota for group in groups),
        seed,
        rank,
        world,
        pool=np.unique(np.concatenate([np.asarray(group.rows, np.int64) for group in groups])),
    )


def evaluation_order(rows: Sequence[int], batch: int, *, rank: int, world: int) -> Order:
    """Return the order in which the ranks together see each row once, none twice.

    Args:
        rows: of the opened shards; a rank gets neighbours.
        batch: samples per step; the last step of a rank has what is left.
        rank: of this process.
        world: number of processes.
    """
    in_order = np.sort(np.array(rows, np.int64))
    first, end = (len(in_order) * r // world for r in (rank, rank + 1))
    steps = -(-(end - first) // batch)
    stream = InOrder(in_order[:end])
    return Order((stream,), (batch,), seed=0, steps=steps, first=first, pool=in_order)
