"""Command line: `python -m trt_engines`. Heavy imports come after the arguments are understood."""

from __future__ import annotations

from pathlib import Path

import click

from trt_engines.errors import EngineError


@click.group()
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
    from trt_engines.mtcnn import export_mtcnn

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


def _verified(path: Path) -> str:
    """Return one line about an engine that loads and runs.

    Raises:
        EngineError: it does not.
    """
    import torch

    from trt_engines.backends import OnnxRuntimeConfig, open_backend
    from trt_engines.manifest import load_manifest, verified_file

    manifest = load_manifest(path)
    if manifest.weights is not None and manifest.weights_sha256 is not None:
        verified_file(path, manifest.weights, manifest.weights_sha256)
    size, dtype = manifest.input.size_px, getattr(torch, manifest.input.dtype)
    backend = open_backend(path, OnnxRuntimeConfig())
    outputs = backend.infer(torch.zeros((1, 3, size, size), dtype=dtype))
    broken = [name for name, value in outputs.items() if not value.isfinite().all()]
    if broken:
        raise EngineError(f"{path}: a black image gives no number in {', '.join(broken)}")
    return f"{manifest.name}, {', '.join(f'{n} {tuple(v.shape)}' for n, v in outputs.items())}"


if __name__ == "__main__":
    try:
        cli()
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
