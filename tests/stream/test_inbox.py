import threading

import torch

from stream.inbox import LATE_S, Inbox
from stream.records import Frame, FrameFates, FrameStamp, Need


def _frame(source_id, index, session=0):
    stamp = FrameStamp(
        source_id=source_id,
        session=session,
        index=index,
        pts_s=index / 5,
        captured_at=0.0,
        width=2,
        height=2,
        decoder="pyav",
    )
    return Frame(stamp=stamp, image=torch.zeros(2, 2, 3, dtype=torch.uint8))


def _indices(taken):
    return [(f.stamp.source_id, f.stamp.index) for f in taken.frames]


def test_take_gives_at_most_one_frame_per_source_oldest_first():
    inbox = Inbox()
    for index in range(2):
        inbox.put(_frame("fast", index), wait=False)
    inbox.put(_frame("slow", 0), wait=False)
    assert _indices(inbox.take()) == [("fast", 0), ("slow", 0)]
    assert _indices(inbox.take()) == [("fast", 1)]


def test_a_live_source_loses_its_oldest_frame_and_it_is_counted():
    inbox = Inbox(capacity=2)
    for index in range(5):
        inbox.put(_frame("cam", index), wait=False)
    assert inbox.fates("cam").overtaken == 3
    assert _indices(inbox.take()) == [("cam", 3)]
    assert inbox.fates("never seen") == FrameFates()


def test_a_file_waits_for_room_and_loses_nothing():
    inbox = Inbox(capacity=2)
    thread = threading.Thread(
        target=lambda: [inbox.put(_frame("file", i), wait=True) for i in range(20)]
    )
    thread.start()
    taken = [_indices(inbox.take())[0][1] for _ in range(20)]
    thread.join()
    assert taken == list(range(20))
    assert inbox.fates("file").overtaken == 0


def test_the_end_of_a_session_comes_after_its_frames():
    inbox = Inbox()
    for index in range(2):
        inbox.put(_frame("cam", index), wait=False)
    inbox.finish("cam")
    first, second = inbox.take(), inbox.take()
    assert (_indices(first), first.finished) == ([("cam", 0)], ())
    assert (_indices(second), second.finished) == ([("cam", 1)], ("cam",))


def test_the_next_session_waits_until_the_end_of_the_last_was_handed_out():
    inbox = Inbox()
    inbox.put(_frame("cam", 0), wait=False)
    inbox.finish("cam")
    thread = threading.Thread(target=lambda: inbox.put(_frame("cam", 0, session=1), wait=False))
    thread.start()
    first = inbox.take()
    thread.join()
    assert (first.finished, first.frames[0].stamp.session) == (("cam",), 0)
    assert inbox.take().frames[0].stamp.session == 1


def test_the_end_of_a_source_without_frames_is_no_work():
    inbox = Inbox()
    inbox.finish("cam")
    inbox.close()
    assert inbox.take() is None


def test_closing_hands_out_what_waits_and_refuses_more():
    inbox = Inbox()
    inbox.put(_frame("cam", 0), wait=False)
    inbox.close()
    assert not inbox.put(_frame("cam", 1), wait=True)
    assert _indices(inbox.take()) == [("cam", 0)]
    assert inbox.take() is None


def test_closing_frees_a_file_that_waits_for_room():
    inbox = Inbox(capacity=1)
    inbox.put(_frame("file", 0), wait=True)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(inbox.put(_frame("file", 1), wait=True)))
    thread.start()
    inbox.close()
    thread.join()
    assert taken == [False]


def test_closing_frees_a_reader_that_waits_for_work():
    inbox = Inbox()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take()))
    thread.start()
    inbox.close()
    thread.join()
    assert taken == [None]


def test_fates_count_the_frames_whose_analysis_failed():
    inbox = Inbox()
    for index, failed in enumerate([(), ("cam",), ("cam", "other"), ()]):
        inbox.put(_frame("cam", index), wait=False)
        inbox.done(inbox.take(), failed)
        assert inbox.fates("cam").failing == bool(failed)
    assert inbox.fates("cam") == FrameFates(overtaken=0, failed=2, failing=False)


def test_settled_fates_wait_until_the_last_frame_was_analysed():
    inbox = Inbox()
    inbox.put(_frame("file", 0), wait=True)
    fates = []
    thread = threading.Thread(target=lambda: fates.append(inbox.fates("file", settled=True)))
    thread.start()
    taken = inbox.take()
    assert not fates
    inbox.done(taken, {"file"})
    thread.join()
    assert fates == [FrameFates(failed=1, failing=True)]


def test_closing_frees_who_waits_for_the_fates_of_frames_in_hand():
    inbox = Inbox()
    inbox.put(_frame("file", 0), wait=True)
    assert inbox.take() is not None
    fates = []
    thread = threading.Thread(target=lambda: fates.append(inbox.fates("file", settled=True)))
    thread.start()
    inbox.close()
    thread.join()
    assert fates == [FrameFates()]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_busy_machine_takes_the_newest_frames_of_the_most_urgent_sources():
    inbox = Inbox(monotonic=Clock())
    needs = {"a": Need.DECIDED, "b": Need.UNDECIDED, "c": Need.DECIDED}
    for source_id in needs:
        inbox.put(_frame(source_id, 0), wait=False)
    inbox.done(inbox.take(), (), needs)
    for index in (1, 2):
        for source_id in needs:
            inbox.put(_frame(source_id, index), wait=False)
    assert _indices(inbox.take(at_most=1)) == [("b", 2)]
    assert inbox.fates("b") == FrameFates(overtaken=1, occupied=True)
    assert inbox.fates("a") == FrameFates(occupied=True)
    assert _indices(inbox.take(at_most=2)) == [("a", 1), ("c", 1)]  # all there are: no hurry


def test_a_live_frame_that_waited_too_long_is_not_analysed_and_one_of_a_file_is():
    clock = Clock()
    inbox = Inbox(monotonic=clock)
    inbox.put(_frame("cam", 0), wait=False)
    inbox.put(_frame("file", 0), wait=True)
    clock.now += LATE_S + 0.1
    inbox.put(_frame("cam", 1), wait=False)
    assert _indices(inbox.take()) == [("cam", 1), ("file", 0)]
    assert inbox.fates("cam") == FrameFates(late=1)


def test_who_waits_for_work_is_not_woken_by_frames_that_are_all_too_late():
    clock = Clock()
    inbox = Inbox(monotonic=clock)
    inbox.put(_frame("cam", 0), wait=False)
    clock.now += LATE_S + 0.1
    inbox.close()
    assert inbox.take() is None


def test_a_frame_that_must_not_be_dropped_makes_the_next_one_wait():
    inbox = Inbox(capacity=1)
    inbox.put(_frame("cam", 0), wait=True)
    thread = threading.Thread(target=lambda: inbox.put(_frame("cam", 1), wait=False))
    thread.start()
    assert [_indices(inbox.take()) for _ in range(2)] == [[("cam", 0)], [("cam", 1)]]
    thread.join()
    assert inbox.fates("cam") == FrameFates()
