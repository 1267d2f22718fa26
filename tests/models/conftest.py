"""Numbers from running the original code: tests/golden/<name>, whose READMEs say how."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
TEACHER = Path(__file__).resolve().parents[3] / "shared" / "teacher"
MINIFASNET_FILES = {"v2": "2.7_80x80_MiniFASNetV2.pth", "v1se": "4_0_0_80x80_MiniFASNetV1SE.pth"}


def filled(key, shape, gain):
    """One tensor by the fill rule of the golden READMEs; `gain` 1 or 2 as the README says."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if last.endswith(("running_var", "_variance")):
        values = rng.uniform(0.5, 1.5, shape)
    elif last.endswith(("running_mean", "_mean")):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) >= 2:
        values = rng.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
    elif len(shape) == 1 and last == "weight":
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(values, np.float32))


class Golden:
    """One folder whose `io.npz` holds `NAME.shape/.stats/.sub/.stride` as its README says."""

    def __init__(self, name):
        self.folder = GOLDEN / name
        self.io = np.load(self.folder / "io.npz")
        self.losses = np.load(self.folder / "losses.npz")
        self.keys = json.loads((self.folder / "keys.json").read_text())
        self.worst = {}  # tensor -> largest |difference| over the largest |value|

    def state(self, gain=1):
        """The state dict in the upstream code's names; its constants are left out by None."""
        return {key: filled(key, shape, gain) for key, shape, *_ in self.keys}

    def images(self, shape, seed=1234):
        rng = np.random.Generator(np.random.PCG64(seed))
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    def check(self, name, found, floor=1e-5):
        """Compare a tensor with the stored one, within 5 x the float32 error measured upstream.

        A shape, or a whole tensor, or every stride-th value and the three statistics.
        """
        assert tuple(found.shape) == tuple(self.io[f"{name}.shape"]), name
        listed = dict(zip(self.io["tol_names"].tolist(), self.io["tol_rel"].tolist(), strict=True))
        limit = max(5 * listed.get(name, 0), floor)
        flat = found.detach().double().numpy().ravel()
        if name in self.io:
            want = self.io[name].astype(np.float64).ravel()
        else:
            want = self.io[f"{name}.sub"].astype(np.float64).ravel()
            mean, std, total = self.io[f"{name}.stats"]
            assert abs(np.abs(flat).sum() - total) <= 10 * limit * total, name
            assert abs(flat.std() - std) <= 10 * limit * max(std, abs(mean)), name
            flat = flat[:: int(self.io[f"{name}.stride"])]
        self.worst[name] = float(np.abs(flat - want).max() / np.abs(want).max())
        assert self.worst[name] <= limit, f"{name}: {self.worst[name]:.1e} > {limit:.1e}"


@pytest.fixture(scope="session")
def golden():
    """Return the opener of a golden folder."""
    return Golden


@pytest.fixture(scope="session")
def fill():
    """Return the fill rule, for folders whose `io.npz` is not of `golden`'s form."""
    return filled


@pytest.fixture(scope="session")
def minifasnet_golden():
    """Return the numbers of `tests/golden/minifasnet`, whose form is its own."""
    return np.load(GOLDEN / "minifasnet" / "io.npz")


@pytest.fixture(scope="session")
def minifasnet_keys():
    """Return what gives the names, shapes and types of a published file's tensors."""
    return lambda variant: json.loads(
        (GOLDEN / "minifasnet" / f"keys_{variant}.json").read_text(encoding="utf-8")
    )


@pytest.fixture(scope="session")
def minifasnet_file():
    """Return what gives the path of a published file; skips where it is absent."""

    def path(variant):
        found = TEACHER / MINIFASNET_FILES[variant]
        if not found.is_file():
            pytest.skip("needs ../shared/teacher")
        return found

    return path
