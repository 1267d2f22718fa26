"""The command line of training, as people start it: alone, by torchrun, with several seeds."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from torch.distributed.run import get_args_parser

import models
from train.__main__ import main
from train.config import load_recipe
from train.errors import TrainError
from train.fit.checkpoint import load_weights

OF_OLD = {("evaluate", "--run"), ("export", "--run")}  # RUN is their argument now


def _options():
    for name, command in main.commands.items():
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option.startswith("-") and (name, option) not in OF_OLD:
                    yield pytest.param(name, option, id=f"{name} {option}")


@pytest.mark.parametrize(("command", "option"), [*_options()])
def test_torchrun_takes_no_option_of_ours_for_its_own(command, option):
    parsed = get_args_parser().parse_args(["-m", "train", command, option, "value"])
    assert parsed.training_script_args == [command, option, "value"]


@pytest.mark.parametrize("command", ["evaluate", "export"])
@pytest.mark.parametrize("arguments", [["RUN"], ["--run", "RUN"]], ids=" ".join)
def test_the_run_is_an_argument_and_may_be_named_as_before(command, arguments, tmp_path):
    run = [argument.replace("RUN", str(tmp_path)) for argument in arguments]
    result = CliRunner().invoke(main, [command, *run])
    assert isinstance(result.exception, TrainError)
    assert str(result.exception) == (
        f"{tmp_path / 'best.pt'}: no trained weights; train the recipe first"
    )


@pytest.mark.parametrize("arguments", [[], ["x", "--run", "x"]], ids=["none", "both"])
def test_a_command_that_names_no_run_or_two_says_what_it_needs(arguments):
    result = CliRunner().invoke(main, ["evaluate", *arguments])
    assert result.exit_code == 2
    assert "name one folder of a finished run: RUN" in result.output


METHODS = Path(__file__).parents[1] / "trt_engines" / "methods"
RECIPE = """\
method: tiny
data: {prepared: [nowhere], bona_fide_per_step: 2, attacks_per_step: 2}
optimiser: {kind: adamw, learning_rate: 0.001, amsgrad: true}
steps: 100
"""


@pytest.fixture(autouse=True)
def tiny_method(monkeypatch):
    """Make `models.tiny` a method: a network in no time."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(METHODS)])


def _set(**settings):
    chosen = {"loader.workers": 0, **settings}
    return [text for key, value in chosen.items() for text in ("--set", f"{key}={value}")]


def _fit(folder, *arguments):
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return CliRunner().invoke(main, [str(path), *map(str, arguments)])


def test_several_seeds_are_trained_beside_each_other_and_averaged(tmp_path, faces):
    run = tmp_path / "run"
    result = _fit(tmp_path, "--prepared", faces, "--out", run, "--seeds", 2, *_set(steps=1))
    assert result.exit_code == 0, result.output
    assert [load_recipe(run / f"seed-{i}" / "recipe.yaml").seed for i in range(2)] == [0, 1]
    lines = result.stdout.strip().splitlines()
    assert lines[-2].startswith("mean of 2")
    (spread,) = json.loads((run / "seeds.json").read_text())["spreads"]
    assert f"{spread['mean']['dev_auc']:.4f}" in lines[-2]
    assert f"{spread['standard_deviation']['dev_auc']:.4f}" in lines[-1]
    compared = CliRunner().invoke(main, ["compare", str(run)])
    assert compared.stdout.strip().splitlines() == lines


def test_all_weights_that_are_kept_are_calibrated(tmp_path, faces, monkeypatch):
    monkeypatch.setattr("train.release.calibrate.fit_calibration", lambda *_: None)
    settings = _set(steps=2, validate_every=1, keep=2)
    result = _fit(tmp_path, "--prepared", faces, "--out", tmp_path / "run", *settings)
    assert result.exit_code == 0, result.output
    for name, step in (
        ("best.pt", None),
        ("kept/step-00000001.pt", 1),
        ("kept/step-00000002.pt", 2),
    ):
        _, at, _, calibrated = load_weights(tmp_path / "run" / name)
        assert calibrated
        assert step in (None, at)


def test_a_setting_of_the_command_line_counts_more_than_the_recipe(tmp_path, faces):
    settings = ["--set", "optimiser.kind=sgd", "--set", "steps=1"]
    result = _fit(tmp_path, "--prepared", faces, "--out", tmp_path / "run", *settings)
    assert isinstance(result.exception, TrainError)
    assert "with --set: optimiser.sgd.amsgrad: unknown key" in str(result.exception)


@pytest.mark.parametrize("setting", ["steps", "=3", "a=[x"])
def test_a_malformed_setting_ends_the_command_with_exit_code_2(tmp_path, setting):
    result = _fit(tmp_path, "--set", setting)
    assert result.exit_code == 2
    assert "Invalid value for '--set'" in result.output


def test_a_folder_that_can_not_be_written_is_an_error_that_names_it(tmp_path, faces):
    (tmp_path / "file").touch()
    result = _fit(tmp_path, "--prepared", faces, "--out", tmp_path / "file" / "run")
    assert isinstance(result.exception, TrainError)
    assert "file/run: can't be the folder of a run" in str(result.exception)
