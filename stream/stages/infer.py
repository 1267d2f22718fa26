"""Batches of crops to attack scores, through an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream.closing import Closing
from stream.records import AttackScore
from trt_engines.backends import open_backend
from trt_engines.errors import EngineError
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from stream.records import CropBatch
    from trt_engines.backends import Backend, BackendConfig
    from trt_engines.manifest import DecisionThresholds, Manifest


class Classifier(Closing):
    """One attack detector."""

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        """Take over an opened engine.

        Raises:
            EngineError: the manifest is not an attack detector's.
        """
        if manifest.method is None or manifest.thresholds is None:
            raise EngineError(
                f"{manifest.name}: expected an attack detector with method and thresholds; this "
                "manifest has none: choose another, or export with `python -m train export`"
            )
        self._backend = backend
        self.method: str = manifest.method
        self.thresholds: DecisionThresholds = manifest.thresholds
        self.input_spec = manifest.input
        self.max_batch = backend.max_batch

    def score(self, batch: CropBatch) -> list[AttackScore]:
        """Return one score per crop, same order."""
        probabilities = self._backend.infer(batch.images)["probability"].tolist()
        return [
            AttackScore(sighting=crop.sighting, probability=p, method=self.method)
            for crop, p in zip(batch.crops, probabilities, strict=True)
        ]

    def close(self) -> None:
        """Release the engine."""
        self._backend.close()


def open_classifier(manifest_path: Path, config: BackendConfig) -> Classifier:
    """Load an attack detector.

    Raises:
        EngineError: manifest or engine missing, damaged, or not an attack detector's.
    """
    return Classifier(open_backend(manifest_path, config), load_manifest(manifest_path))
