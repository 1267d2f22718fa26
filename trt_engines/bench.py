"""`python -m trt_engines bench`: what precisions cost and change on this CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trt_engines.drift import DriftError, check_drift
from trt_engines.export import cost_ms
from trt_engines.faces import shown
from trt_engines.lower import lowered
from trt_engines.manifest import load_manifest, verified_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trt_engines.faces import FaceSet
    from trt_engines.manifest import Drift, Engine, Precision

COLUMNS: Final = (
    "engine", "precision", "MB", "ms, batch 1", "ms, batch 8", "times fp32", "mean", "p99", "max",
    "order", "verdicts", "passes",
)  # fmt: skip
_BATCH: Final = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine in one precision, in ONNX Runtime with one thread.

    Attributes:
        engine: folder and name.
        precision: measured.
        onnx_mb: size of the graph, 1e6 bytes.
        one_ms: CPU time of a batch of one; None for fp8, which a CPU only imitates.
        eight_ms: CPU time of a batch of eight; likewise.
        speed_up: of the batch of one, over float32; likewise.
        drift: from float32; None: it is float32.
        passes: whether `check_drift` lets it pass.
    """

    engine: str
    precision: Precision
    onnx_mb: float
    one_ms: float | None
    eight_ms: float | None
    speed_up: float | None
    drift: Drift | None
    passes: bool

    def row(self) -> list[str]:
        """Return the cells of a table, as `COLUMNS`."""
        d = self.drift
        cells = (
            ["-"] * 5
            if d is None
            else [f"{d.mean:.4f}", f"{d.p99:.4f}", f"{d.max:.3f}", f"{d.rank_agreement:.4f}",
                  f"{d.flips:.1%}"]
        )  # fmt: skip
        costs = [
            "-" if value is None else f"{value:.2f}"
            for value in (self.one_ms, self.eight_ms, self.speed_up)
        ]
        passes = "yes" if self.passes else "no"
        return [self.engine, self.precision, f"{self.onnx_mb:.2f}", *costs, *cells, passes]


def measured(engine: Engine, precisions: Sequence[Precision], faces: FaceSet) -> Iterator[Measured]:
    """Yield an engine's measures in each precision.

    Raises:
        EngineError: it can't be made in one of them.
    """
    manifest = load_manifest(engine.path)
    source = verified_file(engine.path, manifest.onnx, manifest.onnx_sha256).read_bytes()
    for precision in precisions:
        made = lowered(engine.path, precision, "onnxruntime", faces)
        examples = shown(manifest, faces.half(1))[-1]
        one = eight = speed_up = None
        if precision != "fp8":
            # One beside the other, that what else the machine does weighs on both alike.
            before = cost_ms(source, examples[:1])
            one = cost_ms(made.onnx_bytes, examples[:1])
            eight, speed_up = cost_ms(made.onnx_bytes, examples[:_BATCH]), before / one
        drift = made.manifest.drift
        passes = True
        if drift is not None:
            try:
                check_drift(drift, precision, manifest.name)
            except DriftError:
                passes = False
        yield Measured(
            engine=engine.label,
            precision=precision,
            onnx_mb=len(made.onnx_bytes) / 1e6,
            one_ms=one,
            eight_ms=eight,
            speed_up=speed_up,
            drift=drift,
            passes=passes,
        )
