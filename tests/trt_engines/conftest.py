"""A tiny method, added to the folder that is the registry, and its exported engine."""

import shutil
from pathlib import Path

import pytest
import torch

import models
from models import build_model
from trt_engines import lower
from trt_engines.export import export_engine
from trt_engines.faces import save_faces
from trt_engines.manifest import DecisionThresholds

METHODS = Path(__file__).parent / "methods"


def _add_tiny_method(patch):
    patch.setattr(models, "__path__", [*models.__path__, str(METHODS)])


@pytest.fixture(autouse=True)
def tiny_method(monkeypatch):
    """Make `models.tiny` a method while a test runs; other tests list all methods."""
    _add_tiny_method(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def lower_each_network_once(kept_exports):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lower, "to_onnx", kept_exports)
        yield


@pytest.fixture(scope="session")
def crops():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="session")
def export(crops):
    """Export the tiny method into a folder; options and arguments may be given."""

    def export(folder, *, options=None, examples=crops, **arguments):
        torch.manual_seed(0)
        model = build_model("tiny", options or {})
        return export_engine(
            model,
            method="tiny",
            options=options or {},
            examples=examples,
            folder=folder,
            licence="Apache-2.0",
            thresholds=DecisionThresholds(enter=0.7, leave=0.4, source="made up"),
            **arguments,
        )

    return export


@pytest.fixture(scope="session")
def exported(tmp_path_factory, export):
    """Folder with an engine of the tiny method with options; not to be written to."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        _add_tiny_method(patch)
        export(folder, options={"width": 6}, max_batch=8)
    return folder


@pytest.fixture
def engine(tmp_path, exported):
    """Path of the manifest of a private copy of that engine."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    return tmp_path / "tiny.manifest.json"


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """Path of a face file of drawn faces, bright and dark, each on its own background."""
    generator = torch.Generator().manual_seed(2)
    count, side = 24, 64
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pictures = torch.rand((count, 3, 4, 4), generator=generator) * 255
    pictures = torch.nn.functional.interpolate(pictures, (side, side), mode="bicubic")
    skin = torch.rand((count, 3), generator=generator) * 200 + 40
    for wide, tall, shift, share in ((14, 18, 0, 1.0), (3, 2, -6, 0.2), (6, 2, 9, 0.5)):
        inside = ((x - 32) / wide) ** 2 + ((y - 32 - shift) / tall) ** 2 < 1
        pictures[:, :, inside] = (skin * share)[:, :, None]
    pictures += torch.randn(pictures.shape, generator=generator) * 8
    path = tmp_path_factory.mktemp("faces") / "faces.safetensors"
    boxes = torch.tensor([[18.0, 14, 46, 50]]).expand(count, 4)
    save_faces(path, pictures.clamp(0, 255).to(torch.uint8), boxes)
    return path
