"""Attacks with what is around them, and the bona fide pictures beside them."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image

from train.attacks import SCENES, FaceInScene
from train.attacks.pairs import SceneDev, ScenePairs, dev_pairs, training_pairs
from train.attacks.scene import beside
from train.data.manifest import PreparedConfig
from train.errors import TrainError

_SIZE = 176
_BOX = np.array([62.0, 58.0, 104.0, 100.0])
_POINTS = np.array([[75, 72], [92, 72], [84, 82], [77, 90], [91, 90]], np.float32)


def _face(*, green: bool = False) -> FaceInScene:
    """The portrait with room around it; a green one says where its scene is."""
    portrait = Image.fromarray(skimage.data.astronaut())
    image = np.array(portrait.resize((_SIZE, _SIZE), box=(20, 0, 420, 400)))
    if green:
        image = np.full_like(image, (20, 250, 20))
    return FaceInScene(image, _POINTS, _BOX)


def _inner(image, by=0.25):
    """The middle of the face."""
    x1, y1, x2, y2 = _BOX
    dx, dy = by * (x2 - x1), by * (y2 - y1)
    return image[round(y1 + dy) : round(y2 - dy), round(x1 + dx) : round(x2 - dx)].astype(float)


def _greenness(pixels):
    return (pixels[..., 1] - pixels[..., [0, 2]].mean(-1)) / 255


@pytest.mark.parametrize("scene", SCENES)
def test_the_face_of_a_scene_is_that_of_the_attacked_picture(scene):
    face, behind = _face(), _face(green=True)
    for seed in range(6):
        attack = SCENES[scene](face, behind, np.random.default_rng(seed))
        assert attack.image.shape == (_SIZE, _SIZE, 3)
        assert attack.image.dtype == np.uint8
        assert attack.family in {scene, "whole_view", "paper_mask"}
        assert np.median(_greenness(_inner(attack.image))) < 0.4  # not the scene behind


@pytest.mark.parametrize("scene", [name for name in SCENES if name != "whole_view"])
def test_behind_an_instrument_is_the_other_scene(scene):
    face, behind = _face(), _face(green=True)
    greens = [
        (
            _greenness(SCENES[scene](face, behind, np.random.default_rng(seed)).image / 1.0) > 0.4
        ).mean()
        for seed in range(8)
    ]
    assert max(greens) > 0.15


def test_a_whole_view_shows_nothing_of_another_scene():
    for seed in range(4):
        one, other = (
            SCENES["whole_view"](_face(), behind, np.random.default_rng(seed)).image
            for behind in (_face(), _face(green=True))
        )
        np.testing.assert_array_equal(one, other)


def test_an_instrument_beside_a_bona_fide_face_leaves_the_face_alone():
    face, changed = _face(), 0
    for seed in range(12):
        picture = beside(face, _face(green=True), np.random.default_rng(seed))
        assert np.abs(_inner(picture) - _inner(face.image)).mean() < 12  # lens and codec at most
        changed += np.abs(picture.astype(float) - face.image).mean() > 3
    assert changed >= 6


def test_the_same_draws_give_the_same_pair():
    pairs = ScenePairs(dict.fromkeys(SCENES, 1.0))
    first, second = (pairs(_face(), _face, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_dev_shows_bona_fide_faces_as_they_are(monkeypatch):
    monkeypatch.setattr("train.attacks.pairs.degrade", lambda image, _rng, mirror: image)
    face = _face()
    for seed in range(5):
        bona_fide, attack = SceneDev({"phone": 1.0})(face, _face, np.random.default_rng(seed))
        np.testing.assert_array_equal(bona_fide, face.image)
        assert np.abs(attack.astype(float) - face.image).mean() > 3


def test_a_picture_that_a_face_fills_is_no_scene():
    filled = FaceInScene(_face().image, _POINTS, np.array([10.0, 10.0, 166.0, 166.0]))
    pairs, drawn = ScenePairs({"paper": 1.0}), []

    def other():
        drawn.append(filled if len(drawn) < 2 else _face(green=True))
        return drawn[-1]

    pairs(_face(), other, np.random.default_rng(1))
    assert len(drawn) == 3
    always = iter([filled] * 4)
    pairs(_face(), lambda: next(always), np.random.default_rng(1))  # takes what there is


@pytest.mark.parametrize(("window", "margin"), [("pad", 4.2), ("inside", 2.0)])
def test_faces_without_surroundings_are_refused(window, margin):
    about = PreparedConfig(size_px=_SIZE, margin=margin, window=window, code_version="test")
    with pytest.raises(TrainError, match="--set window=inside --set margin=4"):
        ScenePairs({"phone": 1.0}).check(about)
    ScenePairs({"phone": 1.0}).check(about.model_copy(update={"window": "inside", "margin": 4.2}))


def test_the_names_say_which_kind_of_pairs():
    assert isinstance(training_pairs({"phone": 1, "whole_view": 0.5}), ScenePairs)
    assert isinstance(dev_pairs({"phone": 1}), SceneDev)
    assert not isinstance(training_pairs({"replay": 1}), ScenePairs)
