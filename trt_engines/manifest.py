"""The manifest: an engine never travels without it.

`<name>.manifest.json` lies beside the engine's file and says what the network is, which pixels it
must be given, what its outputs mean, and at which threshold it decides. File names carry no
meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from pydantic import BaseModel, Field, ValidationError, model_validator

from models import InputSpec, file_sha256, one_line, whole_file
from trt_engines.errors import EngineError, EngineMismatchError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MANIFEST = ".manifest.json"
SHIPPED = Path(__file__).resolve().parent / "shipped"
Precision: TypeAlias = Literal["fp32", "fp16", "int8", "fp8"]
Runtime: TypeAlias = Literal["onnxruntime", "tensorrt"]
Family: TypeAlias = Literal["presentation", "digital"]
_FILE_NAME = r"^[\w-][\w.-]*$"  # no folder: an engine's files lie together
_SHA256 = r"^[0-9a-f]{64}$"


def check_thresholds(enter: float | None, leave: float | None) -> None:
    """Refuse thresholds that decide on a track of which nothing is known: its probability is 0.5.

    Raises:
        ValueError: `leave` is above 0.5, or `enter` below.
    """
    for name, value, wanted in (("enter", enter, "0.5 or more"), ("leave", leave, "0.5 or less")):
        if value is not None and not (value >= 0.5 if name == "enter" else value <= 0.5):
            raise ValueError(
                f"{name} is {value:g}, expected {wanted}: a track of which nothing is known has a "
                "probability of 0.5, and must get no verdict"
            )


class DecisionThresholds(BaseModel, frozen=True, extra="forbid"):
    """Operating point on a track's fused probability, and where it comes from."""

    enter: float = Field(le=1, description="At or above: ATTACK; 0.5 or more.")
    leave: float = Field(ge=0, description="Below: BONA_FIDE; 0.5 or less.")
    source: str = Field(description="Data and rule that chose them; never test data.")

    @model_validator(mode="after")
    def _apart(self) -> Self:
        check_thresholds(self.enter, self.leave)
        return self


class Refinement(BaseModel, frozen=True, extra="forbid"):
    """A second graph of an attack detector, run on faces that the first leaves undecided.

    It takes the first graph's output `feature` and gives `probability`, (N,), in its place.
    """

    onnx: str = Field(pattern=_FILE_NAME, description="File name beside the manifest.")
    onnx_sha256: str = Field(pattern=_SHA256)
    lower: float = Field(ge=0, le=1, description="Undecided: a first probability from here ...")
    upper: float = Field(ge=0, le=1, description="... to here, both included.")
    onnx_torch_max_abs: float = Field(
        ge=0, description="Largest |ONNX - torch| of the probability, measured at export."
    )
    cost_ms: float | None = Field(
        None, description="CPU ms per undecided face, batch 1, one thread, measured at export."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lower > self.upper:
            raise ValueError(f"lower ({self.lower:g}) must not exceed upper ({self.upper:g})")
        return self


class Drift(BaseModel, frozen=True, extra="forbid"):
    """How far a lower precision moves the scores of faces from those in float32."""

    reference: Literal["torch", "onnx"] = Field(
        description="What computed in float32: torch from the weights or, where the engine has "
        "none, its graph, which was compared with torch at export."
    )
    scores: int = Field(ge=1, description="How many were compared.")
    mean: float = Field(ge=0, description="Mean |difference|.")
    p99: float = Field(ge=0, description="Its 99th percentile.")
    max: float = Field(ge=0, description="The largest.")
    largest: float = Field(ge=0, description="Largest |difference| of any output.")
    rank_agreement: float = Field(
        ge=-1, le=1, description="Spearman's rank correlation; 1: the same order."
    )
    flips: float = Field(
        ge=0, le=1, description="Share of scores whose verdict alone would be another one."
    )
    others: dict[str, float] = Field(description="Name of each other output -> mean |difference|.")


def only_as_written(precision: Precision, runtime: Runtime) -> bool:
    """Return whether ONNX Runtime must compute a graph as written: in float32, between roundings.

    It fails where it tries to fuse a Clip with a rounding to fp8 (1.31). And on a CPU without VNNI
    its kernels for signed activations overflow: int8 for TensorRT would be judged by that.
    """
    return precision == "fp8" or (precision == "int8" and runtime == "tensorrt")


class Origin(BaseModel, frozen=True, extra="forbid"):
    """What a graph in another precision, or with rectifiers, was made from."""

    onnx_sha256: str = Field(pattern=_SHA256, description="Of the graph in float32.")
    faces_sha256: str | None = Field(
        None, pattern=_SHA256, description="Of the face file that gave the ranges."
    )
    runtime: Runtime = Field("onnxruntime", description="What the graph is made for; int8 differs.")
    recipe: str = Field(description="How, with the versions of what did it.")


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """All that a user of the engine must know."""

    schema_version: Literal[1] = 1
    name: str
    method: str | None = Field(None, description="Module of `models`; None for a detector's part.")
    options: dict[str, object] = Field(
        default_factory=dict, description="The method's options, as its `Config` takes them."
    )
    family: Family | None = Field(
        None,
        description="Attacks it was trained to see: shown to the camera, or made in the picture; "
        "None: both, or unknown.",
    )
    input: InputSpec
    outputs: dict[str, str] = Field(description="Name of each output -> meaning, shape, range.")
    onnx: str = Field(pattern=_FILE_NAME, description="File name beside this manifest.")
    onnx_sha256: str = Field(pattern=_SHA256)
    weights: str | None = Field(
        None, pattern=_FILE_NAME, description="File name of the weights (safetensors)."
    )
    weights_sha256: str | None = Field(None, pattern=_SHA256)
    opset: int
    precision: Precision = Field(
        "fp32",
        description="fp16: float32 remains where the method needs it, and at both ends; int8 and "
        "fp8: of what products take, by Q/DQ pairs.",
    )
    max_batch: int = Field(ge=1)
    onnx_torch_max_abs: float = Field(
        ge=0,
        description="Largest |ONNX - torch in float32| over all outputs, measured at export; "
        "for fp16 that of float16 arithmetic in torch, if larger.",
    )
    thresholds: DecisionThresholds | None = None
    refinement: Refinement | None = Field(None, description="Most methods have none.")
    licence: str
    cost_ms: float | None = Field(
        None, description="CPU ms per face, batch 1, one thread, measured at export."
    )
    made_from: Origin | None = Field(None, description="None: exported from torch.")
    drift: Drift | None = Field(None, description="Of a graph made from another.")


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine on the disk.

    Attributes:
        path: of its manifest.
    """

    path: Path

    @property
    def folder(self) -> str:
        """Name of the folder it lies in; engines in one folder belong together."""
        return self.path.resolve().parent.name

    @property
    def label(self) -> str:
        """Folder and name: two engines may be of one method."""
        return f"{self.folder}/{self.path.name.removesuffix(MANIFEST)}"


def shipped_engines() -> list[Engine]:
    """Return the engines that come with the software."""
    return [Engine(path) for path in sorted(SHIPPED.rglob(f"*{MANIFEST}"))]


def chosen_engines(names: Sequence[str]) -> list[Engine]:
    """Return shipped engines by name, and others by the path of their manifest.

    Args:
        names: label, folder, name or path; none: all that is shipped.

    Raises:
        EngineError: nothing has one of the names.
    """
    shipped = shipped_engines()
    found = {} if names else {engine.label: engine for engine in shipped}
    for name in names:
        if name.endswith(MANIFEST):
            matches = [Engine(Path(name))]
        else:
            matches = [e for e in shipped if name in (e.label, *e.label.split("/"))]
        if not matches:
            known = ", ".join(engine.label for engine in shipped)
            raise EngineError(
                f"no engine is called {name!r}; expected one of {known}, or the path of a "
                f"*{MANIFEST}"
            )
        found |= {engine.label: engine for engine in matches}
    return list(found.values())


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        EngineError: missing or malformed.
    """
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EngineError(
            f"{path}: can't read the engine's manifest ({error.strerror}); check the path, or "
            "export the engine again"
        ) from error
    except ValidationError as error:
        raise EngineError(
            f"{path}: not a valid manifest: {one_line(error, Manifest)}; export the engine again"
        ) from error


def save_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, replacing an old one in one step."""
    with whole_file(path) as partial:
        partial.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def check_outputs(name: str, found: Collection[str], promised: Collection[str]) -> None:
    """Make sure that a graph gives what its manifest says.

    Raises:
        EngineMismatchError: it has other outputs.
    """
    if set(found) != set(promised):
        raise EngineMismatchError(
            f"{name}: expected outputs {sorted(promised)}, as its manifest says, found "
            f"{sorted(found)}; export it again"
        )


def verified_file(manifest_path: Path, name: str, sha256: str) -> Path:
    """Return the path of a file beside the manifest, once its content is what the manifest says.

    Raises:
        EngineError: the file is missing.
        EngineMismatchError: the content differs.
    """
    path = manifest_path.parent / name
    if not path.is_file():
        raise EngineError(
            f"{path}: missing; {manifest_path.name} names it: copy both, or export again"
        )
    found = file_sha256(path)
    if found != sha256:
        raise EngineMismatchError(
            f"{path}: expected sha256 {sha256[:12]}..., found {found[:12]}...; the file is damaged "
            f"or belongs to another manifest than {manifest_path.name}: copy both again, or export "
            "again"
        )
    return path
