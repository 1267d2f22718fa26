import numpy as np
import pytest
from skimage.data import astronaut

from train.evaluation.distortion import distort


@pytest.fixture(scope="module")
def picture():
    return astronaut()[:256, 100:356]


def test_a_picture_is_distorted_alike_for_a_seed_and_otherwise_for_others(picture):
    first, again, other = (distort(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_every_distortion_changes_the_picture_a_little_and_keeps_its_form(picture):
    before = picture.copy()
    for seed in range(30):
        after = distort(picture, np.random.default_rng(seed))
        assert (after.shape, after.dtype) == (picture.shape, np.uint8)
        difference = np.abs(after.astype(int) - picture).mean()
        assert 0 < difference < 64, seed
    np.testing.assert_array_equal(picture, before)


def test_each_of_the_five_is_drawn():
    # On a flat coloured picture each leaves its own trace.
    flat = np.full((64, 64, 3), (120, 60, 180), np.uint8)
    traces = set()
    for seed in range(60):
        after = distort(flat, np.random.default_rng(seed)).astype(float)
        mean, spread = after.mean((0, 1)), after.std((0, 1)).max()
        if spread > 2:
            traces.add("noise")
        elif np.allclose(mean, flat[0, 0], atol=0.6):
            traces.add("blur")
        elif np.allclose(mean, flat[0, 0], atol=4) and np.ptp(mean - flat[0, 0]) < 4:
            traces.add("jpeg")
        elif np.allclose(mean / flat[0, 0], (mean / flat[0, 0]).mean(), atol=0.03):
            traces.add("contrast")
        else:
            traces.add("saturation")
    assert traces >= {"noise", "blur", "contrast", "saturation"}
