"""What the page shows of a process that analyses: the analysis only notes it here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from models import crop_faces
from stream.errors import ConfigError
from stream.messages import track_id, verdict_id
from stream.page.board import Board, Measured
from stream.records import Alert, Verdict
from trt_engines.errors import EngineError
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from models import InputSpec
    from stream.analyse import Step
    from stream.config import StreamConfig
    from stream.messages import OutMessage
    from stream.records import Frame, Track, TrackKey, TrackScore


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A frame that was scored."""

    frame: Frame
    faces: tuple[dict[str, object], ...]  # as the page's script takes them


LiveBoard: TypeAlias = "Board[Scored, Tensor]"  # looks are (3, S, S) uint8 RGB


class Feed:
    """Watches the analysis and takes its messages, from their threads.

    Args:
        board: that is told.
        spec: what the first detector is shown of a face.
        clock: Unix seconds.
    """

    def __init__(
        self, board: LiveBoard, spec: InputSpec, clock: Callable[[], float] = time.time
    ) -> None:
        self._board = board
        self._spec = spec.model_copy(update={"dtype": "uint8"})
        self._clock = clock
        self._said: dict[TrackKey, TrackScore] = {}  # of live tracks; the analysis' thread alone

    def watch(self, frames: Sequence[Frame], step: Step) -> None:
        """See `stream.pipeline.Watcher`; frames are kept only while somebody looks."""
        now, at = self._clock(), time.monotonic()
        for record in step.records:
            self._note(record.track if isinstance(record, Alert) else record)
        for alert in step.records:
            if isinstance(alert, Alert):
                self._keep_look(alert, frames, step)
        measured = []
        for frame in frames:
            stamp = frame.stamp
            if stamp.source_id in step.failures:
                continue
            latency_s = max(0.0, now - stamp.captured_at)
            measured.append(Measured(at, stamp.source_id, latency_s, step.seconds))
            if self._board.widths(stamp.source_id):
                faces = tuple(map(self._face, step.tracks.get(stamp.source_id, ())))
                self._board.show(stamp.source_id, None, Scored(frame, faces))
        self._board.measured(measured)
        self._board.announce()

    def publish(self, messages: Sequence[OutMessage]) -> None:
        """See `stream.publish.Sink`."""
        self._board.publish(messages)

    def close(self) -> None:
        """See `stream.publish.Sink`."""

    def _note(self, score: TrackScore) -> None:
        if score.ended:
            self._said.pop(score.sighting.key, None)
        else:
            self._said[score.sighting.key] = score

    def _keep_look(self, alert: Alert, frames: Sequence[Frame], step: Step) -> None:
        """Keep what the first detector saw, or would have seen, when the verdict changed."""
        sighting = alert.track.sighting
        crop = next(
            (c.image for c in step.crops if c.sighting.key == sighting.key and c.detector == 0),
            None,
        )
        if crop is None:
            frame = next((f for f in frames if f.stamp == sighting.stamp), None)
            if frame is None:
                return
            (crop,) = crop_faces(frame.image, sighting.detection.box[None], self._spec)
        self._board.keep_look(verdict_id(self._board.run, alert), crop)

    def _face(self, track: Track) -> dict[str, object]:
        said = self._said.get(track.key)
        return {
            "track": track_id(self._board.run, track.key),
            "box": [round(float(v), 1) for v in track.detection.box],  # px of the frame
            "state": said.verdict if said else Verdict.UNDECIDED,
            "p": None if said is None or said.probability is None else round(said.probability, 4),
            "family": said.family if said else None,
            "reason": said.problem if said else None,
        }


def open_feed(config: StreamConfig, board: LiveBoard) -> Feed:
    """Return what tells a board of a run.

    Raises:
        ConfigError: the manifest of the first engine is missing or damaged.
    """
    try:
        return Feed(board, load_manifest(config.score.engines[0].manifest).input)
    except EngineError as error:
        raise ConfigError(str(error)) from error
