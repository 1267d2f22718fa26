"""`python -m models`: bring published weights into our own format."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import yaml

from models._checkpoints import import_checkpoint, save_weights
from models._registry import method_names

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Networks of the published methods."""


@main.command("import")
@click.option("--method", type=click.Choice(method_names()), required=True)
@click.option("--in", "source", type=_FILE, required=True, help="Published or own checkpoint.")
@click.option("--out", type=_FILE, required=True, help="Safetensors file to write.")
@click.option(
    "--set", "settings", multiple=True, metavar="OPTION=VALUE", help="Option of the method, YAML."
)
def import_command(method: str, source: Path, out: Path, settings: tuple[str, ...]) -> None:
    """Read a checkpoint of any known layout, say what was used, and write our own safetensors.

    Nothing in the file is run: one that holds more than tensors is refused.
    """
    pairs = (setting.partition("=") for setting in settings)
    options = {name: yaml.safe_load(value) for name, _, value in pairs}
    try:
        imported = import_checkpoint(method, source, **options)
        save_weights(out, imported)
    except (ValueError, OSError) as error:  # pydantic's and CheckpointError are ValueErrors
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(imported.report())
    click.echo(f"options: {imported.options}")
    click.echo(f"{out}: written")


if __name__ == "__main__":
    main()
