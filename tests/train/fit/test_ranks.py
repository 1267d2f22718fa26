"""Two real processes over gloo do what one would."""

import csv
import importlib.util
import os
import socket
from pathlib import Path

import pytest
import torch
import yaml

from train.config import load_recipe
from train.errors import TrainError
from train.evaluation.run_record import read_record
from train.fit.ranks import Ranks

ROOT = Path(__file__).resolve().parents[3]
ALONE = Ranks(0, 1, torch.device("cpu"))
SCRIPT = Path(__file__).with_name("_ranks.py")
TRAIN = Path(__file__).with_name("_tiny.py")
LAUNCHER = "torch.distributed.run"


def _ended(process):
    """Return the exit code and what was written to stderr."""
    with process:
        _, told = process.communicate()
    return process.returncode, told


@pytest.fixture
def torchrun(warm):
    """Start a program twice by `torchrun`, and wait for its end."""

    def run(*arguments):
        options = ["--standalone", "--nproc-per-node", "2"]
        ranks = {"PYTHONPATH": str(ROOT)}
        return _ended(warm.start("-m", LAUNCHER, *options, *arguments, env=ranks))

    return run


@pytest.fixture
def ranks(warm):
    """Start a program as `torchrun` starts it, several times, and wait for its end."""

    def run(*arguments, world=2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = [
            warm.start(*arguments, env={**place, "RANK": str(i), "LOCAL_RANK": str(i)})
            for i in range(world)
        ]
        ended = [_ended(process) for process in started]
        assert [code for code, _ in ended] == [0] * world, ended

    return run


def test_two_ranks_have_the_gradients_of_one_process_with_the_double_batch(tmp_path, ranks):
    ranks(SCRIPT, "gradients", tmp_path)
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    expected = script.gradients(script.whole_batch(), ALONE)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_loss_that_is_no_number_on_one_rank_ends_all_before_they_step(tmp_path, ranks):
    ranks(SCRIPT, "diverge", tmp_path)
    for rank in range(2):
        told = (tmp_path / f"{rank}.txt").read_text()
        assert told.startswith("step 3: the loss is no finite number: term (rank 1). ")
        assert told.endswith("unchanged: True")


def test_no_thread_of_gloo_is_left_to_abort_the_process_at_its_end(tmp_path, ranks):
    ranks(SCRIPT, "leave", tmp_path)
    for rank in range(2):
        assert "gloo" not in (tmp_path / f"{rank}.txt").read_text()


def test_a_rank_that_dies_ends_the_run_with_its_traceback(tmp_path, torchrun):
    code, told = torchrun(SCRIPT, "die", tmp_path)
    assert code != 0
    assert "RuntimeError: rank one broke" in told


def _recipe(folder, prepared, **changes):
    recipe = {
        "method": "tiny",
        "data": {"prepared": [str(prepared)], "bona_fide_per_step": 4, "attacks_per_step": 4},
        "loader": {"kind": "torch", "workers": 0},
        "optimiser": {"kind": "adamw", "learning_rate": 0.001},
        "steps": 3,
        "log_every": 1,
        "validate_every": 3,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_two_ranks_train_validate_and_write_once(tmp_path, faces, torchrun, train):
    recipe, run = _recipe(tmp_path, faces), tmp_path / "run"
    code, told = torchrun(TRAIN, recipe, "--out", run)
    assert code == 0, told
    assert [row["step"] for row in _rows(run / "losses.csv")] == ["1", "2", "3"]
    (validation,) = _rows(run / "validation.csv")
    assert validation["faces"] == "64"  # 32 of each class, each counted once
    assert {path.name for path in run.iterdir()} >= {"checkpoint.pt", "best.pt", "losses.png"}
    assert not [*run.glob("*.tmp"), *run.glob(".*.part")]
    with pytest.raises(TrainError, match="made by 2 processes, this run has 1"):
        train(load_recipe(recipe), run)


def test_ranks_without_a_face_of_dev_train_validate_and_calibrate(
    tmp_path, stored_faces, write_shards, ranks
):
    few = [
        (record.model_copy(update={"split": "dev", **_own(record)}) if i < 2 else record, png)
        for i, (record, png) in enumerate(stored_faces)
    ]
    prepared = write_shards(tmp_path / "faces", few)
    (prepared / "problems.jsonl").touch()
    recipe = _recipe(
        tmp_path,
        prepared,
        method="tiny_refined",  # its second look is fitted on dev, too
        data={"prepared": [str(prepared)], "bona_fide_per_step": 2, "attacks_per_step": 2},
    )
    run = tmp_path / "run"
    ranks(TRAIN, recipe, "--out", run, "--allow-overlap", world=3)
    assert _rows(run / "validation.csv")[0]["faces"] == "2"
    assert (run / "best.pt").exists()


def _own(record):
    return {"video_id": f"dev:{record.sample_id}", "source_id": f"dev:{record.source_id}"}


def test_tasks_that_slurm_starts_train_together(tmp_path, faces, warm):
    recipe, run = _recipe(tmp_path, faces), tmp_path / "run"
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    tasks = [
        warm.start(
            *(TRAIN, recipe, "--out", run),
            env={**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    ended = [_ended(task) for task in tasks]
    assert [code for code, _ in ended] == [0, 0], ended
    assert read_record(run).processes == 2
    assert [row["step"] for row in _rows(run / "losses.csv")] == ["1", "2", "3"]
