"""Scores of single looks to a verdict per track; docs/decisions/0010-fusion.md derives the formula.

The evidence of one look is the logit of its probability, clipped so that no look decides alone. A
track's evidence is the weighted mean of its looks, shrunk towards "don't know": certainty does not
grow without bound with the number of looks, because what is wrong with a camera is wrong in all of
them. Weights count media time, not frames, so neither frame rate nor dropped frames change them.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from models import logit, sigmoid
from stream.errors import ConfigError
from stream.records import Alert, TrackScore, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.config import FuseConfig
    from stream.records import AttackScore, QualityProblem, Sighting, TrackKey
    from trt_engines.manifest import DecisionThresholds

MAX_EVIDENCE: Final = 4.0  # log-odds; a probability of 0.982 is as far as one look goes
_CLIP: Final = float(sigmoid(-MAX_EVIDENCE))


class Evidence:
    """What the looks at one track say together.

    Streaming decides on it, and `train.release.thresholds` chooses thresholds on it.
    """

    def __init__(self, config: FuseConfig) -> None:
        self.n_scores = 0
        self.effective = 0.0  # independent looks that the scores are worth
        self._config = config
        self._weighted = 0.0  # sum of weights times log-odds
        self._last_pts_s: float | None = None

    def add(self, pts_s: float, probability: float) -> None:
        """Weigh a look by what it adds: nothing right after another, 1 - 1/e after a while.

        Args:
            pts_s: media time, never decreasing.
            probability: 0..1, what the network says of this look.

        Raises:
            ValueError: the probability is not in 0..1.
        """
        if not 0 <= probability <= 1:  # true for NaN, which would silence the track for good
            raise ValueError(f"a score must lie in 0..1, got {probability}: the network is broken")
        weight, kept = 1.0, 1.0
        if self._last_pts_s is not None:
            elapsed_s = pts_s - self._last_pts_s
            weight = -math.expm1(-elapsed_s / self._config.correlation_s)
            kept = math.exp(-elapsed_s / self._config.memory_s)
        self._weighted = self._weighted * kept + weight * float(logit(probability, _CLIP))
        self.effective = self.effective * kept + weight
        self.n_scores += 1
        self._last_pts_s = pts_s

    @property
    def probability(self) -> float | None:
        """Fused probability of an attack, 0..1; None before the first look."""
        if self.n_scores == 0:
            return None
        return float(sigmoid(self._weighted / (self.effective + self._config.prior_looks)))

    @property
    def allows_verdict(self) -> bool:
        """Whether there were enough looks, and worth enough."""
        return (
            self.n_scores >= self._config.min_scores
            and self.effective >= self._config.min_effective
        )


def highest_probability(config: FuseConfig, look_every_s: float) -> float | None:
    """Return the highest probability that a verdict can rest on within `config.reach_s`.

    It is that of a face whose every look is a sure attack. One that is surely bona fide gets as far
    below 0.5.

    Args:
        config: of fusion.
        look_every_s: media time between two looks, seconds, more than 0.

    Returns:
        0.5..1; None: no verdict is possible so soon after the first look.
    """
    evidence = Evidence(config)
    highest = None
    for look in range(1 + int(config.reach_s / look_every_s + 1e-6)):
        evidence.add(look * look_every_s, 1.0)
        if evidence.allows_verdict:
            highest = max(highest or 0.0, evidence.probability or 0.0)
    return highest


@dataclass(slots=True)
class _Track:
    """What is kept of one track."""

    sighting: Sighting  # the latest
    evidence: Evidence
    reported_pts_s: float | None = None
    verdict: Verdict = Verdict.UNDECIDED
    changes: int = 0
    problems: Counter[QualityProblem] = field(default_factory=Counter)


class Fuser:
    """Holds the evidence of every live track.

    Args:
        config: weights, limits and how often to report.
        thresholds: the detector's own; `config.enter` and `config.leave` override them.
        method: the detector's name, for the messages.
        look_every_s: least media time between two looks at a track, seconds.

    Raises:
        ConfigError: a threshold that no track can reach within `config.reach_s`.
    """

    def __init__(
        self,
        config: FuseConfig,
        thresholds: DecisionThresholds,
        method: str,
        *,
        look_every_s: float,
    ) -> None:
        self._config = config
        self._enter = thresholds.enter if config.enter is None else config.enter
        self._leave = thresholds.leave if config.leave is None else config.leave
        _check_reach(config, self._enter, self._leave, look_every_s)
        self._method = method
        self._tracks: dict[TrackKey, _Track] = {}

    def update(
        self,
        scores: Sequence[AttackScore],
        rejected: Sequence[Sighting],
        ended: Sequence[TrackKey],
    ) -> list[TrackScore | Alert]:
        """Take in the looks of one step.

        A score is reported when `publish_every_s` of media time has passed since the track's last
        report, before every alert, and once more when the track ends.

        Args:
            scores: of looks that passed the quality gate.
            rejected: looks that did not.
            ended: tracks that will not be seen again.

        Returns:
            Messages, those of one track in order; a score stands before the alert it caused.

        Raises:
            ValueError: a score is not in 0..1, NaN for one, which would silence its track for good.
        """
        messages: list[TrackScore | Alert] = []
        for score in scores:
            track = self._seen(score.sighting)
            track.evidence.add(score.sighting.stamp.pts_s, score.probability)
            messages += self._report(track)
        for sighting in rejected:
            track = self._seen(sighting)
            if sighting.quality.problem is not None:
                track.problems[sighting.quality.problem] += 1
            messages += self._report(track)
        for key in ended:
            if (last := self._tracks.pop(key, None)) is not None:
                messages.append(self._score(last, ended=True))
        return messages

    def tracks_of(self, source_id: str) -> list[TrackKey]:
        """Return the keys of a source's live tracks that were looked at, in order."""
        return sorted(key for key in self._tracks if key.source_id == source_id)

    def _seen(self, sighting: Sighting) -> _Track:
        track = self._tracks.get(sighting.key)
        if track is None:
            track = self._tracks[sighting.key] = _Track(sighting, Evidence(self._config))
        track.sighting = sighting
        return track

    def _report(self, track: _Track) -> list[TrackScore | Alert]:
        previous, track.verdict = track.verdict, self._verdict(track)
        pts_s = track.sighting.stamp.pts_s
        changed = track.verdict is not previous
        last = track.reported_pts_s
        if not changed and last is not None and pts_s - last < self._config.publish_every_s - 1e-3:
            return []
        track.reported_pts_s = pts_s
        score = self._score(track, ended=False)
        if not changed:
            return [score]
        track.changes += 1
        threshold = self._leave if track.verdict is Verdict.BONA_FIDE else self._enter
        return [
            score,
            Alert(track=score, previous=previous, ordinal=track.changes, threshold=threshold),
        ]

    def _verdict(self, track: _Track) -> Verdict:
        """Return the verdict now; between the thresholds, and for lack of evidence, it stays."""
        probability = track.evidence.probability
        if probability is None:
            age_s = track.sighting.stamp.pts_s - track.sighting.first_pts_s
            return Verdict.ABSTAIN if age_s >= self._config.abstain_after_s else track.verdict
        enough = track.evidence.allows_verdict
        if enough and probability >= self._enter:
            return Verdict.ATTACK
        if enough and probability < self._leave:
            return Verdict.BONA_FIDE
        return Verdict.UNDECIDED if track.verdict is Verdict.ABSTAIN else track.verdict

    def _score(self, track: _Track, *, ended: bool) -> TrackScore:
        abstains = track.verdict is Verdict.ABSTAIN
        return TrackScore(
            sighting=track.sighting,
            n_scores=track.evidence.n_scores,
            n_effective=track.evidence.effective,
            probability=track.evidence.probability,
            verdict=track.verdict,
            problem=track.problems.most_common(1)[0][0] if abstains else None,
            method=self._method,
            ended=ended,
        )


def _check_reach(config: FuseConfig, enter: float, leave: float, look_every_s: float) -> None:
    """Refuse thresholds that no track can reach in time."""
    looks = f"looks every {look_every_s:g} s"
    highest = highest_probability(config, look_every_s)
    if highest is None:
        raise ConfigError(
            f"fuse: {looks} allow no verdict within {config.reach_s:g} s (fuse.reach_s); lower "
            f"min_scores ({config.min_scores}) or min_effective ({config.min_effective:g}), look "
            "more often (score.interval_s, decode.analyse_fps), or raise reach_s"
        )
    most = math.floor(1000 * highest) / 1000
    if enter > highest:
        name, value, limit = "enter", enter, f"{most:.3f} or less"
    elif leave <= 1 - highest:
        name, value, limit = "leave", leave, f"more than {1 - most:.3f}"
    else:
        return
    whose = "of the engine's manifest" if getattr(config, name) is None else "as set"
    raise ConfigError(
        f"fuse.{name}: no track can reach {value:g} ({whose}): in {config.reach_s:g} s "
        f"(fuse.reach_s) of {looks} that are all sure, p goes to {1 - most:.3f} or {most:.3f} and "
        f"no further; set fuse.{name} to {limit}"
    )
