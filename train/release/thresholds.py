"""Decision thresholds: chosen on what streaming's own fusion makes of the development tracks.

A threshold must mean the same where it is chosen and where it decides. So the tracks are fused by
`stream.stages.fuse.Evidence`, with its defaults, by their media times and at streaming's rate of
looks (docs/decisions/0010).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from models import ATTACK
from stream.config import FuseConfig, ScoreConfig
from stream.stages.crop import is_due
from stream.stages.fuse import Evidence, enter_above, highest_probability, leave_of
from train.errors import TrainError
from trt_engines.manifest import DecisionThresholds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from train.evaluation.scores import FrameScore

FUSE: Final = FuseConfig()
LOOK_EVERY_S: Final = ScoreConfig().interval_s
_NAMED: Final = 5  # tracks that an error lists before it counts the rest


@dataclass(frozen=True, slots=True)
class DevTrack:
    """One face of a development video, after fusion."""

    name: str
    attack: bool
    peak: float  # highest fused probability at a moment that allowed a verdict; 0: none did
    repeated: bool  # it has too few looks for a verdict: they were taken to recur


def fused_tracks(scores: Iterable[FrameScore]) -> list[DevTrack]:
    """Fuse the looks at each face as streaming does.

    A picture is a single look, and some protocols draw two of a video: fewer than a verdict needs.
    Such a track stands for a face that goes on looking alike: its looks recur in order, one every
    `LOOK_EVERY_S`, for `FUSE.reach_s`. A track of more looks counts as it is, and if it is too
    short for a verdict, it gets none.

    Args:
        scores: of development faces; a video without a face has no track.
    """
    looks: dict[tuple[str, str, int, int], list[tuple[float, float]]] = {}
    for score in scores:
        if score.score is not None:
            face = (score.dataset, score.video_id, score.track, score.label)
            looks.setdefault(face, []).append((score.pts_s, score.score))
    return [
        _fused(f"{video}, face {track}", label == ATTACK, sorted(seen))
        for (_, video, track, label), seen in looks.items()
    ]


def choose_thresholds(
    tracks: Sequence[DevTrack], *, false_alarms: float, data: str
) -> DecisionThresholds:
    """Return the lowest thresholds at which at most a share of the bona fide tracks alarm.

    Args:
        tracks: of development data; the attacks among them choose nothing, and are counted.
        false_alarms: share of the bona fide tracks that may alarm, 0..1.
        data: what the tracks are of, for the manifest.

    Raises:
        TrainError: a share outside 0..1, no bona fide track that allows a verdict, or an `enter`
            that not even a sure attack reaches within `FUSE.reach_s`.
    """
    if not 0 <= false_alarms <= 1:
        raise TrainError(f"--false-alarms {false_alarms:g}: expected a share of tracks, 0 to 1")
    bona_fide = sorted((t for t in tracks if not t.attack), key=lambda t: t.peak, reverse=True)
    if not bona_fide or bona_fide[0].peak == 0:
        raise TrainError(
            f"{data}: thresholds are chosen on bona fide tracks that allow a verdict, and none of "
            f"{len(bona_fide)} does: it needs {FUSE.min_scores} looks, {LOOK_EVERY_S:g} s apart"
        )
    allowed = math.floor(false_alarms * len(bona_fide) + 1e-9)
    enter = 0.5 if allowed == len(bona_fide) else enter_above(bona_fide[allowed].peak)
    highest = highest_probability(FUSE, LOOK_EVERY_S)
    assert highest is not None  # the defaults allow a verdict in time
    if enter > highest:
        raise TrainError(_out_of_reach(enter, highest, bona_fide, allowed, data))
    source = _source(tracks, enter, false_alarms, data)
    return DecisionThresholds(enter=enter, leave=leave_of(enter), source=source)


def _fused(name: str, attack: bool, looks: Sequence[tuple[float, float]]) -> DevTrack:
    repeated = len(looks) < FUSE.min_scores
    if repeated:
        n = 1 + int(FUSE.reach_s / LOOK_EVERY_S)
        recurring = itertools.islice(itertools.cycle(p for _, p in looks), n)
        looks = [(i * LOOK_EVERY_S, p) for i, p in enumerate(recurring)]
    evidence = Evidence(FUSE)
    peak, last_pts_s = 0.0, None
    for pts_s, probability in looks:
        if is_due(last_pts_s, pts_s, LOOK_EVERY_S):
            evidence.add(pts_s, probability)
            last_pts_s = pts_s
            if evidence.allows_verdict:
                peak = max(peak, evidence.probability or 0.0)
    return DevTrack(name, attack, peak, repeated)


def _source(tracks: Sequence[DevTrack], enter: float, false_alarms: float, data: str) -> str:
    alarms = {
        attack: f"{sum(t.peak >= enter for t in tracks if t.attack is attack)} of "
        f"{sum(t.attack is attack for t in tracks)}"
        for attack in (False, True)
    }
    repeated = sum(track.repeated for track in tracks)
    return (
        f"{data}, fused as in streaming with a look every {LOOK_EVERY_S:g} s; at most "
        f"{false_alarms:g} of the bona fide tracks may alarm: {alarms[False]} do, and "
        f"{alarms[True]} attack tracks"
    ) + (
        f"; {repeated} tracks are pictures, or hold fewer than {FUSE.min_scores} looks, which were "
        f"taken to recur for {FUSE.reach_s:g} s"
        if repeated
        else ""
    )


def _out_of_reach(
    enter: float, highest: float, bona_fide: Sequence[DevTrack], allowed: int, data: str
) -> str:
    too_high = [track for track in bona_fide if enter_above(track.peak) > highest]
    listed = ", ".join(f"{track.name} ({track.peak:.3f})" for track in too_high[:_NAMED])
    rest = len(too_high) - _NAMED
    share = math.ceil(1000 * len(too_high) / len(bona_fide)) / 1000
    return (
        f"{data}: for at most {allowed} of {len(bona_fide)} bona fide tracks to alarm, an alarm "
        f"would need a fused probability of {enter:g}, and a face that is a sure attack at every "
        f"look reaches {highest:.3f} in {FUSE.reach_s:g} s: no alarm would be possible. These bona "
        f"fide tracks come as high: {listed}" + (f" and {rest} more" if rest > 0 else "") + "; are "
        f"they labelled rightly? Train further, or let them alarm: --false-alarms {share:g}"
    )
