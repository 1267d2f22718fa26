"""An imported network becomes an engine on bona fide faces alone; its weights are random."""

import re
from pathlib import Path

import click
import pytest
import torch

import models
from models import build_model, import_checkpoint, packed_weights
from train.__main__ import main
from train.data.smoke_faces import write_smoke_faces
from train.data.stored_attacks import write_synthetic_attacks
from train.errors import TrainError
from train.evaluation.scores import FrameScore
from train.release.imported import _shift, import_network
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
def weights(tmp_path):
    """Write a network's weights with their options; return the file."""

    def write(method, log_odds=0.0, **options):
        torch.manual_seed(0)
        network = build_model(method, options).eval()
        network.calibration.offset.fill_(-log_odds)
        path = tmp_path / f"{method}.safetensors"
        path.write_bytes(packed_weights(network.state_dict(), method, options))
        return path

    return write


def _import(method, weights, faces, out, **options):
    return import_network(
        method, weights, [faces], out, options={}, licence="x", false_alarms=0.1, **options
    )


def _row(video, logit, frame=0, track=0):
    return FrameScore(
        sample_id=f"{video}@{frame}.{track}",
        dataset="test",
        video_id=video,
        label=0,
        frame=frame,
        track=track,
        logit=logit,
        score=0.5,
    )


def test_a_track_counts_once_however_many_looks_it_has():
    long = [_row("long", 9.0, frame) for frame in range(100)]
    short = [_row(f"short{i}", float(i)) for i in range(9)]  # 0 ... 8
    assert _shift([*long, *short], 0.0) == 9.0
    assert _shift([*long, *short], 1.0) == 0.0
    assert _shift([*long, *short], 0.5) == pytest.approx(4.5)


def test_the_mean_of_a_track_counts_and_each_face_of_a_video_is_one():
    rows = [_row("a", -1.0), _row("a", 3.0, 1), _row("a", 7.0, 2, track=1)]
    assert _shift(rows, 0.0) == 7.0
    assert _shift(rows, 1.0) == 1.0


def test_log_odds_are_shifted_by_bona_fide_tracks_and_keep_their_slope(weights, faces, tmp_path):
    manifest = _import("tiny", weights("tiny", width=6), faces, tmp_path / "engine")
    calibration = import_checkpoint(
        "tiny", tmp_path / "engine" / "tiny.safetensors"
    ).model.calibration
    assert calibration.scale == 1
    assert not calibration.slopes.any()
    assert f"less {float(calibration.offset):.3g}, so that 0.9 of" in manifest.thresholds.source
    assert manifest.options == {"width": 6}


def test_the_threshold_keeps_its_promise_and_counts_attacks_without_using_them(
    weights, faces, tmp_path
):
    thresholds = _import("tiny", weights("tiny"), faces, tmp_path / "engine").thresholds
    assert thresholds.leave <= 0.5 <= thresholds.enter
    said = r"at most 0\.1 of .* may alarm: (\d+) of 32 do, and \d+ of 32 attack tracks"
    alarms = re.search(said, thresholds.source)
    assert alarms is not None, thresholds.source
    assert int(alarms[1]) <= 3


def test_a_calibration_that_came_with_the_weights_is_replaced(weights, faces, tmp_path):
    sources = [
        _import("tiny", weights("tiny", log_odds), faces, tmp_path / "engine").thresholds.source
        for log_odds in (0.0, 9.0)
    ]
    assert sources[0] == sources[1]


def test_weights_of_an_encoder_alone_are_no_detector(faces, tmp_path):
    encoder = build_model("lgsc", {"size_px": 64}).encoder
    torch.save(encoder.state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(TrainError, match=r"fills a part of the network only.*start_from"):
        _import("lgsc", tmp_path / "resnet18.pth", faces, tmp_path / "engine")


def test_a_second_look_can_not_be_fitted_without_attacks(weights, faces, tmp_path):
    with pytest.raises(TrainError, match="its second look is fitted on attacks"):
        _import("tiny_refined", weights("tiny_refined"), faces, tmp_path / "engine")


def test_faces_of_attacks_alone_are_refused(weights, faces, tmp_path):
    attacks = tmp_path / "attacks"
    write_synthetic_attacks(faces, attacks, {"sbi": 1.0}, split="dev", seed=0)
    with pytest.raises(TrainError, match="none of the dev faces is bona fide"):
        _import("tiny", weights("tiny"), attacks, tmp_path / "engine")


def test_faces_without_a_dev_split_are_refused(weights, faces, tmp_path):
    attacks = tmp_path / "attacks"
    write_synthetic_attacks(faces, attacks, {"sbi": 1.0}, split="train", seed=0)
    with pytest.raises(TrainError, match="no face is of split dev"):
        _import("tiny", weights("tiny"), attacks, tmp_path / "engine")


def test_faces_with_windows_of_another_rule_are_refused_with_the_way_out(weights, faces, tmp_path):
    with pytest.raises(TrainError, match="prepare them with --set window=inside"):
        _import("minifasnet", weights("minifasnet", margin=1.5), faces, tmp_path / "engine")


def test_weights_that_can_not_be_used_are_refused(weights, faces, tmp_path):
    with pytest.raises(TrainError, match="holds weights of 'tiny', and 'lgsc' was asked for"):
        _import("lgsc", weights("tiny"), faces, tmp_path / "engine")


def test_the_command_makes_an_engine_with_the_authors_licence(weights, tmp_path, capsys):
    faces, engine = tmp_path / "faces", tmp_path / "engine"
    write_smoke_faces(faces, window="inside")
    path = weights("minifasnet", margin=1.5)
    given = ["import", "minifasnet", "--weights", path, "--faces", faces, "--out", engine]
    main(list(map(str, given)), standalone_mode=False)
    manifest = load_manifest(engine / "minifasnet.manifest.json")
    assert manifest.licence.startswith("Apache-2.0 (Minivision")
    assert manifest.family == "presentation"
    assert (manifest.input.window, manifest.input.resize) == ("inside", "bilinear")
    assert manifest.input.margin == 1.5
    assert f"attack at or above {manifest.thresholds.enter:g}" in capsys.readouterr().out


def test_the_command_needs_faces_and_weights():
    with pytest.raises(click.UsageError, match="weights"):
        main(["import", "minifasnet", "--out", "x"], standalone_mode=False)
