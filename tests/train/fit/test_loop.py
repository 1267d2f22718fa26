"""The loop learns, stops and goes on where it stopped, and says what is wrong."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from models import FaceBatch, build_model, in_float32
from train.__main__ import main
from train.config import ScheduleConfig, load_recipe
from train.data.overlap import load_learned
from train.errors import TrainError
from train.evaluation.run_record import read_record
from train.fit.checkpoint import load_weights, save_checkpoint
from train.fit.objective import Objective, detached
from train.fit.optimise import factor, open_optimiser, set_learning_rate
from train.fit.state import accumulate

TRAIN = Path(__file__).with_name("_tiny.py")


def _losses(run):
    return list(csv.DictReader((run / "losses.csv").read_text().splitlines()))


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    tmp_path, monkeypatch, recipe_of, train
):
    recipe = recipe_of(
        options={"dropout": 0.5},  # it draws in each step
        average_decay=0.9,
        schedule={"kind": "cosine", "warmup_steps": 2},
    )
    train(recipe, tmp_path / "whole")

    def killed(path, *arguments):
        save_checkpoint(path, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("train.fit.state.save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut")
    monkeypatch.undo()
    with (tmp_path / "cut" / "losses.csv").open("a") as losses:  # of a step that was not saved
        losses.write("4,0,0,0,0\n")
    train(recipe, tmp_path / "cut")
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")
    whole, cut = (load_weights(tmp_path / name / "best.pt")[2] for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_sigterm_saves_and_a_second_start_finishes(tmp_path, recipe_file, recipe_of, warm):
    workers = {"kind": "torch", "workers": 1}
    recipe = recipe_of(steps=2000, checkpoint_every=2000, validate_every=2000, loader=workers)
    with warm.start(TRAIN, recipe_file(recipe), "--out", tmp_path / "run") as process:
        while not (tmp_path / "run" / "losses.csv").exists():
            assert Path(f"/proc/{process.pid}").exists(), process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)  # to the loader's worker too, as torchrun sends it
        _, told = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step" in told
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert 1 <= saved < 2000
    assert int(_losses(tmp_path / "run")[-1]["step"]) <= saved


def test_a_run_that_fails_ends_its_loaders_worker_and_itself(
    tmp_path, recipe_file, recipe_of, warm
):
    recipe = recipe_of(
        optimiser={"kind": "adamw", "learning_rate": 1e30},
        loader={"kind": "torch", "workers": 1},
    )
    with warm.start(TRAIN, recipe_file(recipe), "--out", tmp_path / "run") as process:
        _, told = process.communicate()
    assert process.returncode == 1
    assert "the loss is no finite number" in told
    assert "Traceback" not in told


def test_a_truncated_checkpoint_is_an_error_that_names_it(tmp_path, recipe_of, train):
    recipe = recipe_of(steps=1)
    train(recipe, tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainError, match=r"checkpoint\.pt: can't read the checkpoint"):
        train(recipe, tmp_path)


def _all_tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _all_tensors(part)


def test_a_run_that_diverges_between_two_rows_of_its_log_keeps_its_last_good_checkpoint(
    tmp_path, recipe_of, train
):
    recipe = recipe_of(
        optimiser={"kind": "adamw", "learning_rate": 1e30}, log_every=100, checkpoint_every=1
    )
    with pytest.raises(TrainError, match=r"step 2: the loss is no finite number: \w+.*\(rank 0\)"):
        train(recipe, tmp_path)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 1
    assert all(tensor.isfinite().all() for tensor in _all_tensors(kept))


def test_weights_that_are_no_numbers_are_never_written(tmp_path, recipe_of, train):
    # The loss and the gradient of the first step are finite.
    overflows = {"kind": "sgd", "learning_rate": 3e38, "momentum": 0, "weight_decay": 1000}
    recipe = recipe_of(optimiser=overflows, checkpoint_every=1)
    with pytest.raises(TrainError, match=r"checkpoint\.pt: not written after step 1, .*network\."):
        train(recipe, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_an_error_at_the_checkpoint_leaves_the_last_good_one(tmp_path, recipe_of, train):
    train(recipe_of(steps=2, checkpoint_every=1, validate_every=9), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    network = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(network.weight, torch.nan)
    with pytest.raises(TrainError, match=r"network\.weight"):
        save_checkpoint(
            tmp_path / "checkpoint.pt", recipe_of(), 1, state["faces"], 3, {"network": network}
        )
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_of_equal_weights_the_latest_are_kept(tmp_path, recipe_of, train, monkeypatch):
    monkeypatch.setattr("train.fit.state.video_auc", lambda _: 0.75)
    standing = train(recipe_of(steps=6, validate_every=2), tmp_path)
    assert standing.kept == [(0.75, 6)]
    assert load_weights(tmp_path / "best.pt")[1] == 6


def test_several_weights_are_kept_the_best_by_dev(tmp_path, recipe_of, train, monkeypatch):
    areas = iter([0.6, 0.9, 0.5, 0.8, 0.7, 0.9])
    monkeypatch.setattr("train.fit.state.video_auc", lambda _: next(areas))
    train(recipe_of(validate_every=1, keep=3), tmp_path)
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["step-00000002.pt", "step-00000004.pt", "step-00000006.pt"]
    assert load_weights(tmp_path / "kept" / "step-00000004.pt")[1] == 4
    assert load_weights(tmp_path / "best.pt")[1] == 6


def test_a_run_ends_once_dev_has_not_risen_for_its_patience(
    tmp_path, recipe_of, train, monkeypatch
):
    areas = iter([0.6, 0.7, 0.7, 0.6, 0.8, 0.8])
    monkeypatch.setattr("train.fit.state.video_auc", lambda _: next(areas))
    recipe = recipe_of(validate_every=1, patience=2)
    assert train(recipe, tmp_path).kept == [(0.7, 3)]  # of equals the latest; no rise all the same
    assert [row["step"] for row in _losses(tmp_path)] == ["1", "2", "3", "4"]
    assert train(recipe, tmp_path).validated == 4  # it has ended, and stays so
    train(recipe.model_copy(update={"patience": 3}), tmp_path)
    assert [row["step"] for row in _losses(tmp_path)] == ["1", "2", "3", "4", "5", "6"]


def test_a_validation_that_was_cut_off_is_done_by_the_run_that_goes_on(
    tmp_path, recipe_of, train, monkeypatch
):
    recipe = recipe_of()
    train(recipe, tmp_path / "whole")

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.fit.state.video_auc", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut")
    monkeypatch.undo()
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == 3
    train(recipe, tmp_path / "cut")
    whole, cut = ((tmp_path / name / "validation.csv").read_text() for name in ("whole", "cut"))
    assert cut == whole


def test_a_finished_run_is_neither_trained_nor_validated_again(
    tmp_path, recipe_of, train, monkeypatch
):
    recipe = recipe_of()
    first = train(recipe, tmp_path)
    monkeypatch.setattr("train.fit.state.score_part", None)
    monkeypatch.setattr("train.fit.state.accumulate", None)
    assert train(recipe, tmp_path) == first


def test_the_console_tells_dev_auc_while_training(tmp_path, recipe_of, train, caplog):
    caplog.set_level("INFO")
    train(recipe_of(), tmp_path)
    assert [m for m in caplog.messages if m.startswith("step 3: dev AUC 0.")]


def test_a_run_says_what_it_is_and_whom_it_has_seen(tmp_path, recipe_of, train, faces):
    recipe = recipe_of(seed=4)
    train(recipe, tmp_path)
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    record = read_record(tmp_path)
    assert (record.seed, record.n_train, record.n_dev) == (4, 192, 64)
    assert record.recipe_digest == recipe_of(seed=5).digest()
    learned = load_learned(tmp_path)
    assert len(learned["train"]) == 192
    assert learned["dev"]["video_id"][0].as_py().startswith("smoke:dev/")


@pytest.mark.parametrize(
    "optimiser",
    [
        {"kind": "sgd", "learning_rate": 0.01, "momentum": 0.9, "nesterov": True},
        {"kind": "sgd", "learning_rate": 0.01, "momentum": 0},
        {"kind": "adam", "learning_rate": 0.001},
    ],
    ids=["nesterov", "plain", "adam"],
)
def test_every_optimiser_learns_and_goes_on(tmp_path, recipe_of, train, optimiser):
    train(recipe_of(optimiser=optimiser), tmp_path / "whole")
    train(recipe_of(optimiser=optimiser, steps=3), tmp_path / "cut")
    train(recipe_of(optimiser=optimiser), tmp_path / "cut")
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")


def test_an_unknown_key_is_refused_with_its_place(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("method: lgsc\ndata: {prepared: [x], frames: 3}\nsteps: 1\n")
    with pytest.raises(TrainError, match=r"data\.frames: unknown key"):
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


def test_accumulated_batches_weigh_as_one_batch():

    def gradient(batches):
        torch.manual_seed(0)
        options = {"size_px": 32, "decoder_widths": [4] * 5, "decoder_norm": "batch", "dropout": 0}
        model = build_model("lgsc", {**options, "weight_triplet": 0}).eval()
        model.classifier.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        model.training = True
        accumulate(Objective(model), batches, torch.amp.GradScaler("cpu", enabled=False))
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


def test_a_method_of_two_passes_takes_two_steps_a_batch(tmp_path, recipe_of, train):
    recipe = recipe_of(
        method="udr",
        options={"trunk": "resnet18", "size_px": 64},
        steps=1,
        validate_every=1,
    )
    train(recipe, tmp_path)
    first = _losses(tmp_path)[0]
    assert {name for name in first if name.startswith("second_")}
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    steps = {int(state["step"]) for state in checkpoint["optimiser"]["state"].values()}
    assert max(steps) == 2


def test_the_schedule_warms_up_and_drops():
    drops = ScheduleConfig(kind="steps", warmup_steps=4, at_steps=(10, 20), gamma=0.5)
    assert [factor(drops, 30, step) for step in (0, 1, 3, 4, 9, 10, 20, 29)] == [
        0.25,
        0.5,
        1.0,
        1.0,
        1.0,
        0.5,
        0.25,
        0.25,
    ]
    every = ScheduleConfig(kind="steps", every_steps=10, gamma=0.1)
    assert factor(every, 30, 25) == pytest.approx(0.01)


def test_weights_that_are_named_learn_at_a_rate_of_their_own(recipe_of):
    model = build_model("tiny", {})
    recipe = recipe_of(
        optimiser={"kind": "sgd", "learning_rate": 0.1},
        rates={"last": 5.0, "last.bias": 2.0},
        schedule={"kind": "constant", "warmup_steps": 10},
    )
    optimiser = open_optimiser(recipe, model)
    assert set_learning_rate(optimiser, recipe, 5) == pytest.approx(0.05)
    rate_of = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    rates = {name: rate_of[id(p)] for name, p in model.named_parameters()}
    assert rates["last.weight"] == pytest.approx(0.25)
    assert rates["last.bias"] == pytest.approx(0.1)
    assert rates["first.weight"] == rates["norm.bias"] == pytest.approx(0.05)


def test_a_rate_of_weights_that_are_not_there_is_refused(recipe_of):
    with pytest.raises(TrainError, match=r"rates: no weight's name begins with 'head'.*first, last"):
        open_optimiser(recipe_of(rates={"head": 2.0}), build_model("tiny", {}))


def test_decay_can_spare_biases_and_norms(recipe_of):
    model = build_model("lgsc", {"size_px": 32, "decoder_widths": [4] * 5})
    recipe = recipe_of(decay_biases=False)
    decayed, spared = open_optimiser(recipe, model).param_groups
    assert decayed["weight_decay"] == 0.01
    assert spared["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
