from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.messages import Lane, MessageWriter, ScoreMessage, json_schema, without_addresses
from stream.records import (
    AttackFamily,
    DetectorScore,
    FeedCondition,
    QualityProblem,
    SourceCode,
    SourceEventKind,
    SourceState,
    Verdict,
)
from stream.scan.announce import scan_message
from stream.scan.rows import FileRow, TrackRow

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def one_of_each(records):
    """Records that make a message of every type, in a plausible order."""
    return [
        records.status(),
        records.score(frame=12, p=None, verdict=Verdict.UNDECIDED),
        records.score(),
        records.alert(),
        records.score(
            track=2,
            p=None,
            verdict=Verdict.ABSTAIN,
            problem=QualityProblem.TOO_SMALL,
            box=(-20, 700, 30, 760),
        ),
        records.score(frame=75, ended=True),
        records.score(
            track=3,
            p=0.62,
            family=AttackFamily.DIGITAL,
            others=(
                DetectorScore(
                    name="recce",
                    method="recce",
                    family=AttackFamily.DIGITAL,
                    n_scores=3,
                    probability=0.95,
                    problem=None,
                ),
                DetectorScore(
                    name="minifasnet",
                    method="minifasnet",
                    family=AttackFamily.PRESENTATION,
                    n_scores=0,
                    probability=None,
                    problem=QualityProblem.CUT_OFF,
                ),
            ),
        ),
        records.status(
            SourceState.LOST,
            SourceCode.DISCONNECTED,
            detail="rtsp://cam-7.local/live: the far end went away",
            after_s=3.5,
        ),
        records.source_alert(detail="rtsp://cam-7.local/live: the far end went away", after_s=3.5),
        records.source_alert(
            SourceEventKind.FLAPPING, ordinal=2, losses=5, within_s=41.25, after_s=44.75
        ),
        records.source_alert(
            SourceEventKind.REGAINED,
            SourceState.OPEN,
            SourceCode.OK,
            ordinal=3,
            session=6,
            losses=0,
            after_s=400.0,
        ),
        records.source_alert(
            SourceEventKind.ENDED,
            SourceState.ENDED,
            SourceCode.UNAUTHORISED,
            ordinal=4,
            session=6,
            losses=0,
            detail="the password is refused",
            after_s=900.0,
        ),
        records.feed_alert(),
        records.feed_alert(ordinal=2, frame=2500, cleared=True),
        *(
            records.feed_alert(condition, ordinal=ordinal, measure=measure, limit=limit)
            for ordinal, (condition, measure, limit) in enumerate(
                (
                    (FeedCondition.FROZEN, 0.004, 0.05),
                    (FeedCondition.COVERED, 1.25, 6.0),
                    (FeedCondition.SWAPPED, 0.52, 0.35),
                ),
                start=3,
            )
        ),
        records.feed_alert(
            FeedCondition.CHANGED,
            ordinal=1,
            session=1,
            before="h264 1a2b3c4d 1280x720",
            after="h264 5e6f7a8b 1280x720",
        ),
        records.drift(after_s=1200.0),
        records.drift(raised=False, ordinal=2, after_s=90_000.0),
    ]


@pytest.fixture
def scan_result():
    """The message about a scanned file."""
    row = FileRow(
        path="archive/lobby.mp4",
        path_hex=None,
        kind="video",
        status="ok",
        reason=None,
        attempts=1,
        verdict="attack",
        p_attack=0.912346,
        n_tracks=1,
        n_attack=1,
        n_bona_fide=0,
        n_undecided=0,
        n_abstain=0,
        coverage=0.4,
        seconds=59.0,
        frames_seen=120,
        frames_analysed=54,
        frames_failed=0,
        width=1280,
        height=720,
        media="h264",
        decoder="pyav",
        mode="keyframes+sample",
        fps=1.0,
        size=230000,
        mtime_ns=1,
        sha256="ef" * 32,
        models=(f"lgsc_lite0:{'ab' * 32}",),
        run_key="00112233445566778899aabbccddeeff",
        version="0.1.0",
        at="2026-09-21T14:13:22.000+00:00",
        tracks=(
            TrackRow(
                track=1,
                verdict=Verdict.ATTACK,
                attack_at_s=14.0,
                p_attack=0.912346,
                p_highest=0.912346,
                method="lgsc",
                family=AttackFamily.PRESENTATION,
                reason=None,
                n_scores=24,
                n_effective=8.0,
                single_look=False,
                first_s=12.0,
                last_s=36.0,
                detectors=(),
                boxes=(),
                crop=None,
            ),
        ),
    )
    return scan_message(row, "0a1b2c3d")


@pytest.fixture
def messages(writer, one_of_each, scan_result):
    return [*(writer.write(record) for record in one_of_each), scan_result]


def test_messages_are_those_of_the_golden_file(messages, golden):
    golden("messages.jsonl", "".join(message.to_json() + "\n" for message in messages))


def test_every_event_type_is_in_the_golden_file(messages):
    schema = json_schema()
    types = {
        name
        for part in schema["$defs"].values()
        for name in _names(part.get("properties", {}).get("type", {}))
    }
    assert {message.event.type for message in messages} == types


def test_messages_are_valid_by_the_published_schema(messages):
    schema = json.loads((DOCS / "messages.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for message in messages:
        validator.validate(json.loads(message.to_json()))


def test_published_schema_is_what_the_models_say():
    made = subprocess.run(
        [sys.executable, "-m", "stream.messages"],
        check=True,
        capture_output=True,
        text=True,
        cwd=DOCS.parent,
    ).stdout
    assert (DOCS / "messages.schema.json").read_text() == made


def test_documentation_names_every_field():
    text = (DOCS / "messages.md").read_text()
    schema = json_schema()
    paths = {path for part in schema["anyOf"] for path in _leaves(schema, part, "")}
    assert len(paths) > 30
    assert not {path for path in paths if f"`{path}`" not in text}


def test_documentation_names_every_value_of_an_enumeration():
    text = (DOCS / "messages.md").read_text()
    missing = {
        value
        for part in json_schema()["$defs"].values()
        for value in part.get("enum", [])
        if f"`{value}`" not in text
    }
    assert not missing


def test_examples_in_the_documentation_are_valid_and_cover_every_type(messages):
    text = (DOCS / "messages.md").read_text()
    examples = [json.loads(block.split("```")[0]) for block in text.split("```json\n")[1:]]
    for example in examples:
        jsonschema.validate(example, json_schema())
    assert {e["event"]["type"] for e in examples} == {m.event.type for m in messages}


def test_box_is_clipped_to_the_frame_and_given_in_fractions_of_it(writer, records):
    inside, outside, beyond = (
        writer.write(records.score(box=box, size=(1280, 720))).bbox
        for box in ((320, 180, 480, 360), (-64, 648, 64, 792), (1290, 10, 1400, 90))
    )
    assert (inside.x, inside.y, inside.w, inside.h) == (0.25, 0.25, 0.125, 0.25)
    assert (outside.x, outside.y, outside.w, outside.h) == (0, 0.9, 0.05, 0.1)
    assert (beyond.x, beyond.w) == (1, 0)


def test_latency_runs_from_capture_to_writing(writer, records):
    assert writer.write(records.score(frame=50)).latency_ms == 42.0


def test_latency_is_never_negative_when_the_clock_was_set_back(records):
    writer = MessageWriter("0a1b2c3d", "0.1.0", [], clock=lambda: records.T0 - 3600)
    message = writer.write(records.score())
    assert isinstance(message, ScoreMessage)
    assert message.latency_ms == 0


def test_same_records_make_the_same_messages_whatever_was_written_before(writer, one_of_each):
    assert [writer.write(r) for r in one_of_each] == [
        writer.write(r) for r in reversed(one_of_each)
    ][::-1]


def test_event_ids_differ_between_all_messages(messages):
    ids = [message.event.id for message in messages]
    assert len(set(ids)) == len(ids)


def test_what_each_detector_says_stands_beside_what_they_say_together(messages):
    (message,) = [m for m in messages if isinstance(m, ScoreMessage) and len(m.detectors) == 3]
    said = json.loads(message.to_json())
    assert said["verdict"]["family"] == "digital"
    assert [d["p_attack"] for d in said["detectors"]] == [0.62, 0.95, None]
    assert [d["abstains"] for d in said["detectors"]] == [None, None, "cut_off"]
    assert [d["family"] for d in said["detectors"]] == [None, "digital", "presentation"]


@pytest.mark.parametrize("change", [{"source": "cam2"}, {"session": 1}, {"track": 2}])
def test_track_ids_differ_between_tracks(writer, records, change):
    one, other = writer.write(records.score()), writer.write(records.score(**change))
    assert one.track.id != other.track.id


def test_track_ids_differ_between_runs_of_the_process(writer, records):
    one = writer.write(records.score())
    other = MessageWriter("00000001", "0.1.0", []).write(records.score())
    assert isinstance(other, ScoreMessage)
    assert one.track.id != other.track.id


def test_a_verdict_of_a_kind_that_is_kept_names_its_bundle(records):
    keeps = MessageWriter("0a1b2c3d", "0.1.0", [], evidence=["attack"])
    attack, other = records.alert(), records.alert(verdict=Verdict.BONA_FIDE, p=0.1)
    assert keeps.write(attack).evidence == "20260921T141322Z-cam1-0a1b2c3d-0-1-1"
    assert keeps.write(other).evidence is None


def test_verdicts_feed_alerts_scores_and_source_alerts_go_different_ways(writer, records):
    assert writer.write(records.source_alert()).lane is Lane.SOURCES
    assert writer.write(records.drift()).lane is Lane.SOURCES
    assert writer.write(records.alert()).lane is Lane.ALERTS
    assert writer.write(records.feed_alert()).lane is Lane.FEEDS
    assert writer.write(records.score()).lane is Lane.TRACKS


def test_status_hash_holds_every_field_of_the_record_as_text(writer, records):
    status = records.status(SourceState.LOST, SourceCode.FROZEN, detail="no frame for 10 s")
    fields = writer.write(status).hash_fields()
    assert json.loads(fields.pop("producer"))["run"] == "0a1b2c3d"
    assert fields == {
        "schema": "facewarden/v1",
        "ts": "2026-09-21T14:13:20.000Z",
        "source": "cam1",
        "session": "0",
        "state": "lost",
        "code": "frozen",
        "detail": "no frame for 10 s",
        "changed": "true",
        "frames_seen": "250",
        "frames_due": "50",
        "frames_dropped": "2",
        "frames_overtaken": "2",
        "frames_late": "0",
        "frames_undecoded": "0",
        "frames_failed": "1",
    }


def test_detail_that_no_encoder_takes_is_escaped(writer, records):
    message = writer.write(records.status(detail="can't open door\udce9\n\x1b[2J.mp4"))
    assert json.loads(message.to_json())["status"]["detail"] == (
        r"can't open door\udce9\n\x1b[2J.mp4"
    )


@pytest.mark.parametrize("p", [float("nan"), float("inf"), -0.01, 1.01])
def test_probability_that_is_none_is_refused_before_it_is_sent(writer, records, p):
    with pytest.raises(ValueError, match="p_attack"):
        writer.write(records.score(p=p))


def test_number_that_json_cannot_hold_is_refused_before_it_is_sent(writer, records):
    with pytest.raises(ValueError, match="n_effective"):
        writer.write(replace(records.score(), n_effective=float("inf")))


def test_run_that_is_not_eight_hexadecimal_digits_is_refused():
    with pytest.raises(ValueError, match="run"):
        MessageWriter("my run", "0.1.0", [])


@given(
    user=st.text("abcXYZ019@/?#%:!$&'()*+,;=~._-", min_size=1, max_size=12),
    before=st.sampled_from(["", "'", '"', "(", "source="]),
    scheme=st.sampled_from(["rtsp", "rtsps", "https", "RTSP"]),
)
def test_no_part_of_a_url_is_in_a_source_message(user, before, scheme):
    shown = without_addresses(f"can't open {before}{scheme}://Us3r:{user}@10.0.0.7/live: refused")
    assert shown == "can't open [address] refused"


@pytest.mark.parametrize(
    "path",
    [
        "/srv/cameras/7.mp4",
        "./clip.mp4",
        "../in/clip.mkv",
        "~/clip.mp4",
        "in/clip.mp4",
        "/dev/video0",
    ],
)
def test_no_path_is_in_a_source_message(path):
    assert path not in without_addresses(f"can't read '{path}'")


@pytest.mark.parametrize("text", ["no frame for 10 s", "1920x1080 at 25 frames/s", "and/or", ""])
def test_plain_words_stay_in_a_source_message(text):
    assert without_addresses(text) == text


def _names(of: dict[str, Any]) -> list[str]:
    """Return the event types that a property called `type` may have."""
    return [name for name in [*of.get("enum", []), of.get("const")] if name]


def _leaves(schema: dict[str, Any], part: dict[str, Any], path: str) -> list[str]:
    """Return the dotted paths of the fields that hold no fields themselves."""
    part = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
    if "properties" not in part:
        return [path]
    prefix = f"{path}." if path else ""
    return [
        leaf
        for name, below in part["properties"].items()
        for leaf in _leaves(schema, below, prefix + name)
    ]
