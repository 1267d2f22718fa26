import json

import pytest
from click.testing import CliRunner

from trt_engines import check
from trt_engines.__main__ import cli
from trt_engines.variants import Variant

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch's exporter


@pytest.fixture(autouse=True)
def variants(monkeypatch):
    """Two small variants instead of all; the second differs from torch."""
    pytest.importorskip("tensorrt_rtx", reason="needs the extra aot")
    pair = (Variant("small", "tiny"), Variant("broken", "tiny", {"flaw": "other_when_traced"}))
    monkeypatch.setattr(check, "VARIANTS", pair)


def test_every_graph_that_passes_is_listed_and_written_down(tmp_path):
    path = tmp_path / "engines.json"
    names = ["--only", "small", "--only", "shipped-mtcnn/rnet"]
    result = CliRunner().invoke(cli, ["check", *names, "--json", str(path)])
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    found = [(graph["name"], graph["precision"]) for graph in written["passed"]]
    assert found == [("small", "fp32"), ("small", "fp16"), ("shipped-mtcnn/rnet", "fp32")]
    assert all(name in result.output for name, _ in found)
    assert written["failed"] == {}
    assert written["passed"][0]["operators"]["Conv"] == 2
    assert written["passed"][0]["plan_mb"] > 0


def test_a_graph_that_fails_is_named_and_the_exit_code_is_1(tmp_path):
    path = tmp_path / "engines.json"
    options = ["--precision", "fp32", "--json", str(path)]
    result = CliRunner().invoke(cli, ["check", "--only", "broken", "--only", "small", *options])
    assert result.exit_code == 1
    assert "FAIL tiny: ONNX and torch differ" in result.output
    written = json.loads(path.read_text())
    assert [graph["name"] for graph in written["passed"]] == ["small"]
    assert list(written["failed"]) == ["broken fp32"]


def test_a_name_that_nothing_has_is_an_error():
    result = CliRunner().invoke(cli, ["check", "--only", "nosuch"])
    assert result.exit_code == 2
    assert "nosuch" in result.output
