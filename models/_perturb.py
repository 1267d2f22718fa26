"""Perturbations of normalised face images for UniDefense's second pass; spec section 6.

One of five for a whole batch: two that give each face the style of another of its class, noise,
blur, and a coarser sampling. Random by torch's global state.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from models._contract import ATTACK, BONA_FIDE

_NOISE_STD: Final = 1e-4
_BLUR_SIGMA: Final = 1.1
_SHRINK: Final = 0.75
_LEAST_KEPT: Final = 0.5


def perturbed(images: Tensor, labels: Tensor) -> Tensor:
    """Return one random perturbation of a batch: half the time a style mix, else a degradation.

    Args:
        images: (N, 3, H, W) float32, -1..1.
        labels: (N,); faces take their style from faces of the same label.
    """
    if torch.rand(()) < 0.5:
        style = colour_matched(images[_partners(labels)], images)
        share = torch.rand(len(images), 1, 1, 1, device=images.device)
        kept = _LEAST_KEPT + (1 - _LEAST_KEPT) * share
        mix = (amplitude_mixed, rank_mixed)[int(torch.randint(2, ()))]
        return mix(images, style, kept)
    return (noisy, blurred, coarse)[int(torch.randint(3, ()))](images)


def colour_matched(source: Tensor, target: Tensor) -> Tensor:
    """Return `source` with the colour statistics of `target` (CORAL): means and covariances.

    The square roots of the covariances are the symmetric ones; the official code's are none, since
    it transposes what `torch.linalg.svd` returns transposed already.

    Args:
        source: (N, 3, H, W).
        target: (N, 3, H, W), one per source.
    """
    flat, _, _, whitening = _colour(source, -0.5)
    _, mean, std, colouring = _colour(target, 0.5)
    return (colouring @ (whitening @ flat) * std + mean).reshape(source.shape)


def _colour(images: Tensor, power: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return standardised colours (N, 3, P), mean, std (N, 3, 1), and (covariance + 1)^power."""
    flat = images.flatten(2)
    std, mean = torch.std_mean(flat, dim=2, keepdim=True)
    flat = (flat - mean) / std.clamp_min(1e-6)  # a channel may be constant
    # Summed over the pixels, so that the identity only matters for degenerate images.
    covariance = flat @ flat.mT + torch.eye(3, device=flat.device, dtype=flat.dtype)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(1)[:, None].pow(power) @ vectors.mT
    return flat, mean, std, root


def amplitude_mixed(content: Tensor, style: Tensor, kept: Tensor) -> Tensor:
    """Mix in the amplitudes of the style's spectrum; the content's phase stays.

    Args:
        content: (N, 3, H, W).
        style: (N, 3, H, W).
        kept: (N, 1, 1, 1) weight of the content, 0..1.
    """
    spectrum = torch.fft.rfft2(content, norm="ortho")
    amplitude = kept * spectrum.abs() + (1 - kept) * torch.fft.rfft2(style, norm="ortho").abs()
    # Still the spectrum of a real image, on which FFT libraries agree.
    spectrum = torch.polar(amplitude, spectrum.angle())
    mixed: Tensor = torch.fft.irfft2(spectrum, s=content.shape[-2:], norm="ortho")
    return mixed


def rank_mixed(content: Tensor, style: Tensor, kept: Tensor) -> Tensor:
    """Move each channel's histogram towards the style's: the k-th smallest to its k-th smallest.

    Args:
        content: (N, 3, H, W).
        style: (N, 3, H, W).
        kept: (N, 1, 1, 1) weight of the content, 0..1.
    """
    flat = content.flatten(2)
    matched = torch.empty_like(flat)
    matched.scatter_(2, flat.argsort(dim=2), style.flatten(2).sort(dim=2).values)
    return content + (1 - kept) * (matched.reshape(content.shape) - content)


def noisy(images: Tensor) -> Tensor:
    """Add Gaussian noise of standard deviation 1e-4, clipped to -1..1."""
    return (images + _NOISE_STD * torch.randn_like(images)).clamp(-1, 1)


def blurred(images: Tensor) -> Tensor:
    """Blur with a 5 x 5 Gaussian of sigma 1.1; the borders are mirrored."""
    offset = torch.arange(-2, 3, device=images.device, dtype=images.dtype)
    row = torch.exp(-offset.square() / (2 * _BLUR_SIGMA**2))
    row = row / row.sum()
    channels = images.shape[1]
    kernel = torch.outer(row, row).expand(channels, 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)


def coarse(images: Tensor) -> Tensor:
    """Sample at three quarters of the size and back, both by the nearest pixel."""
    small = F.interpolate(images, scale_factor=_SHRINK, mode="nearest")
    return F.interpolate(small, size=images.shape[-2:], mode="nearest")


def _partners(labels: Tensor) -> Tensor:
    """Return, for each of (N,) labels, the index of a random sample of the same label."""
    partner = torch.empty_like(labels)
    for label in (BONA_FIDE, ATTACK):
        (index,) = torch.nonzero(labels == label, as_tuple=True)
        partner[index] = index[torch.randperm(len(index), device=index.device)]
    return partner
