from stream.decode.behind import LAG_S, PATIENCE_S, Behind


def test_a_decoder_that_stays_late_and_never_waits_is_behind():
    behind = Behind()
    assert not behind.is_lasting(LAG_S + 0.1, now_s=0.0)
    assert not behind.is_lasting(LAG_S + 0.1, now_s=PATIENCE_S / 2)
    assert behind.is_lasting(LAG_S + 0.1, now_s=PATIENCE_S)


def test_a_hold_up_of_the_network_that_is_soon_made_up_for_is_none():
    behind = Behind()
    assert not behind.is_lasting(3.0, now_s=0.0)
    assert not behind.is_lasting(LAG_S, now_s=PATIENCE_S / 2)
    assert not behind.is_lasting(LAG_S + 0.1, now_s=PATIENCE_S)


def test_stamps_that_run_slowly_are_none_since_the_decoder_waits_for_packets():
    behind = Behind()
    for step in range(100):
        assert not behind.is_lasting(LAG_S + step, now_s=step * 0.04)
        behind.waited(0.03)


def test_who_left_pictures_out_goes_on_with_what_is_new():
    behind = Behind()
    assert not behind.is_lasting(1.0, now_s=0.0)
    assert behind.is_lasting(1.0, now_s=PATIENCE_S)
    assert not behind.has_caught_up(0.4, now_s=PATIENCE_S + 0.1)
    assert behind.has_caught_up(0.05, now_s=PATIENCE_S + 0.2)


def test_who_left_pictures_out_goes_on_when_all_was_read_though_the_stamps_say_it_is_late():
    behind = Behind()
    assert not behind.is_lasting(1.0, now_s=0.0)
    assert behind.is_lasting(1.0, now_s=PATIENCE_S)
    behind.waited(0.9)
    assert behind.has_caught_up(1.0, now_s=PATIENCE_S + 1.0)
