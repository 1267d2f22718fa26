"""Camera-like degradation: one distribution for both classes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import skimage.data
from PIL import Image

from train.attacks.camera import degrade, recompress_h264, recompress_jpeg


@pytest.fixture(scope="module")
def face():
    portrait = Image.fromarray(skimage.data.astronaut())
    return np.asarray(
        portrait.resize((256, 256), Image.Resampling.BILINEAR, box=(120, 20, 340, 240))
    )


def _psnr(one, two):
    error = np.mean((one.astype(float) - two.astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def test_a_degraded_picture_keeps_shape_and_type_and_is_the_callers_own(face):
    for seed in range(40):
        degraded = degrade(face, np.random.default_rng(seed))
        assert degraded.shape == face.shape
        assert degraded.dtype == np.uint8
        assert degraded.flags.c_contiguous
        assert degraded.flags.writeable
        assert not np.shares_memory(degraded, face)


def test_degrading_leaves_the_original_alone(face):
    before = face.copy()
    for seed in range(20):
        degrade(face, np.random.default_rng(seed))
    np.testing.assert_array_equal(face, before)


def test_equal_generators_degrade_alike(face):
    for seed in range(20):
        first, second = (degrade(face, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_no_draw_depends_on_the_pixels(face):
    other = np.random.default_rng(1).integers(0, 256, face.shape, dtype=np.uint8)
    black = np.zeros_like(face)
    for seed in range(60):
        states = []
        for image in (face, other, black):
            rng = np.random.default_rng(seed)
            degrade(image, rng)
            states.append(rng.bit_generator.state)
        assert states[0] == states[1] == states[2]


def test_copied_generators_degrade_a_pair_alike_outside_of_what_differs(face):
    # With one camera, pixels that are equal in both members of a pair stay near equal.
    other = face.copy()
    other[120:136, 120:136] = 255 - other[120:136, 120:136]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        same_camera = copy.deepcopy(rng)
        one, two = degrade(face, rng), degrade(other, same_camera)
        far = np.ones((256, 256), bool)
        far[80:176, 80:176] = False
        assert np.abs(one[far].astype(int) - two[far]).mean() < 6


def test_most_pictures_keep_their_detail_and_some_lose_it(face):
    def edges(image):
        return np.diff(image.astype(float).mean(2), axis=1).ravel()

    kept = []
    for seed in range(80):
        degraded = degrade(face, np.random.default_rng(seed))
        # Mirrored or not, whichever fits.
        kept.append(
            max(
                np.corrcoef(edges(image), edges(face))[0, 1]
                for image in (degraded, degraded[:, ::-1])
            )
        )
    assert np.median(kept) > 0.8
    assert min(kept) < 0.7


def test_half_of_the_pictures_are_mirrored(face):
    mirrored = 0
    for seed in range(100):
        degraded = degrade(face, np.random.default_rng(seed))
        mirrored += _psnr(degraded[:, ::-1], face) > _psnr(degraded, face)
    assert 30 < mirrored < 70


def test_black_lift_dull_whites_weak_colour_and_blur_all_occur(face):
    """The lesson of the first experiment: what marked attacks must be common in bona fide faces."""

    def tone(image):
        luma = image.astype(np.float32).mean(2)
        colour = image.max(2).astype(np.float32) - image.min(2)
        detail = np.abs(np.diff(luma, axis=1)).mean()
        return np.quantile(luma, 0.01), np.quantile(luma, 0.99), colour.mean(), detail

    black, white, colour, detail = tone(face)
    degraded = np.array([tone(degrade(face, np.random.default_rng(s))) for s in range(100)])
    assert np.mean(degraded[:, 0] > black + 20) > 0.35
    assert np.mean(degraded[:, 1] < white - 25) > 0.12
    assert np.mean(degraded[:, 2] < 0.7 * colour) > 0.3
    assert np.mean(degraded[:, 3] < 0.7 * detail) > 0.1


@pytest.mark.parametrize("motion", [(0, 0), (2, -1), (-2, 2)])
def test_h264_gives_the_still_picture_back_in_place_and_damages_more_at_a_higher_rate_factor(
    face, motion
):
    fine, coarse = (recompress_h264(face, crf, np.array(motion)) for crf in (18, 38))
    assert fine.shape == coarse.shape == face.shape
    assert _psnr(fine, face) > 30
    assert _psnr(coarse, face) < _psnr(fine, face) - 4
    # Not shifted: a copy moved by the motion fits worse.
    moved = np.roll(face, (2, 2), (0, 1))
    assert _psnr(fine, face) > _psnr(fine, moved) + 5


def test_h264_takes_small_even_pictures(face):
    small = np.ascontiguousarray(face[96:158, 96:158])
    assert recompress_h264(small, 30, np.array((1, 1))).shape == (62, 62, 3)


def test_jpeg_damages_more_at_a_lower_quality(face):
    assert _psnr(recompress_jpeg(face, 95), face) > _psnr(recompress_jpeg(face, 30), face) + 4


def test_many_pictures_have_been_enlarged_from_a_smaller_one(face):
    def curvature(image):
        # Interpolated pixels lie on straight lines: second differences fall against first ones.
        luma = image.astype(np.float32).mean(2)
        return np.abs(np.diff(luma, 2, axis=1)).mean() / np.abs(np.diff(luma, axis=1)).mean()

    original = curvature(face)
    degraded = [curvature(degrade(face, np.random.default_rng(s))) for s in range(60)]
    assert np.mean(np.array(degraded) < 0.8 * original) > 0.15
