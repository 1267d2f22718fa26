"""An engine is fitted to a camera by its own footage, and says what that brought."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner

import models
from models import Calibration, build_model, sigmoid
from train.__main__ import main
from train.release import adapt
from train.release.adapt import adapt_engine, shift_to_bona_fide
from trt_engines.export import export_engine
from trt_engines.manifest import DecisionThresholds, load_manifest

METHODS = Path(__file__).parents[2] / "trt_engines" / "methods"
FPS = 5
PORTRAIT = np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352])


@pytest.fixture(autouse=True)
def small_sites(monkeypatch):
    """Ask for seconds where users are asked for minutes."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(METHODS)])
    monkeypatch.setattr(adapt, "LEAST_ADAPTED_S", 8.0)
    monkeypatch.setattr(adapt, "LEAST_KEPT_BACK_S", 4.0)
    monkeypatch.setattr(adapt, "LEAST_ATTACK_LOOKS", 5)
    monkeypatch.setattr(adapt, "_BETWEEN_S", 1.0)


def write_video(path, *, gain=1.0, green=1.0, seconds=12, seed=0):
    """Film the portrait by a camera with some gain, or through green glass."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        for i in range(seconds * FPS):
            light = PORTRAIT * gain * (1 + 0.03 * rng.standard_normal())
            light = light * (1.0, green, 1.0)
            picture = np.clip(light, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def engine(tmp_path):
    """An engine that takes brightness, for an attack."""
    model = build_model("tiny", {})
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.bias.fill_(2.0)  # no rectifier closes
        for channel, colours in enumerate(((0, 1, 2), (1,), (0, 2), (0,))):
            for colour in colours:
                model.first.weight[channel, colour, 1, 1] = 1 / len(colours)
        model.norm.eval()
        model.last.weight.zero_()
        model.last.weight[0, 0] = 20.0
        model.last.bias.fill_(-43.5)
    export_engine(
        model.eval(),
        method="tiny",
        options={},
        examples=torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8),
        folder=tmp_path / "engine",
        licence="Apache-2.0",
        thresholds=DecisionThresholds(enter=0.7, leave=0.4, source="made up"),
        max_batch=5,
        family="presentation",
    )
    return tmp_path / "engine" / "tiny.manifest.json"


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Recordings of a bright camera: bona fide, and an attack that is greener and darker."""
    folder = tmp_path_factory.mktemp("footage")
    for i in range(3):
        write_video(folder / f"bona_fide/{i}.mp4", gain=1.25, seed=i)
    for i in range(2):
        write_video(folder / f"attack/print/{i}.mp4", gain=1.1, green=1.2, seed=9 + i)
    return folder


@pytest.fixture
def site(footage, tmp_path):
    """Three recordings of a bona fide face, and no attack."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "bona_fide").symlink_to(footage / "bona_fide")
    return tmp_path / "site"


def test_bona_fide_footage_of_a_bright_camera_ends_its_false_alarms(engine, site, tmp_path):
    done = adapt_engine(engine, site, tmp_path / "out")
    assert done.split_by == "recording"
    assert not done.fitted_last_layer
    assert done.before.false_alarms == done.before.bona_fide_tracks == 1  # one was kept back
    assert done.after.false_alarms == 0
    assert done.after.highest_bona_fide < 0.5 < done.before.highest_bona_fide
    assert done.bona_fide_s >= 2 * done.before.bona_fide_s > 8
    manifest = load_manifest(tmp_path / "out" / "tiny.manifest.json")
    assert "footage of a site" in manifest.thresholds.source
    assert manifest.licence.endswith("adapted to a site")
    assert (manifest.max_batch, manifest.family) == (5, "presentation")
    assert json.loads((tmp_path / "out" / "adaptation.json").read_text()) == done.model_dump()


def test_the_bound_is_of_the_footage_that_was_kept_back(engine, site, tmp_path):
    after = adapt_engine(engine, site, tmp_path / "out").after
    assert after.attack_tracks == 0 and after.auc is None
    hours = after.bona_fide_s / 3600
    assert after.false_alarms_an_hour == 0
    assert after.at_most_an_hour == pytest.approx(3.0 / hours, rel=0.01)  # the rule of three


def test_a_sites_own_attacks_teach_the_last_layer_what_the_engine_did_not_see(
    engine, footage, tmp_path
):
    done = adapt_engine(engine, footage, tmp_path / "out")
    assert done.fitted_last_layer and done.attack_looks >= 5
    assert done.before.auc < 0.5  # darker than bona fide faces
    assert done.after.auc > 0.95
    assert done.after.attacks_caught == done.after.attack_tracks == 1
    assert done.after.false_alarms == 0


def test_one_recording_is_split_by_its_time(engine, tmp_path):
    write_video(tmp_path / "one/bona_fide/long.mp4", gain=1.25, seconds=30)
    done = adapt_engine(engine, tmp_path / "one", tmp_path / "out")
    assert done.split_by == "time"
    assert done.bona_fide_s == pytest.approx(18, abs=1.5)
    assert done.after.bona_fide_s == pytest.approx(11, abs=1.5)


def test_too_few_attacks_are_told_and_fit_nothing(engine, site, tmp_path, caplog):
    write_video(site / "attack/print/short.mp4", green=1.2, seconds=3)
    done = adapt_engine(engine, site, tmp_path / "out")
    assert not done.fitted_last_layer
    assert "too few to learn from" in caplog.text


def test_too_little_footage_is_refused_and_writes_nothing(engine, site, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "LEAST_ADAPTED_S", 240.0)
    result = _command(engine, site, tmp_path / "out")
    assert result.exit_code == 1
    assert "s of bona fide faces to learn from" in str(result.exception)
    assert "record more" in str(result.exception)
    assert not (tmp_path / "out").exists()


def _command(engine, site, out):
    arguments = ["adapt", "--engine", str(engine), "--data", str(site), "--out", str(out)]
    return CliRunner().invoke(main, arguments)


def test_the_command_tells_before_and_after(engine, site, tmp_path):
    result = _command(engine, site, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "before: 1 false alarms" in result.output
    assert "after: 0 false alarms" in result.output
    assert "--model" in result.output


def test_an_engine_without_weights_is_refused(engine, site, tmp_path):
    manifest = json.loads(engine.read_text())
    manifest |= {"weights": None, "weights_sha256": None}
    engine.write_text(json.dumps(manifest))
    result = _command(engine, site, tmp_path / "out")
    assert result.exit_code == 1
    assert "--onnx-only" in str(result.exception)


@pytest.mark.parametrize("bent", [False, True])
def test_the_shift_puts_nine_in_ten_looks_below_one_in_four(bent):
    calibration = Calibration()
    calibration.scale.fill_(2.0)
    if bent:
        calibration.widths[0], calibration.slopes[0], calibration.starts[0] = 3.0, 2.0, -1.0
    slope = float(calibration(torch.tensor([9.0])) - calibration(torch.tensor([8.0])))
    logits = np.random.default_rng(0).normal(5, 3, 1000)
    shift_to_bona_fide(calibration, logits)
    calibrated = calibration(torch.from_numpy(logits).float()).double().numpy()
    assert np.quantile(sigmoid(calibrated), 0.9) == pytest.approx(0.269, abs=0.001)
    far = torch.tensor([99.0, 98.0])
    assert float(calibration(far[:1]) - calibration(far[1:])) == pytest.approx(slope)


def test_a_quiet_camera_makes_an_engine_a_little_more_sensitive_and_no_more():
    calibration = Calibration()
    calibration.scale.fill_(2.0)
    shift_to_bona_fide(calibration, np.full(100, -16.0))
    assert calibration(torch.tensor([-16.0])).item() == pytest.approx(-7.0)  # -8 before
