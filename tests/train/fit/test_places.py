"""Where a launcher put a process; and one run per folder."""

import os
from pathlib import Path

import pytest
import torch

from train.errors import TrainError
from train.fit.ranks import Place, Ranks, first_host, place_of
from train.fit.run_lock import locked

ROOT = Path(__file__).resolve().parents[3]
ALONE = Ranks(0, 1, torch.device("cpu"))
SRUN = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_without_a_launcher_a_process_is_alone():
    assert place_of({}) == Place()
    assert place_of({"SLURM_JOB_ID": "3", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == Place()


def test_torchruns_variables_are_read():
    assert place_of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Place(5, 8, 1)


def test_slurms_variables_are_read_and_rank_0s_machine_is_where_all_meet():
    assert place_of(SRUN) == Place(5, 8, 1, ("gpu07", 15_000 + 7 * 1234 + 2))


def test_torchruns_variables_count_within_a_slurm_job():
    environment = {**SRUN, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert place_of(environment) == Place(1, 2, 1)


def test_one_task_of_a_larger_job_is_alone():
    assert place_of({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == Place()


def test_a_given_address_counts_more_than_slurms_list():
    environment = {**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    assert place_of(environment).meet_at == ("10.0.0.1", 4000)


def test_the_port_stays_below_those_that_the_system_gives_away():
    ports = {place_of({**SRUN, "SLURM_JOB_ID": str(job)}).meet_at[1] for job in range(10_000)}
    assert min(ports) >= 15_000
    assert max(ports) < 30_000
    assert len(ports) > 5_000


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("", ""),
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[07-09,12],login", "gpu07"),
        ("rack[3,5]-node[01-04]", "rack3-node01"),
        ("gpu[1-2].cluster.example,other", "gpu1.cluster.example"),
    ],
)
def test_the_first_host_of_slurms_list_is_found(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK must be a number"),
        ({"RANK": "0"}, "WORLD_SIZE must be a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 among 2"),
        ({"SLURM_NTASKS": "2"}, "SLURM_PROCID must be a number"),
        ({"SLURM_NTASKS": "two"}, "SLURM_NTASKS must be a number .*found 'two'"),
    ],
)
def test_variables_that_do_not_fit_together_are_refused(environment, message):
    with pytest.raises(TrainError, match=message):
        place_of(environment)


HOLDS = """
import sys, torch
from pathlib import Path
from train.fit.ranks import Ranks
from train.fit.run_lock import locked
with locked(Path(sys.argv[1]), Ranks(0, 1, torch.device("cpu"))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_run_writes_to_is_refused_and_free_once_that_is_gone(tmp_path, warm):
    run = tmp_path / "run"
    with warm.start("-c", HOLDS, run) as other:
        assert other.stdout.readline() == "held\n"
        holder = rf"another training run .*process {other.pid} on "
        with pytest.raises(TrainError, match=holder), locked(run, ALONE):
            pass
        other.kill()
        other.communicate()
    with locked(run, ALONE):
        assert f"process {os.getpid()} on" in (run / ".lock").read_text()


def test_a_folder_that_can_not_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(TrainError, match=r"file/run: can't be the folder of a run")
    with refused, locked(tmp_path / "file" / "run", ALONE):
        pass
