"""Training samples: a bona fide face and an attack made from it, degraded alike.

Both members of a pair go through the same camera degradation, drawn once, and the same crop, so
that nothing but the attack tells them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.utils.data import Dataset

from models._contract import ATTACK, BONA_FIDE, FaceBatch, InputSpec
from models._preprocess import crop_faces
from train.augment import degrade
from train.datasets.prepared import LOOSE_FACE_BOX
from train.errors import TrainError
from train.synthetic import LooseCrop, synthesise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from train.datasets.prepared import PreparedFaces


_TONE_MATCHED: Final = 0.7  # share of replay and print pairs


class AttackPairs(Dataset[tuple["Tensor", "Tensor"]]):
    """An endless, seeded stream of pairs; item i is the same in every run with the same seed."""

    def __init__(
        self,
        faces: PreparedFaces,
        split: str,
        spec: InputSpec,
        *,
        group_weights: Mapping[str, float],
        attack_weights: Mapping[str, float],
        length: int,
        seed: int,
    ) -> None:
        """Group the faces for drawing.

        Raises:
            TrainError: a weighted group has no face in this split.
        """
        self._faces = faces
        self._spec = spec
        self._attack_weights = dict(attack_weights)
        self._length = length
        self._seed = seed
        self._groups = [_by_source(faces, faces.where(split), name) for name in group_weights]
        for name, sources in zip(group_weights, self._groups, strict=True):
            if not sources:
                raise TrainError(f"no prepared face of group {name!r} in split {split!r}")
        weights = np.array(list(group_weights.values()))
        self._probabilities = weights / weights.sum()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the bona fide and the attack crop, (3, S, S) uint8 RGB each."""
        rng = np.random.default_rng((self._seed, index))
        sources = self._groups[rng.choice(len(self._groups), p=self._probabilities)]
        source = sources[rng.integers(len(sources))]
        chosen = source[rng.integers(len(source))]
        face = LooseCrop(
            np.array(self._faces.images[chosen]),
            np.array(self._faces.faces[chosen].landmarks, np.float32),
        )
        attack = synthesise(face, rng, self._attack_weights)
        if attack.reference is not None:
            bona_fide = attack.reference
        elif rng.random() < _TONE_MATCHED:
            bona_fide = match_tone(face.image, attack.image)
        else:
            bona_fide = face.image
        camera = int(rng.integers(2**63))
        box = _jittered_box(rng)
        bona_fide_crop, attack_crop = (
            self._crop(degrade(image, np.random.default_rng(camera)), box)
            for image in (bona_fide, attack.image)
        )
        return bona_fide_crop, attack_crop

    def _crop(self, image: NDArray[np.uint8], box: NDArray[np.float32]) -> Tensor:
        return crop_faces(torch.from_numpy(image), box[None], self._spec)[0]


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


def collate(pairs: Sequence[tuple[Tensor, Tensor]]) -> FaceBatch:
    """Return N pairs as one batch of 2 N: bona fide, attack, bona fide, attack, ..."""
    images = torch.stack([image for pair in pairs for image in pair])
    labels = torch.tensor([BONA_FIDE, ATTACK]).repeat(len(pairs))
    return FaceBatch(images, labels)


def _by_source(faces: PreparedFaces, indices: Sequence[int], group: str) -> list[list[int]]:
    sources: dict[str, list[int]] = {}
    for i in indices:
        if faces.faces[i].group == group:
            sources.setdefault(faces.faces[i].source, []).append(i)
    return list(sources.values())


def _jittered_box(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the face box of a loose crop, moved and scaled as much as a detector's boxes vary."""
    centre = (LOOSE_FACE_BOX[:2] + LOOSE_FACE_BOX[2:]) / 2 + rng.normal(0, 5, 2)
    half = (LOOSE_FACE_BOX[2] - LOOSE_FACE_BOX[0]) / 2 * np.exp(rng.normal(0, 0.06))
    return np.concatenate([centre - half, centre + half]).astype(np.float32)
