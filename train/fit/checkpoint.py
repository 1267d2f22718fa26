"""Checkpoints: state dicts and their recipe; whole or not at all, finite, read without code."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from models import build_model, whole_file
from train.config import FREE, Recipe
from train.errors import TrainError
from train.fit.update import not_finite, some

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from models import AttackModel


class Change(NamedTuple):
    """An option that is another one than before."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {self.before}, is now {self.now}"


def save_checkpoint(
    path: Path, recipe: Recipe, world: int, faces: str, step: int, parts: Mapping[str, Any]
) -> None:
    """Write all that going on needs, replacing an old file only once the new one is complete.

    Args:
        path: file.
        recipe: the run's.
        world: number of processes: with another, the batches would differ.
        faces: digest of what is learned from.
        step: finished steps.
        parts: network, optimiser and so on, by name; their state dicts are written.

    Raises:
        TrainError: a number of them is not finite, or the disk is full; the old file is kept.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    about = {"recipe": recipe.model_dump_json(), "world": world, "faces": faces, "step": step}
    _write(path, {**about, **states})


def load_checkpoint(
    path: Path, recipe: Recipe, world: int, faces: str, parts: Mapping[str, Any]
) -> tuple[int, list[Change]]:
    """Put a checkpoint's states into their parts; return its step, and what changed since.

    Returns:
        (0, []) where there is no checkpoint yet.

    Raises:
        TrainError: unreadable, or made by another recipe (but for `FREE`), from other faces, by
            another number of processes or another version.
    """
    if not path.exists():
        return 0, []
    checkpoint = _read(path)
    try:
        before = Recipe.model_validate_json(checkpoint["recipe"])
        states = {name: checkpoint[name] for name in parts}
        step = int(checkpoint["step"])
        made_by, made_from = checkpoint["world"], checkpoint["faces"]
    except (KeyError, ValueError) as error:
        raise TrainError(
            f"{path}: made by another version of this program ({error}); use another folder for "
            "this run"
        ) from error
    changes = list(_changes(before, recipe))
    forbidden = [change for change in changes if change.key not in FREE]
    if forbidden:
        raise TrainError(
            f"{path}: made by another recipe: {'; '.join(map(str, forbidden))}. Put it back, or "
            f"use another folder for this run (--out). These may change: {', '.join(sorted(FREE))}"
        )
    if recipe.steps < step:
        raise TrainError(
            f"{path}: {step} steps are done, and steps is now {recipe.steps}; give as many or more"
        )
    if made_from != faces:
        raise TrainError(
            f"{path}: made from other faces: those of {', '.join(map(str, recipe.data.prepared))} "
            "have changed, in number, order or content; use another folder for this run (--out)"
        )
    if made_by != world:
        raise TrainError(
            f"{path}: made by {made_by} processes, this run has {world}: its batches "
            "would differ; start as many, or use another folder"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(states[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainError(
            f"{path}: made by another version of this program: {error}; use another folder for "
            "this run"
        ) from error
    return step, changes


def _changes(before: Recipe, now: Recipe) -> Iterator[Change]:
    old, new = before.settings(), now.settings()
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield Change(key, old.get(key), new.get(key))


def save_weights(
    path: Path, recipe: Recipe, step: int, network: nn.Module, *, calibrated: bool = False
) -> None:
    """Write a network's weights with the recipe that made them.

    Raises:
        TrainError: a weight is not finite, or the disk is full; an old file is kept.
    """
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
    if not path.exists():
        raise TrainError(f"{path}: no trained weights; train the recipe first")
    content = _read(path)
    try:
        recipe = Recipe.model_validate_json(content["recipe"])
    except ValueError as error:
        raise TrainError(f"{path}: made by another version: {error}") from error
    return recipe, content["step"], content["model"], content["calibrated"]


class Trained(NamedTuple):
    """A network that a run kept."""

    model: AttackModel  # in eval mode
    recipe: Recipe
    step: int  # after which the weights were kept
    calibrated: bool


def trained_model(run: Path, weights: str = "best.pt") -> Trained:
    """Return a run's best network, or another one that it kept.

    Raises:
        TrainError: no weights, or not of this version.
    """
    recipe, step, state, calibrated = load_weights(run / weights)
    model = build_model(recipe.method, recipe.options)
    try:
        cast("nn.Module", model).load_state_dict(state)
    except RuntimeError as error:
        raise TrainError(f"{run / weights}: weights of another version: {error}") from error
    cast("nn.Module", model).eval()
    return Trained(model, recipe, step, calibrated)


def _write(path: Path, content: dict[str, Any]) -> None:
    wrong = not_finite(_tensors(content))
    if wrong:
        raise TrainError(
            f"{path}: not written after step {content['step']}, because it would hold numbers that "
            f"are not finite: {some(wrong)}; an older file is kept"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            torch.save(content, part)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        needed = sum(tensor.nbytes for _, tensor in _tensors(content))
        free = shutil.disk_usage(path.parent).free
        raise TrainError(
            f"{path}: can't be written: {str(error).splitlines()[0]}. It takes {needed / 1e6:.1f} "
            f"MB, and {free / 1e6:.1f} MB are free there; an older file is kept: make room and run "
            "the same command again"
        ) from error


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of nested state dicts, by their path."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from _tensors(part, f"{name}.{i}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different class for each kind of damage
        raise TrainError(f"{path}: can't read the checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise TrainError(f"{path}: no checkpoint of this program")
    return content
