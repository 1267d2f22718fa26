"""`make gpu` fills the table of docs/gpu-status.md from what pytest reports."""

from pathlib import Path

from benchmarks.gpu import Outcome, filled, read_junit, read_status

ROOT = Path(__file__).resolve().parents[1]
PAGE = """
| feature | state | here | never | test |
|---|---|---|---|---|
| decoding | written | a | b | `tests/a/test_one.py`, `tests/test_two.py` |
| building | written | a | b | by hand |
"""
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.a.test_one" name="x"/>
<testcase classname="tests.a.test_one" name="y"><failure message="m"/></testcase>
<testcase classname="tests.test_two" name="z"><skipped message="needs TensorRT"/></testcase>
<testcase classname="tests.test_two" name="e"><error message="m"/></testcase>
</testsuite></testsuites>"""


def test_a_row_tells_how_its_tests_ended_and_why_some_did_not_run():
    head, rows = read_status(PAGE)
    outcomes = list(read_junit(JUNIT))
    assert outcomes[2] == Outcome("tests/test_two.py", "needs TensorRT")
    title, _, decoding, building = filled(head, rows, outcomes)
    assert title == "| feature | state | here | ran on this GPU | test |"
    assert "| 1 of 3 passed; 1 not run: needs TensorRT |" in decoding
    assert "| no test |" in building


def test_every_test_that_the_page_names_is_there_and_needs_a_gpu():
    _, rows = read_status((ROOT / "docs" / "gpu-status.md").read_text())
    named = {test for row in rows for test in row.tests}
    assert len(named) > 5
    for test in named:
        own, of_folder = ROOT / test, (ROOT / test).with_name("conftest.py")
        texts = [path.read_text() for path in (own, of_folder) if path.exists()]
        assert any("mark.gpu" in text for text in texts), test
