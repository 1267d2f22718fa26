"""What the back ends of a GPU share: which one it is, and batches that fit its memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

log = logging.getLogger(__name__)


def gpu(name: str) -> torch.device:
    """Return the device "cuda", the first GPU, or "cuda:1" and so on.

    Raises:
        EngineError: torch sees no such GPU.
    """
    wanted = torch.device(name)
    if torch.version.cuda is None:
        raise EngineError(f"{name}: this torch was built without CUDA; install one with CUDA")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise EngineError(
            f"{name}: torch sees no NVIDIA GPU; `nvidia-smi` must list one here, and a container "
            "needs `--gpus`"
        )
    index = wanted.index or 0
    if index >= found:
        raise EngineError(f"{name}: torch sees {found} GPUs, cuda:0 to cuda:{found - 1}; name one")
    return torch.device("cuda", index)


class Portions:
    """Splits batches at what fits; after out of memory at half of that, as long as it lives."""

    def __init__(self, name: str, most: int, least: int = 1) -> None:
        """Begin with portions of at most `most` images; less than `least` cost as much memory."""
        self._name = name
        self._most = most
        self._least = least

    def run(
        self,
        images: Tensor,
        infer: Callable[[Tensor], Mapping[str, Tensor]],
        free: Callable[[], None],
    ) -> Mapping[str, Tensor]:
        """Run portions of a batch and return their outputs as one.

        Args:
            images: (N, ...), one or more.
            infer: runs one portion; raises `torch.OutOfMemoryError` where it does not fit.
            free: gives unused memory back, before smaller portions are tried.

        Raises:
            EngineError: not even the smallest portion fits, or the GPU fails.
        """
        while True:
            try:
                parts = [infer(part) for part in torch.split(images, self._most)]
                break
            except torch.OutOfMemoryError as error:
                failed = min(self._most, len(images))
                says = " ".join(str(error).split())
            except RuntimeError as error:
                # No source's fault: an error of CUDA's stays until the process ends.
                raise EngineError(
                    f"{self._name}: the GPU fails: {error}; start again, and if it stays so look "
                    "for an Xid in `dmesg`"
                ) from error
            # Only here are the error, its traceback and the memory that they hold gone.
            if failed <= self._least:
                raise EngineError(
                    f"{self._name}: {failed} images don't fit the GPU's memory: {says}; free some, "
                    "or choose a smaller engine"
                )
            self._most = (failed + 1) // 2
            log.warning(
                "%s: %d images don't fit the GPU's memory; from now on at most %d at a time: %s",
                self._name,
                failed,
                self._most,
                says,
            )
            free()
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
