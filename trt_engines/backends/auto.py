"""The first back end that can run a network on this machine, and why not one before it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from trt_engines.errors import EngineError
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trt_engines.backends import Backend, RuntimeConfig

log = logging.getLogger(__name__)


def open_first(
    manifest_path: Path,
    on_gpu: Sequence[RuntimeConfig],
    otherwise: RuntimeConfig,
    open_one: Callable[[Path, RuntimeConfig], Backend],
) -> Backend:
    """Open an engine with the first back end of a GPU that runs it, otherwise on the CPU.

    Each must give an answer first: a driver too old, or a torch that has no code for this GPU, only
    shows there.

    Raises:
        EngineError: manifest or engine missing or unusable on the CPU too.
        EngineMismatchError: the engine is not what its manifest describes.
    """
    manifest = load_manifest(manifest_path)
    size = manifest.input.size_px
    example = torch.zeros((1, 3, size, size), dtype=getattr(torch, manifest.input.dtype))
    refused = []
    for config in on_gpu:
        try:
            backend = open_one(manifest_path, config)
            try:
                backend.infer(example)
            except EngineError:
                backend.close()
                raise
        except EngineError as error:
            refused.append(f"; not on {config.kind}: {error}")
        else:
            log.info("%s runs on %s%s", manifest.name, config.kind, "".join(refused))
            return backend
    backend = open_one(manifest_path, otherwise)
    level = logging.WARNING if torch.cuda.is_available() else logging.INFO
    log.log(level, "%s runs on %s%s", manifest.name, otherwise.kind, "".join(refused))
    return backend
