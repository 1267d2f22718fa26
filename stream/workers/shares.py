"""Which sources go together, and with how many threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
    cost = _estimated(sources, costs)
    taken: list[list[str]] = [[] for _ in range(parts)]
    for source in sorted(sources, key=lambda source: -cost[source]):
        taken[cheapest(taken, cost)].append(source)
    place = {source: number for number, source in enumerate(sources)}
    return [sorted(part, key=lambda source: place[source]) for part in taken]


def cheapest(parts: Sequence[Sequence[str]], costs: Mapping[str, float]) -> int:
    """Return the index of the part that costs least; of several, of that with the fewest sources.

    Args:
        parts: ids of sources; at least one part.
        costs: as for `shares`.
    """
    cost = _estimated([source for part in parts for source in part], costs)
    sums = [(sum(cost[source] for source in part), len(part)) for part in parts]
    return sums.index(min(sums))


def _estimated(sources: Iterable[str], costs: Mapping[str, float]) -> dict[str, float]:
    """Return what each source costs; one that is not known counts as the mean of the others."""
    sources = list(sources)
    known = [costs[source] for source in sources if source in costs]
    usual = sum(known) / len(known) if known else 1.0
    return {source: costs.get(source, usual) for source in sources}


def bounded(config: StreamConfig, threads: int) -> StreamConfig:
    """Return the configuration with at most so many threads a network run, and a decoder."""
    decode = config.decode.model_copy(update={"threads": min(config.decode.threads, threads)})
    wanted = getattr(config.backend, "threads", threads)  # on a GPU there are none
    of_backend = {"threads": min(wanted, threads)} if hasattr(config.backend, "threads") else {}
    backend = config.backend.model_copy(update=of_backend)
    return config.model_copy(update={"decode": decode, "backend": backend})
