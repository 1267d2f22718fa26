"""What the attack makers take and give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class LooseCrop:
    """A bona fide face with its surroundings: the face fills about half of the side."""

    image: NDArray[np.uint8]  # (S, S, 3) RGB
    landmarks: NDArray[
        np.float32
    ]  # (5, 2) crop px: viewer's left eye, right eye, nose, mouth corners

    def __post_init__(self) -> None:
        shape = self.image.shape
        if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3 or self.image.dtype != "uint8":
            raise ValueError(f"image must be uint8 (S, S, 3), got {self.image.dtype} {shape}")
        if self.landmarks.shape != (5, 2):
            raise ValueError(f"landmarks must have shape (5, 2), got {self.landmarks.shape}")


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticAttack:
    """An attack made from a bona fide face, and how it was made."""

    image: NDArray[np.uint8]  # (S, S, 3) RGB, as the `LooseCrop`
    family: str  # as `synthesise` names it
    parameters: dict[str, float | str]  # goes to the sample's provenance
    mask: NDArray[np.float32] | None  # (S, S) 0..1 share of foreign pixels; None: the whole picture
    reference: NDArray[np.uint8] | None  # (S, S, 3) bona fide partner; None: the picture itself


@dataclass(frozen=True, slots=True, eq=False)
class FaceInScene:
    """A bona fide face with what is around it, as far as it was stored."""

    image: NDArray[np.uint8]  # (S, S, 3) RGB
    landmarks: NDArray[np.float32]  # (5, 2) crop px, as `LooseCrop`
    face: NDArray[np.float64]  # (4,) its box, x1 y1 x2 y2 crop px

    @property
    def centre(self) -> NDArray[np.float64]:
        """Of the face, (2,) crop px."""
        middle: NDArray[np.float64] = (self.face[:2] + self.face[2:]) / 2
        return middle

    @property
    def sides(self) -> NDArray[np.float64]:
        """Width and height of the face, (2,) crop px."""
        sides: NDArray[np.float64] = self.face[2:] - self.face[:2]
        return sides
