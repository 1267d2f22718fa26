"""One worker: the pipeline over a share of the sources, in a process that may die.

It obeys its supervisor alone, through a pipe: sources come and go, and are paused and resumed. When
the pipe ends, because the supervisor died in whatever way, it drains and ends too.
"""

from __future__ import annotations

import logging
import math
import queue
import signal
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stream.assembly import connect, load_engines, recent_packets, what_was_learned
from stream.console import hide_in_logs
from stream.decode.slots import share_processors
from stream.errors import ConfigError, SinkError, StreamError
from stream.records import Frame
from stream.redact import RedactingFilter, secrets_of
from stream.sources import Source
from stream.workers.said import (
    SAID,
    Counted,
    Done,
    Failed,
    FailureKind,
    Logged,
    Ready,
    SourceSaid,
)
from stream.workers.told import Add, Pause, Remove, Resume, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from stream.config import StreamConfig
    from stream.metrics.measures import Measures
    from stream.page.feed import Feed, LiveBoard
    from stream.pipeline import Pipeline, Progress
    from stream.records import SourceOutput, SourceStatus
    from stream.sources import FatesOfFrames
    from stream.workers.said import Said
    from stream.workers.told import Change

log = logging.getLogger(__name__)

_ORPHAN_SHARE: Final = 2  # of `shutdown_s`: how long a worker may outlive its supervisor


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is to do."""

    config: StreamConfig  # of its share, and its own spool
    first: tuple[Add, ...]  # the sources of `config`; others may come
    heartbeat_s: float  # longest of any source of the run
    run: str
    log_level: int
    processors: int  # of the machine's, its share
    number: int
    metrics: Path | None  # folder to keep what is measured in; None: nothing is


def work(task: Task, pipe: Connection, page: Connection | None) -> None:
    """Watch sources until they end or the supervisor says so; the whole life of a worker.

    Args:
        task: what to do.
        pipe: to the supervisor.
        page: to the supervisor's page; None: there is none.
    """
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
        with ExitStack() as resources:
            _watch(task, link, stop, _feeds(task, page, resources))
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


def _watch(task: Task, link: _Link, stop: threading.Event, feeds: Sequence[Feed]) -> None:
    config = task.config
    share_processors(task.processors)
    with load_engines(config) as analyser:
        share = _Share(config, link)
        sources = [share.open(each) for each in task.first]
        measures = _measures(task)
        pipeline = connect(
            config,
            sources,
            analyser,
            run=task.run,
            stop=stop,
            watchers=feeds,
            listeners=feeds,
            measures=measures,
            heartbeat_s=task.heartbeat_s,
        )
        link.tell(Ready())
        threading.Thread(target=share.follow, args=(pipeline,), name="follow", daemon=True).start()
        started_s = time.process_time()

        def report(progress: Progress) -> None:
            used_s = time.process_time() - started_s
            costs = share.costs(used_s)
            link.tell(Counted(progress.frames_analysed, progress.verdicts, costs, progress.busy_s))
            if measures is not None:
                measures.tick(progress)

        pipeline.run(report)


def _measures(task: Task) -> Measures | None:
    if task.metrics is None:
        return None
    from stream.metrics.monitor import measures_of_worker

    return measures_of_worker(task.config, task.metrics, task.number)


class _Share:
    """The sources of this worker, which come and go."""

    def __init__(self, config: StreamConfig, link: _Link) -> None:
        self._config = config
        self._link = link
        self._sources: dict[str, _ToldSource] = {}
        self._gone_cpu_s = 0.0  # of sources that were removed, as are...
        self._gone_frames = 0  # ...these
        self._lock = threading.Lock()

    def open(self, told: Add) -> _ToldSource:
        """Make a source; nothing of it is opened yet."""
        config = told.source
        hide_in_logs(secrets_of(config.uri.get_secret_value()))
        source = _ToldSource(
            config,
            self._config.decode,
            stop=threading.Event(),
            history=told.history,
            recent=recent_packets(self._config),
            learned=what_was_learned(config, self._config),
        )
        source.link, source.life = self._link, told.life
        if told.is_paused:
            source.pause()
        with self._lock:
            self._sources[config.id] = source
        return source

    def follow(self, pipeline: Pipeline) -> None:
        """Do to the pipeline what the supervisor tells; never returns."""
        while True:
            change = self._link.changes.get()
            try:
                self._do(change, pipeline)
            except ConfigError as error:  # it ended before the supervisor knew
                log.warning("%s", error)
            except Exception:
                log.exception("this is a bug in facewarden; please report it with these lines")

    def _do(self, change: Change, pipeline: Pipeline) -> None:
        match change:
            case Add():
                pipeline.add(self.open(change))
            case Remove(source_id=source_id):
                pipeline.remove(source_id)
                with self._lock:
                    source = self._sources.pop(source_id)
                    self._gone_cpu_s += source.cpu_s
                    self._gone_frames += source.frames
            case Pause(source_id=source_id):
                pipeline.pause(source_id)
            case Resume(source_id=source_id):
                pipeline.resume(source_id)

    def costs(self, used_s: float) -> dict[str, float]:
        """Return what each source costs, processor seconds per second of its media.

        Decoding is measured, source by source. The rest of what the process used goes to the
        sources by their frames: the networks see those of several sources together.

        Args:
            used_s: by all threads of the process.
        """
        with self._lock:
            sources = list(self._sources.values())
            frames = self._gone_frames + sum(source.frames for source in sources)
            decoding_s = self._gone_cpu_s + sum(source.cpu_s for source in sources)
        rest_s = max(0.0, used_s - decoding_s)
        return {
            source.source_id: (source.cpu_s + rest_s * source.frames / frames) / source.media_s
            for source in sources
            if source.media_s > 0
        }


def _feeds(task: Task, page: Connection | None, resources: ExitStack) -> list[Feed]:
    """Return what tells the page of this worker, if there is one; closed with `resources`.

    Raises:
        ConfigError: the manifest of the first engine is missing or damaged.
    """
    if page is None:
        return []
    from stream.page.board import Board
    from stream.page.feed import open_feed
    from stream.workers.showing import Showing

    board: LiveBoard = Board(task.run)
    feed = open_feed(task.config, board)
    resources.enter_context(Showing(board, task.config.score.engines[0].manifest, page))
    return [feed]


class _ToldSource(Source):
    """Tells the supervisor of all it says, and measures what it costs."""

    link: _Link
    life: int
    cpu_s = 0.0  # of the thread that decodes it
    media_s = 0.0  # that its frames span
    frames = 0
    _is_abandoned = False

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
                self._tell()
            yield event

    def abandoned(self) -> SourceStatus:
        """See `Source.abandoned`."""
        status = super().abandoned()
        self._tell()
        self._is_abandoned = True
        return status

    def _tell(self) -> None:
        if not self._is_abandoned:  # else another of this id may have begun
            self.link.tell(SourceSaid(self.source_id, self.history, self.life))


class _Link:
    """The worker's end of the pipe; any thread may tell.

    Attributes:
        changes: that the supervisor told, and nobody has done yet.
    """

    def __init__(self, pipe: Connection) -> None:
        self.changes: queue.SimpleQueue[Change] = queue.SimpleQueue()
        self._pipe = pipe
        self._lock = threading.Lock()

    def tell(self, said: Said) -> None:
        """Tell the supervisor, if there is one."""
        data = SAID.dump_json(said)
        with self._lock, suppress(OSError):  # it is gone; `obey` acts on that
            self._pipe.send_bytes(data)

    def obey(self, stop: threading.Event, shutdown_s: float) -> None:
        """Queue changes, and set `stop` when told so, or when the supervisor is gone.

        Runs in a thread.
        """
        try:
            while not isinstance(told := self._pipe.recv(), Stop):
                self.changes.put(told)
        except (EOFError, OSError):
            # By the kernel, so that nothing in this process can be in its way.
            signal.alarm(math.ceil(_ORPHAN_SHARE * shutdown_s))
        stop.set()
        with suppress(EOFError, OSError):
            while True:
                self._pipe.recv()
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
