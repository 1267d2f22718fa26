"""Pairs where no attack was filmed: a bona fide face and a synthetic attack made from it.

Both members go through the same camera, drawn once, so that nothing but the attack tells them
apart: of an attack that changes nothing, both pictures are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from train.attacks import FAMILIES, REDRAWN, SCENES, LooseCrop, synthesise
from train.attacks._random_fields import either
from train.attacks.autoencoder import load_autoencoder
from train.attacks.camera import degrade, recompress_h264
from train.attacks.scene import beside
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.random import Generator
    from numpy.typing import NDArray

    from train.attacks._samples import FaceInScene
    from train.data.shards import PreparedConfig

_MARGINS: Final = (1.8, 2.2)  # the attack makers expect the face to fill about half of the side
_SCENE_MARGIN: Final = 3.5  # least margin of the stored crops: less is no scene
_LARGEST_FACE: Final = 0.4  # of the side of a picture that is a background
_TRIES: Final = 4  # at a background
_GOOD: Final = 0.3  # how severe a good camera may be


class SyntheticPairs:
    """A `PairTransform` of the loaders: draws a family by weight, and films both pictures."""

    tone_matched: ClassVar[float] = 0.7  # share of replay and print pairs

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Take the families of `train.attacks` with their weights."""
        self._weights = dict(weights)

    def check(self, prepared: PreparedConfig) -> None:
        """Refuse crops that are cut too tight or too loose for the attack makers.

        Raises:
            TrainError: the margin is not about 2.
        """
        low, high = _MARGINS
        if prepared.window != "pad" or not low <= prepared.margin <= high:
            raise TrainError(
                f"synthetic attacks need faces prepared with a margin of {low:g} to {high:g} and "
                f"padded windows, found {prepared.margin:g} and {prepared.window!r}; prepare them "
                "again with --set margin=2 --set window=pad"
            )

    def __call__(
        self, face: FaceInScene, other: Callable[[], FaceInScene], rng: Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the bona fide picture and the attack.

        Args:
            face: a bona fide face in a padded window.
            other: not asked for; no other face is needed.
            rng: source of every draw.
        """
        del other
        image = face.image
        attack = synthesise(LooseCrop(image, face.landmarks), rng, self._weights)
        if attack.reference is not None:
            bona_fide = attack.reference
        elif rng.random() < self.tone_matched:
            bona_fide = match_tone(image, attack.image)
        else:
            bona_fide = image
        camera = int(rng.integers(2**63))
        return (
            degrade(bona_fide, np.random.default_rng(camera)),
            degrade(attack.image, np.random.default_rng(camera)),
        )


class SyntheticDev(SyntheticPairs):
    """Pairs to choose, calibrate and set thresholds with: the bona fide face keeps its own tone.

    Matching the tones makes training hard; here it would move bona fide faces away from what a
    camera shows.
    """

    tone_matched = 0.0


class DigitalPairs(SyntheticPairs):
    """Pairs for a detector of what was made in the picture, some of it by autoencoders.

    Fine texture is most of the evidence, so half of the pairs see a good camera; and whatever was
    pasted is encoded with the rest afterwards, as the recordings of a swapped face are.
    """

    good_camera: ClassVar[float] = 0.5  # share of the pairs

    def __init__(self, weights: Mapping[str, float], autoencoders: Sequence[Path]) -> None:
        """Take the families of `train.attacks` with their weights, and what some are drawn by.

        Raises:
            TrainError: a file is no autoencoder.
        """
        super().__init__(weights)
        self._networks = [load_autoencoder(path) for path in autoencoders]

    def __call__(
        self, face: FaceInScene, other: Callable[[], FaceInScene], rng: Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the bona fide picture and the attack.

        Args:
            face: a bona fide face in a padded window.
            other: draws another one, for swaps.
            rng: source of every draw.
        """
        crop = LooseCrop(face.image, face.landmarks)
        family = either(rng, self._weights)
        if family in REDRAWN:
            source = other()
            attack = REDRAWN[family](
                crop, LooseCrop(source.image, source.landmarks), self._networks, rng
            )
        else:
            attack = FAMILIES[family](crop, rng)
        bona_fide = face.image if attack.reference is None else attack.reference
        good = bool(rng.random() < self.good_camera)
        camera = int(rng.integers(2**63))
        return _recorded(bona_fide, camera, good=good), _recorded(attack.image, camera, good=good)


def _recorded(image: NDArray[np.uint8], camera: int, *, good: bool) -> NDArray[np.uint8]:
    """Return the picture (S, S, 3) as a camera of this number, good or any, and a link show it."""
    draws = np.random.default_rng(camera)
    if not good:
        return degrade(image, draws)
    filmed = degrade(image, draws, severest=_GOOD)
    return recompress_h264(filmed, int(draws.integers(17, 29)), draws.integers(-2, 3, 2))


class ScenePairs:
    """A `PairTransform` of the loaders, as `SyntheticPairs`, for windows of 2.7 faces and more."""

    tone_matched: ClassVar[float] = 0.3
    instrument_beside: ClassVar[float] = 0.35  # share of bona fide pictures with one beside
    as_taken: ClassVar[float] = 0.6  # share of pairs that go through no second camera

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Take the scenes of `train.attacks` with their weights."""
        self._weights = dict(weights)

    def check(self, prepared: PreparedConfig) -> None:
        """Refuse crops that hold too little around the face.

        Raises:
            TrainError: they were cut by another window rule, or too tight.
        """
        if prepared.window != "inside" or prepared.margin < _SCENE_MARGIN:
            raise TrainError(
                f"attacks in scenes need faces prepared with windows inside the frame and a margin "
                f"of {_SCENE_MARGIN:g} or more, found {prepared.window!r} and {prepared.margin:g}; "
                "prepare them again with --set window=inside --set margin=4.2"
            )

    def __call__(
        self, face: FaceInScene, other: Callable[[], FaceInScene], rng: Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the bona fide picture and the attack; the face is at its place in both.

        Args:
            face: a bona fide face.
            other: draws another one.
            rng: source of every draw.
        """
        behind = other()
        for _ in range(_TRIES - 1):
            if behind.sides.max() <= _LARGEST_FACE * len(behind.image):
                break
            behind = other()
        attack = SCENES[either(rng, self._weights)](face, behind, rng).image
        bona_fide = face.image
        if rng.random() < self.instrument_beside:
            bona_fide = beside(face, behind, rng)
        if rng.random() < self.tone_matched:
            bona_fide = match_tone(bona_fide, attack)
        if rng.random() < self.as_taken:
            return bona_fide, attack
        camera = int(rng.integers(2**63))
        return (
            degrade(bona_fide, np.random.default_rng(camera), mirror=False),
            degrade(attack, np.random.default_rng(camera), mirror=False),
        )


class SceneDev(ScenePairs):
    """Pairs to calibrate and set thresholds with: bona fide pictures are as they were taken."""

    tone_matched = 0.0
    instrument_beside = 0.0
    as_taken = 0.0


def training_pairs(
    weights: Mapping[str, float], autoencoders: Sequence[Path] = ()
) -> SyntheticPairs | ScenePairs:
    """Return what makes the pairs to learn from, of families or of scenes, by weight.

    Args:
        weights: family -> share.
        autoencoders: what swaps are drawn by; with them the pairs are `DigitalPairs`.
    """
    if weights.keys() <= SCENES.keys():
        return ScenePairs(weights)
    return DigitalPairs(weights, autoencoders) if autoencoders else SyntheticPairs(weights)


def dev_pairs(
    weights: Mapping[str, float], autoencoders: Sequence[Path] = ()
) -> SyntheticPairs | SceneDev:
    """Return what makes the pairs to choose, calibrate and set thresholds with."""
    if weights.keys() <= SCENES.keys():
        return SceneDev(weights)
    return DigitalPairs(weights, autoencoders) if autoencoders else SyntheticDev(weights)


def match_tone(image: NDArray[np.uint8], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give a picture the mean and the contrast, per colour channel, of another.

    Screens and prints lower contrast and shift colour, and so does ordinary office video; after
    this, only texture and local structure tell the two members of a pair apart.

    Args:
        image: (H, W, 3) RGB.
        like: (H', W', 3) RGB.
    """
    mean, spread = image.mean((0, 1)), image.std((0, 1)) + 1
    gain = np.clip((like.std((0, 1)) + 1) / spread, 0.3, 1.5)
    matched = (image - mean) * gain + like.mean((0, 1))
    clipped: NDArray[np.uint8] = np.clip(matched + 0.5, 0, 255).astype(np.uint8)
    return clipped
