from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.decode.media_time import DUE_TOLERANCE_S, MAX_DISORDER, MAX_LEAP_S, DueFrames, MediaTime

FPS25 = 0.04


def advance_all(time: MediaTime, stamps, arrivals=None):
    arrivals = arrivals or [0.0] * len(stamps)
    return [time.advance(s, a) for s, a in zip(stamps, arrivals, strict=True)]


def test_media_time_starts_at_zero_whatever_the_first_stamp():
    time = MediaTime(interval_s=FPS25, live=False)
    assert advance_all(time, [7200.5, 7200.54, 7200.6]) == pytest.approx([0, 0.04, 0.1])


def test_media_time_does_not_drift_over_many_frames():
    time = MediaTime(interval_s=FPS25, live=False)
    stamps = [i * 1001 / 30000 for i in range(100_000)]
    assert advance_all(time, stamps)[-1] == pytest.approx(stamps[-1], abs=1e-6)


@pytest.mark.parametrize("leap", [-3600.0, -2.0, -95443.7])
def test_media_time_goes_on_at_the_frame_interval_when_a_files_stamps_leap_back(leap):
    time = MediaTime(interval_s=0.1, live=False)
    times = advance_all(time, [0.0, 0.2, 0.2 + leap, 0.4 + leap])
    assert times == pytest.approx([0, 0.2, 0.3, 0.5])


@pytest.mark.parametrize("gap", [0.5, 4.9, 6.0, 30.0, 7200.0])
def test_media_time_keeps_the_gaps_of_a_recording(gap):
    time = MediaTime(interval_s=0.1, live=False)
    times = advance_all(time, [0.0, 0.1, 0.1 + gap, 0.2 + gap])
    assert times == pytest.approx([0, 0.1, 0.1 + gap, 0.2 + gap])


@pytest.mark.parametrize("leap", [MAX_LEAP_S + 0.1, 3.0, 6.0, 3600.0])
def test_media_time_is_not_ahead_of_the_clock_after_a_cameras_stamps_leapt(leap):
    time = MediaTime(interval_s=FPS25, live=True)
    stamps = [i / 25 + (leap if i > 50 else 0) for i in range(100)]
    times = advance_all(time, stamps, arrivals=[i / 25 for i in range(100)])
    assert times == pytest.approx([i / 25 for i in range(100)])


def test_media_time_bridges_a_leap_hours_after_a_camera_whose_clock_is_slow_was_opened():
    time = MediaTime(interval_s=1, live=True)
    hours = 10 * 3600
    times = advance_all(
        time,
        [i * 0.9998 + (3 if i == hours else 0) for i in range(hours + 1)],
        arrivals=[float(i) for i in range(hours + 1)],
    )
    assert times[-1] - times[-2] == pytest.approx(1)


def test_media_time_keeps_a_gap_that_the_clock_saw():
    time = MediaTime(interval_s=FPS25, live=True)
    times = advance_all(time, [0.0, 0.04, 9.0, 9.04], arrivals=[50.0, 50.04, 59.0, 59.04])
    assert times == pytest.approx([0, 0.04, 9.0, 9.04])


def test_media_time_follows_the_stamps_of_pictures_that_were_held_up_and_come_at_once():
    time = MediaTime(interval_s=FPS25, live=True)
    stamps = [i / 25 for i in range(50)] + [5.0, 5.04]  # 3 s were lost, behind 2 s in a queue
    arrivals = [0.0, 0.04] + [5.0] * 50
    assert advance_all(time, stamps, arrivals) == pytest.approx(stamps)


def test_media_time_follows_the_stamps_of_what_a_camera_had_kept_for_its_viewer():
    time = MediaTime(interval_s=FPS25, live=True)
    stamps = [i / 25 for i in range(200)]
    arrivals = [0.0] * 100 + [i / 25 for i in range(100)]
    assert advance_all(time, stamps, arrivals) == pytest.approx(stamps)


def test_media_time_waits_for_frames_that_come_in_the_wrong_order():
    time = MediaTime(interval_s=FPS25, live=False)
    times = advance_all(time, [0.0, 0.16, 0.08, 0.12, 0.2])
    assert times == pytest.approx([0, 0.16, 0.16, 0.16, 0.2])


def test_media_time_is_right_after_any_number_of_frames_in_the_wrong_order():
    time = MediaTime(interval_s=FPS25, live=False)
    swapped = [i / 25 for pair in range(1, 100, 2) for i in (pair + 1, pair)]
    assert advance_all(time, [0.0, *swapped, 4.04])[-1] == pytest.approx(4.04)


@pytest.mark.parametrize("live", [True, False])
def test_media_time_does_not_wait_for_ever_when_stamps_stand_still(live):
    time = MediaTime(interval_s=FPS25, live=live)
    n = MAX_DISORDER + 26
    times = advance_all(time, [7.0] * n, arrivals=[i / 25 for i in range(n)])
    assert times[-1] >= 1


def test_media_time_follows_the_clock_when_a_cameras_stamps_leap():
    time = MediaTime(interval_s=FPS25, live=True)
    times = advance_all(time, [5.0, 5.1, 900.0, 900.1], arrivals=[50.0, 50.1, 53.0, 53.1])
    assert times == pytest.approx([0, 0.1, 3.0, 3.1])


def test_media_time_follows_the_clock_when_a_camera_sends_no_stamps():
    time = MediaTime(interval_s=FPS25, live=True)
    assert advance_all(time, [None] * 3, arrivals=[50.0, 50.2, 50.5]) == pytest.approx(
        [0, 0.2, 0.5]
    )


def test_media_time_does_not_outrun_the_clock_when_a_fast_camera_sends_no_stamps():
    time = MediaTime(interval_s=FPS25, live=True)
    times = advance_all(time, [None] * 3, arrivals=[50.0, 50.02, 50.04])
    assert times == pytest.approx([0, 0.02, 0.04])


def test_media_time_counts_frame_intervals_when_a_file_has_no_stamps():
    time = MediaTime(interval_s=FPS25, live=False)
    assert advance_all(time, [None] * 3, arrivals=[50.0, 50.0, 99.0]) == pytest.approx(
        [0, 0.04, 0.08]
    )


@pytest.mark.parametrize("live", [True, False])
def test_media_time_takes_a_frame_interval_for_the_first_stamp_if_it_is_missing(live):
    time = MediaTime(interval_s=FPS25, live=live)
    assert advance_all(time, [None, 0.1, 0.2, 0.3]) == pytest.approx([0, 0.04, 0.14, 0.24])


@given(
    stamps=st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=50),
    live=st.booleans(),
)
def test_media_time_never_decreases(stamps, live):
    time = MediaTime(interval_s=FPS25, live=live)
    times = advance_all(time, stamps, arrivals=[i * 0.05 for i in range(len(stamps))])
    assert times == sorted(times)
    assert times[0] == 0


@pytest.mark.parametrize("fps", [12.5, 25, 30, 29.97, 60])
def test_due_frames_keep_their_rate_whatever_the_rate_of_the_clip(fps):
    due = DueFrames(5)
    taken = [t for t in (i / fps for i in range(int(fps * 100))) if due.take(t)]
    assert len(taken) == 500
    assert all(-DUE_TOLERANCE_S <= t - slot / 5 <= 1 / fps for slot, t in enumerate(taken))


def test_due_frames_after_a_gap_are_not_made_up_for():
    due = DueFrames(5)
    assert [due.take(t) for t in (0.0, 0.1, 3.0, 3.04, 3.1, 3.2)] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]


def test_due_frames_ignore_the_rounding_of_containers():
    due = DueFrames(5)
    assert [i for i in range(26) if due.take(i / 25 - 0.0006)] == [0, 5, 10, 15, 20, 25]
