"""What deploy/monitoring/ asks Prometheus for, and what a scrape offers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from tests.stream.metrics.scrape import Scrape

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "facewarden.rules.yml"
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/facewarden.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
OF_PROMETHEUS = {"up"}


def exported(scrape: Scrape) -> set[str]:
    families = scrape.families.values()
    return {f.name + suffix for f in families for suffix in SUFFIXES[f.type]} | OF_PROMETHEUS


def rule_expressions() -> dict[str, str]:
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def dashboard_expressions() -> dict[str, str]:
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in PANELS
        for target in panel["targets"]
    }


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:facewarden|process)_[a-z0-9_]+|\bup\b", expression))
