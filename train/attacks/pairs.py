"""Pairs where no attack was filmed: a bona fide face and a synthetic attack made from it.

Both members go through the same camera, drawn once, so that nothing but the attack tells them
apart: of an attack that changes nothing, both pictures are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from train.attacks import LooseCrop, synthesise
from train.attacks.camera import degrade
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.random import Generator
    from numpy.typing import NDArray

    from train.data.shards import PreparedConfig

_MARGINS: Final = (1.8, 2.2)  # the attack makers expect the face to fill about half of the side


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
        if not low <= prepared.margin <= high:
            raise TrainError(
                f"synthetic attacks need faces prepared with a margin of {low:g} to {high:g}, "
                f"found {prepared.margin:g}; prepare them again with --set margin=2"
            )

    def __call__(
        self, image: NDArray[np.uint8], landmarks: NDArray[np.float32], rng: Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the bona fide picture and the attack.

        Args:
            image: (S, S, 3) RGB loose crop.
            landmarks: (5, 2) px.
            rng: source of every draw.
        """
        attack = synthesise(LooseCrop(image, landmarks), rng, self._weights)
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
