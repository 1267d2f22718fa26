"""The distorted test pictures of UniAttack protocol I (Cao et al., IJCV 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

from train.attacks.camera import recompress_jpeg

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray


def distort(image: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """Do one of five things to a picture, each as likely: what `distortion: uniattack` means.

    JPEG of quality 50-60; Gaussian blur with a kernel of 9 or 11 pixels; Gaussian noise of variance
    10-20 (values 0..255); contrast or saturation times 0.5-1.5. Upstream draws without a seed, so
    its very pictures can't be had.

    Args:
        image: (S, S, 3) RGB, at the network's size.
        rng: seed it by sample, so that a picture is distorted alike in every run.

    Returns:
        A new picture of the same shape.
    """
    pixels = image.astype(np.float64)
    match int(rng.integers(5)):
        case 0:
            return recompress_jpeg(image, int(rng.integers(50, 61)))
        case 1:
            kernel = int(rng.choice((9, 11)))
            sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8  # what OpenCV takes for a kernel's size
            pixels = gaussian_filter(pixels, (sigma, sigma, 0), mode="mirror", radius=kernel // 2)
        case 2:
            pixels = pixels + rng.normal(0, np.sqrt(rng.uniform(10, 20)), pixels.shape)
        case 3:
            pixels = pixels * rng.uniform(0.5, 1.5)
        case _:
            grey = pixels @ (0.299, 0.587, 0.114)
            pixels = grey[..., None] + (pixels - grey[..., None]) * rng.uniform(0.5, 1.5)
    clipped: NDArray[np.uint8] = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return clipped
