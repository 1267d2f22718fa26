"""The loop of a scan: some files at a time are read, each by a process of its own, and analysed.

Reading and decoding go on in the children while this process detects, tracks and scores; frames of
several files go through the networks together. No frame that is due is dropped: a child whose
frames are not taken waits.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from stream import __version__
from stream.records import Alert, Frame
from stream.scan.child import ReadStatus, Task
from stream.scan.crops import MOST_OF_A_FILE
from stream.scan.inputs import is_object, shown
from stream.scan.objects import Fetcher, UnfetchableError
from stream.scan.policy import Look, Mode
from stream.scan.reading import ReadEnd, Reading, reading_context
from stream.scan.rows import FileRow
from stream.scan.tally import Tally, file_verdict, was_attack
from stream.stack_log import StackLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from stream.analyse import Analyser
    from stream.config import DecodeConfig
    from stream.records import TrackScore
    from stream.scan.crops import CropKeeper
    from stream.scan.inputs import Item
    from stream.scan.journal import Finished
    from stream.scan.policy import ScanLimits
    from stream.scan.watch import Watch

log = logging.getLogger(__name__)

_POLL_S: Final = 0.5
_ATTEMPTS: Final = 2


@dataclass(slots=True)
class ScanProgress:
    """Counters of a scan."""

    files: int = 0  # finished, by this run
    files_due: int = 0
    files_known: int = 0  # finished by an earlier run
    bytes: int = 0
    bytes_due: int = 0
    media_s: float = 0.0
    frames: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)

    def add(self, row: FileRow) -> None:
        """Count a file that is finished."""
        self.files += 1
        self.bytes += row.size
        self.media_s += row.seconds
        self.statuses[row.status] += 1
        self.verdicts[row.verdict] += 1

    def expect(self, item: Item) -> None:
        """Count a file that is due."""
        self.files_due += 1
        self.bytes_due += item.size

    def drop(self, item: Item) -> None:
        """Take back one that was due: it is gone, or turns out to be known."""
        self.files_due -= 1
        self.bytes_due -= item.size


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """How every file of a scan is read and judged."""

    mode: Mode
    fps: float
    decode: DecodeConfig
    closer: DecodeConfig | None  # of the second look, where the first showed faces; None: no such
    limits: ScanLimits
    follow_links: bool
    readers: int  # files that are read at a time
    folder: Path  # for what is fetched from object stores, while it is needed
    run_key: str
    models: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Job:
    """A file that is being scanned."""

    item: Item
    attempt: int
    look: Look
    reading: Reading
    tally: Tally
    fetched: Future[Path] | None
    seen_before: int = 0  # frames decoded for the first look

    @property
    def source_id(self) -> str:
        return self.reading.task.source_id


class Scanner:
    """Scans files to rows; used once.

    Args:
        plan: how.
        analyser: of a kind of look; called for those that there are.
        finished: by path, what is known of files that are finished.
        deliver: gets the row of each file; whoever keeps it adds it to `finished`.
        crops: keeps pictures of the likeliest attacks; None: none are kept.
        stop: once set, `run` ends without finishing the files that are under way.
    """

    def __init__(
        self,
        plan: ScanPlan,
        analyser: Callable[[Look], Analyser],
        finished: Mapping[bytes, Finished],
        deliver: Callable[[FileRow], None],
        crops: CropKeeper | None,
        *,
        stop: threading.Event,
    ) -> None:
        self.progress = ScanProgress()
        self._plan = plan
        self._analyser = analyser
        self._known = finished
        self._deliver = deliver
        self._crops = crops
        self._stop = stop
        self._context = reading_context()
        self._listeners = ThreadPoolExecutor(plan.readers, "listen")
        self._waiting: deque[Item] = deque()
        self._fetching: list[tuple[Item, Future[Path]]] = []
        self._fetcher: Fetcher | None = None
        self._jobs: dict[str, _Job] = {}
        self._started = 0
        self._stacks = StackLog(log)

    def run(
        self,
        items: Iterable[Item],
        report: Callable[[ScanProgress], None] = lambda _: None,
        watch: Watch | None = None,
    ) -> None:
        """Scan what is not finished yet, one row each.

        Args:
            items: to scan.
            report: called several times a second.
            watch: tells what else arrives; with it, this goes on until `stop` is set.

        Raises:
            EngineError: a network can't be run at all.
            StreamError: the results can't be written, or what is fetched has no room.
        """
        self._take(items)
        with ExitStack() as resources:
            resources.enter_context(self._listeners)
            resources.callback(self._close_all)
            while (
                self._waiting or self._fetching or self._jobs or watch is not None
            ) and not self._stop.is_set():
                if watch is not None:
                    self._take(watch.arrived())
                self._begin(watch)
                frames, ended = self._hear()
                self._analyse(frames)
                for job, end in ended:
                    self._end(job, end)
                report(self.progress)

    def _take(self, items: Iterable[Item]) -> None:
        for item in items:
            if self._finished(item, same_time=True) is not None:
                self.progress.files_known += 1
            else:
                self._waiting.append(item)
                self.progress.expect(item)

    def _finished(self, item: Item, *, same_time: bool) -> Finished | None:
        """Return what is known of a file that was finished in this way, if it looks unchanged."""
        known = self._known.get(item.path)
        if known is None:
            return None
        looks = known.holds if same_time else known.may_hold
        return known if looks(item, self._plan.run_key) else None

    def _begin(self, watch: Watch | None) -> None:
        """Begin to fetch and to read what waits, as far as there is room."""
        for item, fetched in [each for each in self._fetching if each[1].done()]:
            if len(self._jobs) < self._plan.readers:
                self._fetching.remove((item, fetched))
                self._read_fetched(item, fetched)
        while self._waiting:
            item = self._waiting[0]
            if item.problem is not None:
                self._finish_unread(item, ReadStatus.UNREADABLE, item.problem)
            elif is_object(item.path):
                if not self._fetch(item):
                    return
            elif len(self._jobs) == self._plan.readers:
                return
            elif watch is not None and not os.path.lexists(item.path):
                log.info("%s: gone before it was read", shown(item.path))
                self.progress.drop(item)
            else:
                self._read(item, item.path)
            self._waiting.popleft()

    def _fetch(self, item: Item) -> bool:
        """Begin to fetch an object; return False if it has to wait."""
        if self._fetcher is None:
            limit_bytes = self._plan.limits.temporary_mb * 2**20
            self._fetcher = Fetcher(
                self._plan.folder, at_once=self._plan.readers, limit_bytes=limit_bytes
            )
        if self._fetcher.never_has_room(item):
            reason = f"{item.size / 2**20:.0f} MiB to fetch; raise temporary_mb"
            self._finish_unread(item, ReadStatus.TOO_LARGE, reason)
            return True
        if len(self._fetching) == self._plan.readers or not self._fetcher.has_room(item):
            return False
        self._fetching.append((item, self._fetcher.start(item)))
        return True

    def _read_fetched(self, item: Item, fetched: Future[Path]) -> None:
        try:
            path = fetched.result()
        except UnfetchableError as error:
            self._discard(item, fetched)
            self._finish_unread(item, ReadStatus.UNREADABLE, str(error))
        else:
            self._read(item, os.fsencode(path), fetched)

    def _discard(self, item: Item, fetched: Future[Path] | None) -> None:
        if fetched is not None and self._fetcher is not None:
            self._fetcher.discard(item, fetched)

    def _read(
        self, item: Item, path: bytes, fetched: Future[Path] | None = None, attempt: int = 1
    ) -> None:
        known = self._finished(item, same_time=False)
        reading = self._reading(item, path, self._plan.decode, known.sha256 if known else None)
        look = Look.STILL if item.is_still else Look.VIDEO
        tally = Tally(is_still=item.is_still)
        self._jobs[reading.task.source_id] = _Job(item, attempt, look, reading, tally, fetched)

    def _look_closer(self, job: _Job) -> bool:
        """Begin a second look at the seconds with faces; return False if there are none."""
        closer, limits = self._plan.closer, self._plan.limits
        spans = job.tally.spans_with_faces(limits.duration_s)
        if closer is None or job.look is not Look.VIDEO or not spans:
            return False
        decode = closer.model_copy(update={"spans": spans})
        reading = self._reading(job.item, job.reading.task.path, decode, None)
        self._jobs[reading.task.source_id] = _Job(
            job.item,
            job.attempt,
            Look.CLOSER,
            reading,
            job.tally.closer(),
            job.fetched,
            seen_before=job.reading.frames_seen,
        )
        return True

    def _reading(
        self, item: Item, path: bytes, decode: DecodeConfig, known_sha256: str | None
    ) -> Reading:
        self._started += 1
        task = Task(
            path=path,
            source_id=f"file-{self._started}",
            is_still=item.is_still,
            follow_links=self._plan.follow_links,
            known_sha256=known_sha256,
            decode=decode,
            limits=self._plan.limits,
        )
        return Reading(task, self._context, self._listeners)

    def _hear(self) -> tuple[list[tuple[_Job, Frame]], list[tuple[_Job, ReadEnd]]]:
        """Listen to all children; return at most one frame of each, and those that ended."""
        frames: list[tuple[_Job, Frame]] = []
        ended: list[tuple[_Job, ReadEnd]] = []
        if not self._jobs:  # fetching, or watching
            fetching = [fetched for _, fetched in self._fetching]
            if fetching:
                concurrent.futures.wait(fetching, _POLL_S, concurrent.futures.FIRST_COMPLETED)
            else:
                self._stop.wait(0 if self._waiting else _POLL_S)
            return [], []
        coming = [job.reading.coming for job in self._jobs.values()]
        ready, _ = concurrent.futures.wait(coming, _POLL_S, concurrent.futures.FIRST_COMPLETED)
        for job in self._jobs.values():
            is_ready = job.reading.coming in ready
            heard = job.reading.take() if is_ready else job.reading.overdue()
            if isinstance(heard, Frame):
                frames.append((job, heard))
            elif isinstance(heard, ReadEnd):
                ended.append((job, heard))
        return frames, ended

    def _analyse(self, heard: list[tuple[_Job, Frame]]) -> None:
        for look in Look:
            some = [(job, frame) for job, frame in heard if job.look is look]
            if not some:
                continue
            step = self._analyser(look).step([frame for _, frame in some])
            for job, frame in some:
                error = step.failures.get(job.source_id)
                job.tally.add_frame(frame, error)
                self.progress.frames += 1
                if error is not None:
                    name = shown(job.item.path)
                    self._stacks.error(name, f"{name}: a frame can't be analysed", error)
                own = [r for r in step.records if _source_id(r) == job.source_id]
                for track in job.tally.add_records(own):
                    self._keep_crop(job, track, frame)

    def _keep_crop(self, job: _Job, track: int, frame: Frame) -> None:
        score = job.tally.score_of(track)
        if self._crops is not None and score.sighting.stamp == frame.stamp:
            crop = self._crops.cut(frame, score)
            if crop is not None:
                job.tally.keep_crop(track, crop)

    def _end(self, job: _Job, end: ReadEnd) -> None:
        """Finish a file, or read it once more: where that may help, or to look closer."""
        job.reading.close()
        del self._jobs[job.source_id]
        job.tally.add_records(self._analyser(job.look).finish(job.source_id))
        if end.is_known:
            self.progress.files_known += 1
            self.progress.drop(job.item)
        elif end.may_retry and job.attempt < _ATTEMPTS:
            log.warning("%s: %s; once more", shown(job.item.path), end.reason)
            self._read(job.item, job.reading.task.path, job.fetched, job.attempt + 1)
            return
        elif not end.may_retry and self._look_closer(job):
            return
        else:
            self._finish(job.item, job, end)
        self._discard(job.item, job.fetched)

    def _finish_unread(self, item: Item, status: ReadStatus, reason: str) -> None:
        self._finish(item, None, ReadEnd(status, reason, may_retry=False))

    def _finish(self, item: Item, job: _Job | None, end: ReadEnd) -> None:
        """Deliver the row of a file."""
        tally = Tally(is_still=item.is_still) if job is None else job.tally
        crops = dict(islice(tally.crops().items(), MOST_OF_A_FILE))
        keep = self._crops
        names = {n: keep.keep(item.path, n, c) for n, c in crops.items()} if keep else {}
        tracks = tally.rows(names)
        reason = end.reason
        if reason is None and tally.frames_failed:
            reason = f"{tally.frames_failed} frames could not be analysed; the log has the stacks"
        attacks = sum(map(was_attack, tracks))
        others = Counter(str(track.verdict) for track in tracks if not was_attack(track))
        stamp = None if tally.last_frame is None else tally.last_frame.stamp
        path = shown(item.path)
        is_closer = job is not None and job.look is Look.CLOSER
        row = FileRow(
            path=path,
            path_hex=None if path.encode() == item.path else item.path.hex(),
            kind="still" if item.is_still else "video",
            status=end.status,
            reason=reason,
            attempts=1 if job is None else job.attempt,
            verdict=file_verdict(tracks),
            p_attack=tracks[0].p_highest if tracks else None,
            n_tracks=len(tracks),
            n_attack=attacks,
            n_bona_fide=others["bona_fide"],
            n_undecided=others["undecided"],
            n_abstain=others["abstain"],
            coverage=None if tally.coverage is None else round(tally.coverage, 4),
            seconds=round(tally.seconds, 3),
            frames_seen=0 if job is None else job.seen_before + job.reading.frames_seen,
            frames_analysed=tally.frames_analysed,
            frames_failed=tally.frames_failed,
            width=stamp and stamp.width,
            height=stamp and stamp.height,
            media=None if job is None else job.reading.description,
            decoder=stamp and stamp.decoder,
            mode=f"{Mode.KEYFRAMES}+{Mode.SAMPLE}" if is_closer else self._plan.mode,
            fps=self._plan.fps,
            size=item.size,
            mtime_ns=item.mtime_ns,
            sha256=None if job is None else job.reading.sha256,
            etag=item.etag,
            models=self._plan.models,
            run_key=self._plan.run_key,
            version=__version__,
            at=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
            tracks=tracks,
        )
        self._deliver(row)
        self.progress.add(row)

    def _close_all(self) -> None:
        for job in self._jobs.values():
            job.reading.close()
        self._jobs.clear()
        if self._fetcher is not None:
            self._fetcher.close()


def _source_id(record: TrackScore | Alert) -> str:
    score = record.track if isinstance(record, Alert) else record
    return score.sighting.key.source_id


def scan_one(
    plan: ScanPlan,
    analyser: Callable[[Look], Analyser],
    item: Item,
    crops: CropKeeper | None = None,
    known: Finished | None = None,
) -> FileRow | None:
    """Scan one file, read by a process of its own; for engines that spread.

    Args:
        plan: how.
        analyser: of a kind of look.
        item: the file.
        crops: keeps pictures of the likeliest attacks.
        known: what is known of it, if it was finished before.

    Returns:
        Its row; None: its content is that which is known.

    Raises:
        EngineError: a network can't be run at all.
        StreamError: what is fetched from a store has no room.
    """
    rows: list[FileRow] = []
    finished = {} if known is None else {item.path: known}
    Scanner(plan, analyser, finished, rows.append, crops, stop=threading.Event()).run([item])
    return rows[0] if rows else None
