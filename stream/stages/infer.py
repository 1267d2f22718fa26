"""Batches of crops to attack scores, through an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream.closing import Closing
from stream.records import AttackScore
from trt_engines.backends import open_backend
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from stream.records import CropBatch
    from trt_engines.backends import Backend, BackendConfig
    from trt_engines.manifest import Manifest


class Classifier(Closing):
    """One attack detector."""

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        """Take over an opened engine."""
        self._backend = backend
        self.manifest = manifest
        self.max_batch = backend.max_batch

    def score(self, batch: CropBatch) -> list[AttackScore]:
        """Return one score per crop, same order."""
        return [
            AttackScore(sighting=crop.sighting, detector=crop.detector, probability=p)
            for crop, p in zip(batch.crops, self.probabilities(batch.images), strict=True)
        ]

    def probabilities(self, images: Tensor) -> list[float]:
        """Return how likely an attack each crop is, 0..1, of at most `max_batch` of them.

        Args:
            images: (N, 3, S, S) uint8 RGB.
        """
        found: list[float] = self._backend.infer(images)["probability"].tolist()
        return found

    def close(self) -> None:
        """Release the engine."""
        self._backend.close()


def open_classifier(manifest_path: Path, config: BackendConfig) -> Classifier:
    """Load an attack detector.

    Raises:
        EngineError: manifest or engine missing or damaged.
    """
    return Classifier(open_backend(manifest_path, config), load_manifest(manifest_path))
