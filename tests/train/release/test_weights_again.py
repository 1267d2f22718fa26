"""What training and export write, `python -m models import` and `start_from:` read again."""

import json
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import models
from models import CheckpointError, build_model, import_checkpoint
from models.__main__ import main as models_command
from train.config import Recipe
from train.errors import TrainError
from train.fit.checkpoint import save_checkpoint, save_weights
from train.fit.state import new_model
from trt_engines.export import export_engine

METHODS = Path(__file__).parents[2] / "trt_engines" / "methods"
OPTIONS = {"width": 5}


def recipe(**known):
    return Recipe.model_validate(
        {
            "method": "tiny",
            "options": OPTIONS,
            "data": {"prepared": ["nowhere"]},
            "optimiser": {"kind": "adam", "learning_rate": 1e-3},
            "steps": 1,
            **known,
        }
    )


@pytest.fixture(scope="module", autouse=True)
def tiny_method():
    """Make `models.tiny` a method for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "__path__", [*models.__path__, str(METHODS)])
        yield


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(5)
    network = build_model("tiny", OPTIONS).eval()
    network.calibration.scale.fill_(2.0)
    return network


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    """The files that a run and its export leave behind."""
    folder = tmp_path_factory.mktemp("run")
    save_weights(folder / "best.pt", recipe(), 7, network, calibrated=True)
    optimiser = torch.optim.Adam(network.parameters())
    averaged = torch.optim.swa_utils.AveragedModel(network, use_buffers=True)
    torch.manual_seed(6)
    moved = build_model("tiny", OPTIONS)
    parts = {"network": moved, "optimiser": optimiser, "averaged": averaged}
    save_checkpoint(folder / "checkpoint.pt", recipe(), 1, "faces", 7, parts)
    parts = {"network": network, "optimiser": optimiser}
    save_checkpoint(folder / "plain.pt", recipe(), 1, "faces", 7, parts)
    rng = np.random.default_rng(0)
    export_engine(
        network,
        method="tiny",
        options=OPTIONS,
        examples=torch.from_numpy(rng.integers(0, 256, (2, 3, 16, 16), np.uint8)),
        folder=folder,
        licence="test",
        thresholds=None,
    )
    return folder


FILES = ["best.pt", "checkpoint.pt", "plain.pt", "tiny.safetensors"]
# raised inside torch's exporter
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("name", FILES)
def test_our_files_load_without_being_told_their_options(written, network, name):
    imported = import_checkpoint("tiny", written / name)
    assert imported.layout == "our own"
    assert imported.kept == ()
    assert imported.options == OPTIONS
    found = imported.model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", FILES)
def test_the_import_command_reads_our_files(written, name, tmp_path, monkeypatch):
    methods = {parameter.name: parameter for parameter in models_command.commands["import"].params}
    monkeypatch.setattr(methods["method"], "type", click.STRING)  # listed when it was imported
    out = tmp_path / "again.safetensors"
    arguments = ["import", "--method", "tiny", "--in", str(written / name), "--out", str(out)]
    result = CliRunner().invoke(models_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert import_checkpoint("tiny", out).options == OPTIONS


@pytest.mark.parametrize("name", FILES)
def test_training_starts_from_our_files(written, network, name):
    model = new_model(recipe(start_from=str(written / name)))
    found = model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", FILES)
def test_our_files_of_another_method_are_refused(written, name):
    with pytest.raises(CheckpointError, match="holds weights of 'tiny', and 'recce' was asked for"):
        import_checkpoint("recce", written / name)


def test_a_recipe_whose_options_are_not_the_files_is_refused_with_them(written):
    with pytest.raises(TrainError, match=r"'width': 5.*put them into the recipe's `options`"):
        new_model(recipe(options={}, start_from=str(written / "best.pt")))


def test_a_diverged_runs_weights_are_refused_as_a_start(written, tmp_path):
    content = torch.load(written / "best.pt", weights_only=True)
    content["model"]["first.weight"][0, 0, 0, 0] = torch.nan
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(TrainError, match=r"start_from: .*first\.weight: 1 of"):
        new_model(recipe(start_from=str(tmp_path / "best.pt")))


@pytest.mark.parametrize("note", ["theirs", "[1]", json.dumps({"method": "x"}), 3])
def test_somebody_elses_recipe_beside_the_weights_says_nothing(network, note, tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"recipe": note, "model": network.state_dict()}, path)
    assert import_checkpoint("tiny", path, **OPTIONS).layout == "our own"
