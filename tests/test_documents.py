"""Documents name what is there, and what people will meet."""

import re
import subprocess
from pathlib import Path

import pytest

from stream.records import SourceCode

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = "stream|models|train|trt_engines|configs|tests|docs|demo|benchmarks|requirements"
NAMED = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]+\.(?:py|md|yaml|json|txt))(?![\w*])")


def documents():
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [ROOT / name for name in listed.stdout.split() if name != "CHANGELOG.md"]


@pytest.mark.parametrize("code", SourceCode)
def test_every_status_code_is_explained_for_people(code):
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert f"### `{code}`\n" in text


def test_every_file_that_a_document_names_is_there():
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in documents()
        for name in NAMED.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert missing == []
