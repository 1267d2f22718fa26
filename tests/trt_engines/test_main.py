import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from trt_engines.__main__ import cli
from trt_engines.drift import LIMITS, Limits
from trt_engines.manifest import SHIPPED


def test_shipped_engines_verify():
    paths = [str(SHIPPED / "mtcnn" / f"{name}.manifest.json") for name in ("pnet", "rnet", "onet")]
    result = CliRunner().invoke(cli, ["verify", *paths])
    assert result.exit_code == 0, result.output
    assert result.output.count("ok ") == 3
    assert "landmarks (1, 10)" in result.output


def test_each_broken_engine_is_reported_and_the_exit_code_is_1(engine):
    (engine.parent / "tiny.safetensors").write_bytes(b"damaged")
    missing = engine.parent / "no.manifest.json"
    good = SHIPPED / "mtcnn" / "rnet.manifest.json"
    result = CliRunner().invoke(cli, ["verify", str(engine), str(missing), str(good)])
    assert result.exit_code == 1
    assert "FAIL" in result.output
    assert "tiny.safetensors" in result.output
    assert "no.manifest.json" in result.output
    assert "ok " in result.output


def test_help_comes_without_loading_torch():
    code = (
        "import sys; from trt_engines.__main__ import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "verify" in done.stdout


def test_an_unknown_name_to_check_ends_the_command_with_code_2_and_the_known_ones():
    result = CliRunner().invoke(cli, ["check", "--only", "lgsc_r81"])
    assert result.exit_code == 2
    assert "unknown name lgsc_r81; expected one of" in result.output
    assert "shipped-mtcnn/pnet" in result.output


# Building


@pytest.fixture
def invoke():
    """Call the command line; the torch back end sets the process's threads."""
    threads = torch.get_num_threads()

    def invoke(*arguments):
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    yield invoke
    torch.set_num_threads(threads)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32)
    path.chmod(0o600)
    return path


def test_what_is_shipped_is_listed(invoke):
    result = invoke("list", "--models", "mtcnn")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines()[1:]] == [
        "mtcnn/onet", "mtcnn/pnet", "mtcnn/rnet",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_build_writes_plans_keeps_them_and_verify_believes_them(
    invoke, engine, faces, key_file, tmp_path, monkeypatch
):
    monkeypatch.setitem(LIMITS, "int8", Limits(1, 1, 1, -1, 1, 10))  # a dozen drawn faces
    pytest.importorskip("tensorrt_rtx", reason="needs the extra aot")
    options = ["--faces", faces, "--out", tmp_path / "out", "--key-file", key_file]
    building = ["build", "--models", engine, "--flavour", "tensorrt_rtx", "--target", "SM89"]
    first = invoke(*building, "--precision", "fp16", "--precision", "int8", *options)
    assert first.exit_code == 0, first.output
    assert "new " in first.output
    assert "verdicts changed" in first.output
    second = invoke(*building, "--precision", "fp16", "--precision", "int8", *options)
    assert second.output.count("kept ") == 2
    pages = sorted((tmp_path / "out").rglob("*.plan.manifest"))
    assert len(pages) == 2
    checked = invoke("verify", *pages, "--key-file", key_file)
    assert checked.exit_code == 0, checked.output
    assert checked.output.count("not loaded: there is no GPU") == 2
    key_file.write_bytes(b"x" * 32)
    assert invoke("verify", *pages, "--key-file", key_file).exit_code == 1


def test_build_without_a_key_says_how_to_make_one(invoke, engine, tmp_path, monkeypatch):
    for name in ("FACEWARDEN_ENGINE_KEY", "FACEWARDEN_ENGINE_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    result = invoke("build", "--models", engine, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "openssl rand" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_is_named_and_the_others_are_written(invoke, engine, tmp_path):
    result = invoke(
        "export", "--models", engine, "--precision", "int8", "--precision", "fp32",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "1 of 2 failed: " in result.output
    assert "name a face file with --faces" in result.output
    assert len(list((tmp_path / "out").rglob("tiny.manifest.json"))) == 1


def test_verify_compares_with_float32_on_faces(invoke, faces):
    engine = SHIPPED / "mtcnn" / "rnet.manifest.json"
    result = invoke("verify", engine, "--faces", faces)
    assert result.exit_code == 0, result.output
    assert "float32 by torch" in result.output


def test_bench_gives_a_row_for_each_precision(invoke, engine, faces, tmp_path):
    result = invoke(
        "bench", "--models", engine, "--precision", "fp32", "--precision", "fp8", "--faces", faces,
        "--json", tmp_path / "bench.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert [row["precision"] for row in rows] == ["fp32", "fp8"]
    assert rows[0]["one_ms"] > 0
    assert rows[1]["one_ms"] is None  # a CPU imitates fp8
    assert rows[1]["drift"]["scores"] == 12
