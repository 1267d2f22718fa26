"""`python -m stream.evidence`: keys, and what can be done with bundles."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import click

from stream.errors import ConfigError, StreamError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Bundles of evidence: keys, checks, replays, deletion. See docs/evidence.md."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")


@main.command()
@click.argument("private", type=click.Path(path_type=Path), metavar="FILE")
def keygen(private: Path) -> None:
    """Write a new private key to FILE, and the public one to FILE.pub."""
    from stream.evidence.seal import fingerprint, load_public_key, make_keys

    public = make_keys(private)
    click.echo(f"{public}: give it to those who verify; {fingerprint(load_public_key(public))}")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Public key of who must have signed it.  [default: the one in the bundle]",
)
def verify(bundle: Path, key: Path | None) -> None:
    """Say whether BUNDLE is as it was signed; exit code 1: it is not, and how."""
    from stream.evidence.seal import broken_seals, fingerprint, key_of, load_public_key

    public = None if key is None else load_public_key(key)
    wrong = broken_seals(bundle, public)
    for line in wrong:
        click.echo(line)
    if wrong:
        sys.exit(1)
    known = "" if key else "; whose key that is was not checked: --key"
    click.echo(f"unchanged since it was signed by {fingerprint(key_of(bundle))[:16]}{known}")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--model",
    "models",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="An engine's folder or manifest, if it lies elsewhere now; may be repeated.",
)
def replay(bundle: Path, models: tuple[Path, ...]) -> None:
    """Run the analysis on the video of BUNDLE again; exit code 1: it says something else."""
    from stream.engine_paths import manifest_of
    from stream.evidence.replay import replay as run_again
    from stream.evidence.seal import broken_seals

    if wrong := broken_seals(bundle):
        raise ConfigError(f"{bundle}: not as it was signed: {'; '.join(wrong)}")
    result = run_again(bundle, [manifest_of(model) for model in models])
    click.echo(result.report())
    if not result.agrees:
        sys.exit(1)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--keep-days", type=click.FloatRange(min=0), required=True, help="Age, days.")
@click.option("--keep-gb", type=click.FloatRange(min=0), required=True, help="Size of all, GB.")
def prune(folder: Path, keep_days: float, keep_gb: float) -> None:
    """Delete the bundles in FOLDER that are too old, and the oldest of too many."""
    from stream.evidence.store import Store

    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected the folder of all bundles")
    for name in Store(folder).prune(keep_days=keep_days, keep_gb=keep_gb, now=time.time()):
        click.echo(f"deleted {name}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except StreamError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
