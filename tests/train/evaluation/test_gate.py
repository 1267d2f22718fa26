"""What the quality gate is worth, on looks that were recorded with the gate open."""

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stream.config import QualityConfig
from train.__main__ import main
from train.errors import TrainError
from train.evaluation.gate import CRITERIA, GRID, TOGETHER, curves_of
from train.evaluation.provenance import Origin
from train.evaluation.recorded_looks import (
    RecordedEngine,
    RecordedLook,
    RecordHead,
    read_looks,
    write_looks,
)
from trt_engines.manifest import DecisionThresholds

ENGINE = RecordedEngine(
    onnx_sha256="0" * 64,
    family="presentation",
    thresholds=DecisionThresholds(enter=0.6, leave=0.4, source="a test"),
)
HEAD = RecordHead(
    made=Origin(date=datetime(2026, 11, 28, tzinfo=UTC), command="", code="", machine=""),
    parts=("dev", "measure"),
    engines={"ours": ENGINE},
)
NAMES = itertools.count()
GOOD = {"face_px": 120.0, "sharpness": 0.3, "brightness": 0.5, "turn": 0.1}


def look(label, probability, *, part="measure", person=None, window=1.0, **measures):
    name = str(next(NAMES))
    return RecordedLook(
        part=part,
        set="a",
        label=label,
        person=person or name,
        sample=name,
        pts_s=0.0,
        first_s=0.0,
        window={"ours": window},
        probability={"ours": probability},
        **{**GOOD, **measures},
    )


def dev(n=20):
    spread = np.linspace(0, 1, n)
    return [
        look("bona_fide", 0.1, part="dev", sharpness=0.1 + 0.3 * s, face_px=60 + 100 * s)
        for s in spread
    ]


def rows(looks, head=HEAD):
    (curves,) = curves_of(head, [*dev(), *looks])
    return curves, {row.criterion: row for row in curves.rows}


def spread_over(measure, *, wrong_where_low):
    """Return 40 looks of each class; a tenth of the range holds all the errors of it."""
    looks = []
    for i in range(40):
        value = 0.1 + 0.01 * i
        low = value < 0.2
        wrong = low if wrong_where_low else value > 0.4
        looks.append(look("bona_fide", 0.9 if wrong else 0.1, **{measure: value}))
        looks.append(look("print", 0.1 if wrong else 0.9, **{measure: value}))
    return looks


def test_a_limit_that_turns_away_wrong_answers_first_is_as_good_as_the_oracle():
    curves, of = rows(spread_over("sharpness", wrong_where_low=True))
    assert curves.error == pytest.approx(0.25)
    assert of["min_sharpness"].gain == pytest.approx(1.0)
    assert of["min_sharpness"].curve == pytest.approx(curves.oracle)
    assert of["min_sharpness"].curve[np.searchsorted(GRID, 0.25)] == pytest.approx(0, abs=1e-9)


def test_a_limit_that_keeps_wrong_answers_is_worse_than_none():
    _, of = rows(spread_over("sharpness", wrong_where_low=False))
    assert of["min_sharpness"].gain < -0.3
    assert of["min_sharpness"].gain95[1] < 0


def test_a_limit_that_says_nothing_of_the_answers_turns_away_at_random():
    curves, of = rows(spread_over("sharpness", wrong_where_low=True))
    for criterion in ("min_face_px", "max_turn", "min_window"):  # alike in all looks
        assert of[criterion].gain == pytest.approx(0, abs=1e-9)
        assert of[criterion].curve == pytest.approx([curves.error] * len(GRID))


@pytest.mark.parametrize(
    ("criterion", "bad", "good"),
    [
        ("min_face_px", {"face_px": 20.0}, {"face_px": 48.0}),
        ("min_sharpness", {"sharpness": 0.01}, {"sharpness": 0.05}),
        ("min_brightness", {"brightness": 0.05}, {"brightness": 0.1}),
        ("max_brightness", {"brightness": 0.95}, {"brightness": 0.9}),
        ("max_turn", {"turn": 1.5}, {"turn": 1.25}),
        ("min_window", {"window": 0.05}, {"window": 0.1}),
    ],
)
def test_the_shipped_limits_turn_away_what_streaming_does(criterion, bad, good):
    looks = [
        look("bona_fide", 0.9, **bad),
        look("bona_fide", 0.1, **good),
        look("print", 0.1, **good),
        look("print", 0.9, **bad),
    ]
    _, of = rows(looks)
    for name in (criterion, TOGETHER):
        assert (of[name].bona_fide.turned_away, of[name].bona_fide.errors) == (1, 0)
        assert (of[name].attack.turned_away, of[name].attack.errors) == (1, 1)
    assert of[criterion].gain > 0 > -1


def test_a_limit_that_tells_a_hard_set_from_an_easy_one_gains_nothing_within_them():
    looks = []
    for i in range(20):
        for of_set, far in (("hard", 0.0), ("easy", 0.1)):
            wrong = of_set == "hard" and i % 2
            measure = {"sharpness": 0.03 + far + 0.001 * (i // 2)}
            looks += [
                look("bona_fide", 0.9 if wrong else 0.1, **measure),
                look("print", 0.1 if wrong else 0.9, **measure),
            ]
            looks[-2:] = [each.model_copy(update={"set": of_set}) for each in looks[-2:]]
    _, of = rows(looks)
    assert of["min_sharpness"].gain > 0.4
    assert of["min_sharpness"].gain_within == pytest.approx(0, abs=0.02)


def test_what_is_turned_away_is_held_against_what_passes_of_its_own_set():
    looks = [
        look("bona_fide", 0.9, turn=1.5),
        *(look("bona_fide", p) for p in (0.9, 0.1, 0.1, 0.1)),
        *(each.model_copy(update={"set": "b"}) for each in (look("bona_fide", 0.9),)),
        look("print", 0.9),
    ]
    _, of = rows(looks)
    rate = of["max_turn"].bona_fide
    assert (rate.turned_away, rate.wrong, rate.expected) == (1, 1, 0.25)
    assert (rate.passed, rate.errors) == (5, 2)


def test_every_limit_of_the_gate_is_judged():
    assert list(CRITERIA) == list(QualityConfig.model_fields)


def test_attacks_that_an_engine_does_not_know_are_not_among_its_errors():
    curves, of = rows([look("bona_fide", 0.1), look("print", 0.9), look("deepfake", 0.1)])
    assert curves.error == 0
    assert of[TOGETHER].attack.passed == 1


def test_bona_fide_looks_alone_have_an_error_of_their_own():
    looks = [look("bona_fide", 0.9, sharpness=0.11), look("bona_fide", 0.1, sharpness=0.3)]
    curves, of = rows(looks)
    assert curves.error == 0.5
    assert of["min_sharpness"].attack is None
    assert of["min_sharpness"].curve[-1] == pytest.approx(0, abs=1e-9)


def test_pictures_of_one_person_make_an_uncertain_gain():
    looks = spread_over("sharpness", wrong_where_low=True)
    several = rows(looks)[1]["min_face_px"]
    same = [each.model_copy(update={"person": "ben"}) for each in looks]
    assert several.gain95 != rows(same)[1]["min_face_px"].gain95 or several.gain95 == (0, 0)


def test_a_record_without_dev_footage_is_refused():
    with pytest.raises(TrainError, match="expected dev"):
        curves_of(HEAD, [look("bona_fide", 0.1)])


def test_the_command_writes_a_table_and_a_picture(tmp_path):
    record = tmp_path / "looks.jsonl"
    looks = [*dev(), *spread_over("sharpness", wrong_where_low=True)]
    assert write_looks(record, HEAD, looks) == len(looks)
    assert read_looks(record) == (HEAD, looks)
    result = CliRunner().invoke(main, ["gate-curves", str(record), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "gate.txt").read_text() in result.output
    assert "min_sharpness" in result.output
    assert (tmp_path / "out" / "gate.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_record_is_refused(tmp_path):
    (tmp_path / "a").write_text(json.dumps({"no": "record"}))
    for path in (tmp_path / "a", tmp_path / "missing", Path(__file__)):
        with pytest.raises(TrainError):
            read_looks(path)
