"""`python -m trt_engines build`: manifests to plans; what has not changed is not built again."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models import whole_file
from trt_engines.builder import axes_for, build_plan, plan_key
from trt_engines.errors import EngineError
from trt_engines.lower import lowered, up_to_date, write_lowered
from trt_engines.manifest import load_manifest, verified_file
from trt_engines.plans import SUFFIX, PlanPage, private_folder, read_plans, write_plans

if TYPE_CHECKING:
    from pathlib import Path

    from trt_engines.builder import Built, Flavour
    from trt_engines.faces import FaceSet
    from trt_engines.manifest import Engine, Manifest, Precision, Runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was made of an engine.

    Attributes:
        path: of the manifest of the graph.
        page: of the signed page of the plan; None: no plan was wanted.
        is_new: whether anything was built.
        manifest: of the graph, with its drift.
        onnx_mb: size of the graph, 1e6 bytes.
        plan_mb: size of the plans, 1e6 bytes; 0: no plan was wanted.
        build_s: seconds that building the plans took, now or before.
    """

    path: Path
    page: Path | None
    is_new: bool
    manifest: Manifest
    onnx_mb: float
    plan_mb: float = 0.0
    build_s: float = 0.0


def export_graph(
    engine: Engine, precision: Precision, runtime: Runtime, faces: FaceSet | None, folder: Path
) -> Outcome:
    """Write an engine's graph in a precision, with its manifest, unless it is there.

    Args:
        engine: in float32.
        precision: wanted.
        runtime: what shall run it.
        faces: to calibrate and judge on.
        folder: made if missing.

    Raises:
        DriftError: it moves scores too far; what was there stays.
        EngineError: it can't be made or written.
    """
    path = up_to_date(engine.path, precision, runtime, faces, folder)
    is_new = path is None
    if path is None:
        path = write_lowered(lowered(engine.path, precision, runtime, faces), folder)
    manifest = load_manifest(path)
    size = (path.parent / manifest.onnx).stat().st_size
    return Outcome(path, None, is_new, manifest, size / 1e6)


def build_engine(
    engine: Engine,
    precision: Precision,
    flavour: Flavour,
    faces: FaceSet | None,
    out: Path,
    *,
    max_batch: int,
    signing_key: bytes,
) -> Outcome:
    """Build an engine's plans into `out/<its folder>/<precision>-<flavour>-<targets>`.

    Args:
        engine: in float32.
        precision: wanted.
        flavour: what builds, and what for.
        faces: to calibrate and judge the graph on.
        out: folder of all engines; made if missing.
        max_batch: most faces in one run.
        signing_key: of `read_key`.

    Raises:
        DriftError: the graph moves scores too far; what was there stays.
        EngineError: the graph or the plan can't be made or written.
    """
    flavour = flavour.for_precision(precision)
    private_folder(out)
    folder = out / engine.folder / "-".join([precision, flavour.name, *flavour.targets])
    private_folder(folder)
    graph = export_graph(engine, precision, "tensorrt", faces, folder)
    manifest = graph.manifest.model_copy(update={"max_batch": max_batch})
    axes = axes_for(max_batch)
    parts = {"": (manifest.onnx, manifest.onnx_sha256)}
    if manifest.refinement is not None:
        parts[".refinement"] = (manifest.refinement.onnx, manifest.refinement.onnx_sha256)
    keys = {part: plan_key(flavour, sha256, axes) for part, (_, sha256) in parts.items()}
    known = _known(folder / f"{manifest.name}{SUFFIX}", manifest, keys, flavour, signing_key)
    if known is not None:
        page, size = known
        is_new = graph.is_new
        page_path = folder / f"{manifest.name}{SUFFIX}"
    else:
        started = time.monotonic()
        plans = {}
        for part, (name, sha256) in parts.items():
            content = verified_file(graph.path, name, sha256).read_bytes()
            built = _built(flavour, content, f"{manifest.name}{part}", axes, out)
            digest = hashlib.sha256(built.plan).hexdigest()
            plans[part] = (f"{manifest.name}{part}.{digest[:12]}.plan", digest, built.plan)
        second = plans.get(".refinement")
        page = PlanPage(
            engine=manifest,
            flavour=flavour.name,
            version=flavour.version,
            targets=flavour.targets,
            gpu=flavour.gpu,
            profile=axes,
            plan=plans[""][0],
            plan_sha256=plans[""][1],
            key=keys[""],
            refinement=(*second[:2], keys[".refinement"]) if second is not None else None,
            build_s=round(time.monotonic() - started, 2),
        )
        files = {name: plan for name, _, plan in plans.values()}
        page_path = write_plans(folder, page, files, signing_key)
        size, is_new = sum(map(len, files.values())), True
    return Outcome(graph.path, page_path, is_new, manifest, graph.onnx_mb, size / 1e6, page.build_s)


def _built(
    flavour: Flavour, content: bytes, name: str, axes: dict[str, tuple[int, int, int]], out: Path
) -> Built:
    """Build with what earlier builds learned of the GPU, and note what this one did."""
    path = out / "-".join(["timing", flavour.name, flavour.version, *flavour.targets])
    before = path.read_bytes() if path.is_file() else b""
    built = build_plan(flavour, content, name=name, axes=axes, timing_cache=before)
    if built.timing_cache not in (b"", before):
        with whole_file(path) as partial:
            partial.write_bytes(built.timing_cache)
    return built


def _known(
    path: Path, manifest: Manifest, keys: dict[str, str], flavour: Flavour, signing_key: bytes
) -> tuple[PlanPage, int] | None:
    """Return the page and the size of plans that are there, whole and of the same facts."""
    if not path.is_file():
        return None
    try:
        page, plans = read_plans(path, signing_key, flavour)
    except EngineError as error:
        log.warning("built anew: %s", error)
        return None
    found = {"": page.key} | ({".refinement": page.refinement[2]} if page.refinement else {})
    if page.engine != manifest or found != keys:
        return None
    return page, sum(map(len, plans))
