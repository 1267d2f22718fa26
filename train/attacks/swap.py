"""Faces redrawn by an autoencoder: swapped into their picture, or the whole crop anew.

A swap goes the way of DeepFaceLab and DeepFaceLive: align by landmarks, redraw by a network, match
the colours, blend through an eroded and softened mask, put back. The networks are small and see
every training face (`train.attacks.autoencoder`), so that what they leave is loss of texture,
shifted tone and a seam, not another person's shape; a smooth warp, or another face in place of the
same one, stands for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from train.attacks._face_mask import face_mask
from train.attacks._pictures import blend, resized, rounded
from train.attacks._random_fields import either, log_uniform, pixel_centres, smooth_field
from train.attacks._samples import LooseCrop, SyntheticAttack
from train.attacks.autoencoder import STRIDE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    from train.attacks.autoencoder import FaceAutoencoder

# Where eyes, nose and mouth corners lie in an aligned face, shares of its side.
_ALIGNED: Final = np.array([(0.34, 0.38), (0.66, 0.38), (0.5, 0.56), (0.37, 0.73), (0.63, 0.73)])
_SIDES: Final = (96, 112, 128, 160, 192)  # of the aligned face
_SHRUNK: Final = {1.0: 0.65, 0.75: 0.2, 0.5: 0.15}  # share of that side which the network draws
_SMALLEST: Final = 48  # px, that a network draws
_OTHER_FACE: Final = 0.3  # share of the swaps
_WARPED: Final = 0.6  # share of the others
_KEPT_DETAIL: Final = 0.9  # share of the pictures; the better a model, the more it keeps
_SHARPENED: Final = 0.4
_TINTED: Final = 0.5
_OUTLINES: Final = {"full_face": 0.5, "below_brows": 0.3, "inner_face": 0.2}
_FADE: Final = 0.06  # of the aligned side, from its border on
_EVERYWHERE: Final = np.ones((1, 1, 1))
_LARGEST_WHOLE: Final = 176  # px; a network's work grows with the square


def swap(
    face: LooseCrop, other: LooseCrop, networks: Sequence[FaceAutoencoder], rng: Generator
) -> SyntheticAttack:
    """Put a redrawn face over the face; its bona fide partner is the picture itself.

    Args:
        face: whose picture it is.
        other: drawn in place of the same face, at times.
        networks: one of them draws.
        rng: source of every draw.

    Raises:
        ValueError: the landmarks lie outside the picture.
    """
    note: dict[str, float | str] = {}
    side = int(rng.choice(_SIDES))
    to_crop = _from_aligned(face.landmarks, side)
    target = _sampled(face.image, to_crop, side)
    if rng.random() < _OTHER_FACE:
        source = _sampled(other.image, _from_aligned(other.landmarks, side), side)
        note["source"] = "other"
    elif rng.random() < _WARPED:
        source = _reshaped(target, side / 128 * rng.uniform(0.5, 3.0), rng)
        note["source"] = "reshaped"
    else:
        source, note["source"] = target, "same"
    drawn = _drawn(source, networks, rng, note)
    outline = face_mask(face, either(rng, _OUTLINES), rng)
    softness = log_uniform(rng, 0.004, 0.05) * len(outline)
    # Twice the half that lies inside: eroded by its own softness.
    mask = np.clip(2 * gaussian_filter(outline, softness) - 1, 0, 1).astype(np.float32)
    within = _sampled(rounded(255 * mask)[..., None].repeat(3, 2), to_crop, side)[..., :1] / 255
    drawn = _recoloured(drawn, target.astype(np.float32), within, rng.uniform(0.3, 1.0))
    if rng.random() < _TINTED:
        drawn = drawn * np.exp(rng.normal(0, 0.04, 3)) + rng.normal(0, 4)
    if rng.random() < 0.15:
        mask *= np.float32(rng.uniform(0.6, 0.95))
    back, reach = _put_back(rounded(drawn.astype(np.float32)), to_crop, len(outline), rng)
    mask *= reach
    note |= {"side_px": side, "softness_px": round(softness, 2)}
    return SyntheticAttack(blend(back, face.image, mask), "swap", note, mask, None)


def redrawn(
    face: LooseCrop, other: LooseCrop, networks: Sequence[FaceAutoencoder], rng: Generator
) -> SyntheticAttack:
    """Draw the whole crop anew, as generators of whole heads do.

    Args:
        face: what is drawn.
        other: not looked at.
        networks: one of them draws.
        rng: source of every draw.
    """
    del other
    note: dict[str, float | str] = {}
    size = len(face.image)
    side = round(size * rng.uniform(0.45, 0.9)) // STRIDE * STRIDE
    side = max(min(side, _LARGEST_WHOLE), _SMALLEST)
    source = resized(face.image, side, Image.Resampling.BILINEAR)
    drawn = _drawn(source, networks, rng, note)
    # A young network is dull all over, which no generator of note is.
    drawn = _recoloured(drawn, source.astype(np.float32), _EVERYWHERE, rng.uniform(0.6, 1.0))
    image = resized(rounded(drawn), size, Image.Resampling.BICUBIC)
    note["side_px"] = side
    return SyntheticAttack(image, "redrawn", note, None, None)


@torch.inference_mode()
def _redrawn(
    image: NDArray[np.uint8], network: FaceAutoencoder, noise: float, rng: Generator
) -> NDArray[np.float32]:
    """Return grey levels (S, S, 3) of what the network makes of (S, S, 3)."""
    draws = torch.Generator().manual_seed(int(rng.integers(2**31)))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    drawn = network(pixels.contiguous(memory_format=torch.channels_last), noise, draws)
    levels: NDArray[np.float32] = (255 * drawn[0].clamp(0, 1)).permute(1, 2, 0).numpy()
    return levels


def _drawn(
    source: NDArray[np.uint8],
    networks: Sequence[FaceAutoencoder],
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """Return grey levels of a face (S, S, 3), redrawn at S or less and brought back to S."""
    side = len(source)
    shrunk = float(rng.choice([*_SHRUNK], p=[*_SHRUNK.values()]))
    drawn_px = max(_SMALLEST, int(side * shrunk) // STRIDE * STRIDE)
    small = resized(source, drawn_px, Image.Resampling.BOX)
    which = int(rng.integers(len(networks)))
    noise = rng.uniform(0, 0.12)
    drawn = _redrawn(small, networks[which], noise, rng)
    kept = rng.uniform(0.4, 0.95) if rng.random() < _KEPT_DETAIL else 0.0
    drawn = drawn + np.float32(kept) * (small - drawn)
    if drawn_px != side:
        drawn = resized(rounded(drawn), side, Image.Resampling.BICUBIC).astype(np.float32)
    halo = 0.0
    if rng.random() < _SHARPENED:
        halo, sigma = rng.uniform(0.3, 1.8), rng.uniform(0.8, 2.0)
        drawn = drawn + np.float32(halo) * (drawn - gaussian_filter(drawn, (sigma, sigma, 0)))
    note |= {"network": which, "drawn_px": drawn_px, "noise": round(noise, 3)}
    note |= {"kept_detail": round(float(kept), 3), "halo": round(float(halo), 3)}
    return drawn


def _from_aligned(landmarks: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Return the similarity (2, 3) from an aligned face's pixels to those of its landmarks.

    The best one in the least squares sense.
    """
    template = _ALIGNED * side
    from_centre, to_centre = template.mean(0), landmarks.mean(0, dtype=np.float64)
    x, y = (template - from_centre).T
    u, v = (landmarks - to_centre).T
    power = float((x**2 + y**2).sum())
    scaled_cos, scaled_sin = (x @ u + y @ v) / power, (x @ v - y @ u) / power
    turn = np.array([[scaled_cos, -scaled_sin], [scaled_sin, scaled_cos]])
    return np.hstack([turn, (to_centre - turn @ from_centre)[:, None]])


def _sampled(
    image: NDArray[np.uint8], to_image: NDArray[np.float64], side: int
) -> NDArray[np.uint8]:
    """Return (side, side, 3) of a picture; black outside of it."""
    data = tuple(float(value) for value in to_image.ravel())
    return np.array(
        Image.fromarray(image).transform(
            (side, side), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
        )
    )


def _put_back(
    drawn: NDArray[np.uint8], to_crop: NDArray[np.float64], size: int, rng: Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the drawn face at its place in the crop, and how far it reaches there.

    Returns:
        (size, size, 3), black around it; (size, size), 1 inside, falling off to 0 at its border.
    """
    turn = np.linalg.inv(to_crop[:, :2])
    from_crop = np.hstack([turn, -turn @ to_crop[:, 2:]])
    resampling = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.BILINEAR
    data = tuple(float(value) for value in from_crop.ravel())
    back = Image.fromarray(drawn).transform((size, size), Image.Transform.AFFINE, data, resampling)
    side = len(drawn)
    to_border = side / 2 - np.abs(np.arange(side) + 0.5 - side / 2)
    fade = np.clip(np.minimum(to_border[:, None], to_border) / (_FADE * side) - 0.2, 0, 1)
    reach = Image.fromarray(fade.astype(np.float32)).transform(
        (size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    return np.array(back), np.array(reach)


def _reshaped(image: NDArray[np.uint8], push_px: float, rng: Generator) -> NDArray[np.uint8]:
    """Return the face (S, S, 3) with another geometry: its pixels pushed about smoothly."""
    side = len(image)
    axis = pixel_centres(side)
    push = np.float32(2 * push_px / side)
    across, down = (push * smooth_field(rng, side, 5) for _ in "xy")
    grid = np.stack([axis[None, :] + across, axis[:, None] + down], axis=-1)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    moved = F.grid_sample(
        pixels, torch.from_numpy(grid)[None], padding_mode="reflection", align_corners=False
    )
    return rounded(moved[0].permute(1, 2, 0).numpy())


def _recoloured(
    drawn: NDArray[np.float32],
    like: NDArray[np.float32],
    weight: NDArray[np.floating],
    strength: float,
) -> NDArray[np.float32]:
    """Move mean and spread of each channel, within the mask, towards those of another picture.

    Args:
        drawn: (S, S, 3) grey levels.
        like: (S, S, 3).
        weight: (S, S, 1), 0..1.
        strength: 1: wholly.
    """
    weight = np.broadcast_to(weight, (*drawn.shape[:2], 1))
    total = weight.sum() + 1e-6
    (mean, spread), (wanted, wanted_spread) = (
        (
            mean := (picture * weight).sum((0, 1)) / total,
            np.sqrt(((picture - mean) ** 2 * weight).sum((0, 1)) / total) + 1,
        )
        for picture in (drawn, like)
    )
    gain = 1 + strength * (wanted_spread / spread - 1)
    moved: NDArray[np.float32] = ((drawn - mean) * gain + mean + strength * (wanted - mean)).astype(
        np.float32
    )
    return moved
