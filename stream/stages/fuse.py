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

from stream.errors import ConfigError
from stream.records import Alert, TrackScore, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.config import FuseConfig
    from stream.records import AttackScore, QualityProblem, Sighting, TrackKey
    from trt_engines.manifest import DecisionThresholds

MAX_EVIDENCE: Final = 4.0  # logits; a probability of 0.982 is as far as one look goes


@dataclass(slots=True)
class _Track:
    """What is kept of one track."""

    sighting: Sighting  # the latest
    evidence: float = 0.0  # weighted sum of logits
    effective: float = 0.0  # sum of the weights
    n_scores: int = 0
    scored_pts_s: float | None = None
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

    Raises:
        ConfigError: `leave` exceeds `enter`, of which one was set and the other was not.
    """

    def __init__(self, config: FuseConfig, thresholds: DecisionThresholds, method: str) -> None:
        self._config = config
        self._enter = thresholds.enter if config.enter is None else config.enter
        self._leave = thresholds.leave if config.leave is None else config.leave
        if self._leave > self._enter:
            raise ConfigError(
                f"fuse: leave ({self._leave:g}) must not exceed enter ({self._enter:g}); what is "
                "not set comes from the engine's manifest: set both"
            )
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
            self._add(track, score)
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
        track = self._tracks.setdefault(sighting.key, _Track(sighting))
        track.sighting = sighting
        return track

    def _add(self, track: _Track, score: AttackScore) -> None:
        """Weigh a look by what it adds: nothing right after another, 1 - 1/e after a while."""
        pts_s = score.sighting.stamp.pts_s
        weight, kept = 1.0, 1.0
        if track.scored_pts_s is not None:
            elapsed_s = pts_s - track.scored_pts_s
            weight = -math.expm1(-elapsed_s / self._config.correlation_s)
            kept = math.exp(-elapsed_s / self._config.memory_s)
        track.evidence = track.evidence * kept + weight * _logit(score.probability)
        track.effective = track.effective * kept + weight
        track.n_scores += 1
        track.scored_pts_s = pts_s

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
        probability = self._probability(track)
        if probability is None:
            age_s = track.sighting.stamp.pts_s - track.sighting.first_pts_s
            return Verdict.ABSTAIN if age_s >= self._config.abstain_after_s else track.verdict
        enough = (
            track.n_scores >= self._config.min_scores
            and track.effective >= self._config.min_effective
        )
        if enough and probability >= self._enter:
            return Verdict.ATTACK
        if enough and probability < self._leave:
            return Verdict.BONA_FIDE
        return Verdict.UNDECIDED if track.verdict is Verdict.ABSTAIN else track.verdict

    def _probability(self, track: _Track) -> float | None:
        if track.n_scores == 0:
            return None
        mean = track.evidence / (track.effective + self._config.prior_looks)
        return 1 / (1 + math.exp(-mean))

    def _score(self, track: _Track, *, ended: bool) -> TrackScore:
        abstains = track.verdict is Verdict.ABSTAIN
        return TrackScore(
            sighting=track.sighting,
            n_scores=track.n_scores,
            n_effective=track.effective,
            probability=self._probability(track),
            verdict=track.verdict,
            problem=track.problems.most_common(1)[0][0] if abstains else None,
            method=self._method,
            ended=ended,
        )


def _logit(probability: float) -> float:
    """Return the log-odds, clipped to +-`MAX_EVIDENCE`; 0 and 1 included."""
    if not 0 <= probability <= 1:
        raise ValueError(f"a score must lie in 0..1, got {probability}: the network is broken")
    limit = 1 / (1 + math.exp(MAX_EVIDENCE))
    p = min(max(probability, limit), 1 - limit)
    return math.log(p / (1 - p))
