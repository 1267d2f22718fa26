"""`make setup-system`: says what it does, and never fails, wherever it runs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "setup-system"
NOTHING_INSTALLED = "exit 1"
ROOT_USER, OTHER_USER = "echo 0", "echo 1000"


@pytest.fixture
def run(tmp_path):
    """Return the function that runs the script with such programs in the place of the system's."""

    def start(**programs):
        for name in ("grep", "sh"):
            (tmp_path / name).symlink_to(shutil.which(name))
        for name, text in programs.items():
            path = tmp_path / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        done = subprocess.run(
            [shutil.which("sh"), SCRIPT],
            env={"PATH": str(tmp_path), "DONE": str(tmp_path / "done")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return start


def test_what_is_there_is_not_installed_again(run, tmp_path):
    said = run(dpkg_query="printf installed", apt_get="echo called > $DONE")
    assert said.startswith("setup-system: all there")
    assert not (tmp_path / "done").exists()


def test_without_apt_get_it_says_that_tests_will_skip(run):
    assert "no apt-get here; tests that need redis-server" in run(dpkg_query=NOTHING_INSTALLED)


def test_without_the_right_to_install_it_says_what_to_type(run):
    said = run(dpkg_query=NOTHING_INSTALLED, apt_get="", id=OTHER_USER, sudo="exit 1")
    assert "By hand: sudo apt-get install redis-server" in said


def test_an_apt_get_that_fails_is_said(run):
    said = run(dpkg_query=NOTHING_INSTALLED, apt_get="exit 100", id=ROOT_USER)
    assert said.splitlines()[-1].startswith("setup-system: apt-get could not")


@pytest.mark.parametrize("user", [ROOT_USER, OTHER_USER])
def test_only_what_is_missing_is_installed_as_root_or_through_sudo(run, tmp_path, user):
    run(
        dpkg_query='case "$3" in mosquitto) exit 1;; *) printf installed;; esac',
        apt_get='echo "$@" >> $DONE',
        id=user,
        sudo='[ "$2" = true ] || { shift; "$@"; }',
    )
    update, install = (tmp_path / "done").read_text().splitlines()
    assert update.endswith("update")
    assert install.split("install ")[1] == "mosquitto"


def test_ci_calls_it_and_make_has_it():
    assert "make setup-system" in (ROOT / ".ci" / "run").read_text("utf-8")
    assert "setup-system:" in (ROOT / "Makefile").read_text("utf-8")
    assert os.access(SCRIPT, os.X_OK)
