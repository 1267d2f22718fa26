"""`python -m models`: bring published weights into our own format."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from models import Setting, lay_over, method_names

if TYPE_CHECKING:
    from models._checkpoints import Imported
    from models.udr import Udr

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Networks of the published methods."""


@main.command("import")
@click.option("--method", type=click.Choice(method_names()), required=True)
@click.option("--in", "source", type=_FILE, required=True, help="Published or own checkpoint.")
@click.option("--out", type=_FILE, required=True, help="Safetensors file to write.")
@click.option(
    "--set",
    "settings",
    type=Setting(),
    multiple=True,
    metavar="OPTION=VALUE",
    help="Option of the method; may be repeated.",
)
@click.option(
    "--prune", type=float, metavar="GATE", help="UDR: leave out frequency branches gated below it."
)
def import_command(
    method: str,
    source: Path,
    out: Path,
    settings: tuple[tuple[str, Any], ...],
    prune: float | None,
) -> None:
    """Read a checkpoint of any known layout, say what was used, and write our own safetensors.

    Nothing in the file is run: one that holds more than tensors is refused.
    """
    # Imported late, so that --help answers at once.
    from models import import_checkpoint, save_weights
    from models._checkpoints import OptionsError

    if prune is not None and method != "udr":
        raise click.UsageError(f"--prune is of udr; {method} has no frequency branches")
    options: dict[str, Any] = {}
    try:
        lay_over(options, settings)
    except ValueError as error:
        raise click.UsageError(f"--set {error}") from error
    try:
        imported = import_checkpoint(method, source, **options)
        if prune is not None:
            imported = _pruned(imported, prune)
        save_weights(out, imported)
    except OptionsError as error:
        raise click.UsageError(str(error)) from error
    except (ValueError, OSError) as error:  # CheckpointError is a ValueError
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(imported.report())
    click.echo(f"options: {imported.options}")
    click.echo(f"{out}: written")


def _pruned(imported: Imported, threshold: float) -> Imported:
    from models.udr import prune_closed_gates

    model = cast("Udr", imported.model)
    gone = prune_closed_gates(model, threshold)
    click.echo(f"{len(gone)} frequency branches gated below {threshold:g} left out")
    return replace(imported, options=model.config.model_dump(mode="json"))


if __name__ == "__main__":
    main()
