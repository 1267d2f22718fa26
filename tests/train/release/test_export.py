"""From a run to an engine by the command; the network is tiny, and its weights are set by hand."""

import json
from pathlib import Path

import click
import pytest
import torch

import models
from models import build_model, import_checkpoint
from train.__main__ import main
from train.config import Recipe
from train.errors import TrainError
from train.fit.checkpoint import save_weights
from trt_engines.manifest import load_manifest

METHODS = Path(__file__).parents[2] / "trt_engines" / "methods"
# raised inside torch's exporter
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def tiny_method():
    """Make `models.tiny` a method for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "__path__", [*models.__path__, str(METHODS)])
        yield


@pytest.fixture
def run(faces, tmp_path):
    """Make a run's folder; every face's log-odds lie about `log_odds`."""

    def write(log_odds=0.0, *, calibrated=True, **changes):
        torch.manual_seed(0)
        network = build_model("tiny", {"width": 6}).eval()
        network.calibration.offset.fill_(-log_odds)
        recipe = Recipe.model_validate(
            {
                "method": "tiny",
                "options": {"width": 6},
                "data": {"prepared": [str(faces)]},
                "optimiser": {"kind": "adam", "learning_rate": 1e-3},
                "steps": 1,
                **changes,
            }
        )
        save_weights(tmp_path / "best.pt", recipe, 1, network, calibrated=calibrated)
        return tmp_path

    return write


def export(run, *options):
    main(["export", "--run", str(run), *options], standalone_mode=False)
    return load_manifest(run / "engine" / "tiny.manifest.json")


def test_the_manifest_says_what_the_thresholds_rest_on(run, capsys):
    manifest = export(run(), "--false-alarms", "0.1")
    thresholds = manifest.thresholds
    assert thresholds.leave <= 0.5 <= thresholds.enter
    assert thresholds.source.startswith("dev faces of the data sets, fused as in streaming")
    assert "at most 0.1 of the bona fide tracks may alarm" in thresholds.source
    assert "of 32 do, and" in thresholds.source
    assert "64 tracks are pictures" in thresholds.source
    assert f"attack at or above {thresholds.enter:g}" in capsys.readouterr().out


def test_a_network_that_takes_everybody_for_an_attack_is_refused_with_the_way_out(run):
    folder = run(log_odds=9)
    with pytest.raises(TrainError) as caught:
        export(folder)
    assert "no alarm would be possible" in str(caught.value)
    assert "smoke:dev/" in str(caught.value)
    assert not (folder / "engine").exists()


def test_an_uncalibrated_network_is_refused(run):
    with pytest.raises(TrainError, match="not calibrated, so its probabilities mean nothing"):
        export(run(calibrated=False))


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan", "many"])
def test_a_share_of_false_alarms_outside_0_to_1_is_refused(run, share):
    with pytest.raises((click.UsageError, TrainError), match=r"range 0<=x<=1|0 to 1|valid float"):
        export(run(), "--false-alarms", share)


@pytest.mark.parametrize("share", ["0", "1"])
def test_no_false_alarm_and_every_false_alarm_are_both_granted(run, share):
    source = export(run(), "--false-alarms", share).thresholds.source
    assert f"at most {share} of the bona fide tracks may alarm: " in source
    assert "alarm: 0 of 32 do" in source or share == "1"


def test_the_manifest_says_which_family_of_attacks_the_recipe_names(run):
    assert export(run()).family is None
    assert export(run(family="presentation")).family == "presentation"


def test_half_precision_is_an_option_of_the_command(run):
    manifest = export(run(), "--precision", "fp16")
    assert manifest.precision == "fp16"
    assert manifest.onnx_torch_max_abs > 1e-6


def test_the_engines_weights_are_read_again_with_their_options(run):
    folder = run(log_odds=0.5)
    export(folder)
    imported = import_checkpoint("tiny", folder / "engine" / "tiny.safetensors")
    assert imported.options == {"width": 6}
    assert imported.model.calibration.offset == pytest.approx(-0.5)


def test_exporting_again_leaves_no_other_files(run):
    folder = run()
    for _ in range(2):
        export(folder, "--onnx-only")
    names = sorted(path.name for path in (folder / "engine").iterdir())
    assert names == ["tiny.manifest.json", "tiny.onnx"]
    assert json.loads((folder / "engine" / "tiny.manifest.json").read_text())["weights"] is None
