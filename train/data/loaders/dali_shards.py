"""Batches by NVIDIA DALI: reading, decoding and augmentation as one graph per group.

DALI reads what index files list, in their order, so each pipeline gets index files that hold this
rank's next samples and nothing else. It ends with them, and the next one follows.

On a GPU only `device` differs. PNG is decoded on the CPU either way; what DALI's documentation says
of mixed and GPU operators was followed, and has not been run here.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from models import FaceBatch
from train.data.loaders._augmentation import NOISE_UNIT
from train.data.loaders._reading import Loaded
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from train.data.loaders import DaliLoaderConfig
    from train.data.loaders._augmentation import Draws
    from train.data.loaders._reading import Reading

_SAMPLES_PER_PIPELINE: Final = 8192
_IN_MEMORY: Final = Path("/dev/shm")  # Linux's; a thousand small files cost little there
_SHARP: Final = 1e-3  # sigma; DALI knows no "no blur", and this one's kernel is 0 1 0


def dali_batches(reading: Reading, config: DaliLoaderConfig, first_step: int) -> Iterator[Loaded]:
    """Yield a rank's batches from a step on.

    Raises:
        TrainError: no GPU where one is asked for, a shard can't be read, or a picture is damaged.
    """
    if config.device == "gpu" and not torch.cuda.is_available():
        raise TrainError("loader.device is gpu, but torch finds no GPU; set it to cpu")
    groups = [
        _group_images(reading, config, group, first_step)
        for group in range(len(reading.order.quotas))
    ]
    steps = itertools.count(first_step)
    for step, images in zip(steps, zip(*groups, strict=True), strict=False):
        rows = [reading.order.rows(group, step) for group in range(len(groups))]
        trimmed = [of_group[: len(kept)] for of_group, kept in zip(images, rows, strict=True)]
        all_rows = np.concatenate(rows)
        labels = torch.from_numpy(reading.shards.label[all_rows].astype(np.int64)).to(
            trimmed[0].device
        )
        yield Loaded(FaceBatch(torch.cat(trimmed), labels), all_rows.tolist())


def _group_images(
    reading: Reading, config: DaliLoaderConfig, group: int, first_step: int
) -> Iterator[Tensor]:
    """Yield (quota, 3, S, S) uint8 per step; the last of an evaluation is filled up."""
    quota, end = reading.order.quotas[group], reading.order.steps
    while end is None or first_step < end:
        n_steps = -(-_SAMPLES_PER_PIPELINE // quota)
        if end is not None:
            n_steps = min(n_steps, end - first_step)
        steps = range(first_step, first_step + n_steps)
        try:
            home = _IN_MEMORY if _IN_MEMORY.is_dir() else None
            with tempfile.TemporaryDirectory(dir=home) as folder:
                pipeline = _pipeline(reading, config, group, steps, Path(folder))
                batches = DALIGenericIterator(pipeline, ["images"], prepare_first_batch=False)
            for _ in steps:
                yield next(batches)[0]["images"]
        except RuntimeError as error:
            raise TrainError(f"DALI can't read or decode a stored face: {error}") from error
        first_step += n_steps


def _pipeline(
    reading: Reading, config: DaliLoaderConfig, group: int, steps: range, folder: Path
) -> Pipeline:
    """Return the graph of a group; reads index files in `folder`, which may go once it is built."""
    order, augmentation = reading.order, reading.augmentation
    size, k = augmentation.size_px, augmentation.samples_per_px
    quota = order.quotas[group]
    on_gpu = config.device == "gpu"

    def draws_of(step: int) -> dict[str, NDArray[Any]]:
        rows = order.rows(group, step)
        rows = np.pad(rows, (0, quota - len(rows)), mode="edge")
        return _fed(augmentation.draw(order.generators(group, step), reading.faces(rows)), k)

    def draws(iteration: int) -> list[NDArray[Any]]:
        step = min(steps.start + iteration, steps.stop - 1)  # prefetching goes past the end
        return list(draws_of(step).values())

    def placed(node: Any) -> Any:
        return node.gpu() if on_gpu else node

    paths, index_paths = _write_indexes(reading, group, steps, folder)
    pipeline = Pipeline(
        batch_size=quota,
        num_threads=config.threads,
        device_id=torch.cuda.current_device() if on_gpu else None,
        prefetch_queue_depth=config.prefetch,
    )
    with pipeline:
        png = fn.readers.webdataset(
            paths=paths, index_paths=index_paths, ext=["png"], missing_component_behavior="error"
        )
        image = fn.decoders.image(png, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        names = list(draws_of(steps.start))
        nodes = fn.external_source(source=draws, num_outputs=len(names), batch=True)
        drawn = dict(zip(names, nodes, strict=True))
        image = fn.warp_affine(
            image, matrix=drawn["matrix"], size=[size * k, size * k], dtype=types.FLOAT
        )
        if k > 1:
            image = fn.reshape(image, shape=[size, k, size, k, 3], layout="ABCDE")
            image = fn.reshape(fn.reductions.mean(image, axes=[1, 3]), layout="HWC")
        if "colour" in drawn:
            image = fn.coord_transform(image, MT=drawn["colour"])
        if "blur_sigma" in drawn:
            image = fn.gaussian_blur(image, sigma=drawn["blur_sigma"])
        if "noise_sigma" in drawn:
            table = types.Constant(augmentation.noise_table(), device=config.device)
            noise = fn.cat(
                *(
                    fn.slice(table, start=drawn["noise_corner"][c], shape=[size, size], axes=[0, 1])
                    for c in range(3)
                ),
                axis=2,
            )
            image = image + noise * placed(drawn["noise_sigma"] * np.float32(NOISE_UNIT))
        image = fn.cast(image, dtype=types.UINT8)  # rounds and clips
        if "jpeg_quality" in drawn:
            damaged = fn.jpeg_compression_distortion(image, quality=drawn["jpeg_quality"])
            chosen = placed(fn.cast(drawn["jpeg_quality"] > 0, dtype=types.UINT8))
            image = fn.cast(damaged * chosen + image * (1 - chosen), dtype=types.UINT8)
        for slot, fill in enumerate(augmentation.config.fills):
            rectangle = fn.cast(drawn["erase"][slot], dtype=types.FLOAT)
            image = fn.erase(
                image, anchor=rectangle[0:2], shape=rectangle[2:4], axis_names="HW", fill_value=fill
            )
        pipeline.set_outputs(fn.transpose(image, perm=[2, 0, 1]))
    pipeline.build()
    return pipeline


def _write_indexes(
    reading: Reading, group: int, steps: range, folder: Path
) -> tuple[list[str], list[str]]:
    """Write an index file for each run of samples of one shard; return the shards and the files."""
    quota = reading.order.quotas[group]
    rows = np.concatenate([reading.order.rows(group, step) for step in steps])
    rows = np.pad(rows, (0, len(steps) * quota - len(rows)), mode="edge")
    shards = reading.shards
    runs = np.split(rows, np.flatnonzero(np.diff(shards.shard[rows])) + 1)
    files = [folder / str(i) for i in range(len(runs))]
    for file, run in zip(files, runs, strict=True):
        lines = (f"png {shards.offset[row]} {shards.size[row]} {row}.png\n" for row in run)
        file.write_text(f"v1.2 {len(run)}\n{''.join(lines)}", encoding="ascii")
    return [str(shards.files[shards.shard[run[0]]]) for run in runs], [str(f) for f in files]


def _fed(draws: Draws, samples_per_px: int) -> dict[str, NDArray[Any]]:
    """Return what of the draws the graph needs, by name."""
    fed = {field.name: getattr(draws, field.name) for field in fields(draws)}
    # The graph warps to samples_per_px times the size first.
    fed["matrix"] = draws.matrix / np.array([samples_per_px, samples_per_px, 1], np.float32)
    if draws.blur_sigma is not None:
        fed["blur_sigma"] = np.maximum(draws.blur_sigma, np.float32(_SHARP))
    return {name: value for name, value in fed.items() if value is not None}
