"""One worker: the pipeline over a share of the sources, in a process that may die.

It obeys its supervisor alone, through a pipe. When the pipe ends, because the supervisor died in
whatever way, it drains and ends too.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stream.assembly import connect, load_engines, recent_packets, what_was_learned
from stream.decode.slots import share_processors
from stream.errors import ConfigError, SinkError, StreamError
from stream.records import Frame
from stream.redact import RedactingFilter
from stream.sources import Source
from stream.workers.said import (
    SAID,
    STOP,
    Counted,
    Done,
    Failed,
    FailureKind,
    Logged,
    Ready,
    SourceSaid,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from stream.config import StreamConfig
    from stream.metrics.measures import Measures
    from stream.pipeline import Progress
    from stream.records import SourceHistory, SourceOutput, SourceStatus
    from stream.sources import FatesOfFrames
    from stream.workers.said import Said

log = logging.getLogger(__name__)

_ORPHAN_SHARE: Final = 2  # of `shutdown_s`: how long a worker may outlive its supervisor


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is to do."""

    config: StreamConfig  # of its share, and its own spool
    histories: Mapping[str, SourceHistory]  # of those sources that were watched before
    run: str
    log_level: int
    processors: int  # of the machine's, its share
    number: int
    metrics: Path | None  # folder to keep what is measured in; None: nothing is


def work(task: Task, pipe: Connection) -> None:
    """Watch sources until they end or the supervisor says so; the whole life of a worker."""
    link = _Link(pipe)
    handler = _Forwarding(link)
    handler.addFilter(RedactingFilter(()))
    logging.basicConfig(level=task.log_level, handlers=[handler], force=True)
    stop = threading.Event()
    listener = threading.Thread(
        target=link.obey, args=(stop, task.config.shutdown_s), name="obey", daemon=True
    )
    listener.start()
    try:
        _watch(task, link, stop)
    except ConfigError as error:
        link.tell(Failed(FailureKind.CONFIG, str(error)))
    except SinkError as error:
        link.tell(Failed(FailureKind.SINK, str(error)))
    except StreamError as error:
        link.tell(Failed(FailureKind.DRAIN, str(error)))
    except Exception as error:
        log.exception("failed: this is a bug in facewarden; please report it with these lines")
        link.tell(Failed(FailureKind.BUG, type(error).__name__))
    else:
        link.tell(Done())


def _watch(task: Task, link: _Link, stop: threading.Event) -> None:
    config = task.config
    share_processors(task.processors)
    with load_engines(config) as analyser:
        sources = [
            _ToldSource(
                source,
                config.decode,
                stop=stop,
                history=task.histories.get(source.id),
                recent=recent_packets(config),
                learned=what_was_learned(source, config),
            )
            for source in config.sources
        ]
        for source in sources:
            source.link = link
        measures = _measures(task)
        pipeline = connect(config, sources, analyser, run=task.run, stop=stop, measures=measures)
        link.tell(Ready())
        started_s = time.process_time()

        def report(progress: Progress) -> None:
            used_s = time.process_time() - started_s
            costs = _costs(sources, used_s)
            link.tell(Counted(progress.frames_analysed, progress.verdicts, costs, progress.busy_s))
            if measures is not None:
                measures.tick(progress)

        pipeline.run(report)


def _measures(task: Task) -> Measures | None:
    if task.metrics is None:
        return None
    from stream.metrics.monitor import measures_of_worker

    return measures_of_worker(task.config, task.metrics, task.number)


class _ToldSource(Source):
    """Tells the supervisor of all it says, and measures what it costs."""

    link: _Link
    cpu_s = 0.0  # of the thread that decodes it
    media_s = 0.0  # that its frames span
    frames = 0

    def events(self, fates: FatesOfFrames | None = None) -> Iterator[SourceOutput]:
        """See `Source.events`."""
        session, pts_s = -1, 0.0
        for event in super().events(fates):
            if isinstance(event, Frame):
                stamp = event.stamp
                self.cpu_s = time.thread_time()
                self.frames += 1
                self.media_s += stamp.pts_s - pts_s if stamp.session == session else 0.0
                session, pts_s = stamp.session, stamp.pts_s
            else:
                self.link.tell(SourceSaid(self.source_id, self.history))
            yield event

    def abandoned(self) -> SourceStatus:
        """See `Source.abandoned`."""
        status = super().abandoned()
        self.link.tell(SourceSaid(self.source_id, self.history))
        return status


def _costs(sources: Sequence[_ToldSource], used_s: float) -> dict[str, float]:
    """Return what each source costs, processor seconds per second of its media.

    Decoding is measured, source by source. The rest of what the process used goes to the sources by
    their frames: the networks see those of several sources together.

    Args:
        sources: all of the process.
        used_s: by all threads of the process.
    """
    frames = sum(source.frames for source in sources)
    rest_s = max(0.0, used_s - sum(source.cpu_s for source in sources))
    return {
        source.source_id: (source.cpu_s + rest_s * source.frames / frames) / source.media_s
        for source in sources
        if source.media_s > 0
    }


class _Link:
    """The worker's end of the pipe; any thread may tell."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def tell(self, said: Said) -> None:
        """Tell the supervisor, if there is one."""
        data = SAID.dump_json(said)
        with self._lock, suppress(OSError):  # it is gone; `obey` acts on that
            self._pipe.send_bytes(data)

    def obey(self, stop: threading.Event, shutdown_s: float) -> None:
        """Set `stop` when told so, or when the supervisor is gone; runs in a thread."""
        try:
            self._pipe.recv_bytes(len(STOP))
        except (EOFError, OSError):
            # By the kernel, so that nothing in this process can be in its way.
            signal.alarm(math.ceil(_ORPHAN_SHARE * shutdown_s))
        stop.set()
        with suppress(EOFError, OSError):
            self._pipe.recv_bytes(1)  # nothing more is said
        signal.alarm(math.ceil(_ORPHAN_SHARE * shutdown_s))


class _Forwarding(logging.Handler):
    """Gives log records to the supervisor."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a record, which a filter has formatted."""
        self._link.tell(
            Logged(record.name, record.levelno, record.created, str(record.msg), record.exc_text)
        )
