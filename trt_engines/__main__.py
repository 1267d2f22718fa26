"""Command line: `python -m trt_engines`. Heavy imports come after the arguments are understood."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click
from pydantic_core import to_jsonable_python

from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trt_engines.build import Outcome
    from trt_engines.builder import FlavourName
    from trt_engines.faces import FaceSet
    from trt_engines.manifest import Drift, Engine, Precision, Runtime

_COLUMNS: Final = "{:28} {:5} {:>4} {:>6} {:>8} {:>8} {:>8} {:>8}"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Build and check the networks' engines."""


@cli.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the six files; made if missing.",
)
def mtcnn(out: Path) -> None:
    """Export the face detector's three networks from facenet-pytorch's weights."""
    from trt_engines.export_mtcnn import export_mtcnn

    for path in export_mtcnn(out):
        click.echo(f"wrote {path}")


_models = click.option(
    "--models",
    default="",
    metavar="NAMES",
    help="Engines, separated by commas: folder/name, folder, name, or the path of a manifest; "
    "default: all that are shipped.",
)
_faces = click.option(
    "--faces",
    "faces_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Face file to calibrate and judge on (`python -m benchmarks.engine_faces` makes one); "
    "fp32 needs none.",
)
_out = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/engines"),
    show_default=True,
    help="Folder of all that is built.",
)
_key_file = click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the key that signs plans; default: the environment's "
    "FACEWARDEN_ENGINE_KEY_FILE or FACEWARDEN_ENGINE_KEY.",
)


def _precisions(*default: Precision) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--precision",
        "precisions",
        type=click.Choice(["fp32", "fp16", "int8", "fp8"]),
        multiple=True,
        default=default,
        show_default=True,
        help="What it computes in; may be repeated.",
    )


@cli.command(name="list")
@_models
def list_engines(models: str) -> None:
    """List the engines that come with the software."""
    from trt_engines.manifest import load_manifest

    row = "{:24} {:11} {:9} {:>4} {:>9} {:>7} {:>8}  {}"
    click.echo(row.format("engine", "method", "precision", "px", "max batch", "MB", "CPU ms", "at"))
    for engine in _engines(models):
        m = load_manifest(engine.path)
        size = (engine.path.parent / m.onnx).stat().st_size / 1e6
        cost = "-" if m.cost_ms is None else f"{m.cost_ms:.1f}"
        at = "-" if m.thresholds is None else f"{m.thresholds.enter:g} / {m.thresholds.leave:g}"
        shown = (
            m.method or "-",
            m.precision,
            m.input.size_px,
            m.max_batch,
            f"{size:.2f}",
            cost,
            at,
        )
        click.echo(row.format(engine.label, *shown))


@cli.command()
@_models
@_precisions("fp16")
@click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="What shall run the graphs; their int8 differs.",
)
@_faces
@_out
def export(
    models: str,
    precisions: tuple[Precision, ...],
    runtime: Runtime,
    faces_path: Path | None,
    out: Path,
) -> None:
    """Write engines as graphs in another precision, if they stay close to float32."""
    from trt_engines.build import export_graph

    faces = _loaded(faces_path)

    def work(engine: Engine, precision: Precision) -> Outcome:
        folder = out / engine.folder / f"{precision}-{runtime}"
        return export_graph(engine, precision, runtime, faces, folder)

    _each(_engines(models), precisions, work)


@cli.command()
@_models
@_precisions("fp16")
@click.option("--max-batch", type=click.IntRange(1), default=32, show_default=True,
              help="Most faces in one run.")  # fmt: skip
@click.option(
    "--flavour",
    "flavour_name",
    type=click.Choice(["auto", "tensorrt", "tensorrt_rtx"]),
    default="auto",
    show_default=True,
    help="What builds; auto: TensorRT where there is a GPU for it, else TensorRT-RTX.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="SM89",
    help="Compute capability that TensorRT-RTX builds for; may be repeated; default: SM86, SM89 "
    "and SM120. TensorRT builds for this machine's GPU.",
)
@_faces
@_out
@_key_file
def build(
    models: str,
    precisions: tuple[Precision, ...],
    max_batch: int,
    flavour_name: FlavourName | Literal["auto"],
    targets: tuple[str, ...],
    faces_path: Path | None,
    out: Path,
    key_file: Path | None,
) -> None:
    """Build TensorRT plans; what has not changed stays, and so does what would be worse."""
    from trt_engines.build import build_engine
    from trt_engines.builder import TARGETS, open_flavour
    from trt_engines.plans import read_key

    signing_key = read_key(key_file)
    flavour = open_flavour(flavour_name, targets or TARGETS)
    click.echo(f"{flavour.name} {flavour.version} for {flavour.gpu or ', '.join(flavour.targets)}")
    faces = _loaded(faces_path)

    def work(engine: Engine, precision: Precision) -> Outcome:
        return build_engine(
            engine, precision, flavour, faces, out, max_batch=max_batch, signing_key=signing_key
        )

    _each(_engines(models), precisions, work)


@cli.command()
@click.argument(
    "manifests", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True
)
@_faces
@_key_file
def verify(manifests: tuple[Path, ...], faces_path: Path | None, key_file: Path | None) -> None:
    """Check that engines are what their MANIFESTS say, and load them.

    A graph (*.manifest.json) is run once and, with --faces, compared with float32. A plan
    (*.plan.manifest) must be signed, whole, and of this TensorRT; it is loaded where there is a
    GPU.
    """
    from trt_engines.plans import SUFFIX, read_key

    faces = _loaded(faces_path)
    failures = 0
    for path in manifests:
        try:
            if path.name.endswith(SUFFIX):
                line = _verified_plan(path, read_key(key_file))
            else:
                line = _verified(path) if faces is None else _compared(path, faces)
            click.echo(f"ok   {path}: {line}")
        except EngineError as error:
            failures += 1
            click.echo(f"FAIL {error}", err=True)
    if failures:
        raise SystemExit(1)


@cli.command()
@_models
@_precisions("fp32", "fp16", "int8")
@click.option("--faces", "faces_path", type=click.Path(path_type=Path, dir_okay=False),
              required=True, help="Face file to calibrate and compare on.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write the results to, too.")  # fmt: skip
def bench(
    models: str,
    precisions: tuple[Precision, ...],
    faces_path: Path,
    json_path: Path | None,
) -> None:
    """Measure engines in ONNX Runtime on this CPU: cost and drift, whether they pass or not."""
    from trt_engines.bench import COLUMNS, measured
    from trt_engines.faces import load_faces

    faces = load_faces(faces_path)
    click.echo("| " + " | ".join(COLUMNS) + " |")
    click.echo("|" + " --- |" * len(COLUMNS))
    results = []
    for engine in _engines(models):
        for result in measured(engine, precisions, faces):
            results.append(asdict(result))
            click.echo("| " + " | ".join(result.row()) + " |")
    if json_path is not None:
        content = {
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "results": results,
        }
        text = json.dumps(to_jsonable_python(content), indent=2)
        json_path.write_text(text + "\n", encoding="utf-8")
        click.echo(f"wrote {json_path}")


@cli.command()
def doctor() -> None:
    """Say what of the GPU path is here, what is missing, and what to do."""
    from trt_engines.doctor import examined

    missing = 0
    for finding in examined():
        missing += not finding.is_there
        click.echo(
            f"{'ok     ' if finding.is_there else 'MISSING'} {finding.what:16} {finding.found}"
        )
        if not finding.is_there:
            click.echo(f"{'':8}{'':16} -> {finding.advice}")
    if missing:
        raise SystemExit(f"{missing} missing; docs/gpu-status.md says what works without")


@cli.command()
@click.option("--only", multiple=True, metavar="NAME", help="Check this variant; may be repeated.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp32", "fp16"]),
    multiple=True,
    default=("fp32", "fp16"),
    show_default=True,
    help="Precision of the graphs; may be repeated.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write the results to, too.",
)
def check(only: tuple[str, ...], precisions: tuple[Precision, ...], json_path: Path | None) -> None:
    """Export every variant of every method, compare with torch, build with TensorRT-RTX."""
    from trt_engines.builder import TARGETS, load_tensorrt
    from trt_engines.check import checks

    known = dict.fromkeys(name.split()[0] for name, _ in checks((), precisions))
    if unknown := sorted(set(only) - known.keys()):
        raise click.UsageError(
            f"--only: unknown name {', '.join(unknown)}; expected one of {', '.join(known)}"
        )
    started = datetime.now(UTC).isoformat(timespec="seconds")
    version = load_tensorrt("tensorrt_rtx").__version__
    passed, failed = [], {}
    click.echo(
        _COLUMNS.format("graph", "prec", "ops", "nodes", "ONNX MB", "parity", "build s", "MB")
    )
    for name, run in checks(only, precisions):
        try:
            graphs = run()
        except EngineError as error:
            failed[name] = str(error)
            click.echo(f"{name:28} FAIL {error}", err=True)
            continue
        passed += graphs
        for g in graphs:
            row = (
                len(g.operators),
                g.nodes,
                g.onnx_mb,
                f"{g.difference:.1e}",
                g.build_s,
                g.plan_mb,
            )
            click.echo(_COLUMNS.format(g.name, g.precision, *row))
    if json_path is not None:
        result = {
            "started_at": started,
            "tensorrt_rtx": version,
            "targets": TARGETS,
            "passed": [asdict(graph) for graph in passed],
            "failed": failed,
        }
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        click.echo(f"wrote {json_path}")
    if failed:
        raise SystemExit(f"{len(passed)} graphs passed; failed: {', '.join(failed)}")


def _verified(path: Path) -> str:
    """Return one line about an engine that loads and runs.

    Raises:
        EngineError: it does not.
    """
    import torch

    from trt_engines.backends import OnnxRuntimeConfig, open_backend
    from trt_engines.backends.refined import RefinedBackend
    from trt_engines.manifest import load_manifest, verified_file

    manifest = load_manifest(path)
    if manifest.weights is not None and manifest.weights_sha256 is not None:
        verified_file(path, manifest.weights, manifest.weights_sha256)
    size, dtype = manifest.input.size_px, getattr(torch, manifest.input.dtype)
    backend = open_backend(path, OnnxRuntimeConfig())
    outputs = dict(backend.infer(torch.zeros((1, 3, size, size), dtype=dtype)))
    if isinstance(backend, RefinedBackend):  # a black image may have been decided at once
        outputs["refined probability"] = backend.refine(outputs["feature"])
    broken = [name for name, value in outputs.items() if not value.isfinite().all()]
    if broken:
        raise EngineError(f"{path}: a black image gives no number in {', '.join(broken)}")
    return f"{manifest.name}, {', '.join(f'{n} {tuple(v.shape)}' for n, v in outputs.items())}"


def _compared(path: Path, faces: FaceSet) -> str:
    """Return one line about an engine that is as close to float32 as its precision must be.

    Raises:
        EngineError: it is not, or the engine that it was made of is not among the shipped ones.
    """
    from trt_engines.backends import OnnxRuntimeConfig, open_backend
    from trt_engines.drift import check_drift, judged
    from trt_engines.faces import shown
    from trt_engines.manifest import load_manifest, shipped_engines

    manifest = load_manifest(path)
    source = path
    if manifest.made_from is not None and manifest.precision != "fp32":
        wanted = manifest.made_from.onnx_sha256
        found = [e.path for e in shipped_engines() if load_manifest(e.path).onnx_sha256 == wanted]
        if not found:
            raise EngineError(
                f"{path}: made of a graph {wanted[:12]}... that no shipped engine has; build it "
                "anew"
            )
        source = found[0]
    batches = shown(manifest, faces.half(1))
    drift = judged(source, open_backend(path, OnnxRuntimeConfig()), batches)
    check_drift(drift, manifest.precision, manifest.name)
    return f"{manifest.name} in {manifest.precision}: {_summary(drift)}"


def _summary(drift: Drift) -> str:
    return (
        f"drift mean {drift.mean:.2g}, p99 {drift.p99:.2g}, max {drift.max:.2g}, order "
        f"{drift.rank_agreement:.4f}, verdicts changed {drift.flips:.1%} of {drift.scores} "
        f"(float32 by {drift.reference})"
    )


def _verified_plan(path: Path, signing_key: bytes) -> str:
    """Return one line about a plan that may be loaded and, where there is a GPU, was.

    Raises:
        EngineError: it may not, or TensorRT refuses it.
    """
    import torch

    from trt_engines.builder import Flavour, load_tensorrt, open_flavour
    from trt_engines.plans import load_plan, read_page, read_plans

    page = read_page(path, signing_key)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        major, minor = torch.cuda.get_device_capability()
        flavour = open_flavour(page.flavour, (f"SM{major}{minor}",))
    else:
        flavour = Flavour(page.flavour, load_tensorrt(page.flavour), page.targets, page.gpu)
    page, plans = read_plans(path, signing_key, flavour)
    if on_gpu:
        for plan in plans:
            load_plan(flavour, plan, page.engine.name)
    loaded = "loaded" if on_gpu else "not loaded: there is no GPU"
    size = sum(map(len, plans)) / 1e6
    return f"{page.engine.name} in {page.engine.precision}, {size:.2f} MB, {loaded}"


def _engines(names: str) -> list[Engine]:
    from trt_engines.manifest import chosen_engines

    return chosen_engines([name.strip() for name in names.split(",") if name.strip()])


def _loaded(path: Path | None) -> FaceSet | None:
    from trt_engines.faces import load_faces

    return None if path is None else load_faces(path)


def _each(
    engines: Sequence[Engine],
    precisions: Sequence[Precision],
    work: Callable[[Engine, Precision], Outcome],
) -> None:
    """Work on every engine in every precision, and say what became of each.

    Raises:
        SystemExit: some failed; the others are done.
    """
    from tqdm import tqdm

    failed = []
    jobs = [(engine, precision) for engine in engines for precision in precisions]
    for engine, precision in (bar := tqdm(jobs, unit="engine", disable=None)):
        name = f"{engine.label} {precision}"
        bar.set_postfix_str(name)
        try:
            outcome = work(engine, precision)
        except EngineError as error:
            failed.append(name)
            tqdm.write(f"FAIL {name}: {error}")
            continue
        plan = f", plan {outcome.plan_mb:.2f} MB in {outcome.build_s:.1f} s" if outcome.page else ""
        drift = outcome.manifest.drift
        tqdm.write(
            f"{'new ' if outcome.is_new else 'kept'} {name}: {outcome.page or outcome.path}, graph "
            f"{outcome.onnx_mb:.2f} MB{plan}{'' if drift is None else '; ' + _summary(drift)}"
        )
    if failed:
        raise SystemExit(f"{len(failed)} of {len(jobs)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    try:
        cli()
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
