"""Two real processes over gloo do what one would."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from train.data.smoke_faces import write_smoke_faces
from train.fit.ranks import Ranks

ROOT = Path(__file__).resolve().parents[3]
ALONE = Ranks(0, 1, torch.device("cpu"))
SCRIPT = Path(__file__).with_name("_ranks.py")


def _torchrun(*arguments, processes=2, **options):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), *arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        **options,
    )


def test_two_ranks_have_the_gradients_of_one_process_with_the_double_batch(tmp_path):
    done = _torchrun(str(SCRIPT), "gradients", str(tmp_path))
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    expected = script.gradients(script.whole_batch(), ALONE)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_rank_that_dies_ends_the_run_with_its_traceback(tmp_path):
    done = _torchrun(str(SCRIPT), "die", str(tmp_path))
    assert done.returncode != 0
    assert "RuntimeError: rank one broke" in done.stderr


def test_two_ranks_train_validate_and_write_once(tmp_path):
    write_smoke_faces(tmp_path / "faces")
    recipe = {
        "method": "lgsc",
        "options": {"size_px": 32, "decoder_widths": [4, 4, 4, 4, 4], "score": "classifier"},
        "data": {
            "prepared": [str(tmp_path / "faces")],
            "bona_fide_per_step": 4,
            "attacks_per_step": 4,
        },
        "loader": {"kind": "torch", "workers": 0},
        "optimiser": {"kind": "adamw", "learning_rate": 0.001},
        "steps": 3,
        "log_every": 1,
        "validate_every": 3,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    done = _torchrun("-m", "train", str(tmp_path / "recipe.yaml"), "--out", str(run))
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((run / "losses.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    (validation,) = csv.DictReader((run / "validation.csv").read_text().splitlines())
    assert validation["faces"] == "64"  # 32 of each class, each counted once
    assert {path.name for path in run.iterdir()} >= {"checkpoint.pt", "best.pt", "losses.png"}
    assert not list(run.glob("*.tmp"))
    again = _torchrun("-m", "train", str(tmp_path / "recipe.yaml"), "--out", str(run), processes=1)
    assert again.returncode != 0
    assert "made by 2 processes, this run has 1" in again.stderr
