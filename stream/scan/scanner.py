"""The loop of a scan: some files at a time are read, each by a process of its own, and analysed.

Reading and decoding go on in the children while this process detects, tracks and scores; frames of
several files go through the networks together. No frame that is due is dropped: a child whose
frames are not taken waits.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Final

from stream import __version__
from stream.records import Alert, Frame
from stream.scan.child import ReadStatus, Task
from stream.scan.crops import MOST_OF_A_FILE
from stream.scan.inputs import shown
from stream.scan.reading import ReadEnd, Reading, reading_context
from stream.scan.rows import FileRow
from stream.scan.tally import Tally, file_verdict, was_attack
from stream.stack_log import StackLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from threading import Event

    from stream.analyse import Analyser
    from stream.config import DecodeConfig
    from stream.records import TrackScore
    from stream.scan.crops import CropKeeper
    from stream.scan.inputs import Item
    from stream.scan.journal import Finished, Journal
    from stream.scan.policy import Mode, ScanLimits

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


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """How every file of a scan is read and judged."""

    mode: Mode
    fps: float
    decode: DecodeConfig
    limits: ScanLimits
    follow_links: bool
    readers: int  # files that are read at a time
    run_key: str
    models: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Job:
    """A file that is being scanned."""

    item: Item
    attempt: int
    reading: Reading
    tally: Tally

    @property
    def source_id(self) -> str:
        return self.reading.task.source_id


class Scanner:
    """Scans files into a journal; used once.

    Args:
        plan: how.
        analyser: of videos, or of stills if True is given; called for those that there are.
        journal: gets a row per file.
        crops: keeps pictures of the likeliest attacks; None: none are kept.
        stop: once set, `run` ends without finishing the files that are under way.
    """

    def __init__(
        self,
        plan: ScanPlan,
        analyser: Callable[[bool], Analyser],
        journal: Journal,
        crops: CropKeeper | None,
        *,
        stop: Event,
    ) -> None:
        self.progress = ScanProgress()
        self._plan = plan
        self._analyser = analyser
        self._journal = journal
        self._crops = crops
        self._stop = stop
        self._context = reading_context()
        self._jobs: dict[str, _Job] = {}
        self._started = 0
        self._stacks = StackLog(log)

    def run(
        self, items: Iterable[Item], report: Callable[[ScanProgress], None] = lambda _: None
    ) -> None:
        """Scan what is not finished yet, one row each.

        Raises:
            EngineError: a network can't be run at all.
            StreamError: the results can't be written.
        """
        waiting: deque[tuple[Item, int]] = deque()
        for item in items:
            if self._finished(item, same_time=True) is not None:
                self.progress.files_known += 1
            else:
                waiting.append((item, 1))
                self.progress.files_due += 1
                self.progress.bytes_due += item.size
        with ExitStack() as resources:
            resources.callback(self._close_all)
            while (waiting or self._jobs) and not self._stop.is_set():
                while waiting and len(self._jobs) < self._plan.readers:
                    item, attempt = waiting.popleft()
                    if item.problem is None:
                        self._start(item, attempt)
                    else:
                        self._finish_unread(item)
                frames, ended = self._hear()
                self._analyse(frames)
                for job, end in ended:
                    if self._end(job, end):
                        waiting.appendleft((job.item, job.attempt + 1))
                report(self.progress)

    def _finished(self, item: Item, *, same_time: bool) -> Finished | None:
        """Return what is known of a file that was finished in this way, if it looks unchanged."""
        known = self._journal.finished.get(item.path)
        if known is None or (known.run_key, known.size) != (self._plan.run_key, item.size):
            return None
        return known if known.mtime_ns == item.mtime_ns or not same_time else None

    def _start(self, item: Item, attempt: int) -> None:
        self._started += 1
        known = self._finished(item, same_time=False)
        task = Task(
            path=item.path,
            source_id=f"file-{self._started}",
            is_still=item.is_still,
            follow_links=self._plan.follow_links,
            known_sha256=None if known is None else known.sha256,
            decode=self._plan.decode,
            limits=self._plan.limits,
        )
        reading = Reading(task, self._context)
        self._jobs[task.source_id] = _Job(item, attempt, reading, Tally(is_still=item.is_still))

    def _hear(self) -> tuple[list[tuple[_Job, Frame]], list[tuple[_Job, ReadEnd]]]:
        """Listen to all children; return at most one frame of each, and those that ended."""
        frames: list[tuple[_Job, Frame]] = []
        ended: list[tuple[_Job, ReadEnd]] = []
        ready = wait([job.reading.pipe for job in self._jobs.values()], _POLL_S)
        for job in self._jobs.values():
            heard = job.reading.hear() if job.reading.pipe in ready else job.reading.overdue()
            if isinstance(heard, Frame):
                frames.append((job, heard))
            elif isinstance(heard, ReadEnd):
                ended.append((job, heard))
        return frames, ended

    def _analyse(self, heard: list[tuple[_Job, Frame]]) -> None:
        for is_still in (False, True):
            some = [(job, frame) for job, frame in heard if job.item.is_still is is_still]
            if not some:
                continue
            step = self._analyser(is_still).step([frame for _, frame in some])
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

    def _end(self, job: _Job, end: ReadEnd) -> bool:
        """Finish a file; return whether it is to be read once more."""
        job.reading.close()
        del self._jobs[job.source_id]
        job.tally.add_records(self._analyser(job.item.is_still).finish(job.source_id))
        if end.is_known:
            self.progress.files_known += 1
            self.progress.files_due -= 1
            self.progress.bytes_due -= job.item.size
            return False
        if end.may_retry and job.attempt < _ATTEMPTS:
            log.warning("%s: %s; once more", shown(job.item.path), end.reason)
            return True
        self._finish(job.item, job, end)
        return False

    def _finish_unread(self, item: Item) -> None:
        self._finish(item, None, ReadEnd(ReadStatus.UNREADABLE, item.problem, may_retry=False))

    def _finish(self, item: Item, job: _Job | None, end: ReadEnd) -> None:
        """Write the row of a file."""
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
            frames_seen=0 if job is None else job.reading.frames_seen,
            frames_analysed=tally.frames_analysed,
            frames_failed=tally.frames_failed,
            width=stamp and stamp.width,
            height=stamp and stamp.height,
            media=None if job is None else job.reading.description,
            decoder=stamp and stamp.decoder,
            mode=self._plan.mode,
            fps=self._plan.fps,
            size=item.size,
            mtime_ns=item.mtime_ns,
            sha256=None if job is None else job.reading.sha256,
            models=self._plan.models,
            run_key=self._plan.run_key,
            version=__version__,
            at=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
            tracks=tracks,
        )
        self._journal.append(row)
        self.progress.files += 1
        self.progress.bytes += item.size
        self.progress.media_s += tally.seconds
        self.progress.statuses[row.status] += 1
        self.progress.verdicts[row.verdict] += 1

    def _close_all(self) -> None:
        for job in self._jobs.values():
            job.reading.close()
        self._jobs.clear()


def _source_id(record: TrackScore | Alert) -> str:
    score = record.track if isinstance(record, Alert) else record
    return score.sighting.key.source_id
