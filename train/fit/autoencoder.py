"""Train the autoencoder that redraws faces for synthetic swaps (`train/attacks/autoencoder.py`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from models import BONA_FIDE
from train.attacks.autoencoder import FaceAutoencoder, save_autoencoder
from train.data.shards import open_shards
from train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.random import Generator
    from numpy.typing import NDArray
    from torch import Tensor

    from train.data.shards import Shards

log = logging.getLogger(__name__)

_PATCH_PX: Final = 96
_BATCH: Final = 12
_SCALES: Final = (0.65, 1.1)  # of the stored crop
_WARMUP: Final = 50  # steps
_RATE: Final = 2e-3
_CODE_NOISE: Final = 0.1  # so that a disturbed code still gives a face
_WEIGHT_EDGES: Final = 0.7
_WEIGHT_TONE: Final = 0.5
_TELL_EVERY: Final = 200  # steps


def train_autoencoder(
    prepared: Path,
    out: Path,
    *,
    steps: int,
    ages: int = 3,
    width: int = 28,
    code: int = 12,
    split: str = "train",
    seed: int = 0,
) -> list[Path]:
    """Train one autoencoder on the bona fide faces of a split, and keep it at several ages.

    The ages halve: of 3,000 steps and three ages, those after 750, 1,500 and 3,000 steps are kept.

    Args:
        prepared: folder of faces.
        out: folder for `<width>x<code>-<steps>.safetensors`.
        steps: of the whole training, `_BATCH` patches each.
        ages: how many are kept.
        width: as `FaceAutoencoder`.
        code: as `FaceAutoencoder`.
        split: whose faces.
        seed: of weights and draws.

    Returns:
        The files, youngest first.

    Raises:
        TrainError: the split has no bona fide face.
    """
    shards = open_shards(prepared)
    rows = shards.rows(label=BONA_FIDE, split=split)
    if not len(rows):
        raise TrainError(f"{prepared}: no bona fide face of split {split} to learn from")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = FaceAutoencoder(width, code).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), _RATE)
    kept_at = {max(1, steps >> age) for age in range(ages)}
    kept = []
    for step in tqdm(range(1, steps + 1), unit="step", mininterval=5):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min(step / _WARMUP, 1 - 0.95 * step / steps)
        images = _patches(shards, rows, rng)
        loss = redrawing_loss(network(images, _CODE_NOISE), images)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
        if step % _TELL_EVERY == 0:
            log.info("step %d: loss %.4f", step, loss.item())
        if step in kept_at:
            kept.append(out / f"{width}x{code}-{step}.safetensors")
            save_autoencoder(network, kept[-1])
    return kept


def redrawing_loss(drawn: Tensor, images: Tensor) -> Tensor:
    """Return how far redrawn pictures (N, 3, H, W) lie off: in pixels, edges and tone."""
    off = drawn - images
    across, down = off[..., 1:] - off[..., :-1], off[..., 1:, :] - off[..., :-1, :]
    edges = across.abs().mean() + down.abs().mean()
    tone = F.avg_pool2d(off, 4).abs().mean()
    return off.abs().mean() + _WEIGHT_EDGES * edges + _WEIGHT_TONE * tone


def _patches(shards: Shards, rows: NDArray[np.int64], rng: Generator) -> Tensor:
    """Return (N, 3, P, P), 0..1: patches of faces at the sizes that swaps are drawn at."""
    patches = [_patch(shards.crop(int(row)), rng) for row in rng.choice(rows, _BATCH)]
    images = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float() / 255
    return images.contiguous(memory_format=torch.channels_last)


def _patch(image: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    side = max(_PATCH_PX, round(len(image) * rng.uniform(*_SCALES)))
    scaled = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    # Faces fill the middle half of a stored crop; the corners show little of them.
    low, high = (side - _PATCH_PX) // 5, (side - _PATCH_PX) * 4 // 5
    top, left = rng.integers(low, high + 1, 2)
    patch = scaled[top : top + _PATCH_PX, left : left + _PATCH_PX]
    return np.ascontiguousarray(patch[:, ::-1] if rng.random() < 0.5 else patch)
