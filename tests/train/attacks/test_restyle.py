"""Restyled regions: texture changes where the mask is, and nothing else does."""

import numpy as np
import pytest
import skimage.data

from train.attacks import LooseCrop
from train.attacks.restyle import restyle

POINTS = np.array([[109, 108], [150, 108], [132, 130], [111, 148], [147, 148]], np.float32)


@pytest.fixture(scope="module")
def face():
    return LooseCrop(np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352]), POINTS)


@pytest.fixture(scope="module")
def attacks(face):
    return [restyle(face, np.random.default_rng(seed)) for seed in range(60)]


def test_outside_its_mask_the_picture_stays_and_inside_it_changes(face, attacks):
    masked = [attack for attack in attacks if attack.mask is not None]
    assert masked
    for attack in masked:
        outside = attack.mask == 0
        np.testing.assert_array_equal(attack.image[outside], face.image[outside])
        assert (attack.image[~outside] != face.image[~outside]).any()


def test_a_part_of_the_pictures_is_restyled_as_a_whole(attacks):
    whole = [attack for attack in attacks if attack.mask is None]
    assert 5 < len(whole) < 30
    assert {attack.parameters["region"] for attack in whole} == {"whole_picture"}


def test_texture_changes_but_neither_colour_nor_place(face, attacks):
    """Averaged over 16 px hardly anything is left of it."""
    for attack in attacks:
        change = attack.image.astype(np.float64) - face.image
        coarse = change.reshape(16, 16, 16, 16, 3).mean((1, 3))
        assert np.abs(coarse).mean() < 3


def test_every_way_is_drawn_and_told(attacks):
    ways = {attack.parameters["way"] for attack in attacks}
    assert ways == {"scaled", "sharpened", "denoised", "median", "lattice"}


def test_denoising_lowers_noise_and_keeps_an_edge():
    rng = np.random.default_rng(0)
    step = np.where(np.arange(128)[None, :, None] < 64, 60.0, 180.0) * np.ones((128, 128, 3))
    noisy = np.clip(step + rng.normal(0, 5, step.shape), 0, 255).astype(np.uint8)
    from train.attacks.restyle import _restyled

    result = _restyled(noisy, "denoised", np.random.default_rng(3), {}).astype(float)
    assert result[:, 8:56].std() < 0.6 * noisy[:, 8:56].std()
    assert result[:, 68].mean() - result[:, 60].mean() > 90
