"""deploy/monitoring/: rules and dashboard name what the program exports, and are well formed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.stream.metrics.monitoring import (
    DASHBOARD,
    MONITORING,
    PANELS,
    ROOT,
    RULES,
    dashboard_expressions,
    rule_expressions,
)

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus"
)


def promtool(*arguments: object) -> None:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_what_prometheus_takes_and_fire_when_they_should():
    promtool("check", "config", MONITORING / "prometheus.yml")
    promtool("test", "rules", ROOT / "tests" / "facewarden.rules.test.yml")


def test_every_rule_is_tried_and_has_a_severity_and_a_summary():
    tried = yaml.safe_load((ROOT / "tests/facewarden.rules.test.yml").read_text("utf-8"))["tests"]
    names = {case["alertname"] for test in tried for case in test["alert_rule_test"]}
    assert names == set(rule_expressions())
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


@needs_promtool
def test_every_query_of_the_dashboard_parses(tmp_path):
    rules = [
        {"record": f"q{number}", "expr": re.sub(r"\$\w+", ".*", expression)}
        for number, expression in enumerate(dashboard_expressions().values())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", path)


def test_panels_are_whole_and_do_not_cover_each_other():
    assert DASHBOARD["uid"] == "facewarden"
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["legendFormat"]
            assert set(re.findall(r"\$\{?(\w+)", json.dumps(target))) <= variables


def test_what_grafana_and_prometheus_are_given_fits_together():
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}}' in rule_expressions()["FacewardenDown"]
