"""Command line: `python -m trt_engines`. Heavy imports come after the arguments are understood."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from trt_engines.manifest import Precision

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


@cli.command()
@click.argument(
    "manifests", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True
)
def verify(manifests: tuple[Path, ...]) -> None:
    """Check that engines are what their MANIFESTS say, load them and run each once."""
    failures = 0
    for path in manifests:
        try:
            click.echo(f"ok   {path}: {_verified(path)}")
        except EngineError as error:
            failures += 1
            click.echo(f"FAIL {error}", err=True)
    if failures:
        raise SystemExit(1)


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
    from trt_engines.aot import TARGETS, tensorrt_rtx
    from trt_engines.check import checks

    known = dict.fromkeys(name.split()[0] for name, _ in checks((), precisions))
    if unknown := sorted(set(only) - known.keys()):
        raise click.UsageError(
            f"--only: unknown name {', '.join(unknown)}; expected one of {', '.join(known)}"
        )
    started = datetime.now(UTC).isoformat(timespec="seconds")
    version = tensorrt_rtx().__version__
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


if __name__ == "__main__":
    try:
        cli()
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
