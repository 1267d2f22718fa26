"""A process ends, whatever becomes of its loader's workers.

`python -m benchmarks.run_ends` does the same to whole runs, hundreds of times.
"""

import signal
from contextlib import ExitStack

import psutil
import pytest

LOADS = """
import sys
from pathlib import Path
from models import InputSpec
from train.data.loaders import Group, TorchLoaderConfig, open_loader
from train.data.shards import open_shards

groups = [Group("all", range(100), quota=4)]
spec = InputSpec(size_px=32, margin=0.5)
loader = TorchLoaderConfig(workers=int(sys.argv[3]))
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
def loading(faces, warm):
    """Start a process with a loader open."""
    with ExitStack() as started:

        def start(how, workers=1):
            process = started.enter_context(warm.start("-c", LOADS, faces, how, workers))
            assert process.stdout.readline() == "loads\n"
            return process, psutil.Process(process.pid).children(recursive=True)

        yield start


def test_a_process_with_a_loader_open_whose_workers_got_signals_loads_and_ends_with_them(loading):
    process, workers = loading("ends", workers=2)
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
    out, err = process.communicate("\n")
    assert out == "still loads\n", err
    assert process.returncode == 0, err
    assert "DataLoader worker" not in err  # that they were killed is no failure
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_a_process_that_fails_with_a_loader_open_ends_with_its_workers(loading):
    process, workers = loading("fails")
    _, err = process.communicate("\n")
    assert process.returncode == 1, err
    assert "nobody foresaw this" in err
    assert "DataLoader worker" not in err
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_workers_of_a_process_that_was_killed_end_by_themselves(loading):
    process, workers = loading("ends")
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
