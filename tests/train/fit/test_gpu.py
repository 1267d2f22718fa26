"""Training on a GPU, and on several over NCCL: the same program, by its device alone another."""

import csv
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from train.data.selection import open_data
from train.fit.loop import fit
from train.fit.ranks import Ranks, joined

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
SCRIPT = Path(__file__).with_name("_ranks.py")


def learned(recipe, run, device):
    """Return a run's rows of losses.csv, without the step, as columns."""
    fit(recipe, run, open_data(recipe.data.prepared, None), Ranks(0, 1, torch.device(device)))
    rows = list(csv.DictReader((run / "losses.csv").read_text().splitlines()))
    return {name: [float(row[name]) for row in rows] for name in rows[0] if name != "step"}


def test_a_process_alone_takes_the_first_gpu():
    with joined() as ranks:
        assert ranks.device == torch.device("cuda", 0)


def test_a_gpu_learns_what_the_cpu_learns(recipe_of, tmp_path):
    recipe = recipe_of(augment={})
    on_cpu = learned(recipe, tmp_path / "cpu", "cpu")
    on_gpu = learned(recipe, tmp_path / "gpu", "cuda")
    assert on_gpu.keys() == on_cpu.keys()
    for name, values in on_cpu.items():
        assert on_gpu[name] == pytest.approx(values, rel=0.02, abs=1e-3), name  # TF32


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_autocast_on_a_gpu_learns_nearly_the_same(recipe_of, tmp_path, kind):
    plain = learned(recipe_of(augment={}), tmp_path / "off", "cuda")
    found = learned(recipe_of(augment={}, autocast=kind), tmp_path / kind, "cuda")
    for name, values in plain.items():
        assert found[name] == pytest.approx(values, rel=0.1, abs=0.01), name


def test_fp16_scales_its_gradients(recipe_of, tmp_path):
    found = learned(recipe_of(augment={}, autocast="fp16"), tmp_path / "fp16", "cuda")
    assert min(found["loss_scale"]) > 1


@needs_two
def test_two_gpus_over_nccl_have_the_gradients_of_one_process(tmp_path, warm):
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    expected = script.gradients(script.whole_batch(), Ranks(0, 1, torch.device("cpu")))
    options = ["--standalone", "--nproc-per-node", "2"]
    with warm.start(
        "-m", "torch.distributed.run", *options, SCRIPT, "gradients", tmp_path
    ) as process:
        _, told = process.communicate()
    assert process.returncode == 0, told
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", map_location="cpu")
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=1e-4, msg=name)


def test_batch_norm_of_a_gpu_takes_part_in_a_synchronised_one():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3))).cuda()
    assert isinstance(network[0], nn.SyncBatchNorm)
    images = torch.rand(4, 3, 5, 5, device="cuda")
    found = network(images)  # alone: as batch norm
    torch.testing.assert_close(found, nn.BatchNorm2d(3).cuda()(images))
