"""Examples in deploy/ are well formed, and give the scan only options that it has."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from stream.scan.command import scan

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
EXAMPLES = sorted([*DEPLOY.glob("scan-*.yaml"), *DEPLOY.glob("scan-*.sh")])


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.yaml")), ids=lambda path: path.name)
def test_a_manifest_parses_and_reports_no_use(path):
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"apiVersion", "kind", "metadata", "spec"} == set(manifest)
    if manifest["kind"] == "RayJob":
        cluster = manifest["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_scan_is_given_only_options_that_it_has(path):
    text = path.read_text(encoding="utf-8")
    command = text[text.index("run_stream.py scan") :].partition(";")[0]
    known = {option for parameter in scan.params for option in parameter.opts}
    assert set(re.findall(r"(?<=\s)--[a-z-]+", command)) <= known


def test_shell_scripts_parse():
    for path in DEPLOY.glob("*.sh"):
        subprocess.run(["sh", "-n", str(path)], check=True)
