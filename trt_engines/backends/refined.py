"""Two graphs as one: the second looks again at faces that the first leaves undecided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_engines.manifest import verified_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from trt_engines.backends import Backend
    from trt_engines.manifest import Manifest, Refinement


def with_refinement(
    manifest_path: Path, manifest: Manifest, first: Backend, open_second: Callable[[Path], Backend]
) -> Backend:
    """Return an opened graph with the second one that its manifest names, or alone.

    Raises:
        EngineError: the second is missing or can't be opened.
        EngineMismatchError: it is not the manifest's.
    """
    second = manifest.refinement
    if second is None:
        return first
    path = verified_file(manifest_path, second.onnx, second.onnx_sha256)
    return RefinedBackend(first, open_second(path), second)


class RefinedBackend:
    """Runs an attack detector that has a refinement (docs/decisions/0014); a `Backend` as any."""

    def __init__(self, first: Backend, second: Backend, refinement: Refinement) -> None:
        """Take over both opened graphs.

        Args:
            first: takes crops, and gives `feature` beside `probability`.
            second: takes features of up to `first.max_batch` faces, gives `probability`.
            refinement: says which first probabilities are undecided.
        """
        self.max_batch = first.max_batch
        self._first = first
        self._second = second
        self._refinement = refinement

    def infer(self, images: Tensor) -> Mapping[str, Tensor]:
        """See `Backend.infer`; undecided faces get the second graph's probability."""
        outputs = dict(self._first.infer(images))
        probability = outputs["probability"]
        band = self._refinement
        undecided = ((probability >= band.lower) & (probability <= band.upper)).nonzero()[:, 0]
        if len(undecided):
            refined = self.refine(outputs["feature"][undecided])
            outputs["probability"] = probability.index_copy(0, undecided, refined)
        return outputs

    def refine(self, features: Tensor) -> Tensor:
        """Return the second probability (N,) for features (N, D), whatever the first was."""
        return self._second.infer(features)["probability"]

    def close(self) -> None:
        """See `Backend.close`."""
        self._first.close()
        self._second.close()
