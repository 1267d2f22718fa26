"""The packages have common names: nobody else's may be imported in their place (decision 1)."""

import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["stream", "models", "train", "trt_engines"]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_the_one_beside_run_stream(name):
    assert Path(import_module(name).__file__).parent == ROOT / name
    assert (ROOT / "run_stream.py").is_file()


@pytest.mark.parametrize("name", PACKAGES)
def test_no_other_distribution_claims_the_package(name):
    assert set(packages_distributions().get(name, [])) <= {"facewarden"}


def test_no_package_init_lies_under_tests():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_import_rules_name_every_private_module_of_models():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    forbidden = {
        module
        for contract in settings["tool"]["importlinter"]["contracts"]
        for module in contract.get("forbidden_modules", [])
        if module.startswith("models._")
    }
    assert forbidden == {f"models.{path.stem}" for path in (ROOT / "models").glob("_[a-z]*.py")}


def test_every_public_name_of_models_is_there():
    models = import_module("models")
    assert [getattr(models, name) for name in models.__all__]
