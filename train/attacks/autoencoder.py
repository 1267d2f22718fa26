"""A small autoencoder of faces: what redraws a face in `train.attacks.swap`.

Of the kind behind face-swap programs (DeepFaceLab and its like), though it knows all training faces
at once and is fully convolutional, so that it takes crops of any size that is a multiple of 8.
How well a picture survives depends on how long it was trained: `python -m train autoencoder` keeps
several ages, for artefacts of several strengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import whole_file
from train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

STRIDE: Final = 8
"""Sides of a picture must be multiples of this."""

_UPSCALE: Final = 2


class FaceAutoencoder(nn.Module):
    """Three halvings, a narrow code, three doublings by shuffling pixels.

    Args:
        width: channels at half resolution; deeper ones have more.
        code: channels of the code at an eighth of the side.
    """

    def __init__(self, width: int = 28, code: int = 12) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(_UPSCALE),
            *_layer(12, width),
            *_layer(width, 2 * width, stride=2),
            *_layer(2 * width, 2 * width),
            *_layer(2 * width, 3 * width, stride=2),
            *_layer(3 * width, 3 * width),
            nn.Conv2d(3 * width, code, 1),
        )
        self.decoder = nn.Sequential(
            *_layer(code, 3 * width),
            *_layer(3 * width, 3 * width),
            *_doubling(3 * width, 2 * width),
            *_layer(2 * width, 2 * width),
            *_doubling(2 * width, width),
            *_layer(width, width),
            nn.Conv2d(width, 12, 3, padding=1),
            nn.PixelShuffle(_UPSCALE),
        )

    def forward(
        self, images: Tensor, noise: float = 0.0, draws: torch.Generator | None = None
    ) -> Tensor:
        """Return pictures (N, 3, H, W), about 0..1, redrawn from their codes.

        Args:
            images: (N, 3, H, W), 0..1, H and W multiples of `STRIDE`.
            noise: standard deviation of what is added to the code, in its own.
            draws: of the noise; None: torch's own.
        """
        code = self.encoder(images)
        if noise:
            grain = torch.randn(code.shape, generator=draws)
            code = code + noise * code.detach().std() * grain
        drawn: Tensor = self.decoder(code)
        return drawn


def save_autoencoder(network: FaceAutoencoder, path: Path) -> None:
    """Write the weights as safetensors."""
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    with whole_file(path) as unfinished:
        save_file(state, unfinished)


def load_autoencoder(path: Path) -> FaceAutoencoder:
    """Read what `save_autoencoder` wrote; its widths are those of the tensors.

    Raises:
        TrainError: no such file, or it holds something else.
    """
    try:
        state = load_file(path)
        width, code = state["encoder.1.weight"].shape[0], state["decoder.0.weight"].shape[1]
        network = FaceAutoencoder(width, code)
        network.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise TrainError(
            f"{path}: expected an autoencoder of faces, made by `python -m train autoencoder`; "
            f"found: {error}"
        ) from error
    return network.eval().requires_grad_(requires_grad=False)


def _layer(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1)


def _doubling(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs * _UPSCALE**2, 3, padding=1),
        nn.PixelShuffle(_UPSCALE),
        nn.LeakyReLU(0.1),
    )
