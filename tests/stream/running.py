"""A pipeline for tests of what changes or shows it while it runs."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from stream.assembly import recent_packets, what_was_learned
from stream.config import StreamConfig
from stream.control import Control
from stream.messages import MessageWriter, OutMessage, ScoreMessage, StatusMessage
from stream.pipeline import Pipeline
from stream.records import SourceCode, SourceState
from stream.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stream.analyse import Step
    from stream.config import SourceConfig
    from stream.page.feed import Feed
    from stream.records import Frame, FrameStamp

WAIT_S: Final = 30.0  # for what must happen; a test that waits so long has failed
RUN: Final = "0" * 8
STOPPED: Final = (SourceState.ENDED, SourceCode.STOPPED)
PAUSED: Final = (SourceState.PAUSED, SourceCode.STOPPED)
OPEN: Final = (SourceState.OPEN, SourceCode.OK)


class Run:
    """A pipeline that runs in a thread, all that it says and sees, and what controls it."""

    def __init__(
        self,
        config: StreamConfig,
        analyser: Any,
        feed: Feed | None = None,
        others: Sequence[Any] = (),  # that watch, too, and keep something of each source
    ) -> None:
        self.stop = threading.Event()
        self.messages: list[OutMessage] = []
        self.stamps: list[FrameStamp] = []
        self.sessions: set[tuple[str, int]] = set()  # of which a frame was analysed
        self.hidden: list[str] = []
        self._happened = threading.Condition()
        self.config = config
        feeds = [] if feed is None else [feed]
        self.pipeline = Pipeline(
            [self._open(source) for source in config.sources],
            analyser,
            MessageWriter(run=RUN, version="", models=()),
            [self, *feeds],
            stop=self.stop,
            shutdown_s=12,
            watchers=[self, *feeds, *others],
            per_source=others,
        )
        self.control = Control(config, self.pipeline, self._add, self._hide)
        self._thread = threading.Thread(target=self.pipeline.run)

    def _open(self, source: SourceConfig) -> Source:
        return Source(
            source,
            self.config.decode,
            stop=threading.Event(),
            recent=recent_packets(self.config),
            learned=what_was_learned(source, self.config),
        )

    def _add(self, source: SourceConfig) -> None:
        self.pipeline.add(self._open(source))

    def _hide(self, source: SourceConfig) -> None:
        self.hidden.append(source.uri.get_secret_value())

    def publish(self, messages: Sequence[OutMessage]) -> None:
        with self._happened:
            self.messages += messages
            self._happened.notify_all()

    def close(self) -> None: ...

    def watch(self, frames: Sequence[Frame], step: Step) -> None:
        with self._happened:
            self.stamps += [frame.stamp for frame in frames]
            self.sessions |= {(f.stamp.source_id, f.stamp.session) for f in frames}
            self._happened.notify_all()

    def wait_for(self, what: Callable[[], object]) -> None:
        with self._happened:
            assert self._happened.wait_for(what, WAIT_S), what

    def wait_for_frame(self, source_id: str, session: int = 0) -> None:
        self.wait_for(lambda: (source_id, session) in self.sessions)

    def changes(self, source_id: str) -> list[tuple[SourceState, SourceCode]]:
        return [
            (m.status.state, m.status.code)
            for m in self.messages
            if isinstance(m, StatusMessage) and m.status.changed and m.source.id == source_id
        ]

    def scores(self, source_id: str) -> list[ScoreMessage]:
        return [
            m for m in self.messages if isinstance(m, ScoreMessage) and m.source.id == source_id
        ]

    def wait_for_gone(self, source_id: str) -> None:
        """Wait until a source is forgotten: it is among the statuses as long as it is known."""
        wait_until(lambda: source_id not in self.pipeline.progress().sources)

    @contextmanager
    def running(self) -> Iterator[Run]:
        self._thread.start()
        try:
            yield self
        finally:
            self.stop.set()
            self._thread.join(WAIT_S)


def config_of(*sources: dict[str, Any], **options: Any) -> StreamConfig:
    return StreamConfig.model_validate({"sources": list(sources), **options})


def wait_until(what: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
