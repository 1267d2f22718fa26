"""`python -m models`: fetch published weights, and bring them into our own format."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import click

from models import Setting, lay_over, method_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models import Publication
    from models._checkpoints import Imported
    from models.udr import Udr

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


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


@main.command("get")
@click.argument("method", type=click.Choice(method_names()))
@click.option(
    "--from",
    "source",
    metavar="FILE|URL",
    help="Take this file instead of those at their authors' address.",
)
@click.option(
    "--sha256",
    metavar="HEX",
    help="Digest that the file must have; default: of the published files, where it is known.",
)
@click.option(
    "--out",
    type=_FOLDER,
    default=Path("weights"),
    show_default=True,
    help="Folder for our safetensors; made if missing.",
)
@click.option(
    "--set",
    "settings",
    type=Setting(),
    multiple=True,
    metavar="OPTION=VALUE",
    help="Option of the method; may be repeated.",
)
def get_command(
    method: str,
    source: str | None,
    sha256: str | None,
    out: Path,
    settings: tuple[tuple[str, Any], ...],
) -> None:
    """Fetch the published weights of METHOD, check them, and write our own safetensors.

    They are their authors' and come from where these publish them, under the licence that is shown.
    A download that broke off goes on. Nothing in the file is run: one that holds more than tensors
    is refused.
    """
    from models import load_method
    from models._checkpoints import OptionsError
    from models._fetch import FetchError

    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise click.UsageError(f"--sha256: expected 64 hexadecimal digits, found {sha256!r}")
    options: dict[str, Any] = {}
    try:
        lay_over(options, settings)
    except ValueError as error:
        raise click.UsageError(f"--set {error}") from error
    published = load_method(method).publications
    wanted = [(p.url, [p]) for p in published if p.url is not None]
    if source is not None:
        wanted = [(source, list(published))]
    elif sha256 is not None:
        raise click.UsageError("--sha256 goes with --from")
    elif not wanted:
        raise click.UsageError(_where(method, published))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for place, candidates in wanted:
            _get(method, place, candidates, sha256, out, options)
    except OptionsError as error:
        raise click.UsageError(str(error)) from error
    except (ValueError, OSError, FetchError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _where(method: str, published: Sequence[Publication]) -> str:
    """Say why a method's weights need `--from`."""
    if not published:
        return (
            f"{method}: nobody is known to publish trained weights for it; --from takes any file "
            "of a layout that docs/methods.md names"
        )
    pages = "; ".join(f"{p.where}, licence: {p.licence}" for p in published)
    return f"{method}: no fixed address is known. Get the file and give it by --from: {pages}"


def _get(
    method: str,
    place: str,
    published: Sequence[Publication],
    sha256: str | None,
    out: Path,
    options: dict[str, Any],
) -> None:
    """Bring one file, check it, and write it in our format.

    Args:
        method: name.
        place: path or address.
        published: what it may be.
        sha256: that it must have; None: one of the published files', where they are known.
        out: folder, which exists.
        options: of the method.

    Raises:
        FetchError: it can't be had, or is another file than expected.
        ValueError: it is no checkpoint of the method.
        OSError: it can't be read, or ours can't be written.
    """
    from models import file_sha256, import_checkpoint, save_weights
    from models._fetch import FetchError, fetch, is_url, shown

    by_digest = {p.sha256: p for p in published if p.sha256 is not None}
    accepted = [*by_digest] if sha256 is None else [sha256.lower()]
    if is_url(place):
        _tell_licences(published)
        path = out / (Path(urlsplit(place).path).name or method)
        click.echo(f"from {shown(place)}")
        found = fetch(place, path, accepted=accepted)
    else:
        path = Path(place)
        try:
            found = file_sha256(path)
        except OSError as error:
            raise FetchError(f"{path}: can't read it: {error.strerror}") from error
        if accepted and found not in accepted:
            raise FetchError(
                f"{path}: expected sha256 {' or '.join(accepted)}, found {found}: it is not as "
                "published, or damaged; for weights of your own: python -m models import"
            )
        _tell_licences([by_digest[found]] if found in by_digest else published)
    click.echo(f"sha256 {found}" + (", as expected" if accepted else ": not known beforehand"))
    imported = import_checkpoint(method, path, **options)
    name = by_digest[found].name if found in by_digest else path.stem
    target = out / f"{method}-{name}.safetensors"
    save_weights(target, imported)
    if is_url(place):
        path.unlink()
    click.echo(imported.report())
    click.echo(f"{target}: written")


def _tell_licences(published: Sequence[Publication]) -> None:
    for publication in published:
        click.echo(f"{publication.name}: {publication.where}")
        click.echo(f"  licence: {publication.licence}")


def _pruned(imported: Imported, threshold: float) -> Imported:
    from models.udr import prune_closed_gates

    model = cast("Udr", imported.model)
    gone = prune_closed_gates(model, threshold)
    click.echo(f"{len(gone)} frequency branches gated below {threshold:g} left out")
    return replace(imported, options=model.config.model_dump(mode="json"))


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is missing: `make setup` installs what this needs")
