"""Faces redrawn by autoencoders: aligned, recoloured, put back; and the pairs made of them."""

from importlib import import_module

import numpy as np
import pytest
import skimage.data
import torch

from train.attacks import REDRAWN, FaceInScene, LooseCrop
from train.attacks.autoencoder import FaceAutoencoder, load_autoencoder, save_autoencoder
from train.attacks.pairs import DigitalPairs, dev_pairs, training_pairs
from train.attacks.swap import _ALIGNED, _from_aligned, _recoloured, redrawn, swap
from train.errors import TrainError

SWAP = import_module("train.attacks.swap")  # the package has the function under this name
POINTS = np.array([[109, 108], [150, 108], [132, 130], [111, 148], [147, 148]], np.float32)
SEEDS = range(24)


class _Faithful(torch.nn.Module):
    """Draws what it was given: what a perfect autoencoder would."""

    def forward(self, images, noise=0.0, draws=None):
        del noise, draws
        return images


@pytest.fixture(scope="module")
def face():
    return LooseCrop(np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352]), POINTS)


@pytest.fixture(scope="module")
def other(face):
    """The same face, bluish and mirrored."""
    image = np.ascontiguousarray(face.image[:, ::-1, ::-1])
    points = face.landmarks[[1, 0, 2, 4, 3]] * np.float32([-1, 1]) + np.float32([256, 0])
    return LooseCrop(image, points)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FaceAutoencoder(width=4, code=4).eval().requires_grad_(requires_grad=False)


@pytest.fixture
def weights(network, tmp_path):
    path = tmp_path / "4x4.safetensors"
    save_autoencoder(network, path)
    return path


def test_a_swap_changes_the_face_and_nothing_outside_its_mask(face, other, network):
    for seed in SEEDS:
        attack = swap(face, other, [network], np.random.default_rng(seed))
        assert attack.family == "swap"
        assert attack.image.shape == face.image.shape
        assert attack.mask.dtype == np.float32
        assert 0 <= attack.mask.min() <= attack.mask.max() <= 1
        outside = attack.mask == 0
        np.testing.assert_array_equal(attack.image[outside], face.image[outside])
        assert (attack.image[~outside] != face.image[~outside]).any()


def test_a_swaps_mask_lies_on_the_face(face, other, network):
    masks = [swap(face, other, [network], np.random.default_rng(seed)).mask for seed in SEEDS]
    mean = np.mean(masks, 0)
    assert mean[130, 132] > 0.7  # the nose
    border = np.ones_like(mean, bool)
    border[24:-24, 24:-24] = False
    assert mean[border].max() == 0


def test_a_faithful_network_gives_back_the_face_where_it_was(face, other, monkeypatch):
    """Same face, no change of colour: only resampling is left."""
    monkeypatch.setattr(SWAP, "_OTHER_FACE", 0.0)
    monkeypatch.setattr(SWAP, "_WARPED", 0.0)
    monkeypatch.setattr(SWAP, "_TINTED", 0.0)
    monkeypatch.setattr(SWAP, "_SHARPENED", 0.0)
    for seed in SEEDS:
        attack = swap(face, other, [_Faithful()], np.random.default_rng(seed))
        apart = np.abs(attack.image.astype(int) - face.image)[attack.mask > 0.5]
        assert apart.mean() < 9


def test_a_swap_ends_where_the_drawn_face_does(monkeypatch):
    """A chin may lie below what was aligned: nothing black is put over it."""
    monkeypatch.setattr(SWAP, "_TINTED", 0.0)
    monkeypatch.setattr(SWAP, "_SHARPENED", 0.0)
    long_face = np.array([[109, 96], [150, 96], [130, 140], [112, 146], [147, 146]], np.float32)
    bright = LooseCrop(np.full((256, 256, 3), 220, np.uint8), long_face)
    for seed in range(40):
        attack = swap(bright, bright, [_Faithful()], np.random.default_rng(seed))
        assert attack.image.min() > 200


def test_another_face_is_put_in_place_at_times(face, other, monkeypatch):
    monkeypatch.setattr(SWAP, "_OTHER_FACE", 1.0)
    attack = swap(face, other, [_Faithful()], np.random.default_rng(1))
    assert attack.parameters["source"] == "other"
    inside = attack.mask > 0.5
    assert np.abs(attack.image.astype(int) - face.image)[inside].mean() > 10


def test_equal_draws_make_equal_attacks_whatever_torch_drew_before(face, other, network):
    for make in REDRAWN.values():
        first = make(face, other, [network], np.random.default_rng(5))
        torch.rand(7)
        state = torch.get_rng_state()
        again = make(face, other, [network], np.random.default_rng(5))
        np.testing.assert_array_equal(first.image, again.image)
        assert first.parameters == again.parameters
        assert torch.equal(torch.get_rng_state(), state)  # a run's own draws are left alone


def test_a_redrawn_crop_is_new_everywhere_and_keeps_its_tone(face, other, network):
    for seed in SEEDS:
        attack = redrawn(face, other, [network], np.random.default_rng(seed))
        assert attack.mask is None
        assert attack.image.shape == face.image.shape
        assert (attack.image != face.image).any(axis=2).mean() > 0.5
        assert abs(attack.image.mean() - face.image.mean()) < 25


def test_every_network_is_used(face, other, network):
    notes = [
        redrawn(face, other, [network] * 3, np.random.default_rng(seed)).parameters["network"]
        for seed in SEEDS
    ]
    assert set(notes) == {0, 1, 2}


def test_landmarks_are_aligned_by_the_similarity_that_they_stand_in():
    turn, scale, shift = np.deg2rad(20), 0.7, np.array([30.0, -12.0])
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    landmarks = (_ALIGNED * 128) @ matrix.T + shift
    found = _from_aligned(landmarks.astype(np.float32), 128)
    np.testing.assert_allclose(found, np.hstack([matrix, shift[:, None]]), atol=1e-4)


def test_recolouring_takes_mean_and_spread_over_within_the_mask():
    rng = np.random.default_rng(0)
    drawn = rng.normal(90, 10, (32, 32, 3)).astype(np.float32)
    like = rng.normal((150, 120, 100), 25, (32, 32, 3)).astype(np.float32)
    weight = np.zeros((32, 32, 1))
    weight[8:24, 8:24] = 1
    moved = _recoloured(drawn, like, weight, 1.0)[8:24, 8:24]
    np.testing.assert_allclose(moved.mean((0, 1)), like[8:24, 8:24].mean((0, 1)), atol=0.5)
    np.testing.assert_allclose(moved.std((0, 1)), like[8:24, 8:24].std((0, 1)), rtol=0.1)


# ---- pairs


def _stored(crop):
    return FaceInScene(crop.image, crop.landmarks, np.array([64, 64, 192, 192]))


def test_autoencoders_make_digital_pairs_for_training_and_dev(weights):
    shares = {"swap": 1.0, "sbi": 1.0}
    assert isinstance(training_pairs(shares, [weights]), DigitalPairs)
    assert isinstance(dev_pairs(shares, [weights]), DigitalPairs)
    assert not isinstance(training_pairs({"sbi": 1.0}), DigitalPairs)


@pytest.mark.parametrize("family", ["swap", "redrawn", "sbi", "restyle"])
def test_both_members_of_a_digital_pair_are_filmed_by_one_camera(face, other, weights, family):
    """Far from the face they agree but for what an encoder makes of the difference."""
    pairs = DigitalPairs({family: 1.0}, [weights])
    border = np.zeros((256, 256), bool)
    border[:8] = True
    for seed in range(8):
        bona_fide, attack = pairs(
            _stored(face), lambda: _stored(other), np.random.default_rng(seed)
        )
        assert bona_fide.shape == attack.shape == (256, 256, 3)
        assert not np.array_equal(bona_fide, attack)
        if family in ("swap", "sbi"):
            apart = np.abs(bona_fide.astype(int) - attack).mean(2)
            assert apart[border].mean() < 3


def test_of_an_attack_that_changes_nothing_both_members_are_the_same(face, weights, monkeypatch):
    from train.attacks import FAMILIES, SyntheticAttack

    monkeypatch.setitem(
        FAMILIES, "sbi", lambda crop, _rng: SyntheticAttack(crop.image, "sbi", {}, None, None)
    )
    pairs = DigitalPairs({"sbi": 1.0}, [weights])
    for seed in range(8):
        bona_fide, attack = pairs(_stored(face), lambda: _stored(face), np.random.default_rng(seed))
        np.testing.assert_array_equal(bona_fide, attack)


def test_half_of_the_pairs_see_a_good_camera(face, weights, monkeypatch):
    severest = []

    def camera(image, _draws, severest_=severest, **options):
        severest_.append(options.get("severest", 1.0))
        return image

    monkeypatch.setattr("train.attacks.pairs.degrade", camera)
    pairs = DigitalPairs({"sbi": 1.0}, [weights])
    for seed in range(60):
        pairs(_stored(face), lambda: _stored(face), np.random.default_rng(seed))
    assert set(severest) == {0.3, 1.0}
    assert 30 < sum(value < 1 for value in severest) < 90
    assert severest[::2] == severest[1::2]


# ---- the autoencoder


def test_an_autoencoder_comes_back_as_it_was_saved(network, weights):
    images = torch.rand(1, 3, 48, 64)
    torch.testing.assert_close(load_autoencoder(weights)(images), network(images))


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "junk.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(TrainError, match="expected an autoencoder of faces"):
        load_autoencoder(path)
    with pytest.raises(TrainError, match="python -m train autoencoder"):
        load_autoencoder(tmp_path / "missing.safetensors")
