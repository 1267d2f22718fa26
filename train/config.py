"""Schema of configs/train/<recipe>.yaml. Defaults stand here only; a YAML holds what differs."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, Field, ValidationError

from train.errors import TrainError


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """One training run."""

    method: str
    options: dict[str, object] = Field(default_factory=dict, description="The method's options.")
    faces: Path = Field(description="Folder made by `python -m train prepare`.")
    group_weights: dict[str, float] = Field(
        description="How often a group of faces is drawn, relative; within it every source alike."
    )
    attack_weights: dict[str, float] = Field(
        description="How often a family of synthetic attacks is drawn, relative."
    )
    imagenet: bool = Field(True, description="Start the encoders from ImageNet weights.")
    pairs_per_step: int = Field(16, ge=2, description="Bona fide + attack of the same face.")
    steps: int = Field(ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(5.0, gt=0)
    average_decay: float = Field(
        0.998, ge=0, lt=1, description="Exponential average of the weights, which is what is kept."
    )
    seed: int = 0
    workers: int = Field(1, ge=0, description="Processes that make samples.")
    threads: int = Field(2, ge=1, description="Threads of the network.")
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(200, ge=1)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        TrainError: unreadable, or a key or value is not one of the schema's.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise TrainError(f"{path}: can't read the recipe: {error}") from error
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise TrainError(f"{path}: " + "; ".join(lines)) from error
