"""Augmentation as numbers: what happens to each sample is drawn here, and applied by the loaders.

So every loader gives the same pictures for a seed. Geometry is one affine map and colour one affine
map of RGB, whatever they are made of: each costs one pass over the pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    from models import InputSpec
    from train.data.shards import PreparedConfig

_Span = tuple[float, float]

_LUMA: Final = np.array([0.299, 0.587, 0.114])  # BT.601, RGB
_TO_YIQ: Final = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_MID_GREY: Final = 128.0
_NOISE_SPARE_PX: Final = 64  # by which the noise table is larger than a picture
NOISE_UNIT: Final = 1 / 32  # standard deviations per step of the noise table


class Uniform(BaseModel, frozen=True, extra="forbid"):
    """With probability `p`, a value drawn evenly from `low` to `high`."""

    p: float = Field(1.0, ge=0, le=1, description="Share of the samples that it happens to.")
    low: float = Field(description="Least value, in the unit of what it is for.")
    high: float = Field(description="Largest value, in that unit.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} lies above high {self.high:g}")
        return self

    def draw(self, rng: Generator) -> float | None:
        """Return a value, or None: leave the picture alone."""
        return float(rng.uniform(self.low, self.high)) if rng.random() < self.p else None


class BoxJitter(BaseModel, frozen=True, extra="forbid"):
    """Boxes vary as a detector's do: normal shifts and, in the logarithm, sizes."""

    shift: float = Field(0.0, ge=0, description="Standard deviation over the face box's side.")
    scale: float = Field(0.0, ge=0, description="Standard deviation of the log of the side.")


class ResizedCrop(BaseModel, frozen=True, extra="forbid"):
    """A part of the network's crop, scaled to its full size ("RandomResizedCrop")."""

    p: float = Field(1.0, ge=0, le=1, description="Share of the samples that it happens to.")
    area: _Span = Field(description="Share of the crop, least and largest, drawn evenly.")
    ratio: _Span = Field((3 / 4, 4 / 3), description="Width over height, even in the logarithm.")


class Erase(BaseModel, frozen=True, extra="forbid"):
    """Rectangles of one grey, wholly inside the picture ("random erasing", "cut-out")."""

    p: float = Field(1.0, ge=0, le=1, description="Share of the samples that it happens to.")
    count: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        (1, 1), description="Rectangles, least and largest number, drawn evenly."
    )
    area: _Span = Field(description="Share of the picture, each rectangle.")
    ratio: _Span = Field((1.0, 1.0), description="Width over height, even in the logarithm.")
    fill: int = Field(0, ge=0, le=255, description="Grey level of the rectangle.")


class AugmentConfig(BaseModel, frozen=True, extra="forbid"):
    """What is done to training crops, in this order; nothing by default.

    Colour values are grey levels 0..255; clipping and rounding happen once, before JPEG.
    """

    margin: Uniform | None = Field(
        None, description="Side of the crop over the face box, instead of the network's margin."
    )
    jitter: BoxJitter | None = Field(None, description="Of the face box, as a detector's.")
    trim: Uniform | None = Field(
        None, description="Share of the crop that each side loses, drawn per side, p once."
    )
    resized_crop: ResizedCrop | None = Field(None, description="A part of it, scaled up.")
    rotate_deg: Uniform | None = Field(None, description="Degrees about the centre of the crop.")
    hflip: float = Field(0.0, ge=0, le=1, description="Share of the samples that are mirrored.")
    brightness: Uniform | None = Field(None, description="Added grey levels.")
    gain: Uniform | None = Field(
        None, description="Factor: the contrast of SSD and LGSC, the brightness of torchvision."
    )
    contrast: Uniform | None = Field(None, description="Factor about mid-grey, 128.")
    saturation: Uniform | None = Field(None, description="Factor on the distance from grey.")
    hue_deg: Uniform | None = Field(None, description="Degrees about the grey axis (YIQ).")
    blur_sigma_px: Uniform | None = Field(
        None, description="Gaussian, standard deviation in pixels of the network's input."
    )
    noise_sigma: Uniform | None = Field(
        None, description="Gaussian, standard deviation in grey levels."
    )
    jpeg_quality: Uniform | None = Field(None, description="1..95, chroma halved (4:2:0).")
    erase: tuple[Erase, ...] = Field((), description="Rectangles that are painted over.")

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        for name, (least, largest) in _BOUNDS.items():
            wanted: Uniform | None = getattr(self, name)
            if wanted is not None and not (least <= wanted.low and wanted.high <= largest):
                raise ValueError(
                    f"{name}: {wanted.low:g}..{wanted.high:g} leaves {least:g}..{largest:g}"
                )
        for erase in self.erase:
            if erase.count[0] > erase.count[1]:
                raise ValueError(f"erase.count {erase.count} must be least, largest")
        spans = [(erase.area, erase.ratio) for erase in self.erase]
        if self.resized_crop is not None:
            spans.append((self.resized_crop.area, self.resized_crop.ratio))
        for area, ratio in spans:
            if not (0 < area[0] <= area[1] <= 1 and 0 < ratio[0] <= ratio[1]):
                raise ValueError(
                    f"area {area} and ratio {ratio} must be least, largest; above 0, area up to 1"
                )
        return self

    @property
    def fills(self) -> tuple[int, ...]:
        """The grey of each rectangle that may be drawn."""
        return tuple(erase.fill for erase in self.erase for _ in range(erase.count[1]))


_BOUNDS: Final = {
    "margin": (1.0, math.inf),
    "trim": (0.0, 0.45),
    "rotate_deg": (-180.0, 180.0),
    "brightness": (-255.0, 255.0),
    "gain": (0.0, math.inf),
    "contrast": (0.0, math.inf),
    "saturation": (0.0, math.inf),
    "hue_deg": (-180.0, 180.0),
    "blur_sigma_px": (0.1, 20.0),
    "noise_sigma": (0.0, 255.0),
    "jpeg_quality": (1.0, 95.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What happens to each of N samples; None: to none of this configuration."""

    matrix: NDArray[np.float32]  # (N, 2, 3): (x, y, 1) px of the network's crop -> px of the stored
    colour: NDArray[np.float32] | None  # (N, 3, 4): (R, G, B, 1) -> RGB
    blur_sigma: NDArray[np.float32] | None  # (N,) px; 0: sharp
    noise_sigma: NDArray[np.float32] | None  # (N,) grey levels
    noise_corner: NDArray[np.int32] | None  # (N, 3, 2): row and column in the table, per channel
    jpeg_quality: NDArray[np.int32] | None  # (N,); 0: not compressed
    erase: NDArray[np.int32] | None  # (N, R, 4): top, left, height, width of each of `fills`


class Augmentation:
    """An `AugmentConfig` for stored crops of one geometry and one network.

    Attributes:
        config: what is drawn.
        stored_px: side of the stored crops.
        size_px: side S of the network's crops.
        samples_per_px: samples, per side, whose mean is a pixel of the network's crop, as in
            `crop_faces`; the same for all, so that all crops of a batch cost the same.
    """

    def __init__(self, config: AugmentConfig, prepared: PreparedConfig, spec: InputSpec) -> None:
        """Take the geometry.

        Raises:
            TrainError: the network, or its augmentation, sees more around the face than is stored,
                or its windows are of another rule.
        """
        if spec.window != prepared.window:
            raise TrainError(
                f"the network takes windows of the rule {spec.window!r}, the faces are prepared "
                f"with {prepared.window!r}; prepare them with --set window={spec.window}"
            )
        widest = max(spec.margin, config.margin.high if config.margin is not None else 0.0)
        if widest > prepared.margin:
            raise TrainError(
                f"the network's crops have a margin of {widest:g}, the prepared ones only "
                f"{prepared.margin:g}; prepare with more"
            )
        self.config = config
        self.stored_px = prepared.size_px
        self.size_px = spec.size_px
        self._face_px = prepared.size_px / prepared.margin
        self._margin = spec.margin
        self._inside = spec.window == "inside"
        # A window inside of the frame may be all that is stored.
        widest_px = prepared.size_px if self._inside else self._face_px * widest
        self.samples_per_px = max(1, math.ceil(widest_px / spec.size_px))
        if spec.resize == "bilinear":
            self.samples_per_px = 1

    def draw(self, generators: Sequence[Generator], faces: Sequence[NDArray[np.float64]]) -> Draws:
        """Draw for some samples, each from its own generator.

        Args:
            generators: of the samples.
            faces: their boxes, x1 y1 x2 y2, px of the stored crop.
        """
        config = self.config
        matrix = np.stack(
            [self._matrix(rng, face) for rng, face in zip(generators, faces, strict=True)]
        )
        colour = None
        if any(
            (config.brightness, config.gain, config.contrast, config.saturation, config.hue_deg)
        ):
            colour = np.stack([self._colour(rng) for rng in generators])
        noise_corner = None
        if config.noise_sigma is not None:
            corners = [rng.integers(0, _NOISE_SPARE_PX, (3, 2)) for rng in generators]
            noise_corner = np.stack(corners).astype(np.int32)
        jpeg_quality = _each(config.jpeg_quality, generators)
        erase = None
        if config.erase:
            erase = np.stack([self._erased(rng) for rng in generators])
        return Draws(
            matrix,
            colour,
            _each(config.blur_sigma_px, generators),
            _each(config.noise_sigma, generators),
            noise_corner,
            None if jpeg_quality is None else np.rint(jpeg_quality).astype(np.int32),
            erase,
        )

    def noise_table(self) -> NDArray[np.int8]:
        """Return (T, T, 1) normal noise in units of `NOISE_UNIT`, the same for every run.

        Each channel of a sample takes a square of it from a drawn corner: noise for one sum a
        pixel, alike in every loader.
        """
        side = self.size_px + _NOISE_SPARE_PX
        normal = np.random.default_rng(0).standard_normal((side, side, 1))
        return np.clip(np.rint(normal / NOISE_UNIT), -127, 127).astype(np.int8)

    def _matrix(self, rng: Generator, face: NDArray[np.float64]) -> NDArray[np.float32]:
        config, margin = self.config, self._margin
        # The stored crop of a padded window is centred on its face; the face is a square in it.
        centre, sides = np.full(2, self.stored_px / 2), np.full(2, self._face_px)
        if self._inside:
            centre, sides = (face[:2] + face[2:]) / 2, face[2:] - face[:2]
        if config.margin is not None:
            margin = config.margin.draw(rng) or margin
        if config.jitter is not None:
            centre = centre + rng.normal(0, config.jitter.shift, 2) * sides
            sides = sides * math.exp(rng.normal(0, config.jitter.scale))
        window = sides * margin
        if self._inside:
            window = window * min(1.0, float((self.stored_px / window).min()))
            centre = np.clip(centre, window / 2, self.stored_px - window / 2)
        # The window that becomes the network's crop, relative to its centre.
        low, high = -window / 2, window / 2
        if config.trim is not None and rng.random() < config.trim.p:
            lost = rng.uniform(config.trim.low, config.trim.high, (2, 2)) * window
            low, high = low + lost[0], high - lost[1]
        if config.resized_crop is not None and rng.random() < config.resized_crop.p:
            share = _rectangle(config.resized_crop.area, config.resized_crop.ratio, rng)
            kept = (high - low) * share
            low = low + rng.random(2) * (high - low - kept)
            high = low + kept
        turn = 0.0
        if config.rotate_deg is not None:
            turn = math.radians(config.rotate_deg.draw(rng) or 0.0)
        if config.hflip and rng.random() < config.hflip:
            low[0], high[0] = high[0], low[0]
        scale = np.diag((high - low) / self.size_px)
        about = (low + high) / 2  # the crop turns about its own centre
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        shift = centre + about + rotation @ (low - about)
        return np.hstack([rotation @ scale, shift[:, None]]).astype(np.float32)

    def _colour(self, rng: Generator) -> NDArray[np.float32]:
        config = self.config
        matrix, added = np.eye(3), np.zeros(3)
        if config.brightness is not None:
            added += config.brightness.draw(rng) or 0.0
        for factor, pivot in ((config.gain, 0.0), (config.contrast, _MID_GREY)):
            if factor is not None and (value := factor.draw(rng)) is not None:
                matrix, added = value * matrix, value * (added - pivot) + pivot
        if config.saturation is not None and (value := config.saturation.draw(rng)) is not None:
            mixing = value * np.eye(3) + (1 - value) * _LUMA
            matrix, added = mixing @ matrix, mixing @ added
        if config.hue_deg is not None and (value := config.hue_deg.draw(rng)) is not None:
            turning = _hue_matrix(value)
            matrix, added = turning @ matrix, turning @ added
        return np.hstack([matrix, added[:, None]]).astype(np.float32)

    def _erased(self, rng: Generator) -> NDArray[np.int32]:
        rectangles = np.zeros((len(self.config.fills), 4), np.int32)
        slot = 0
        for erase in self.config.erase:
            if rng.random() < erase.p:
                for i in range(int(rng.integers(erase.count[0], erase.count[1] + 1))):
                    width, height = np.rint(
                        self.size_px * _rectangle(erase.area, erase.ratio, rng)
                    ).astype(int)
                    top = rng.integers(0, self.size_px - height + 1)
                    left = rng.integers(0, self.size_px - width + 1)
                    rectangles[slot + i] = top, left, height, width
            slot += erase.count[1]
        return rectangles


def _each(wanted: Uniform | None, generators: Sequence[Generator]) -> NDArray[np.float32] | None:
    if wanted is None:
        return None
    return np.array([wanted.draw(rng) or 0.0 for rng in generators], np.float32)


def _rectangle(area: _Span, ratio: _Span, rng: Generator) -> NDArray[np.float64]:
    """Return width and height, as shares, of a rectangle that is at most as large as the whole."""
    share = rng.uniform(*area)
    root = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])) / 2)
    return np.minimum(math.sqrt(share) * np.array([root, 1 / root]), 1.0)


def _hue_matrix(degrees: float) -> NDArray[np.float64]:
    turn = math.radians(degrees)
    rotation = np.eye(3)
    rotation[1:, 1:] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    return np.asarray(np.linalg.inv(_TO_YIQ) @ rotation @ _TO_YIQ)
