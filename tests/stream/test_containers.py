"""What the Dockerfiles build: linted, complete, and not run as root. No image is built here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
DROPPED = {"__pycache__"}

every_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


def copied(dockerfile: Path) -> list[str]:
    """Return what the last stage takes from the checkout."""
    last = dockerfile.read_text().rpartition("\nFROM ")[2]
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", last, re.MULTILINE)
    return [name for line in lines for name in line.split()]


@every_dockerfile
def test_hadolint_has_nothing_to_say(dockerfile):
    lint = [Path(sys.executable).with_name("hadolint"), "--no-color", dockerfile]
    found = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@every_dockerfile
def test_the_program_runs_as_a_user_who_owns_its_one_volume(dockerfile):
    text = dockerfile.read_text()
    assert re.search(r"^USER 1000:1000$", text, re.MULTILINE)
    (volume,) = re.findall(r"^VOLUME (\S+)$", text, re.MULTILINE)
    assert f"--owner 1000 --group 1000 --mode 0700 {volume}\n" in text


@every_dockerfile
def test_what_is_copied_is_sent_to_the_builder(dockerfile):
    lines = (ROOT / ".dockerignore").read_text().split()
    sent = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert lines[0] == "*"
    for name in [*copied(dockerfile), "requirements"]:
        assert any(fnmatch(name, pattern) for pattern in sent), name


def test_what_both_copy_is_enough_to_judge_a_clip(two_faces, tmp_path):
    one, other = map(copied, DOCKERFILES)
    assert one == other
    image = tmp_path / "facewarden"
    image.mkdir()
    for name in one:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, image / name, ignore=lambda *_: DROPPED)
        else:
            shutil.copy(ROOT / name, image)
    ran = subprocess.run(
        [sys.executable, "run_stream.py", two_faces, "--sink", f"jsonl:{tmp_path / 'said'}"],
        cwd=image,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = (tmp_path / "said").read_text().splitlines()
    assert "track.score" in {json.loads(line)["event"]["type"] for line in lines}
    assert {path.name for path in image.iterdir()} == {Path(name).name for name in one}
