"""Engines as a command line names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def manifest_of(model: Path) -> Path:
    """Return the manifest of an engine's folder; a path that is no folder is the manifest.

    Raises:
        ConfigError: the folder holds none, or several, or can't be read.
    """
    try:
        found = sorted(model.glob("*.manifest.json")) if model.is_dir() else [model]
    except OSError as error:
        raise ConfigError(f"--model {model}: {error.strerror}") from error
    if len(found) != 1:
        raise ConfigError(
            f"--model {model}: expected a folder with one *.manifest.json, found {len(found)}"
        )
    return found[0]
