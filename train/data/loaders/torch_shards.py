"""Batches by PyTorch: each worker process reads, decodes and augments whole steps."""

from __future__ import annotations

import atexit
import io
import itertools
import math
import multiprocessing
import signal
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from models import ATTACK, BONA_FIDE, FaceBatch
from train.attacks import FaceInScene
from train.data.loaders._augmentation import NOISE_UNIT
from train.data.loaders._reading import Loaded
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.random import Generator
    from numpy.typing import NDArray
    from torch import Tensor

    from train.data.loaders import TorchLoaderConfig
    from train.data.loaders._augmentation import Draws
    from train.data.loaders._reading import PairTransform, Reading


def torch_batches(
    reading: Reading, config: TorchLoaderConfig, first_step: int, transform: PairTransform | None
) -> Iterator[Loaded]:
    """Yield a rank's batches from a step on.

    Raises:
        TrainError: a shard can't be read, or a picture is damaged.
    """
    steps: Iterable[int] = itertools.count(first_step)
    if reading.order.steps is not None:
        steps = range(first_step, reading.order.steps)
    loader: DataLoader[Any] = DataLoader(
        _Steps(reading, transform),
        batch_size=None,  # the data set makes whole batches
        sampler=steps,
        collate_fn=_unchanged,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        worker_init_fn=_start_worker,
    )
    with _signals_blocked():
        batches = iter(loader)
    for loaded in batches:
        if isinstance(loaded, TrainError):
            raise loaded
        yield loaded


class _Steps(Dataset[Loaded | TrainError]):
    """Item i is the batch of step i."""

    def __init__(self, reading: Reading, transform: PairTransform | None) -> None:
        self._reading = reading
        self._transform = transform
        self._augment = TorchAugmentation(reading)

    def __getitem__(self, step: int) -> Loaded | TrainError:
        try:
            return self._loaded(step)
        except TrainError as error:
            return error  # raised by a worker, it would come wrapped in a page of traceback

    def _loaded(self, step: int) -> Loaded:
        rows: list[int] = []
        labels: list[int] = []
        images: list[Tensor] = []
        for group in range(len(self._reading.order.quotas)):
            chosen = [int(row) for row in self._reading.order.rows(group, step)]
            if self._transform is None:
                images += self._faces(group, step, chosen)
                labels += [int(self._reading.shards.label[row]) for row in chosen]
                rows += chosen
            else:
                images += self._pairs(group, step, chosen, self._transform)
                labels += [BONA_FIDE] * len(chosen) + [ATTACK] * len(chosen)
                rows += chosen + chosen
        return Loaded(FaceBatch(torch.stack(images), torch.tensor(labels)), rows)

    def _faces(self, group: int, step: int, rows: list[int]) -> list[Tensor]:
        generators = self._reading.order.generators(group, step)[: len(rows)]
        draws = self._reading.augmentation.draw(generators, self._reading.faces(rows))
        return [self._augment(self._crop(row), draws, i) for i, row in enumerate(rows)]

    def _pairs(
        self, group: int, step: int, rows: list[int], transform: PairTransform
    ) -> list[Tensor]:
        """Return all bona fide faces, then the attacks made from them, each pair drawn alike."""
        generators = self._reading.order.generators(group, step)[: len(rows)]
        draws = self._reading.augmentation.draw(generators, self._reading.faces(rows))
        pairs = [
            transform(self._face(row), partial(self._other, rng), rng)
            for row, rng in zip(rows, generators, strict=True)
        ]
        return [
            self._augment(pair[member], draws, i)
            for member in (BONA_FIDE, ATTACK)
            for i, pair in enumerate(pairs)
        ]

    def _face(self, row: int) -> FaceInScene:
        records = self._reading.shards.records
        return FaceInScene(self._crop(row), records.landmarks(row), records.face(row))

    def _other(self, rng: Generator) -> FaceInScene:
        pool = self._reading.order.pool
        return self._face(int(pool[rng.integers(len(pool))]))

    def _crop(self, row: int) -> NDArray[np.uint8]:
        return self._reading.shards.crop(row)


class TorchAugmentation:
    """Applies draws to one loose crop at a time."""

    def __init__(self, reading: Reading) -> None:
        augmentation = reading.augmentation
        self._stored_px = augmentation.stored_px
        self._size_px = augmentation.size_px
        self._samples_per_px = augmentation.samples_per_px
        self._fills = augmentation.config.fills
        side = augmentation.size_px * augmentation.samples_per_px
        self._at = (torch.arange(side) + 0.5) / augmentation.samples_per_px
        self._noise = torch.from_numpy(augmentation.noise_table())[:, :, 0]

    def __call__(self, crop: NDArray[np.uint8], draws: Draws, i: int) -> Tensor:
        """Return the network's crop, (3, S, S) uint8, of a stored one, (L, L, 3), by draw i."""
        image = self._warped(torch.from_numpy(crop), torch.from_numpy(draws.matrix[i]))
        if draws.colour is not None:
            colour = torch.from_numpy(draws.colour[i])
            flat = torch.addmm(colour[:, 3:], colour[:, :3], image.flatten(1))
            image = flat.view_as(image)
        if draws.blur_sigma is not None and draws.blur_sigma[i] > 0:
            image = _blurred(image, float(draws.blur_sigma[i]))
        if draws.noise_sigma is not None and draws.noise_corner is not None:
            image = image + self._noise_at(draws.noise_corner[i]) * float(
                draws.noise_sigma[i] * NOISE_UNIT
            )
        levels = image.round_().clamp_(0, 255).to(torch.uint8)
        if draws.jpeg_quality is not None and draws.jpeg_quality[i] > 0:
            levels = _compressed(levels, int(draws.jpeg_quality[i]))
        if draws.erase is not None:
            for (top, left, height, width), fill in zip(draws.erase[i], self._fills, strict=True):
                levels[:, top : top + height, left : left + width] = fill
        return levels

    def _warped(self, crop: Tensor, matrix: Tensor) -> Tensor:
        # grid_sample takes -1..1 from border to border.
        scaled = matrix * (2 / self._stored_px)
        across = self._at[:, None] * scaled[:, 0]
        down = self._at[:, None] * scaled[:, 1] + (scaled[:, 2] - 1)
        grid = across[None] + down[:, None]  # (S, S, 2), or finer
        image = crop.permute(2, 0, 1)[None].float()
        sampled = F.grid_sample(image, grid[None], padding_mode="border", align_corners=False)
        if self._samples_per_px > 1:
            sampled = F.avg_pool2d(sampled, self._samples_per_px)
        return sampled[0]

    def _noise_at(self, corners: NDArray[np.int32]) -> Tensor:
        size = self._size_px
        return torch.stack([self._noise[y : y + size, x : x + size] for y, x in corners])


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Blur (3, S, S) by a Gaussian cut at three sigma, the picture mirrored at its border."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image[:, None], (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))[:, 0]


def _compressed(image: Tensor, quality: int) -> Tensor:
    stored = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stored, "JPEG", quality=quality)
    with Image.open(stored) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _unchanged(loaded: Any) -> Any:
    return loaded


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block SIGTERM and SIGINT in the processes that are started here.

    Who ends a run sends them to its workers too: torchrun, a terminal, SLURM, systemd. But the run
    needs its workers to finish the step and save. They end when it asks them to, or is gone.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_workers() -> None:
    """Let a process that ends with a loader still open end.

    multiprocessing sends SIGTERM to such workers, which these do not hear, and waits without end.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes it for a failure
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()  # they only read


atexit.register(_kill_workers)  # runs before multiprocessing's handler, which was registered before
