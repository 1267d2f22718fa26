from __future__ import annotations

import logging

from stream.stack_log import EVERY_S, StackLog


def test_a_sources_errors_are_logged_once_a_minute_with_a_count_of_the_others(caplog):
    now = [0.0]
    stacks = StackLog(logging.getLogger("test"), lambda: now[0])
    for now[0] in (0, 1, EVERY_S - 1, EVERY_S + 1):
        stacks.error("door", f"at {now[0]:g}", ValueError("a bug"))
    assert [record.getMessage() for record in caplog.records] == [
        "at 0",
        "at 61 (2 more since the last such line)",
    ]
    assert all(record.exc_info[1].args == ("a bug",) for record in caplog.records)


def test_each_source_has_its_own_minute(caplog):
    stacks = StackLog(logging.getLogger("test"), lambda: 0.0)
    for source_id in ("door", "hall", "door"):
        stacks.error(source_id, source_id, ValueError("a bug"))
    assert [record.getMessage() for record in caplog.records] == ["door", "hall"]
