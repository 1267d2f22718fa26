"""Attacks made from bona fide faces; the face is scikit-image's public-domain portrait."""

from __future__ import annotations

import json

import numpy as np
import pytest
import skimage.data
from PIL import Image

from train.synthetic import LooseCrop, print_attack, replay, self_blend, synthesise
from train.synthetic.replay import twist
from train.synthetic.self_blend import blend, erode_by_blur, sharpened

_MAKERS = {"sbi": self_blend, "replay": replay, "print": print_attack}
_ALL = {"sbi": 1.0, "replay": 1.0, "print": 1.0}


@pytest.fixture(scope="module")
def face():
    """The astronaut, her face's longer side about 128 of 256 px."""
    box = (120.0, 20.0, 340.0, 240.0)
    portrait = Image.fromarray(skimage.data.astronaut())
    image = np.asarray(portrait.resize((256, 256), Image.Resampling.BILINEAR, box=box))
    seen = np.array([[205, 108], [246, 108], [228, 130], [207, 148], [243, 148]], np.float32)
    return LooseCrop(image, (seen - box[:2]) * np.float32(256 / 220))


@pytest.fixture(params=_MAKERS)
def family(request):
    return request.param


def test_an_attack_keeps_shape_and_type_but_not_the_picture(face, family):
    for seed in range(12):
        attack = _MAKERS[family](face, np.random.default_rng(seed))
        assert attack.family == family
        assert attack.image.shape == face.image.shape
        assert attack.image.dtype == np.uint8
        assert not np.array_equal(attack.image, face.image)


def test_an_attack_leaves_the_bona_fide_picture_alone(face, family):
    before = face.image.copy()
    for seed in range(12):
        _MAKERS[family](face, np.random.default_rng(seed))
    np.testing.assert_array_equal(face.image, before)


def test_equal_generators_make_equal_attacks(face, family):
    for seed in range(6):
        first, second = (_MAKERS[family](face, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first.image, second.image)
        assert first.parameters == second.parameters


def test_other_seeds_make_other_attacks(face, family):
    images = {_MAKERS[family](face, np.random.default_rng(s)).image.tobytes() for s in range(12)}
    assert len(images) == 12


def test_parameters_go_into_json_and_tell_attacks_apart(face, family):
    notes = [
        json.dumps(_MAKERS[family](face, np.random.default_rng(s)).parameters, allow_nan=False)
        for s in range(12)
    ]
    assert len(set(notes)) == 12


def test_a_recaptured_face_stays_recognisable(face):
    # Coarse luma over the face stays correlated, unless a warp, glare or halftone destroys it.
    def luma(image):
        small = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.BOX)
        return np.asarray(small, np.float32)[8:24, 8:24].ravel()

    for maker in (replay, print_attack):
        alike = [
            np.corrcoef(luma(face.image), luma(maker(face, np.random.default_rng(s)).image))[0, 1]
            for s in range(40)
        ]
        assert np.median(alike) > 0.7


def test_the_mask_lies_between_zero_and_its_strength(face):
    for seed in range(40):
        attack = self_blend(face, np.random.default_rng(seed))
        strength = attack.parameters["strength"]
        assert attack.mask.shape == face.image.shape[:2]
        assert attack.mask.dtype == np.float32
        assert attack.mask.min() == 0
        assert attack.mask.max() == pytest.approx(strength, abs=1e-6)


def test_the_pair_of_a_self_blend_is_equal_outside_its_mask_and_differs_inside(face):
    for seed in range(40):
        attack = self_blend(face, np.random.default_rng(seed))
        outside = attack.mask == 0
        np.testing.assert_array_equal(attack.image[outside], attack.reference[outside])
        assert (attack.image[~outside] != attack.reference[~outside]).any()


def test_self_blends_change_the_source_and_the_target_about_equally_often(face):
    changed = [self_blend(face, np.random.default_rng(s)) for s in range(60)]
    of_target = [attack.parameters["changed"] == "target" for attack in changed]
    assert 15 < sum(of_target) < 45
    for attack, is_target in zip(changed, of_target, strict=True):
        assert np.array_equal(attack.reference, face.image) != is_target


def test_the_masks_middle_follows_the_face(face):
    moved = LooseCrop(np.roll(face.image, 30, axis=1), face.landmarks + np.float32([30, 0]))

    def middle(crop):
        masks = [self_blend(crop, np.random.default_rng(s)).mask for s in range(20)]
        return np.mean([np.average(np.arange(256), weights=mask.sum(0)) for mask in masks])

    assert middle(moved) - middle(face) == pytest.approx(30, abs=2)


def test_a_self_blend_of_equal_pictures_is_that_picture(face):
    mask = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    np.testing.assert_array_equal(blend(face.image, face.image, mask), face.image)


def test_a_full_mask_shows_the_source(face):
    mask = np.ones((256, 256), np.float32)
    np.testing.assert_array_equal(blend(255 - face.image, face.image, mask), 255 - face.image)


@pytest.mark.parametrize(("kernel_px", "kept"), [(5, 15_376), (15, 12_996), (25, 10_816)])
def test_the_blur_erodes_a_float_mask_by_its_radius(kernel_px, kept):
    mask = np.zeros((256, 256), np.float32)
    mask[64:192, 64:192] = 1  # 16,384 px
    assert erode_by_blur(mask, kernel_px).sum() == kept


def test_an_empty_mask_stays_empty():
    assert not erode_by_blur(np.zeros((32, 32), np.float32), 5).any()


def test_sharpening_darkens_a_flat_picture_only_as_far_as_its_lightness_says():
    flat = np.full((16, 16, 3), 200, np.uint8)
    assert (sharpened(flat, 0.4, 1.0) == 200).all()
    assert (sharpened(flat, 0.4, 0.5) == 160).all()  # .6 * 200 + .4 * .5 * 200


def test_landmarks_outside_the_picture_are_refused(face):
    lost = LooseCrop(face.image, face.landmarks + np.float32(1000))
    with pytest.raises(ValueError, match="landmarks must lie in the picture"):
        self_blend(lost, np.random.default_rng(0))


def test_the_twist_equals_the_published_formula_with_truncation():
    y, x = np.mgrid[:8, :8]
    twisted = twist((10 * y + x).astype(np.uint8), 0.05, truncate=True)
    golden = {
        0: [0, 1, 2, 3, 4, 5, 6, 7],
        1: [8, 9, 10, 11, 14, 15, 16, 17],
        4: [38, 39, 40, 41, 44, 44, 45, 46],
        5: [48, 48, 49, 50, 51, 54, 55, 56],
        7: [66, 68, 69, 70, 71, 74, 75, 76],
    }
    for row, values in golden.items():
        assert twisted[row].tolist() == values
    assert twisted.sum(dtype=int) == 2376


def test_no_twist_is_the_identity(face):
    np.testing.assert_array_equal(twist(face.image, 0.0), face.image)


def test_moire_on_a_flat_picture_grows_with_what_was_drawn():
    flat = LooseCrop(np.full((256, 256, 3), 128, np.uint8), np.full((5, 2), 128, np.float32))
    rough = {"waves": [], "none": []}
    for seed in range(90):
        attack = replay(flat, np.random.default_rng(seed))
        if attack.parameters["moire"] in rough and "edge" not in attack.parameters:
            green = attack.image[64:192, 64:192, 1].astype(float)
            # Rows hold flicker and reflections are smooth: what is left along a row is moire.
            rough[attack.parameters["moire"]].append(np.abs(np.diff(green, axis=1)).mean())
    assert np.median(rough["waves"]) > 4 * np.median(rough["none"])


def test_a_display_finer_than_the_camera_leaves_no_grid_but_one_near_it_leaves_moire():
    flat = LooseCrop(np.full((256, 256, 3), 128, np.uint8), np.full((5, 2), 128, np.float32))
    contrast = {True: [], False: []}
    for seed in range(140):
        attack = replay(flat, np.random.default_rng(seed))
        note = attack.parameters
        if note["moire"] != "grid" or {"edge", "reflection", "flicker"} & set(note):
            continue
        spread = attack.image[64:192, 64:192].astype(float).std((0, 1)).max()
        contrast[note["density"] > 1.6].append(spread)
    assert np.median(contrast[True]) < 2
    assert np.median(contrast[False]) > 4


def test_families_are_drawn_by_weight(face):
    rng = np.random.default_rng(0)
    drawn = [synthesise(face, rng, {"sbi": 3, "print": 1, "replay": 0}).family for _ in range(80)]
    assert set(drawn) == {"sbi", "print"}
    assert 45 < drawn.count("sbi") < 75


def test_equal_generators_draw_the_same_attack(face):
    first, second = (synthesise(face, np.random.default_rng(5), _ALL) for _ in range(2))
    assert first.parameters == second.parameters
    np.testing.assert_array_equal(first.image, second.image)


@pytest.mark.parametrize("weights", [{}, {"sbi": 0.0}, {"sbi": -1.0, "print": 2.0}, {"mask": 1.0}])
def test_impossible_weights_are_refused(face, weights):
    with pytest.raises(ValueError, match="weights must be"):
        synthesise(face, np.random.default_rng(0), weights)


@pytest.mark.parametrize(
    ("image", "landmarks"),
    [
        (np.zeros((256, 128, 3), np.uint8), np.zeros((5, 2), np.float32)),
        (np.zeros((256, 256, 3), np.float32), np.zeros((5, 2), np.float32)),
        (np.zeros((256, 256, 3), np.uint8), np.zeros((4, 2), np.float32)),
    ],
)
def test_a_loose_crop_of_the_wrong_kind_is_refused(image, landmarks):
    with pytest.raises(ValueError, match="must"):
        LooseCrop(image, landmarks)
