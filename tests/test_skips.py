"""In CI, a test that skips for a reason which nobody listed is a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LISTED = 'pytest.skip("needs ../shared/data")'
UNLISTED = 'pytest.skip("the moon is in the wrong place")'
MISSING = 'pytest.importorskip("no_such_package")'


@pytest.mark.parametrize(
    ("body", "ci", "options", "code"),
    [
        (LISTED, "true", [], 0),
        (UNLISTED, "true", [], 1),
        (UNLISTED, "true", ["-n", "1"], 1),
        (UNLISTED, "", [], 0),
        (MISSING, "true", [], 1),
    ],
)
def test_an_unlisted_skip_fails_where_ci_is_set(tmp_path, body, ci, options, code):
    (tmp_path / "test_it.py").write_text(
        f"import pytest\n\n\ndef test_it():\n    {body}\n\n\ndef test_other():\n    pass\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "tests.skip_watch"),
            *("-p", "no:cacheprovider", "--rootdir", str(tmp_path), *options, str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("does not list" in done.stdout) == (body != LISTED)
