"""Thresholds keep their promise in the stream: every track here goes through the real `Fuser`."""

import math
import re

import numpy as np
import pytest

from models import sigmoid
from stream.config import FuseConfig, ScoreConfig
from stream.records import (
    Alert,
    AttackScore,
    FaceDetection,
    FaceQuality,
    FrameStamp,
    Sighting,
    TrackKey,
    Verdict,
)
from stream.stages.fuse import Detector, Fuser, highest_probability
from train.errors import TrainError
from train.evaluation.scores import FrameScore
from train.release.thresholds import choose_thresholds, fused_tracks
from trt_engines.manifest import load_manifest

INTERVAL_S = ScoreConfig().interval_s
CEILING = highest_probability(FuseConfig(), INTERVAL_S)
FPS = 5.0


def rows(video, label, looks, track=0):
    """Scores of one face as `score_part` gives them, for (media time, probability)."""
    return [
        FrameScore(
            sample_id=f"{video}@{i}.{track}",
            dataset="test",
            video_id=video,
            label=label,
            attack_type="replay" if label else None,
            frame=i,
            pts_s=pts_s,
            track=track,
            score=p,
        )
        for i, (pts_s, p) in enumerate(looks)
    ]


def simulated(n, mean, seed, label):
    """n tracks of 0.6 to 12 s: each at a level of its own, with noise that neighbours share."""
    rng = np.random.default_rng(seed)
    tracks = {}
    for i in range(n):
        times = np.arange(0, rng.uniform(0.6, 12), 1 / FPS)
        level, noise = rng.normal(mean, 1.2), 0.0
        looks = []
        for pts_s in times:
            noise = 0.8 * noise + rng.normal(0, 0.7)
            looks.append((float(pts_s), float(sigmoid(level + noise))))
        tracks[f"{'attack' if label else 'bona fide'} {i}"] = looks
    return tracks


def verdicts(looks, thresholds):
    """What the stream says of a face in turn, looked at as often as it looks."""
    detector = Detector(
        name="lgsc", method="lgsc", family=None, thresholds=thresholds, look_every_s=INTERVAL_S
    )
    fuser = Fuser(FuseConfig(), [detector])
    key = TrackKey(source_id="cam", session=0, track_id=1)
    found, last = [], -math.inf
    for pts_s, probability in looks:
        if pts_s - last < INTERVAL_S - 1e-3:
            continue
        last = pts_s
        sighting = Sighting(
            key=key,
            stamp=FrameStamp(
                source_id="cam",
                session=0,
                index=round(pts_s * 25),
                pts_s=pts_s,
                captured_at=0.0,
                width=640,
                height=480,
                decoder="pyav",
            ),
            detection=FaceDetection(
                box=np.array([0, 0, 100, 100], np.float32),
                landmarks=np.zeros((5, 2), np.float32),
                confidence=1.0,
            ),
            first_pts_s=0.0,
            quality=FaceQuality(face_px=100, sharpness=0.5, brightness=0.5, turn=0, problem=None),
        )
        score = AttackScore(sighting=sighting, detector=0, probability=probability)
        messages = fuser.update([score], [], [])
        found += [m.track.verdict for m in messages if isinstance(m, Alert)]
    return found


def alarms(tracks, thresholds):
    return sum(Verdict.ATTACK in verdicts(looks, thresholds) for looks in tracks.values())


def promised(source):
    """How many tracks alarm by a manifest's `source`: bona fide, all of them, attacks, all."""
    found = re.search(r"alarm: (\d+) of (\d+) do, and (\d+) of (\d+) attack tracks", source)
    return tuple(map(int, found.groups()))


def chosen(bona_fide, attacks, false_alarms=0.05):
    scores = [row for name, looks in bona_fide.items() for row in rows(name, 0, looks)]
    scores += [row for name, looks in attacks.items() for row in rows(name, 1, looks)]
    return choose_thresholds(fused_tracks(scores), false_alarms=false_alarms, data="simulated")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("false_alarms", [0, 0.02, 0.05, 0.25])
def test_sixty_tracks_of_each_class_alarm_as_often_as_promised(seed, false_alarms):
    bona_fide = simulated(60, -1.5, seed, label=0)
    attacks = simulated(60, 1.5, seed + 100, label=1)
    thresholds = chosen(bona_fide, attacks, false_alarms)
    found = alarms(bona_fide, thresholds), alarms(attacks, thresholds)
    assert promised(thresholds.source) == (found[0], len(bona_fide), found[1], len(attacks))
    assert found[0] <= false_alarms * len(bona_fide)
    assert found[1] > 0.3 * len(attacks)


def test_the_threshold_is_the_lowest_that_keeps_the_promise_but_for_its_margin():
    bona_fide, attacks = simulated(60, -0.5, 3, label=0), simulated(60, 2, 4, label=1)
    thresholds = chosen(bona_fide, attacks, 0.1)
    lower = sigmoid(math.log(thresholds.enter / (1 - thresholds.enter)) - 0.11)
    assert alarms(bona_fide, thresholds.model_copy(update={"enter": float(lower)})) > 6


def test_no_sure_attack_is_called_bona_fide_in_its_first_seconds():
    bona_fide, attacks = simulated(60, 1.4, 5, label=0), simulated(60, 3, 6, label=1)
    thresholds = chosen(bona_fide, attacks, 0.25)
    assert thresholds.enter > 0.85  # one logit lower is still above 0.5
    sure = [(i / FPS, 0.9999) for i in range(26)]
    assert verdicts(sure, thresholds) == [Verdict.ATTACK]
    assert thresholds.leave == 0.5


def test_a_hard_bona_fide_video_is_named_and_not_answered_with_a_threshold_out_of_reach():
    """T1: `enter` was 0.9728, and the stream's fused value peaked at 0.9713."""
    bona_fide = simulated(20, -2, 7, label=0) | {"hard": [(i / FPS, 0.999) for i in range(100)]}
    attacks = {"sure": [(i / FPS, 1.0) for i in range(26)]}
    with pytest.raises(TrainError) as caught:
        chosen(bona_fide, attacks, 0.02)
    message = str(caught.value)
    assert f"reaches {CEILING:.3f} in 5 s: no alarm would be possible" in message
    assert re.search(r"come as high: hard, face 0 \(0\.9[67]\d\);", message)
    share = float(re.search(r"--false-alarms ([\d.]+)$", message)[1])
    thresholds = chosen(bona_fide, attacks, share)
    assert thresholds.enter <= CEILING
    assert alarms(bona_fide, thresholds) == 1
    assert verdicts(attacks["sure"], thresholds) == [Verdict.ATTACK]


def test_a_hard_video_within_reach_gives_a_threshold_that_a_sure_attack_reaches():
    bona_fide = simulated(20, -2, 7, label=0) | {"hard": [(i / FPS, 0.93) for i in range(100)]}
    thresholds = chosen(bona_fide, {}, 0)
    assert 0.9 < thresholds.enter <= CEILING
    assert alarms(bona_fide, thresholds) == 0
    assert verdicts([(i / FPS, 1.0) for i in range(26)], thresholds) == [Verdict.ATTACK]


def test_no_false_alarm_and_every_false_alarm_are_both_granted():
    bona_fide, attacks = simulated(30, -1, 8, label=0), simulated(30, 1, 9, label=1)
    none, every = chosen(bona_fide, attacks, 0), chosen(bona_fide, attacks, 1)
    assert alarms(bona_fide, none) == 0
    assert every.enter == 0.5
    assert (every.leave, none.leave) == (pytest.approx(0.2689), pytest.approx(0.5, abs=0.1))


@pytest.mark.parametrize("share", [-0.1, 1.01, math.nan, 5])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(TrainError, match=r"expected a share of tracks, 0 to 1"):
        chosen(simulated(5, -1, 0, label=0), {}, share)


def test_a_share_that_is_a_whole_number_of_tracks_is_not_lost_to_rounding():
    assert 0.58 * 50 < 29
    tracks = {f"{i}": [(0.0, 0.9 if i < 29 else 0.1)] for i in range(50)}
    assert promised(chosen(tracks, {}, 0.58).source)[0] == 29


@pytest.mark.parametrize("bona_fide", [{}, {"short": [(0.0, 0.2), (0.2, 0.3), (0.4, 0.3)]}])
def test_no_bona_fide_track_that_allows_a_verdict_is_refused(bona_fide):
    with pytest.raises(TrainError, match=f"none of {len(bona_fide)} does"):
        chosen(bona_fide, simulated(5, 1, 0, label=1))


def test_a_track_too_short_for_a_verdict_never_alarms():
    short = {"short": [(0.0, 0.99), (0.2, 0.99), (0.4, 0.99)]}
    thresholds = chosen(simulated(20, -2, 7, label=0) | short, short, 0)
    assert promised(thresholds.source) == (0, 21, 0, 1)
    assert verdicts(short["short"], thresholds) == []


def test_a_picture_counts_as_a_face_that_looks_alike_for_five_seconds():
    pictures = {f"picture {i}": [(0.0, p)] for i, p in enumerate((0.1, 0.3, 0.6, 0.8))}
    thresholds = chosen(pictures, {"print": [(0.0, 0.97)]}, 0)
    assert "5 tracks are pictures, or hold fewer than 3 looks" in thresholds.source
    assert "taken to recur for 5 s" in thresholds.source
    filmed = {name: [(i / FPS, looks[0][1]) for i in range(26)] for name, looks in pictures.items()}
    assert alarms(filmed, thresholds) == 0
    assert thresholds.enter == pytest.approx(chosen(filmed, {}, 0).enter, abs=1e-4)
    assert verdicts([(i / FPS, 0.97) for i in range(26)], thresholds) == [Verdict.ATTACK]


def test_two_looks_far_apart_recur_in_turn():
    (track,) = fused_tracks(rows("clip", 0, [(0.0, 0.2), (7.0, 0.9)]))
    assert track.repeated
    expected = [(i * INTERVAL_S, (0.2, 0.9)[i % 2]) for i in range(13)]
    (as_filmed,) = fused_tracks(rows("clip", 0, expected))
    assert (as_filmed.repeated, as_filmed.peak) == (False, pytest.approx(track.peak))


def test_media_time_counts_and_not_the_number_of_frames():
    def peak(fps):
        return fused_tracks(rows("clip", 0, [(i / fps, 0.9) for i in range(int(4 * fps) + 1)]))

    (slow,), (fast,) = peak(5), peak(25)
    assert slow.peak == pytest.approx(fast.peak, abs=1e-6)


def test_faces_of_one_video_are_fused_apart():
    together = [*rows("clip", 0, [(0.0, 0.1)]), *rows("clip", 0, [(0.0, 0.9)], track=1)]
    assert sorted(t.name for t in fused_tracks(together)) == ["clip, face 0", "clip, face 1"]


def test_a_video_without_a_face_is_no_track():
    assert fused_tracks(rows("clip", 0, [(0.0, None)])) == []


def test_the_shipped_thresholds_can_be_reached_and_keep_a_sure_attack_from_bona_fide():
    thresholds = load_manifest(ScoreConfig().engines[0].manifest).thresholds
    assert verdicts([(i / FPS, 1.0) for i in range(26)], thresholds) == [Verdict.ATTACK]
    assert verdicts([(i / FPS, 0.0) for i in range(26)], thresholds) == [Verdict.BONA_FIDE]
