"""Whole pictures from interlaced ones, whose odd and even rows were filmed at different times.

Combed by movement, a face looks like an attack (a false alarm of the first trials).
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import av
from av.filter import Graph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.video.frame import VideoFrame

Label = TypeVar("Label")

# It needs the picture before and the one after; of the filters that keep what does not move as
# sharp as it was, it is the fastest.
_FILTER: Final = "bwdif"
_OPTIONS: Final = "mode=send_frame:deint=interlaced"  # a picture for a picture; others unchanged


class Deinterlacer(Generic[Label]):
    """Passes pictures on at no cost until one is flagged as interlaced; from then on one late."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._layout: tuple[int, int, str] | None = None
        self._labels: deque[Label] = deque()

    def push(self, picture: VideoFrame, label: Label) -> Iterator[tuple[VideoFrame, Label]]:
        """Take a picture; yield those that are now complete, each with the label it came with."""
        layout = picture.width, picture.height, picture.format.name
        if self._graph is not None and layout != self._layout:
            yield from self.flush()
        if self._graph is None:
            if not picture.interlaced_frame:
                yield picture, label
                return
            self._graph, self._layout = _graph_for(picture), layout
        self._labels.append(label)
        self._graph.vpush(picture)
        yield from self._complete(self._graph)

    def flush(self) -> Iterator[tuple[VideoFrame, Label]]:
        """Yield what is left, and forget that there was anything interlaced."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._complete(self._graph)
        self._graph, self._layout = None, None

    def _complete(self, graph: Graph) -> Iterator[tuple[VideoFrame, Label]]:
        while self._labels:
            try:
                yield graph.vpull(), self._labels.popleft()
            except (av.BlockingIOError, av.EOFError):
                return


def _graph_for(picture: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=Fraction(1, 1000),  # any will do: the labels know the time
        ),
        graph.add(_FILTER, _OPTIONS),
        graph.add("buffersink"),
    ).configure()
    return graph
