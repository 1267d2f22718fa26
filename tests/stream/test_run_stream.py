"""The command line, as a process of its own; starts are dear, so several tests read one run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jsonschema
import numpy as np
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "messages.schema.json").read_text(encoding="utf-8"))
LIMIT_S = 120.0  # a process that runs so long hangs
PASSWORD = "pa55/w:rd@"


class Outcome(NamedTuple):
    code: int
    out: str
    log: str  # stderr

    @property
    def complaint(self) -> str:
        """The only line of the log."""
        (line,) = self.log.splitlines()
        assert "Traceback" not in line
        return line


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "run_stream.py"), *map(str, arguments)]


def environment() -> dict[str, str]:
    # Empty is what `environment: REDIS_URL=` of a compose file gives: as good as unset.
    return {**os.environ, "OMP_NUM_THREADS": "1", "REDIS_URL": ""}


def run(*arguments: object) -> Outcome:
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=environment(),
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start the program; kill it at the end if it still runs."""
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_log_until(process: subprocess.Popen[str], text: str) -> None:
    """Wait for a line of the log that holds the text."""
    assert process.stderr is not None
    read = []
    for line in process.stderr:
        read.append(line)
        if text in line:
            return
    raise AssertionError(f"ended without {text!r}:\n{''.join(read)}")


def read_messages(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def of_type(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["event"]["type"] == kind]


def final_statuses(messages: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Return source id -> last state and code."""
    statuses = of_type(messages, "source.status")
    return {m["source"]["id"]: (m["status"]["state"], m["status"]["code"]) for m in statuses}


def stream(server: Any, name: str) -> list[dict[str, Any]]:
    """Return all messages in a Redis stream."""
    return [json.loads(fields[b"metadata"]) for _, fields in server.client.xrange(name)]


@pytest.fixture
def set_engine(tiny_engine):
    return ["--set", f"score.manifest={tiny_engine}"]


@pytest.fixture
def looped(two_faces, tiny_engine, tmp_path):
    """A configuration that plays the clip for ever into messages.jsonl."""
    path = tmp_path / "looped.yaml"
    options = {
        "sources": [{"id": "cam", "uri": str(two_faces), "loop": True, "realtime": True}],
        "score": {"manifest": str(tiny_engine)},
        "sinks": [{"kind": "jsonl", "path": str(tmp_path / "messages.jsonl")}],
    }
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


# --- asking ---


def test_help_names_every_option():
    done = run("--help")
    assert (done.code, done.log) == (0, "")
    for option in ("--config", "--redis", "--sink", "--set", "--duration", "--check"):
        assert option in done.out
    assert "SOURCE" in done.out


def test_check_prints_the_resolved_configuration_without_secrets(tiny_engine, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"score: {{manifest: {tiny_engine}}}\ntrack: {{lost_after_s: 4}}\n")
    quoted = "pa55%2Fw%3Ard%40"
    done = run(
        *("door=rtsp://viewer:" + quoted + "@camera/ch1", "clip.mp4"),
        *("--config", config, "--set", "track.lost_after_s=3"),
        *("--redis", f"rediss://facewarden:{quoted}@redis:6380/1", "--check"),
    )
    assert done.code == 0, done.log
    shown = yaml.safe_load(done.out)
    assert [source["id"] for source in shown["sources"]] == ["door", "clip"]
    assert shown["track"]["lost_after_s"] == 3
    assert shown["track"]["confirm_hits"] == 3  # a default
    assert "camera/ch1" in shown["sources"][0]["uri"]
    for secret in (PASSWORD, quoted, "pa55"):
        assert secret not in done.out + done.log


# --- a run on a file, into a file and a real Redis ---


@pytest.mark.redis
def test_a_clip_is_scored_into_a_file_and_redis_with_json_logs(
    two_faces, set_engine, redis_server, tmp_path
):
    path = tmp_path / "messages.jsonl"
    done = run(
        *(f"cam={two_faces}", *set_engine),
        *("--redis", redis_server.url, "--namespace", "test"),
        *("--sink", f"jsonl:{path}", "--sink", "redis", "--log-format", "json"),
    )
    assert done.code == 0, done.log
    messages = read_messages(path)
    for message in messages:
        jsonschema.validate(message, SCHEMA)
    verdicts = of_type(messages, "track.verdict")
    assert {m["verdict"]["state"] for m in verdicts} == {"bona_fide", "attack"}
    assert len(of_type(messages, "track.end")) == 2
    assert final_statuses(messages) == {"cam": ("ended", "end_of_file")}

    scores = of_type(messages, "track.score") + of_type(messages, "track.end")
    for name, expected in (("test:alerts", verdicts), ("test:tracks", scores)):
        sent = stream(redis_server, name)
        assert {m["event"]["id"] for m in sent} == {m["event"]["id"] for m in expected}
        for message in sent:
            jsonschema.validate(message, SCHEMA)

    lines = [json.loads(line) for line in done.log.splitlines()]
    assert {"levelname", "name", "message", "timestamp"} <= set(lines[0])
    assert any("end_of_file" in line["message"] for line in lines)


# --- asked to stop ---


def test_duration_ends_a_source_that_never_would(looped, tmp_path):
    done = run("--config", looped, "--duration", "2")
    assert done.code == 0, done.log
    assert final_statuses(read_messages(tmp_path / "messages.jsonl")) == {
        "cam": ("ended", "stopped")
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_drains_and_ends_well(looped, tmp_path, number):
    pipe = tmp_path / "messages.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    messages = []
    with os.fdopen(reader, encoding="utf-8") as lines, running("--config", looped) as process:
        read_log_until(process, "source cam: open")
        os.set_blocking(reader, True)
        for line in lines:  # until the program has closed its end
            messages.append(json.loads(line))
            if of_type(messages, "track.score") == messages[-1:]:  # the first
                process.send_signal(number)
        _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, log
    assert f"{number.name}: draining" in log
    assert "Traceback" not in log
    assert final_statuses(messages) == {"cam": ("ended", "stopped")}
    scored = {message["track"]["id"] for message in of_type(messages, "track.score")}
    assert scored
    assert scored == {message["track"]["id"] for message in of_type(messages, "track.end")}


def test_a_camera_that_never_answers_does_not_delay_the_end(two_faces, set_engine, tmp_path):
    sink = tmp_path / "messages.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = tmp_path / "config.yaml"
        url = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        source = {"id": "cam", "uri": url, "open_timeout_s": 3600}
        config.write_text(yaml.safe_dump({"sources": [source], "shutdown_s": LIMIT_S}))
        with running("--config", config, *set_engine, "--sink", f"jsonl:{sink}") as process:
            silent.settimeout(LIMIT_S)
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert final_statuses(read_messages(sink)) == {"cam": ("ended", "stopped")}


# --- bad and odd input: a status of the source, and the others go on ---


def noise(number, width, height):
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)


def test_every_odd_file_gets_a_status_none_stops_the_rest_and_the_failed_are_named(
    write_clip, write_sound, write_two_faces, set_engine, tmp_path
):
    def clip(name, **how):
        return write_clip(tmp_path / name, n=3, **how)

    text, empty = tmp_path / "text.mp4", tmp_path / "empty.mp4"
    text.write_text("Dear diary,\n" * 50, encoding="utf-8")
    empty.touch()
    whole = write_two_faces(tmp_path / "whole.mp4", container_options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    huge = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "size": (7680, 4320)}
    expected = {
        "missing": (tmp_path / "no.mp4", "not_found"),
        "text": (text, "invalid_data"),
        "empty": (empty, "invalid_data"),
        "sound": (write_sound(tmp_path / "sound.mp4"), "no_video"),
        "cut": (cut, "invalid_data"),
        "8k": (write_clip(tmp_path / "8k.avi", n=1, **huge), "too_large"),
        "1x1": (clip("1x1.mkv", codec="ffv1", pix_fmt="gray", size=(1, 1)), "end_of_file"),
        "odd": (clip("odd.mp4", pix_fmt="yuv444p", size=(427, 241)), "end_of_file"),
        "vfr": (clip("vfr.mp4", times_s=[0, 0.03, 0.5, 0.51, 2]), "end_of_file"),
        "rotated": (clip("phone.mp4", rotation=90, picture=noise), "end_of_file"),
        "grey": (clip("grey.mp4", pix_fmt="gray"), "end_of_file"),
        "422": (clip("422.mp4", pix_fmt="yuv422p"), "end_of_file"),
        "10-bit": (clip("10.mp4", pix_fmt="yuv420p10le"), "end_of_file"),
    }
    path = tmp_path / "messages.jsonl"
    sources = [f"{name}={file}" for name, (file, _) in expected.items()]
    done = run(*sources, *set_engine, "--sink", f"jsonl:{path}")
    assert done.code == 1, done.log
    assert "Traceback" not in done.log
    messages = read_messages(path)
    assert final_statuses(messages) == {
        name: ("ended", code) for name, (_, code) in expected.items()
    }
    scores = of_type(messages, "track.score")
    assert {message["source"]["id"] for message in scores} == {"cut"}  # what it held is scored
    failed = {name for name, (_, code) in expected.items() if code != "end_of_file"}
    assert {m["source"]["id"] for m in of_type(messages, "source.ended")} == failed
    for name in failed:
        (line,) = (line for line in done.log.splitlines() if f"source {name}: ended" in line)
        assert " ERROR " in line
    assert f"{len(failed)} of {len(expected)} sources failed" in done.log.splitlines()[-1]


def test_a_name_that_is_not_utf_8_stops_nothing(two_faces, set_engine, tmp_path):
    strange = tmp_path / os.fsdecode(b"door\xe9\n.mp4")
    strange.write_bytes(two_faces.read_bytes())
    gone = tmp_path / os.fsdecode(b"\xff.mp4")
    path = tmp_path / "messages.jsonl"
    sources = [strange, f"gone={gone}", f"cam={two_faces}"]
    done = run(*sources, *set_engine, "--sink", f"jsonl:{path}", "--log-format", "json")
    assert done.code == 1
    assert final_statuses(read_messages(path)) == {
        "door": ("ended", "end_of_file"),
        "gone": ("ended", "not_found"),
        "cam": ("ended", "end_of_file"),
    }
    lines = [json.loads(line)["message"] for line in done.log.splitlines()]
    assert any(r"door\udce9\n.mp4" in line for line in lines)
    assert lines[-1] == "1 of 3 sources failed: gone (not_found)"


# --- bad arguments and configuration: one line, exit code 2 ---


@pytest.mark.parametrize(
    ("arguments", "complaints"),
    [
        pytest.param([], ["sources"], id="no sources"),
        pytest.param(["gopher://camera/1"], ["gopher://camera/1", "rtsp://"], id="scheme"),
        pytest.param(["http://camera/1.mp4"], ["http://camera/1.mp4", "allow_http"], id="http"),
        pytest.param(
            ["clip.mp4", "--set", "track.lost_after=3"],
            ["track.lost_after", "did you mean 'lost_after_s'?"],
            id="key",
        ),
        pytest.param(["clip.mp4", "--sink", "kafka"], ["kafka", "jsonl:PATH"], id="sink"),
    ],
)
def test_a_wrong_argument_gets_one_line_and_code_2(arguments, complaints, set_engine):
    done = run(*set_engine, *arguments)
    assert (done.code, done.out) == (2, "")
    for complaint in complaints:
        assert complaint in done.complaint


def test_a_wrong_key_in_a_file_is_named_with_the_file_and_the_nearest_key(tmp_path):
    config = tmp_path / "wrong.yaml"
    config.write_text("sources: [{id: cam, uri: clip.mp4}]\ndetekt: {min_face_px: 40}\n")
    done = run("--config", config)
    assert done.code == 2
    assert "wrong.yaml: detekt: unknown key; did you mean 'detect'?" in done.complaint


@pytest.mark.parametrize("option", [[], ["--check"]], ids=["run", "check"])
def test_a_missing_manifest_gets_one_line_and_code_2(option, tmp_path):
    missing = tmp_path / "no.manifest.json"
    done = run("clip.mp4", "--set", f"score.manifest={missing}", *option)
    assert (done.code, done.out) == (2, "")
    assert f"{missing}: can't read the engine's manifest" in done.complaint


@pytest.mark.parametrize("option", [[], ["--check"]], ids=["run", "check"])
def test_a_threshold_that_no_track_reaches_gets_one_line_and_code_2(option, two_faces, tiny_engine):
    arguments = ["--set", f"score.manifest={tiny_engine}", "--sink", "jsonl:never", *option]
    done = run(two_faces, "--set", "fuse.enter=0.98", *arguments)
    assert (done.code, done.out) == (2, "")
    assert "fuse.enter: no track can reach 0.98 (as set)" in done.complaint
    assert "set fuse.enter to 0.958 or less" in done.complaint
    assert not Path("never").exists()


def test_a_damaged_engine_gets_one_line_and_code_2(two_faces, tiny_engine, tmp_path):
    manifest = tmp_path / tiny_engine.name
    manifest.write_bytes(tiny_engine.read_bytes())
    engine = bytearray((tiny_engine.parent / "tiny.onnx").read_bytes())
    engine[len(engine) // 2] ^= 1
    (tmp_path / "tiny.onnx").write_bytes(engine)
    sink = tmp_path / "messages.jsonl"
    done = run(two_faces, "--set", f"score.manifest={manifest}", "--sink", f"jsonl:{sink}")
    assert done.code == 2
    assert "tiny.onnx: expected sha256" in done.complaint
    assert not sink.exists()


@pytest.mark.redis
def test_a_wrong_redis_password_gets_one_line_without_it_and_code_2(
    two_faces, set_engine, redis_server
):
    redis_server.client.config_set("requirepass", PASSWORD)
    path = redis_server.url.removeprefix("unix://")
    done = run(two_faces, *set_engine, "--redis", f"unix://:wr0ng%2Fword@{path}")
    assert done.code == 2, done.log
    assert path in done.complaint
    for secret in (PASSWORD, "wr0ng"):
        assert secret not in done.out + done.log


# --- a camera, end to end ---


@pytest.mark.rtsp
@pytest.mark.redis
def test_a_camera_that_is_killed_and_comes_back_is_told_in_redis_and_scored_again(
    rtsp_camera, write_two_faces, set_engine, redis_server, tmp_path
):
    folder = tmp_path / "camera"
    folder.mkdir()
    live = {"preset": "ultrafast", "g": "25", "sc_threshold": "0", "threads": "1"}
    camera = rtsp_camera(write_two_faces(folder / "faces.mp4", options=live))
    config = tmp_path / "camera.yaml"
    source = {
        "id": "cam",
        "uri": camera.url,
        "retry_first_s": 0.1,
        "retry_max_s": 0.5,
        "recovered_after_s": 1,
    }
    config.write_text(yaml.safe_dump({"sources": [source]}), encoding="utf-8")
    after = {"sources": b"0", "tracks": b"0"}

    def wait_for(lane: str, *, kind: str, session: int) -> None:
        """Read on in a stream until such a message comes."""
        key = f"facewarden:{lane}"
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            found = redis_server.client.xread({key: after[lane]}, count=1, block=1000)
            if not found:
                continue
            ((_, ((after[lane], fields),)),) = found
            message = json.loads(fields[b"metadata"])
            if (message["event"]["type"], message["source"]["session"]) == (kind, session):
                return
        raise AssertionError(f"no {kind} of session {session}")

    with running("--config", config, *set_engine, "--redis", redis_server.url) as process:
        wait_for("tracks", kind="track.score", session=0)
        camera.kill()
        wait_for("sources", kind="source.lost", session=0)
        wait_for("tracks", kind="track.end", session=0)
        camera.start()
        wait_for("tracks", kind="track.score", session=1)
        wait_for("sources", kind="source.regained", session=1)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, log
    assert "Traceback" not in log
