"""The wheel, built and installed where no checkout is: its programs, its engines, its packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from demo.clip import write_clip

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
PARTS = ["stream", "models", "train", "trt_engines", "run_stream.py"]


def quietly(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "REDIS_URL")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(made_once):
    """The wheel, built of a copy: setuptools writes beside what it reads."""

    def build(folder):
        source = folder / "source"
        source.mkdir(parents=True)
        for part in PARTS:
            if (ROOT / part).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, source / part, ignore=unwanted)
        for name in ("run_stream.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder]
        quietly(*PIP, "wheel", *options, source, cwd=folder)
        shutil.rmtree(source)

    (path,) = made_once("wheel", build).glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of an environment with the wheel, and the packages of this one."""
    folder = tmp_path_factory.mktemp("venv")
    quietly(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    quietly(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = next((folder / "lib").glob("python*/site-packages"))
    # In place of the packages that the wheel asks for, hundreds of megabytes: those of this one.
    (packages / "this.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_every_package_of_ours_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    ours = {
        str(path.relative_to(ROOT))
        for part in PARTS
        for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
    }
    assert packed == ours


def test_the_engines_that_ship_and_the_programs_are_in_the_wheel(wheel):
    shipped = ROOT / "trt_engines" / "shipped"
    files = {str(p.relative_to(ROOT)) for p in shipped.rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        programs = archive.read(entry_points).decode()
    assert files <= names
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert all(f"{name} = {target}" in programs for name, target in declared.items())


def test_the_installed_programs_explain_themselves(installed, tmp_path):
    assert "[ID=]SOURCE..." in quietly(installed / "facewarden", "--help", cwd=tmp_path)
    assert "--group" in quietly(installed / "facewarden-subscribe", "--help", cwd=tmp_path)


def test_a_clip_is_watched_and_scanned_outside_the_checkout(installed, tmp_path):
    write_clip(tmp_path / "clip.mp4", 2)
    quietly(
        *(installed / "facewarden", "clip.mp4", "--sink", "jsonl:said"),
        *("--set", "decode.analyse_fps=3"),
        cwd=tmp_path,
    )
    said = [json.loads(line) for line in (tmp_path / "said").read_text("utf-8").splitlines()]
    ends = [message for message in said if message["event"]["type"] == "track.end"]
    assert ends
    assert {m["name"] for end in ends for m in end["producer"]["models"]} == {"lgsc"}
    quietly(installed / "facewarden", "scan", "clip.mp4", "--out", "results", cwd=tmp_path)
    rows = (tmp_path / "results" / "results.jsonl").read_text("utf-8").splitlines()
    assert json.loads(rows[0])["status"] == "ok"
