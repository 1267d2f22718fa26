"""The loop learns, stops and goes on where it stopped, and says what is wrong."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from models import FaceBatch, build_model, in_float32
from train.__main__ import main
from train.config import Recipe, load_recipe
from train.data.selection import open_data
from train.data.smoke_faces import write_smoke_faces
from train.errors import TrainError
from train.fit.checkpoint import load_weights, save_checkpoint
from train.fit.loop import fit
from train.fit.objective import Objective, detached
from train.fit.ranks import Ranks

ROOT = Path(__file__).resolve().parents[3]
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke") / "faces"
    write_smoke_faces(folder)
    return folder


def _recipe(faces, **changes):
    return Recipe.model_validate(
        {
            "method": "lgsc",
            "options": {
                "size_px": 32,
                "decoder_widths": [4, 4, 4, 4, 4],
                "decoder_norm": "batch",
                "score": "classifier",
            },
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


def _fit(recipe, run):
    fit(recipe, run, open_data(recipe.data.prepared, None), ALONE)


def _losses(run):
    return list(csv.DictReader((run / "losses.csv").read_text().splitlines()))


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(faces, tmp_path, monkeypatch):
    recipe = _recipe(faces, average_decay=0.9, schedule={"kind": "cosine", "warmup_steps": 2})
    _fit(recipe, tmp_path / "whole")

    def killed(path, *arguments):
        save_checkpoint(path, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("train.fit.loop.save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        _fit(recipe, tmp_path / "cut")
    monkeypatch.undo()
    with (tmp_path / "cut" / "losses.csv").open("a") as losses:  # of a step that was not saved
        losses.write("4,0,0,0,0\n")
    _fit(recipe, tmp_path / "cut")
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")
    whole, cut = (load_weights(tmp_path / name / "best.pt")[2] for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_sigterm_saves_and_a_second_start_finishes(faces, tmp_path):
    workers = {"kind": "torch", "workers": 1}
    recipe = _recipe(faces, steps=2000, checkpoint_every=2000, validate_every=2000, loader=workers)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "train", str(path), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        while not (tmp_path / "run" / "losses.csv").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)  # to the loader's worker too, as torchrun sends it
        _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"stopped by SIGTERM after step" in told
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert 1 <= saved < 2000
    assert int(_losses(tmp_path / "run")[-1]["step"]) <= saved


def test_a_run_that_fails_ends_its_loaders_worker_and_itself(faces, tmp_path):
    recipe = _recipe(
        faces,
        optimiser={"kind": "adamw", "learning_rate": 1e30},
        loader={"kind": "torch", "workers": 1},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "train", str(path), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, timeout=90, check=False
    )
    assert done.returncode == 1
    assert b"the loss is no finite number" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_checkpoint_of_another_recipe_is_refused(faces, tmp_path):
    _fit(_recipe(faces, steps=1), tmp_path)
    with pytest.raises(TrainError, match=r"checkpoint\.pt: made by another recipe"):
        _fit(_recipe(faces, steps=2), tmp_path)


def test_a_checkpoint_of_another_number_of_processes_is_refused(faces, tmp_path):
    recipe = _recipe(faces, steps=1)
    _fit(recipe, tmp_path)
    data = open_data(recipe.data.prepared, None)
    with pytest.raises(TrainError, match="made by 1 processes, this run has 2"):
        fit(recipe, tmp_path, data, _Pretended(0, 2, torch.device("cpu")))


class _Pretended(Ranks):
    def wrap(self, module):
        return module


def test_a_truncated_checkpoint_is_an_error_that_names_it(faces, tmp_path):
    recipe = _recipe(faces, steps=1)
    _fit(recipe, tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainError, match=r"checkpoint\.pt: can't read the checkpoint"):
        _fit(recipe, tmp_path)


def test_a_loss_that_is_no_number_ends_the_run_with_its_step(faces, tmp_path):
    recipe = _recipe(faces, optimiser={"kind": "adamw", "learning_rate": 1e30})
    with pytest.raises(TrainError, match=r"step \d: the loss is no finite number: "):
        _fit(recipe, tmp_path)


def test_an_unknown_key_is_refused_with_its_place(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("method: lgsc\ndata: {prepared: [x], frames: 3}\nsteps: 1\n")
    with pytest.raises(TrainError, match=r"data\.frames: Extra inputs"):
        load_recipe(path)


def test_an_unknown_family_of_synthetic_attacks_is_refused_with_the_known_ones(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("method: lgsc\ndata: {prepared: [x], synthetic: {sbj: 1}}\nsteps: 1\n")
    with pytest.raises(TrainError, match=r"no family sbj; known: \['sbi'"):
        load_recipe(path)


def test_the_command_says_what_is_wrong_without_a_stack(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("method: lgsc\n")
    result = CliRunner().invoke(main, [str(path)])
    assert isinstance(result.exception, TrainError)


def _batch(n, size=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return FaceBatch(images, torch.tensor([0, 1]).repeat(n // 2))


def test_accumulated_batches_weigh_as_one_batch(faces, tmp_path):
    from train.fit.loop import _pass

    def gradient(batches):
        torch.manual_seed(0)
        options = {"size_px": 32, "decoder_widths": [4] * 5, "decoder_norm": "batch", "dropout": 0}
        model = build_model("lgsc", {**options, "weight_triplet": 0}).eval()
        model.classifier.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        model.training = True
        _pass(Objective(model), batches, torch.amp.GradScaler("cpu", enabled=False))
        return model.encoder.layer4[0].conv1.weight.grad

    whole = _batch(8)
    halves = [FaceBatch(whole.images[i : i + 4], whole.labels[i : i + 4]) for i in (0, 4)]
    torch.testing.assert_close(gradient(halves), gradient([whole]), rtol=1e-4, atol=1e-7)


def test_autocast_trains_with_the_loss_in_float32():
    model = build_model("lgsc", {"size_px": 32, "decoder_widths": [4] * 5}).train()
    terms, outputs = Objective(model, torch.bfloat16)(_batch(4))
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert outputs.cue.dtype == torch.float32


def test_detached_outputs_carry_no_gradient():
    model = build_model("lgsc", {"size_px": 32, "decoder_widths": [4] * 5}).train()
    _, outputs = Objective(model)(_batch(2))
    cut = detached(outputs)
    assert outputs.cue.requires_grad
    assert not cut.cue.requires_grad
    assert not any(feature.requires_grad for feature in cut.features)
    assert in_float32(cut)._fields == outputs._fields


def test_a_method_of_two_passes_takes_two_steps_a_batch(faces, tmp_path):
    recipe = _recipe(
        faces,
        method="udr",
        options={"trunk": "resnet18", "size_px": 64},
        steps=2,
        validate_every=2,
    )
    _fit(recipe, tmp_path)
    first = _losses(tmp_path)[0]
    assert {name for name in first if name.startswith("second_")}
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    steps = {int(state["step"]) for state in checkpoint["optimiser"]["state"].values()}
    assert max(steps) == 4


def test_the_schedule_warms_up_and_drops(faces):
    from train.config import ScheduleConfig
    from train.fit.loop import _rate

    rate = _rate(
        ScheduleConfig(kind="steps", warmup_steps=4, at_steps=(10, 20), gamma=0.5), steps=30
    )
    assert [rate(step) for step in (0, 1, 3, 4, 9, 10, 20, 29)] == [
        0.25,
        0.5,
        1.0,
        1.0,
        1.0,
        0.5,
        0.25,
        0.25,
    ]
    every = _rate(ScheduleConfig(kind="steps", every_steps=10, gamma=0.1), steps=30)
    assert every(25) == pytest.approx(0.01)


def test_decay_can_spare_biases_and_norms(faces):
    from train.fit.loop import _optimiser

    model = build_model("lgsc", {"size_px": 32, "decoder_widths": [4] * 5})
    recipe = _recipe(faces, decay_biases=False)
    decayed, spared = _optimiser(recipe, model).param_groups
    assert decayed["weight_decay"] == 0.01
    assert spared["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
