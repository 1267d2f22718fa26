"""With the attack generator switched off, nothing tells the two sides of a synthetic set apart.

The classifier knows what a lazy network would learn: statistics of the whole picture that say how
it was filmed, and nothing of what it shows.
"""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy.fft import dctn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from train.attacks import FAMILIES, FaceInScene, LooseCrop, SyntheticAttack
from train.attacks.pairs import SyntheticDev, SyntheticPairs
from train.data.shards import PreparedConfig, open_shards
from train.data.stored_attacks import write_synthetic_attacks

_POINTS = np.array([[48, 52], [80, 52], [64, 68], [52, 88], [76, 88]], np.float32)
_FACES = 60
_SEEDS = 2


@pytest.fixture(scope="module")
def faces():
    """Portraits of 128 px that differ in place, light and colour."""
    portrait = Image.fromarray(skimage.data.astronaut())
    rng = np.random.default_rng(0)
    crops = []
    for _ in range(_FACES):
        x, y = rng.uniform((80, 0), (160, 60))
        crop = portrait.resize((128, 128), Image.Resampling.BICUBIC, box=(x, y, x + 220, y + 220))
        gains = rng.uniform(0.6, 1.1) * np.exp(rng.normal(0, 0.1, 3))
        crops.append(np.clip(np.asarray(crop) * gains, 0, 255).astype(np.uint8))
    return crops


def _switched_off(monkeypatch):
    for family in FAMILIES:
        monkeypatch.setitem(
            FAMILIES,
            family,
            lambda face, _rng, family=family: SyntheticAttack(
                face.image, family, {"level": "none"}, None, None
            ),
        )


def _statistics(image):
    """Twelve global statistics of a picture (S, S, 3)."""
    pixels = image.astype(np.float64)
    luma = pixels @ (0.299, 0.587, 0.114)
    right, down = np.diff(luma, axis=1), np.diff(luma, axis=0)
    spectrum = np.abs(np.fft.fft2(luma - luma.mean())) ** 2
    low = np.hypot(*np.meshgrid(*[np.fft.fftfreq(len(luma))] * 2)) < 0.25
    saturation = pixels.max(2) - pixels.min(2)
    blocks = dctn(luma[:128, :128].reshape(16, 8, 16, 8).transpose(0, 2, 1, 3), axes=(2, 3))
    on_grid = np.abs(right[:, 7::8]).mean() / (np.abs(right).mean() + 1e-6)
    noise = luma[1:-1, 1:-1] - (luma[:-2, 1:-1] + luma[2:, 1:-1]) / 2
    return [
        luma.mean(),
        luma.std(),
        np.log((right**2).mean() + (down**2).mean() + 1e-6),
        np.log(spectrum[~low].sum() / (spectrum.sum() + 1e-6) + 1e-9),
        on_grid,
        np.mean(np.abs(blocks[..., 4:, 4:]) < 0.5),
        saturation.mean(),
        saturation.std(),
        np.quantile(luma, 0.01),
        np.quantile(luma, 0.99),
        np.log(np.abs(noise).mean() + 1e-6),
        pixels[..., 0].mean() - pixels[..., 2].mean(),
    ]


def _auc(bona_fide, attacks):
    """AUC of a logistic regression, cross-validated by face: item i of both is of one face."""
    features = np.array([_statistics(image) for image in (*bona_fide, *attacks)])
    labels = np.repeat([0, 1], (len(bona_fide), len(attacks)))
    groups = np.concatenate([np.arange(len(side)) % _FACES for side in (bona_fide, attacks)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=1000))
    scores = cross_val_predict(
        classifier, features, labels, groups=groups, cv=GroupKFold(5), method="decision_function"
    )
    return roc_auc_score(labels, scores)


def _stored(face):
    return FaceInScene(face, _POINTS, np.array([32, 32, 96, 96]))


def _nobody():
    raise AssertionError("no other face is needed")


def _pairs(transform, faces):
    made = [
        transform(_stored(face), _nobody, np.random.default_rng((seed, number)))
        for seed in range(_SEEDS)
        for number, face in enumerate(faces)
    ]
    return [pair[0] for pair in made], [pair[1] for pair in made]


@pytest.mark.parametrize("transform", [SyntheticPairs, SyntheticDev])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_attack_that_changes_nothing_leaves_both_members_of_a_pair_alike(
    faces, monkeypatch, transform, family
):
    _switched_off(monkeypatch)
    bona_fide, attacks = _pairs(transform({family: 1.0}), faces[:6])
    for one, other in zip(bona_fide, attacks, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("transform", [SyntheticPairs, SyntheticDev])
def test_without_attacks_no_statistic_separates_the_sides_of_pairs(faces, monkeypatch, transform):
    _switched_off(monkeypatch)
    assert 0.45 <= _auc(*_pairs(transform({"replay": 1, "sbi": 1}), faces)) <= 0.55


def test_without_attacks_no_statistic_separates_stored_sets(
    tmp_path, faces, monkeypatch, face_record, write_faces
):
    _switched_off(monkeypatch)
    records = [
        face_record(f"{i}", box=(32, 32, 96, 96), landmarks=_POINTS.tolist(), face_px=64)
        for i in range(_FACES)
    ]
    about = PreparedConfig(size_px=128, margin=2.0, code_version="test")
    folder = write_faces(records, prepared=about, pictures=faces)
    write_synthetic_attacks(folder, tmp_path / "attacks", {"replay": 1, "sbi": 1})
    sides = [open_shards(path) for path in (folder, tmp_path / "attacks")]
    auc = _auc(*([side.crop(row) for row in range(_FACES)] for side in sides))
    assert 0.45 <= auc <= 0.55


def test_the_statistics_would_see_a_camera_on_one_side_only(faces):
    """The check itself: one more camera for the attacks is what the sets once had."""
    from train.attacks.camera import degrade

    filmed = [degrade(face, np.random.default_rng(i)) for i, face in enumerate(faces)]
    assert _auc(faces, filmed) > 0.8


@pytest.mark.parametrize("transform", [SyntheticPairs, SyntheticDev])
def test_a_switched_on_attack_still_differs(faces, transform):
    bona_fide, attacks = _pairs(transform({"replay": 1.0}), faces[:4])
    assert all(
        np.abs(b.astype(int) - a).mean() > 1 for b, a in zip(bona_fide, attacks, strict=True)
    )


def test_the_bona_fide_member_on_dev_keeps_its_own_tone(faces, monkeypatch):
    """As filmed by the pair's camera: what the attack looks like does not touch it."""
    transform = SyntheticDev({"replay": 1.0})
    monkeypatch.setattr("train.attacks.pairs.degrade", lambda image, _rng: image)
    for number, face in enumerate(faces[:6]):
        bona_fide, _ = transform(_stored(face), _nobody, np.random.default_rng(number))
        np.testing.assert_array_equal(bona_fide, face)


@pytest.mark.parametrize("family", ["sbi", "sdsc"])
def test_a_blended_attack_stands_beside_the_picture_it_was_pasted_into(faces, monkeypatch, family):
    monkeypatch.setattr("train.attacks.pairs.degrade", lambda image, _rng: image)
    transform = SyntheticDev({family: 1.0})
    for number, face in enumerate(faces[:6]):
        bona_fide, attack = transform(_stored(face), _nobody, np.random.default_rng(number))
        rng = np.random.default_rng(number)
        rng.choice(1, p=[1.0])  # the family
        made = FAMILIES[family](LooseCrop(face, _POINTS), rng)
        np.testing.assert_array_equal(attack, made.image)
        np.testing.assert_array_equal(bona_fide, made.reference)
