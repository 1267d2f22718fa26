"""Attacks on the feed itself: what arrives is not what is before the camera now.

Five things are looked for, on 9,216 pixels of each analysed picture, all by media time:

- **frozen**: hardly a pixel has changed since a picture that is `frozen_after_s` old. Sensors are
  noisy; a still scene changes with every key frame at the latest. Measure: share of pixels that
  changed, 0..1.
- **looped**: the last seconds were shown before, in order (`stream.stages.loop`). Measure:
  residual, 0 the same, about 2 nothing in common.
- **covered**: nothing can be seen. Measure: contrast within the parts of the picture that have most
  of it, grey levels.
- **swapped**: from one picture to the next, or across a reconnect, another scene, which stays
  (`stream.stages.scene`). Measure: share of brightness differences that point the other way, 0..1.
- **changed**: another size or encoding than before.

What is known of a source outlives its sessions: an attacker's reconnect hides nothing. An alert
that is due within the cooldown of another of its kind comes when that is over, if it still holds.
docs/feed.md has how well this works, measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.records import FeedAlert, FeedCondition
from stream.stages.loop import RESIDUAL_LIMIT, LoopFinder, LoopMatch
from stream.stages.scene import SWAPPED_LIMIT, SceneWatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stream.config import FeedConfig
    from stream.records import Frame, FrameStamp

# Share of pixels. A clock that a camera writes into its picture is less, and so is what an encoder
# changes with each key frame of a picture that stays the same; a sensor's noise is 0.25 and more.
FROZEN_LIMIT: Final = 0.05
COVERED_LIMIT: Final = 6.0  # grey levels; real pictures have 16 and more
_UNCOVERED: Final = 9.0
_ROWS, _COLUMNS, _PART = 9, 16, 8  # parts of a picture, and pixels along each
# Matrices that average over each part.
_BY_ROWS: Final = np.kron(np.eye(_ROWS), np.full((1, _PART), 1 / _PART)).astype(np.float32)
_BY_COLUMNS: Final = np.kron(np.eye(_COLUMNS), np.full((_PART, 1), 1 / _PART)).astype(np.float32)
_SESSION_GAP_S: Final = 0.2  # of the time line, between two sessions
_LOOKED_AGAIN_S: Final = 2.0  # a loop is found twice before it is said
# Until an alert is over, the opposite must have held for so long, seconds of media time:
_CLEAR_FROZEN_S: Final = 2.0
_CLEAR_COVERED_S: Final = 3.0
_CLEAR_LOOPED_S: Final = 12.0


@dataclass(frozen=True, slots=True)
class _Glance:
    """What is looked at of a picture."""

    pixels: NDArray[np.uint8]  # (72, 128) green, as they are, with their noise
    means: NDArray[np.float32]  # (9, 16) of each part, grey levels
    contrast: float  # standard deviation within a part, of those that have most; grey levels


class FeedWatch:
    """Looks at the feeds of live sources.

    Args:
        config: what is looked for, and how long it must hold.
    """

    def __init__(self, config: FeedConfig) -> None:
        self._config = config
        self._feeds: dict[str, _Feed] = {}

    def begin(self, source_id: str) -> None:
        """Look at a source from now on, as if nothing were known of it."""
        self._feeds[source_id] = _Feed(self._config)

    def forget(self, source_id: str) -> None:
        """Pass over the frames of a source, as of all that have not begun."""
        self._feeds.pop(source_id, None)

    def look(self, frame: Frame) -> list[FeedAlert]:
        """Return what a frame lets us say of its source's feed."""
        feed = self._feeds.get(frame.stamp.source_id)
        return [] if feed is None else list(feed.look(frame))


class _Lasting:
    """A condition that lasts: when it began, whether it was said, and when it is over."""

    def __init__(self, after_s: float, clear_s: float, cooldown_s: float) -> None:
        self._after_s = after_s
        self._clear_s = clear_s
        self._cooldown_s = cooldown_s
        self._since_s: float | None = None
        self._good_since_s: float | None = None
        self._said_s = -math.inf
        self.is_raised = False

    def turns(self, now_s: float, since_s: float | None) -> float | None:
        """Take note of how it is; return how long it has lasted if there is something to say.

        Args:
            now_s: media time.
            since_s: when what is seen now began; None: the opposite is seen.
        """
        if since_s is not None:
            self._good_since_s = None
            if self._since_s is None:
                self._since_s = since_s
            lasted_s = now_s - self._since_s
            due = lasted_s >= self._after_s and now_s - self._said_s >= self._cooldown_s
            if self.is_raised or not due:
                return None
            self.is_raised, self._said_s = True, now_s
            return lasted_s
        if not self.is_raised:
            self._since_s = None
            return None
        if self._good_since_s is None:
            self._good_since_s = now_s
        if now_s - self._good_since_s < self._clear_s:
            return None
        assert self._since_s is not None
        lasted_s = self._good_since_s - self._since_s
        self.is_raised, self._since_s = False, None
        return lasted_s


class _Feed:
    """What is known of one source's feed, over all its sessions."""

    def __init__(self, config: FeedConfig) -> None:
        self._config = config
        cooldown_s = config.cooldown_s
        self._frozen = _Lasting(config.frozen_after_s, _CLEAR_FROZEN_S, cooldown_s)
        self._covered = _Lasting(config.covered_after_s, _CLEAR_COVERED_S, cooldown_s)
        self._looped = _Lasting(_LOOKED_AGAIN_S, _CLEAR_LOOPED_S, cooldown_s)
        self._loops = LoopFinder(
            window_s=config.loop_window_s, match_s=config.loop_match_s, blocks=_ROWS * _COLUMNS
        )
        self._match: LoopMatch | None = None  # the latest
        self._scene = SceneWatch()
        self._swapped_s = self._changed_s = -math.inf  # when that was said
        self._session: int | None = None
        self._offset_s = self._now_s = 0.0
        self._still: _Glance | None = None  # the first picture that the present one equals
        self._still_since_s = 0.0
        self._identity = ""
        self._ordinal = 0

    def look(self, frame: Frame) -> Iterator[FeedAlert]:
        """Yield what a frame lets us say."""
        now_s = self._advance(frame.stamp)
        glance = _glance(frame)
        yield from self._look_frozen(frame.stamp, now_s, glance)
        yield from self._look_covered(frame.stamp, now_s, glance)
        yield from self._look_looped(frame.stamp, now_s, glance)
        yield from self._look_swapped(frame.stamp, now_s, glance)
        yield from self._look_changed(frame.stamp, now_s)

    def _advance(self, stamp: FrameStamp) -> float:
        """Return the media time of a frame on one line for all sessions."""
        if stamp.session != self._session:
            if self._session is not None:
                self._offset_s = self._now_s + _SESSION_GAP_S - stamp.pts_s
            self._session, self._ordinal = stamp.session, 0
        self._now_s = self._offset_s + stamp.pts_s
        return self._now_s

    def _look_frozen(self, stamp: FrameStamp, now_s: float, glance: _Glance) -> Iterator[FeedAlert]:
        changed = 1.0
        if self._still is not None:
            differ = glance.pixels != self._still.pixels
            changed = np.count_nonzero(differ) / differ.size
        if changed > FROZEN_LIMIT:
            self._still, self._still_since_s = glance, now_s
        # Dark and washed-out pictures have no noise.
        same = changed <= FROZEN_LIMIT and glance.contrast > COVERED_LIMIT
        lasted_s = self._frozen.turns(now_s, self._still_since_s if same else None)
        yield from self._said(
            FeedCondition.FROZEN, stamp, lasted_s, self._frozen, changed, FROZEN_LIMIT
        )

    def _look_covered(
        self, stamp: FrameStamp, now_s: float, glance: _Glance
    ) -> Iterator[FeedAlert]:
        limit = _UNCOVERED if self._covered.is_raised else COVERED_LIMIT
        lasted_s = self._covered.turns(now_s, now_s if glance.contrast <= limit else None)
        yield from self._said(
            FeedCondition.COVERED, stamp, lasted_s, self._covered, glance.contrast, limit
        )

    def _look_looped(self, stamp: FrameStamp, now_s: float, glance: _Glance) -> Iterator[FeedAlert]:
        found = self._loops.look(now_s, glance.means.ravel())
        if found is None:
            return
        if isinstance(found, LoopMatch):
            self._match = found
            lasted_s = self._looped.turns(now_s, now_s)
        else:
            lasted_s = self._looped.turns(now_s, None)
        if lasted_s is not None and self._match is not None:
            if self._looped.is_raised:
                lasted_s += self._config.loop_match_s  # that the first match is long
            match = self._match
            yield self._alert(
                FeedCondition.LOOPED,
                stamp,
                lasted_s,
                cleared=not self._looped.is_raised,
                measure=match.residual,
                limit=RESIDUAL_LIMIT,
                lag_s=match.lag_s,
            )

    def _look_swapped(
        self, stamp: FrameStamp, now_s: float, glance: _Glance
    ) -> Iterator[FeedAlert]:
        another = self._scene.is_another(now_s, glance.means, after_s=self._config.swapped_after_s)
        if not another or now_s - self._swapped_s < self._config.cooldown_s:
            return
        since_s = self._scene.other_since_s
        assert since_s is not None
        self._swapped_s = now_s
        yield self._alert(
            FeedCondition.SWAPPED,
            stamp,
            now_s - since_s,
            measure=self._scene.contradiction,
            limit=SWAPPED_LIMIT,
        )
        self._scene.accept(now_s)

    def _look_changed(self, stamp: FrameStamp, now_s: float) -> Iterator[FeedAlert]:
        identity = f"{stamp.encoding} {stamp.width}x{stamp.height}".strip()
        before = self._identity or identity
        if identity == before:
            self._identity = identity
        elif now_s - self._changed_s >= self._config.cooldown_s:
            self._identity, self._changed_s = identity, now_s
            yield self._alert(FeedCondition.CHANGED, stamp, 0.0, before=before, after=identity)

    def _said(
        self,
        condition: FeedCondition,
        stamp: FrameStamp,
        lasted_s: float | None,
        lasting: _Lasting,
        measure: float,
        limit: float,
    ) -> Iterator[FeedAlert]:
        if lasted_s is not None:
            cleared = not lasting.is_raised
            yield self._alert(
                condition, stamp, lasted_s, cleared=cleared, measure=measure, limit=limit
            )

    def _alert(
        self,
        condition: FeedCondition,
        stamp: FrameStamp,
        lasted_s: float,
        *,
        cleared: bool = False,
        measure: float | None = None,
        limit: float | None = None,
        lag_s: float | None = None,
        before: str | None = None,
        after: str | None = None,
    ) -> FeedAlert:
        self._ordinal += 1
        return FeedAlert(
            condition=condition,
            cleared=cleared,
            ordinal=self._ordinal,
            stamp=stamp,
            lasted_s=lasted_s,
            measure=measure,
            limit=limit,
            lag_s=lag_s,
            before=before,
            after=after,
        )


def _glance(frame: Frame) -> _Glance:
    rows = _middles(frame.stamp.height, _ROWS * _PART)
    columns = _middles(frame.stamp.width, _COLUMNS * _PART)
    if frame.image.device.type == "cpu":
        pixels = frame.image.numpy()[rows][:, columns, 1]
    else:  # only these travel
        pixels = frame.image[rows][:, columns, 1].cpu().numpy()
    values = pixels.astype(np.float32)
    means = _BY_ROWS @ values @ _BY_COLUMNS
    variances = _BY_ROWS @ (values * values) @ _BY_COLUMNS - means * means
    # The 90th percentile: a wall without detail may fill most of a good picture.
    tenth = _ROWS * _COLUMNS // 10
    most = np.partition(variances, -tenth, axis=None)[-tenth]
    return _Glance(pixels, means.astype(np.float32), math.sqrt(max(0.0, float(most))))


def _middles(length: int, n: int) -> NDArray[np.int64]:
    """Return n pixels, evenly spaced."""
    return (np.arange(n) * 2 + 1) * length // (2 * n)
