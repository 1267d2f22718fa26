"""A tiny method, added to the folder that is the registry, and its exported engine."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

import models
from models._registry import build_model
from trt_engines.export import export_engine
from trt_engines.manifest import DecisionThresholds


@pytest.fixture(scope="session", autouse=True)
def tiny_method():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            models, "__path__", [*models.__path__, str(Path(__file__).parent / "methods")]
        )
        yield
    sys.modules.pop("models.tiny", None)


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
    export(folder, options={"width": 6}, max_batch=8)
    return folder


@pytest.fixture
def engine(tmp_path, exported):
    """Path of the manifest of a private copy of that engine."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    return tmp_path / "tiny.manifest.json"
