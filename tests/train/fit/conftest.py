"""A recipe that learns drawn faces in a moment."""

from pathlib import Path

import pytest
import torch
import yaml

import models
from train.config import Recipe
from train.data.selection import open_data
from train.fit import journal
from train.fit.loop import fit
from train.fit.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
METHODS = Path(__file__).parents[2] / "trt_engines" / "methods"


@pytest.fixture(scope="package", autouse=True)
def tiny_methods():
    """Make the networks of tests/trt_engines/methods known; real ones write 70 MB and more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "__path__", [*models.__path__, str(METHODS)])
        yield


@pytest.fixture(scope="package", autouse=True)
def no_picture_of_the_losses():
    """Drawing takes longer than six steps; test_ranks.py has a run with its picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_draw", lambda *_: None)
        yield


@pytest.fixture
def recipe_of(faces):
    """Make a recipe of six steps; the changes are top-level keys."""

    def make(**changes):
        return Recipe.model_validate(
            {
                "method": "tiny",
                "data": {"prepared": [faces], "bona_fide_per_step": 3, "attacks_per_step": 3},
                "augment": {"hflip": 0.5, "noise_sigma": {"low": 1, "high": 5}},
                "loader": {"kind": "torch", "workers": 0},
                "optimiser": {"kind": "adamw", "learning_rate": 0.001},
                "steps": 6,
                "log_every": 1,
                "validate_every": 3,
                "checkpoint_every": 3,
                **changes,
            }
        )

    return make


@pytest.fixture
def train():
    """Fit a recipe in this process alone."""

    def run(recipe, folder):
        return fit(recipe, folder, open_data(recipe.data.prepared, None), ALONE)

    return run


@pytest.fixture
def recipe_file(tmp_path):
    """Write a recipe to a file, for the command."""

    def write(recipe):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
        return path

    return write
