"""Learning from a camera, and running with what was learned."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from stream.analyse import open_analyser
from stream.assembly import learning
from stream.config import StreamConfig
from stream.errors import ConfigError, StreamError
from stream.learn.learner import Learner
from stream.learn.visits import Visit
from stream.learned import load_learned, save_learned
from stream.records import Alert, Frame
from stream.sources import Source
from tests.warm_start import WarmStarts

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def warm():
    starts = WarmStarts(
        *("rich.live", "stream.analyse", "stream.messages", "stream.decode.pyav_packets"),
        *("stream.learn.learner", "trt_engines.backends.onnx_session"),
    )
    yield starts
    starts.close()


@pytest.fixture
def run(warm, tmp_path):
    """Run the program in a folder of its own; return exit code, output and log."""

    def start(*arguments):
        program = warm.start(ROOT / "run_stream.py", *arguments, cwd=tmp_path)
        said, log = program.communicate()
        return program.returncode, said, log

    return start


def config_of(clip, engine, **source):
    return StreamConfig.model_validate(
        {
            "sources": [{"id": "cam1", "uri": str(clip)} | source],
            "score": {"engines": [{"manifest": str(engine)}]},
        }
    )


@pytest.fixture(scope="module")
def learner(two_faces, tiny_engine):
    """What has watched a clip of a bright face, bona fide, and a dark one."""
    config = config_of(two_faces, tiny_engine)
    learner, stop = Learner(config), threading.Event()
    with open_analyser(config) as analyser:
        source = Source(config.sources[0], config.decode, stop=stop)
        learning(config, source, analyser, learner, run="0a1b2c3d", stop=stop).run()
    return learner


# Three seconds allow to promise this, by counting: three false alarms in them.
BUDGET = 3.0 * 7 * 86_400 / 2.8


@pytest.fixture
def learned(learner):
    return learner.learned(1.7 * BUDGET)


def test_three_seconds_are_not_enough_and_nothing_is_learned(learner):
    with pytest.raises(StreamError, match=r"cam1: 0 minutes, 2 visits: not enough: .* nothing is"):
        learner.learned(1.0)


def test_a_threshold_out_of_reach_is_refused(learner, monkeypatch):
    """Somebody came whose looks were all sure attacks."""
    monkeypatch.setattr(learner, "_seen", [*learner._seen, Visit(3.4, {})])
    with pytest.raises(
        StreamError, match=r"would need a probability of .* allow more false alarms"
    ):
        learner.learned(1.01 * BUDGET)


def test_it_says_what_was_seen(learned):
    assert (learned.visits, learned.judged, learned.rule) == (2, 2, "counted")
    assert learned.watched_s == pytest.approx(2.8)
    assert learned.highest > 0.9
    assert learned.at_most <= learned.budget
    assert learned.enter == 0.5  # one of the two may alarm: the other one is bright
    assert len(learned.reference["sharpness"]) == 2


def test_what_was_learned_is_read_back_as_it_was_written(learned, two_faces, tiny_engine, tmp_path):
    save_learned(tmp_path / "cam1.json", learned)
    again = load_learned(tmp_path / "cam1.json", "cam1", config_of(two_faces, tiny_engine))
    assert again == learned


def test_it_is_refused_with_another_detector(learned, two_faces, bright_engine, tmp_path):
    save_learned(tmp_path / "cam1.json", learned)
    with pytest.raises(
        ConfigError, match=r"learned with the detectors tiny .* found bright .* again"
    ):
        load_learned(tmp_path / "cam1.json", "cam1", config_of(two_faces, bright_engine))


def test_it_is_refused_for_another_camera(learned, two_faces, tiny_engine, tmp_path):
    save_learned(tmp_path / "cam1.json", learned)
    with pytest.raises(ConfigError, match="learned of the source cam1, named for door"):
        load_learned(tmp_path / "cam1.json", "door", config_of(two_faces, tiny_engine))


def test_it_is_refused_when_a_setting_changes_scores(learned, two_faces, tiny_engine, tmp_path):
    save_learned(tmp_path / "cam1.json", learned)
    config = config_of(two_faces, tiny_engine)
    slower = config.model_copy(update={"score": config.score.model_copy(update={"interval_s": 1})})
    with pytest.raises(ConfigError, match="which change scores"):
        load_learned(tmp_path / "cam1.json", "cam1", slower)


def test_a_file_that_is_something_else_is_refused(two_faces, tiny_engine, tmp_path):
    (tmp_path / "cam1.json").write_text("{}")
    with pytest.raises(ConfigError, match="not what --learn writes"):
        load_learned(tmp_path / "cam1.json", "cam1", config_of(two_faces, tiny_engine))


def test_a_source_decides_by_its_own_thresholds_and_others_by_the_engines(
    learned, two_faces, tiny_engine, read_events, tmp_path
):
    save_learned(tmp_path / "cam1.json", learned.model_copy(update={"enter": 0.9, "leave": 0.2}))
    config = config_of(two_faces, tiny_engine, learned=str(tmp_path / "cam1.json"))
    thresholds = {}
    with open_analyser(config) as analyser:
        for source_id in ("cam1", "cam2"):
            frames = [e for e in read_events(two_faces, source_id) if isinstance(e, Frame)]
            alerts = [r for f in frames for r in analyser.analyse([f]) if isinstance(r, Alert)]
            thresholds[source_id] = {(str(a.track.verdict), a.threshold) for a in alerts}
    assert thresholds == {
        "cam1": {("attack", 0.9), ("bona_fide", 0.2)},
        "cam2": {("attack", 0.6), ("bona_fide", 0.4)},
    }


def test_the_command_line_learns_and_the_next_run_uses_it(run, two_faces, tiny_engine, tmp_path):
    budget, source = str(1.7 * BUDGET), f"cam1={two_faces}"
    code, said, log = run(source, "--model", tiny_engine, "--learn", "cam1", "--budget", budget)
    assert code == 0, log
    assert said.startswith("cam1.learned.json: attack at or above 0.5, bona fide below")
    config = {
        "sources": [{"id": "cam1", "uri": str(two_faces), "learned": "cam1.learned.json"}],
        "score": {"engines": [{"manifest": str(tiny_engine)}]},
    }
    (tmp_path / "cameras.yaml").write_text(json.dumps(config))
    code, _, log = run("--config", "cameras.yaml", "--sink", "jsonl:messages.jsonl")
    assert code == 0, log
    lines = (tmp_path / "messages.jsonl").read_text().splitlines()
    alerts = [m for m in map(json.loads, lines) if m["event"]["type"] == "track.verdict"]
    assert [m["verdict"]["threshold"] for m in alerts if m["verdict"]["state"] == "attack"] == [0.5]


def test_the_command_line_writes_nothing_when_it_is_not_enough(
    run, two_faces, tiny_engine, tmp_path
):
    code, _, log = run(f"cam1={two_faces}", "--model", tiny_engine, "--learn", "cam1")
    assert code == 1
    assert "not enough" in log
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--learn", "door"], "there is no such source; there are: cam1"),
        (["--minutes", "5"], "are for --learn"),
        (["--learn", "cam1", "--workers", "2"], "no --workers"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, two_faces, options, says):
    code, _, log = run(f"cam1={two_faces}", *options)
    assert code == 2
    assert says in log
