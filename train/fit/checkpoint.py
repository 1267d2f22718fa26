"""Checkpoints: state dicts and their recipe; written in one step, read without pickled code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from models import build_model
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from models import AttackModel
    from train.config import Recipe


def save_checkpoint(
    path: Path,
    recipe: Recipe,
    world: int,
    step: int,
    best: float | None,
    parts: Mapping[str, Any],
) -> None:
    """Write all that going on needs, replacing an old file only once the new one is complete.

    Args:
        path: file.
        recipe: the run's.
        world: number of processes: with another, the batches would differ.
        step: finished steps.
        best: best value on dev so far.
        parts: network, optimiser and so on, by name; their state dicts are written.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    _write(
        path,
        {
            "recipe": recipe.model_dump_json(),
            "world": world,
            "step": step,
            "best": best,
            **states,
        },
    )


def load_checkpoint(
    path: Path, recipe: Recipe, world: int, parts: Mapping[str, Any]
) -> tuple[int, float | None]:
    """Put a checkpoint's states into their parts; return its step and best value on dev.

    Returns:
        (0, None) where there is no checkpoint yet.

    Raises:
        TrainError: unreadable, made by another recipe, or by another number of processes.
    """
    if not path.exists():
        return 0, None
    checkpoint = _read(path)
    if checkpoint["recipe"] != recipe.model_dump_json():
        raise TrainError(
            f"{path}: made by another recipe; use that one, or another folder for this run"
        )
    if checkpoint["world"] != world:
        raise TrainError(
            f"{path}: made by {checkpoint['world']} processes, this run has {world}: its batches "
            "would differ; start as many, or use another folder"
        )
    for name, part in parts.items():
        part.load_state_dict(checkpoint[name])
    return checkpoint["step"], checkpoint["best"]


def save_weights(
    path: Path, recipe: Recipe, step: int, network: nn.Module, *, calibrated: bool = False
) -> None:
    """Write a network's weights with the recipe that made them."""
    _write(
        path,
        {
            "recipe": recipe.model_dump_json(),
            "step": step,
            "model": network.state_dict(),
            "calibrated": calibrated,
        },
    )


def load_weights(path: Path) -> tuple[Recipe, int, dict[str, torch.Tensor], bool]:
    """Return the recipe, the step, the state dict and `calibrated` that `save_weights` wrote.

    Raises:
        TrainError: missing, unreadable, or of a recipe that this version does not know.
    """
    from train.config import Recipe

    if not path.exists():
        raise TrainError(f"{path}: no trained weights; train the recipe first")
    content = _read(path)
    try:
        recipe = Recipe.model_validate_json(content["recipe"])
    except ValueError as error:
        raise TrainError(f"{path}: made by another version: {error}") from error
    return recipe, content["step"], content["model"], content["calibrated"]


class Trained(NamedTuple):
    """A run's best network."""

    model: AttackModel  # in eval mode
    recipe: Recipe
    step: int  # after which the weights were kept
    calibrated: bool


def trained_model(run: Path) -> Trained:
    """Return a run's best network.

    Raises:
        TrainError: no weights, or not of this version.
    """
    recipe, step, state, calibrated = load_weights(run / "best.pt")
    model = build_model(recipe.method, recipe.options)
    try:
        cast("nn.Module", model).load_state_dict(state)
    except RuntimeError as error:
        raise TrainError(f"{run / 'best.pt'}: weights of another version: {error}") from error
    cast("nn.Module", model).eval()
    return Trained(model, recipe, step, calibrated)


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different class for each kind of damage
        raise TrainError(f"{path}: can't read the checkpoint: {error}") from error
    return content
