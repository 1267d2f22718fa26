"""A process ends, whatever becomes of its loader's workers.

`python -m benchmarks.run_ends` does the same to whole runs, hundreds of times.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[3]

LOADS = """
import sys
from pathlib import Path
from models import InputSpec
from train.data.loaders import Group, TorchLoaderConfig, open_loader
from train.data.shards import open_shards

groups = [Group("all", range(100), quota=4)]
spec = InputSpec(size_px=32, margin=0.5)
loader = TorchLoaderConfig(workers=2)
batches = open_loader(open_shards(Path(sys.argv[1])), groups, spec, loader, seed=0)
next(batches)
print("loads", flush=True)
sys.stdin.readline()
for _ in range(20):
    next(batches)
print("still loads", flush=True)
if sys.argv[2] == "fails":
    raise RuntimeError("nobody foresaw this")
"""  # `batches` is still open when the interpreter ends


@pytest.fixture
def loading(faces):
    """Start a process with a loader open."""
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", LOADS, str(faces), how],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "loads\n"
        return process, psutil.Process(process.pid).children(recursive=True)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("how", "code"), [("ends", 0), ("fails", 1)])
def test_a_process_with_a_loader_open_ends_with_its_workers(loading, how, code):
    process, workers = loading(how)
    _, err = process.communicate("\n", timeout=120)
    assert process.returncode == code, err
    assert ("nobody foresaw this" in err) == (how == "fails")
    assert "DataLoader worker" not in err  # that they were killed is no failure
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_to_the_workers_does_not_keep_them_from_loading(loading, number):
    process, workers = loading("ends")
    for worker in workers:
        worker.send_signal(number)
    out, err = process.communicate("\n", timeout=120)
    assert out == "still loads\n", err
    assert process.returncode == 0


def test_workers_of_a_process_that_was_killed_end_by_themselves(loading):
    process, workers = loading("ends")
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
