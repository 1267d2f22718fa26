"""Visits and drift: what counts as one visit, false alarms and delay on simulated cameras."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from models import sigmoid
from stream.analyse import Step
from stream.learn.drift import STEP, WINDOW, DriftWatcher, Monitor
from stream.learn.visits import GAP_S, Visit, Visits
from stream.learned import MEASURES
from stream.records import Frame, Verdict


def reference(rng, n=200):
    return {name: np.sort(rng.normal(size=n)) for name in MEASURES}


def simulated_visit(rng, **shifts):
    return Visit(0.0, {name: rng.normal() + shifts.get(name, 0.0) for name in MEASURES})


def test_cameras_that_stay_as_they_are_raise_nothing():
    rng = np.random.default_rng(3)
    raised = 0
    for _ in range(20):
        monitor = Monitor(reference(rng))
        for _ in range(300):
            monitor.add(simulated_visit(rng))
            raised += monitor.raised
    assert raised == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_a_camera_that_changes_is_noticed_within_a_window(measure):
    """By one and a half standard deviations of its visits."""
    rng = np.random.default_rng(4)
    delays = []
    for _ in range(10):
        monitor = Monitor(reference(rng))
        for _ in range(WINDOW):
            monitor.add(simulated_visit(rng))
        assert not monitor.raised
        for seen in range(1, 2 * WINDOW):
            drifts = monitor.add(simulated_visit(rng, **{measure: -1.5}))
            if drifts is not None:
                assert drifts[0].measure == measure
                assert drifts[0].lately < drifts[0].learned
                delays.append(seen)
                break
    assert len(delays) == 10
    assert np.median(delays) <= WINDOW


def test_it_is_over_when_the_camera_is_as_it_was():
    rng = np.random.default_rng(5)
    monitor = Monitor(reference(rng))
    said = [
        monitor.raised
        for shift in [0.0] * WINDOW + [2.0] * WINDOW + [0.0] * 2 * WINDOW
        if monitor.add(simulated_visit(rng, brightness=shift)) is not None
    ]
    assert said == [True, False]


def test_nothing_is_said_of_too_few_visits():
    rng = np.random.default_rng(6)
    monitor = Monitor(reference(rng))
    said = [monitor.add(simulated_visit(rng, score=9.0)) for _ in range(WINDOW - 1)]
    assert not any(said)


def test_a_measure_that_was_hardly_learned_is_not_compared():
    rng = np.random.default_rng(6)
    monitor = Monitor(reference(rng) | {"score": np.zeros(3)})
    for _ in range(WINDOW + STEP):
        monitor.add(simulated_visit(rng, score=9.0))
    assert not monitor.raised


class Camera:
    """Makes the frames and steps of one source, at 1 frame a second."""

    def __init__(self, records):
        self._records = records
        self._track = 0

    def look(
        self, pts_s, *, track, box=(100, 100, 200, 200), p=0.1, peak=None, session=0, **quality
    ):
        score = self._records.score(
            track=track, frame=round(pts_s * self._records.FPS), box=box, p=p,
            verdict=Verdict.BONA_FIDE, session=session,
        )  # fmt: skip
        sighting = replace(score.sighting, quality=replace(score.sighting.quality, **quality))
        return replace(score, sighting=sighting, peak=p if peak is None else peak)


@pytest.fixture
def camera(records):
    return Camera(records)


def visits_of(looks, end_s):
    """Return the visits that looks make, each seen alone in its frame."""
    visits, over = Visits(), []
    for look in looks:
        over += visits.see(look.sighting.stamp, [look], {look.sighting.key})
    stamp = replace(looks[-1].sighting.stamp, pts_s=end_s)
    return over + visits.see(stamp, [], set())


def test_a_face_found_again_in_its_place_is_the_same_visit(camera):
    looks = [camera.look(0, track=1), camera.look(GAP_S / 2, track=2, box=(150, 100, 250, 200))]
    assert len(visits_of(looks, 100)) == 1


def test_a_face_elsewhere_is_another_visit(camera):
    looks = [camera.look(0, track=1), camera.look(5, track=2, box=(600, 100, 700, 200))]
    assert len(visits_of(looks, 100)) == 2


def test_a_face_long_after_is_another_visit(camera):
    looks = [camera.look(0, track=1), camera.look(GAP_S + 1, track=2)]
    assert len(visits_of(looks, 100)) == 2


def test_two_faces_at_once_are_two_visits_however_near(camera):
    visits = Visits()
    both = [camera.look(0, track=1), camera.look(0, track=2, box=(150, 100, 250, 200))]
    present = {look.sighting.key for look in both}
    visits.see(both[0].sighting.stamp, both, present)
    assert len(visits.end()) == 2


def test_a_new_session_ends_all_visits(camera):
    looks = [camera.look(0, track=1), camera.look(1, track=1, session=1)]
    assert len(visits_of(looks, 100)) == 2


def test_a_visit_has_the_highest_peak_of_its_tracks_and_the_mean_of_its_looks(camera):
    looks = [
        camera.look(0, track=1, p=0.2, peak=0.3, brightness=0.4),
        camera.look(1, track=2, p=0.2, peak=0.6, brightness=0.6),
        camera.look(2, track=3, p=0.2, peak=0.1, brightness=0.5),
    ]
    (visit,) = visits_of(looks, 100)
    assert sigmoid(visit.peak) == pytest.approx(0.6)
    assert visit.means["brightness"] == pytest.approx(0.5)
    assert sigmoid(visit.means["score"]) == pytest.approx(0.2)


def test_many_looks_at_one_face_count_once(camera, records):
    """A person who is unlike the others, and stays for an hour, is one visit: no drift."""
    rng = np.random.default_rng(8)
    monitor = Monitor(reference(rng))
    visits = Visits()
    for second in range(3600):
        look = camera.look(second, track=1, brightness=0.99)
        for visit in visits.see(look.sighting.stamp, [look], {look.sighting.key}):
            monitor.add(visit)
    assert monitor.visits == 0


def test_the_watcher_says_once_that_a_camera_changed_and_of_which_session(camera, writer):
    rng = np.random.default_rng(9)
    learned = {"brightness": np.sort(rng.normal(0.5, 0.05, 200)), "score": rng.normal(-2, 0.5, 200)}

    watcher = DriftWatcher(clock=lambda: 1_790_000_000.0)
    watcher.begin(SimpleNamespace(source_id="cam1", learned=SimpleNamespace(reference=learned)))
    alerts = []
    for number in range(2 * WINDOW):
        look = camera.look(
            40.0 * number, track=number, p=float(sigmoid(rng.normal(-2, 0.5))), session=3,
            brightness=float(rng.normal(0.5 if number < WINDOW else 0.2, 0.05)),
        )  # fmt: skip
        stamp = look.sighting.stamp
        frame = Frame(
            stamp=stamp, image=np.broadcast_to(np.uint8(0), (stamp.height, stamp.width, 3))
        )
        alerts += watcher.watch([frame], Step(records=[look]))
    (alert,) = alerts
    message = writer.write(alert).model_dump(mode="json")
    assert message["event"] == {"id": "cam1-0a1b2c3d-3:drift:1", "type": "camera.drift"}
    assert message["drift"]["state"] == "raised"
    assert message["drift"]["measures"][0]["measure"] == "brightness"
