import os
import sys

import pytest
from click.testing import CliRunner

from trt_engines import doctor
from trt_engines.__main__ import cli
from trt_engines.doctor import Finding, examined


def _missing(name):
    raise OSError(f"{name}: cannot open shared object file")


class _Driver:
    """Stands for libcuda.so.1 of a machine with one GPU."""

    def __init__(self, code=0):
        self.code = code

    def cuInit(self, flags):
        return self.code

    def cuDriverGetVersion(self, value):
        value._obj.value = 13010

    def cuDeviceGetCount(self, value):
        value._obj.value = 1


@pytest.fixture
def few_packages(monkeypatch):
    """Probe three packages that take no time instead of the real ones."""
    programs = {
        "good": ("print('1.2')", ""),
        "absent": ("import no_such_package", "install it"),
        "crashing": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "mend it"),
    }
    monkeypatch.setattr(doctor, "_PROBES", programs)


def test_each_row_degrades_alone(few_packages):
    rows = {row.what: row for row in examined(_missing, {})}
    assert rows["good"] == Finding("good", True, "1.2")
    assert not rows["absent"].is_there
    assert "no_such_package" in rows["absent"].found
    assert rows["crashing"].found == "ended by signal 11"
    assert "cannot open" in rows["NVIDIA driver"].found
    assert all(row.advice for row in rows.values() if not row.is_there)


def test_a_driver_says_its_version_and_how_many_gpus_there_are(few_packages):
    driver, *_ = examined(lambda name: _Driver(), {})
    assert driver == Finding("NVIDIA driver", True, "CUDA 13.1, 1 GPUs", driver.advice)
    driver, *_ = examined(lambda name: _Driver(code=999), {})
    assert (driver.is_there, driver.found) == (False, "cuInit fails with CUDA error 999")


def test_a_package_that_does_not_answer_is_one_row(few_packages, monkeypatch):
    monkeypatch.setattr(doctor, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(doctor, "_PROBES", {"slow": ("import time; time.sleep(9)", "wait")})
    rows = {row.what: row for row in examined(_missing, {})}
    assert rows["slow"].found == "no answer within 0.2 s"


def test_the_command_says_what_to_do_and_fails_if_something_is_missing(few_packages):
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1
    assert "ok      good" in result.output
    assert "MISSING absent" in result.output
    assert "-> install it" in result.output


@pytest.mark.parametrize("what", doctor._PROBES)
def test_every_probe_is_a_program(what):
    compile(doctor._PROBES[what][0], what, "exec")


def test_a_package_of_this_environment_is_found(monkeypatch):
    program = doctor._PROBES["ONNX Runtime"]
    monkeypatch.setattr(doctor, "_PROBES", {"ONNX Runtime": program})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    rows = {row.what: row for row in examined(_missing, environment)}
    assert rows["ONNX Runtime"].is_there, rows["ONNX Runtime"].found
    assert "CPUExecutionProvider" in rows["ONNX Runtime"].found
