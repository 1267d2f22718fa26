"""How far a lower precision moves the scores of faces, and how far it may (decision 41)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from scipy.stats import rankdata

from trt_engines.backends import OnnxRuntimeConfig, TorchConfig, open_backend
from trt_engines.errors import EngineError
from trt_engines.manifest import Drift, load_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from trt_engines.backends import Backend
    from trt_engines.manifest import DecisionThresholds, Manifest, Precision

_SCORE: Final = "probability"
# Of a network without thresholds of its own, MTCNN's: a face, or none.
_EVEN: Final = (0.5, 0.5)
_TIES: Final = 3  # digits: scores that differ by less have no order


class DriftError(EngineError):
    """A graph computes something else than in float32: it is not to be used."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a precision may move scores; see `Drift` for what each number is."""

    mean: float
    p99: float
    max: float
    rank_agreement: float
    flips: float
    others: float


LIMITS: Final[Mapping[Precision, Limits]] = {
    "fp32": Limits(1e-5, 1e-4, 1e-3, 0.9999, 0.0, 1e-4),
    "fp16": Limits(2e-3, 1e-2, 5e-2, 0.999, 0.005, 5e-3),
    "int8": Limits(2e-2, 1e-1, 2.5e-1, 0.98, 0.02, 5e-2),
    "fp8": Limits(2e-2, 1e-1, 2.5e-1, 0.98, 0.02, 5e-2),
}


def open_reference(path: Path) -> tuple[Backend, Literal["torch", "onnx"]]:
    """Open what computes an engine in float32: torch if its weights are here, else its graph.

    Raises:
        EngineError: the engine is unusable, or is not in float32 itself.
    """
    manifest = load_manifest(path)
    if manifest.precision != "fp32":
        raise EngineError(
            f"{path}: in {manifest.precision}; expected an engine in fp32, which others are "
            "compared with"
        )
    in_package = manifest.method is None and importlib.util.find_spec("facenet_pytorch")
    if manifest.weights is not None or in_package:
        return open_backend(path, TorchConfig()), "torch"
    return open_backend(path, OnnxRuntimeConfig()), "onnx"


def measured_drift(
    reference: Backend,
    candidate: Backend,
    batches: Sequence[Tensor],
    *,
    thresholds: DecisionThresholds | None,
    computed_by: Literal["torch", "onnx"],
) -> Drift:
    """Compare two back ends of one engine.

    Args:
        reference: computes in float32.
        candidate: computes in another precision.
        batches: of crops, as the engine takes them.
        thresholds: where a score means a verdict.
        computed_by: what the reference is.

    Raises:
        DriftError: a result is not a number.
    """
    wanted, found = _outputs(reference, batches), _outputs(candidate, batches)
    broken = [name for name, values in found.items() if not np.isfinite(values).all()]
    if broken:
        raise DriftError(f"no number comes out of {', '.join(broken)}")
    largest = max(float(np.abs(wanted[name] - found[name]).max()) for name in wanted)
    a, b = wanted.pop(_SCORE), found.pop(_SCORE)
    moved = np.abs(a - b)
    leave, enter = (thresholds.leave, thresholds.enter) if thresholds is not None else _EVEN
    return Drift(
        reference=computed_by,
        scores=len(a),
        mean=float(moved.mean()),
        p99=float(np.quantile(moved, 0.99)),
        max=float(moved.max()),
        largest=largest,
        rank_agreement=_rank_agreement(a, b),
        flips=float((_verdicts(a, leave, enter) != _verdicts(b, leave, enter)).mean()),
        others={name: float(np.abs(wanted[name] - found[name]).mean()) for name in wanted},
    )


def check_drift(drift: Drift, precision: Precision, name: str) -> None:
    """Refuse what moves scores too far.

    Raises:
        DriftError: says which limits are passed.
    """
    limits = LIMITS[precision]
    passed = [
        f"{measure} {getattr(drift, measure):.3g} (at most {getattr(limits, measure):g})"
        for measure in ("mean", "p99", "max", "flips")
        if getattr(drift, measure) > getattr(limits, measure)
    ]
    if drift.rank_agreement < limits.rank_agreement:
        passed.append(
            f"rank_agreement {drift.rank_agreement:.4f} (at least {limits.rank_agreement:g})"
        )
    passed += [
        f"mean of {output} {value:.3g} (at most {limits.others:g})"
        for output, value in drift.others.items()
        if value > limits.others
    ]
    if passed:
        raise DriftError(
            f"{name}: {precision} moves the results too far from float32 on {drift.scores} scores: "
            f"{', '.join(passed)}; the engine before stays. Calibrate on more faces like those "
            "that it will see, or use fp16 or fp32"
        )


def judged(path: Path, candidate: Backend, batches: Sequence[Tensor]) -> Drift:
    """Compare a back end with the float32 engine that `path` describes."""
    manifest: Manifest = load_manifest(path)
    reference, computed_by = open_reference(path)
    try:
        return measured_drift(
            reference,
            candidate,
            batches,
            thresholds=manifest.thresholds,
            computed_by=computed_by,
        )
    finally:
        reference.close()


def _outputs(backend: Backend, batches: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
    """Return every output of all batches, flattened: maps of P-Net differ in size."""
    results = [backend.infer(batch) for batch in batches]
    return {
        name: np.concatenate([result[name].double().numpy().ravel() for result in results])
        for name in results[0]
    }


def _verdicts(scores: NDArray[Any], leave: float, enter: float) -> NDArray[Any]:
    return (scores >= enter).astype(np.int8) - (scores < leave)


def _rank_agreement(a: NDArray[Any], b: NDArray[Any]) -> float:
    ranks = np.stack([rankdata(a.round(_TIES)), rankdata(b.round(_TIES))])
    if not ranks.std(axis=1).all():  # all the same: there is an order in neither, or in one
        return float(ranks[0].std() == ranks[1].std())
    return float(np.corrcoef(ranks)[0, 1])
