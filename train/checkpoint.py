"""Checkpoints: state dicts and their recipe; written in one step, read without pickled code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

    from train.config import Recipe


def save_checkpoint(path: Path, recipe: Recipe, step: int, **states: dict[str, Any]) -> None:
    """Write a checkpoint, replacing an old one only once the new one is complete.

    Args:
        path: file.
        recipe: the run's recipe; a resume with another one is refused.
        step: finished steps.
        states: state dicts by name.
    """
    temporary = path.with_suffix(".tmp")
    torch.save({"recipe": recipe.model_dump_json(), "step": step, **states}, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, recipe: Recipe) -> dict[str, Any]:
    """Read a checkpoint of this recipe.

    Raises:
        TrainError: unreadable, or made by another recipe.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different class for each kind of damage
        raise TrainError(f"{path}: can't read the checkpoint: {error}") from error
    if checkpoint["recipe"] != recipe.model_dump_json():
        raise TrainError(
            f"{path}: made by another recipe; use that one, or another folder for this run"
        )
    return checkpoint
