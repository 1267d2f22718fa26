import subprocess
import sys

from click.testing import CliRunner

from trt_engines.__main__ import cli
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
    assert "shipped-pnet" in result.output
