"""Made scenes with a sensor's noise, each number drawn anew: what a camera's feed is like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stream.config import FeedConfig
from stream.records import FeedAlert, FeedCondition, Frame, FrameStamp
from stream.stages.feed import FeedWatch

HEIGHT, WIDTH, FPS = 90, 160, 5
FROZEN, LOOPED, COVERED, SWAPPED, CHANGED = FeedCondition


class Camera:
    """Shows a room in which somebody wanders about, one frame after the other."""

    def __init__(self, **options) -> None:
        self.watch = FeedWatch(FeedConfig(**options))
        self.watch.begin("cam")
        self.random = np.random.default_rng(1)
        self.now_s = 0.0
        self.session = 0
        self.encoding = "h264 1a2b3c4d"
        self.alerts: list[FeedAlert] = []
        self._place = np.array([80.0, 45.0])

    def room(self, seed=0):
        """Return a picture of things of many shades, without noise."""
        shades = np.random.default_rng(seed).uniform(30, 220, (18, 32))
        return np.kron(shades, np.ones((5, 5)))

    def guest(self, picture):
        """Let somebody take a step, unlike any before."""
        self._place = (self._place + self.random.normal(0, 4, 2)).clip(12, [148, 78])
        x, y = self._place.astype(int)
        picture[y - 12 : y + 12, x - 12 : x + 12] = 15
        return picture

    def noisy(self, picture):
        return (picture + self.random.normal(0, 2, picture.shape)).clip(0, 255).astype(np.uint8)

    def live(self, seconds, seed=0, guest=True):
        """Show a room for so long; return its pictures."""
        pictures = []
        for _ in range(round(seconds * FPS)):
            room = self.room(seed)
            pictures.append(self.noisy(self.guest(room) if guest else room))
        self.show(pictures)
        return pictures

    def show(self, pictures, every_s=1 / FPS):
        for picture in pictures:
            image = torch.from_numpy(np.repeat(picture[..., None], 3, axis=2))
            height, width = picture.shape
            stamp = FrameStamp(
                source_id="cam",
                session=self.session,
                index=round(self.now_s * FPS),
                pts_s=self.now_s,
                captured_at=1000.0 + self.now_s,
                width=width,
                height=height,
                decoder="pyav",
                encoding=self.encoding,
            )
            self.alerts += self.watch.look(Frame(stamp=stamp, image=image))
            self.now_s += every_s

    def reconnect(self):
        self.session += 1
        self.now_s = 0.0

    @property
    def said(self):
        return [(a.condition, a.cleared) for a in self.alerts]


@pytest.fixture
def camera():
    return Camera()


def test_nothing_is_said_of_a_room_where_somebody_walks(camera):
    camera.live(120)
    assert camera.said == []


def test_still_room_is_neither_frozen_nor_looped_for_its_noise_is_new(camera):
    camera.live(180, guest=False)
    assert camera.said == []


def test_picture_that_stays_the_same_to_the_noise_is_frozen_and_that_ends(camera):
    pictures = camera.live(20)
    camera.show([pictures[-1]] * 70 * FPS)
    (alert,) = camera.alerts
    assert (alert.condition, alert.cleared, alert.measure) == (FROZEN, False, 0.0)
    assert alert.stamp.pts_s == pytest.approx(80, abs=0.5)
    assert alert.lasted_s == pytest.approx(60, abs=0.5)
    camera.live(5)
    assert camera.said == [(FROZEN, False), (FROZEN, True)]
    assert camera.alerts[1].lasted_s == pytest.approx(70, abs=0.5)


def test_clock_that_the_camera_writes_into_a_frozen_picture_hides_nothing(camera):
    frozen = camera.live(20)[-1]
    pictures = [frozen.copy() for _ in range(65 * FPS)]
    for picture in pictures:
        picture[2:7, 2:20] = camera.random.integers(255, size=(5, 18))
    camera.show(pictures)
    assert camera.said == [(FROZEN, False)]


def test_picture_that_a_codec_repeats_until_the_next_key_frame_is_not_frozen(camera):
    for _ in range(4):
        camera.show(camera.live(1 / FPS, guest=False) * 40 * FPS)
    assert camera.said == []


@pytest.mark.parametrize("brightness", [0, 5, 110, 255])
def test_camera_that_sees_nothing_is_covered_until_it_sees_again(camera, brightness):
    camera.live(10)
    camera.show([camera.noisy(np.full((HEIGHT, WIDTH), brightness)) for _ in range(70 * FPS)])
    camera.live(10)
    assert camera.said == [(COVERED, False), (COVERED, True)]
    assert camera.alerts[0].stamp.pts_s == pytest.approx(13, abs=0.5)
    assert camera.alerts[1].lasted_s == pytest.approx(70, abs=0.5)


def test_black_picture_without_noise_is_covered_and_not_called_frozen(camera):
    camera.live(10)
    camera.show([np.zeros((HEIGHT, WIDTH), np.uint8)] * 80 * FPS)
    assert camera.said == [(COVERED, False)]


def test_covered_camera_is_not_uncovered_by_a_little_more_noise(camera):
    camera.live(10)
    camera.show([camera.noisy(np.full((HEIGHT, WIDTH), 60)) for _ in range(10 * FPS)])
    grainy = [camera.random.normal(60, 7.5, (HEIGHT, WIDTH)) for _ in range(10 * FPS)]
    camera.show(picture.astype(np.uint8) for picture in grainy)
    assert camera.said == [(COVERED, False)]


def test_camera_that_is_covered_again_and_again_is_told_of_once_a_minute(camera):
    for _ in range(12):
        camera.show([np.zeros((HEIGHT, WIDTH), np.uint8)] * 5 * FPS)
        camera.live(5)
    raised = [a.stamp.pts_s for a in camera.alerts if not a.cleared]
    assert raised == [pytest.approx(3, abs=0.5), pytest.approx(63, abs=0.5)]


def test_hand_before_the_lens_for_a_moment_is_not_said(camera):
    camera.live(10)
    camera.show([camera.noisy(np.full((HEIGHT, WIDTH), 60))] * 2 * FPS)
    camera.live(10)
    assert camera.said == []


def test_recording_that_begins_again_is_looped_and_says_how_long_it_is(camera):
    recording = camera.live(33)
    camera.show(recording)
    (alert,) = camera.alerts
    assert alert.condition is LOOPED
    assert alert.lag_s == pytest.approx(33, abs=0.1)
    assert alert.stamp.pts_s == pytest.approx(43, abs=3)
    assert alert.measure < 0.01
    camera.live(30)
    assert camera.said == [(LOOPED, False), (LOOPED, True)]


def test_loop_is_found_whose_pictures_are_taken_at_other_moments_and_encoded_anew(camera):
    walk = np.cumsum(camera.random.normal(0, 1, (33 * 50, 2)), axis=0)

    def shown(moment_s):
        x, y = (walk[round(moment_s * 50) % len(walk)] + (80, 45)).clip(12, [148, 78]).astype(int)
        picture = camera.room()
        picture[y - 12 : y + 12, x - 12 : x + 12] = 15
        return camera.noisy(picture)

    camera.show(shown(0.2 * n + 0.08 * (n // 165)) for n in range(2 * 165))
    assert camera.said == [(LOOPED, False)]


def test_loop_is_found_across_reconnects(camera):
    recording = camera.live(33)
    camera.reconnect()
    camera.show(recording)
    assert camera.said == [(LOOPED, False)]
    assert camera.alerts[0].stamp.session == 1


def test_sign_that_turns_every_few_seconds_is_no_loop(camera):
    pictures = []
    for n in range(120 * FPS):
        picture = camera.room()
        x = 80 + round(50 * np.sin(2 * np.pi * n / (3 * FPS)))
        picture[20:70, x - 8 : x + 8] = 15
        pictures.append(camera.noisy(picture))
    camera.show(pictures)
    assert camera.said == []


@pytest.mark.parametrize("on_s", [3, 20])
def test_lamp_that_goes_on_and_off_at_the_same_times_is_no_loop(camera, on_s):
    for _ in range(4):
        camera.live(20, guest=False)
        camera.show([camera.noisy(camera.room() * 0.6) for _ in range(on_s * FPS)])
    assert camera.said == []


def test_changes_of_less_than_a_grey_level_prove_no_loop(camera):
    flicker = camera.random.integers(0, 2, (10 * FPS, 9, 16))
    pictures = [(camera.room() + np.kron(f, np.ones((10, 10)))).astype(np.uint8) for f in flicker]
    camera.show(pictures * 5)
    assert camera.said == []


def test_another_scene_that_stays_is_a_swapped_feed(camera):
    camera.live(20)
    camera.live(20, seed=7)
    (alert,) = camera.alerts
    assert (alert.condition, alert.cleared) == (SWAPPED, False)
    assert alert.stamp.pts_s == pytest.approx(25, abs=0.5)
    assert alert.measure > alert.limit


def test_another_scene_after_a_reconnect_is_a_swapped_feed(camera):
    camera.live(20)
    camera.reconnect()
    camera.live(20, seed=7)
    assert camera.said == [(SWAPPED, False)]


def test_feed_that_is_swapped_back_is_told_after_the_cooldown(camera):
    camera.live(20)
    camera.live(30, seed=7)
    camera.live(60)
    assert camera.said == [(SWAPPED, False)] * 2
    first, second = camera.alerts
    assert second.stamp.pts_s - first.stamp.pts_s == pytest.approx(60, abs=0.5)


def test_other_scene_for_a_moment_and_light_that_changes_are_no_swap(camera):
    camera.live(20)
    camera.live(2, seed=7)
    camera.live(20)
    camera.show([camera.noisy(camera.room() * 0.5 + 20) for _ in range(20 * FPS)])
    assert camera.said == []


def test_scene_that_turns_into_another_little_by_little_is_no_swap(camera):
    shares = np.linspace(0, 1, 4 * FPS)
    before, after = camera.room(), camera.room(seed=7)
    camera.live(20)
    camera.show(camera.noisy(before * (1 - share) + after * share) for share in shares)
    camera.live(20, seed=7)
    assert camera.said == []


@pytest.mark.parametrize("change", ["size", "encoding"])
def test_other_size_or_encoding_is_a_changed_feed_and_said_once(camera, change):
    pictures = camera.live(20)
    camera.reconnect()
    if change == "encoding":
        camera.encoding = "h264 5e6f7a8b"
        camera.live(20)
    else:
        camera.show([np.kron(p, np.ones((2, 2), np.uint8)) for p in pictures[:25]])
    (alert,) = camera.alerts
    before, after = {
        "size": ("h264 1a2b3c4d 160x90", "h264 1a2b3c4d 320x180"),
        "encoding": ("h264 1a2b3c4d 160x90", "h264 5e6f7a8b 160x90"),
    }[change]
    assert (alert.condition, alert.before, alert.after) == (CHANGED, before, after)
    assert (alert.stamp.session, alert.ordinal) == (1, 1)


def test_camera_that_is_watched_at_its_key_frames_alone_is_not_accused(camera):
    """One picture in four seconds, of a room where nobody is."""
    camera.show([camera.noisy(camera.room()) for _ in range(100)], every_s=4.0)
    assert camera.said == []


def test_alerts_are_the_same_for_the_same_frames():
    def said():
        camera = Camera()
        recording = camera.live(33)
        camera.show(recording)
        camera.live(20, seed=7)
        return camera.alerts

    assert said() == said()


def test_ordinals_number_the_alerts_of_a_session(camera):
    camera.live(20)
    camera.live(20, seed=7)
    camera.show([np.zeros((HEIGHT, WIDTH), np.uint8)] * 10 * FPS)
    camera.reconnect()
    camera.live(10, seed=7)
    assert [(a.condition, a.stamp.session, a.ordinal) for a in camera.alerts] == [
        (SWAPPED, 0, 1),
        (COVERED, 0, 2),
        (COVERED, 1, 1),
    ]


def test_sources_that_are_not_watched_are_passed_over(camera):
    picture = torch.zeros((HEIGHT, WIDTH, 3), dtype=torch.uint8)
    camera.live(1)
    stamp = FrameStamp(
        source_id="file",
        session=0,
        index=0,
        pts_s=0.0,
        captured_at=0.0,
        width=WIDTH,
        height=HEIGHT,
        decoder="pyav",
    )
    for n in range(10 * FPS):
        frame = Frame(stamp=replace(stamp, pts_s=n / FPS), image=picture)
        assert camera.watch.look(frame) == []
