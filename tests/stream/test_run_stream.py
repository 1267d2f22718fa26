"""The command line, as a process of its own.

`run` and `running` fork it from a process that has its imports (tests/warm_start.py); `run_afresh`
and `running_afresh` start it as people do.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jsonschema
import numpy as np
import pytest
import yaml

from stream.signals import STOP_SIGNALS
from tests.warm_start import WarmStarts
from trt_engines.manifest import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.warm_start import WarmProcess

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


def hear_hang_ups() -> None:
    """Undo `nohup`, which may have started the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def run_afresh(*arguments: object, **how: Any) -> Outcome:
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    done = subprocess.run(
        command(*arguments), text=True, timeout=LIMIT_S, env=environment(), check=False, **options
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@contextmanager
def running_afresh(
    *arguments: object, within: Sequence[str] = (), **how: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start the program, within another if told; kill it at the end if it still runs."""
    options: dict[str, Any] = {"stderr": subprocess.PIPE, "env": environment()}
    options |= {"preexec_fn": hear_hang_ups} | how
    with subprocess.Popen([*within, *command(*arguments)], text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStarts]:
    starts = WarmStarts(
        *("rich.live", "stream.analyse", "stream.messages", "stream.decode.pyav_packets"),
        *("stream.publish.redis_stream", "trt_engines.backends.onnx_session"),
    )
    yield starts
    starts.close()


@pytest.fixture
def running(warm: WarmStarts) -> Callable[..., WarmProcess]:
    """Start the program; as a context it is killed at the end if it still runs."""

    def start(*arguments: object) -> WarmProcess:
        program = ROOT / "run_stream.py"
        return warm.start(program, *arguments, env=environment())

    return start


@pytest.fixture
def run(warm: WarmStarts) -> Callable[..., Outcome]:
    """Start the program, and wait for its end."""

    def start(*arguments: object, cwd: Path = ROOT) -> Outcome:
        program = ROOT / "run_stream.py"
        with warm.start(program, *arguments, env=environment(), cwd=cwd) as process:
            out, log = process.communicate()
        return Outcome(process.wait(), out, log)

    return start


def read_log_until(process: WarmProcess, text: str) -> None:
    """Wait for a line of the log that holds the text."""
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
    return ["--model", tiny_engine]


@pytest.fixture
def looped(two_faces, tiny_engine, tmp_path):
    """A configuration that plays the clip for ever into messages.jsonl."""
    path = tmp_path / "looped.yaml"
    options = {
        "sources": [{"id": "cam", "uri": str(two_faces), "loop": True, "realtime": True}],
        "score": {"engines": [{"manifest": str(tiny_engine)}]},
        "sinks": [{"kind": "jsonl", "path": str(tmp_path / "messages.jsonl")}],
    }
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


# --- asking ---


def test_help_names_every_option():
    done = run_afresh("--help")
    assert (done.code, done.log) == (0, "")
    for option in ("--config", "--redis", "--sink", "--set", "--duration", "--check"):
        assert option in done.out
    assert "SOURCE" in done.out


def test_check_prints_the_resolved_configuration_without_secrets(run, tiny_engine, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"score: {{engines: [{{manifest: {tiny_engine}}}]}}\ntrack: {{lost_after_s: 4}}\n"
    )
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


def test_probe_prints_what_each_source_is_without_its_password(run, clip, unused_port):
    camera = f"door=rtsp://admin:{PASSWORD}127.0.0.1:{unused_port}/ch1"
    done = run(clip, camera, "--probe", "--json")
    first, second = map(json.loads, done.out.splitlines())
    assert (first["source"], first["decoder"], first["facts"]["codec"]) == ("clip", "pyav", "h264")
    assert (second["source"], second["decoder"], second["facts"]) == ("door", None, None)
    assert done.code == 1
    assert "pa55" not in done.out + done.log


def test_json_without_probe_is_refused(run):
    done = run("clip.mp4", "--json")
    assert (done.code, "--json is for --probe" in done.complaint) == (2, True)


def test_check_names_every_detector_with_its_window_interval_thresholds_and_family(
    run, tiny_engine, bright_engine, tmp_path
):
    config = tmp_path / "config.yaml"
    engines = [
        {"manifest": str(tiny_engine)},
        {"manifest": str(bright_engine), "interval_s": 0.8},
    ]
    config.write_text(yaml.safe_dump({"score": {"engines": engines}}))
    done = run("clip.mp4", "--config", config, "--check")
    assert done.code == 0, done.log
    tiny, bright, fused, *_ = done.out.splitlines()
    assert tiny == (
        "# detector tiny, method tiny, family unknown: a window of 1.2 x the face (pad, area) at "
        "32 px, every 0.4 s, up to 3 together; attack at or above 0.6, bona fide below 0.4"
    )
    assert "detector bright, method bright, family digital: a window of 1.8 x the face " in bright
    assert "(inside, bilinear) at 48 px, every 0.8 s" in bright
    assert fused == "# fused: attack at or above 0.651669, bona fide below 0.44949"
    shown = yaml.safe_load(done.out)  # the detectors are comments
    assert [engine["interval_s"] for engine in shown["score"]["engines"]] == [None, 0.8]


HEAVY = ("torch", "numpy", "av", "onnxruntime", "redis", "rich", "pydantic", "yaml")


def test_help_imports_nothing_that_takes_long():
    program = f"""
import runpy, sys
sys.argv = ["run_stream.py", "--help"]
try:
    runpy.run_path({str(ROOT / "run_stream.py")!r}, run_name="__main__")
finally:
    print(*sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("Usage: run_stream.py")
    assert done.stderr.split() == []


@pytest.mark.parametrize("name", ["exp #2", "@home", "[a]", "100%", "a: b", "{fw}", "*&!", "it's"])
def test_a_name_with_special_characters_is_taken_to_the_letter(run, name, tmp_path, tiny_engine):
    shutil.copytree(tiny_engine.parent, tmp_path / name)
    arguments = ["clip.mp4", "--model", name, "--sink", f"jsonl:{name}", "--check"]
    done = run(*arguments, cwd=tmp_path)
    assert done.code == 0, done.log
    shown = yaml.safe_load(done.out)
    assert shown["score"]["engines"][0]["manifest"] == f"{name}/{tiny_engine.name}"
    assert shown["sinks"] == [{"kind": "jsonl", "path": name}]


# --- a run on a file, into a file and a real Redis ---


def test_two_models_judge_a_clip_together(run, two_faces, tiny_engine, bright_engine, tmp_path):
    path = tmp_path / "messages.jsonl"
    models = ["--model", tiny_engine, "--model", bright_engine.parent]
    done = run(f"cam={two_faces}", *models, "--sink", f"jsonl:{path}")
    assert done.code == 0, done.log
    ends = of_type(read_messages(path), "track.end")
    for message in ends:
        jsonschema.validate(message, SCHEMA)
        assert [m["name"] for m in message["producer"]["models"]] == ["tiny", "bright"]
        assert [d["name"] for d in message["detectors"]] == ["tiny", "bright"]
    assert {m["verdict"]["family"] for m in ends} == {"unsure", "digital"}
    assert "1 attack, 1 attack (digital)" in done.log or "1 attack (digital), 1 attack" in done.log


@pytest.mark.redis
def test_a_clip_is_scored_into_a_file_and_redis_with_json_logs(
    two_faces, set_engine, redis_server, tmp_path
):
    path = tmp_path / "messages.jsonl"
    done = run_afresh(
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
    assert lines[-1]["message"] == "15 frames analysed; verdicts: 1 attack, 1 bona_fide"


# --- wherever it is started ---


def test_it_runs_with_its_standard_streams_closed(two_faces, set_engine, tmp_path):
    path = tmp_path / "messages.jsonl"

    def close() -> None:
        for number in (0, 1, 2):
            os.close(number)

    done = run_afresh(
        *(f"cam={two_faces}", *set_engine, "--sink", f"jsonl:{path}"),
        stdout=None,
        stderr=None,
        preexec_fn=close,
    )
    assert done.code == 0
    assert final_statuses(read_messages(path)) == {"cam": ("ended", "end_of_file")}


def unshared(*options: str) -> list[str]:
    """Return the command that starts another in namespaces of its own, or skip the test."""
    made = ["unshare", "--map-root-user", *options]
    if shutil.which("unshare") is None or subprocess.run([*made, "true"], check=False).returncode:
        pytest.skip(f"needs a namespace of its own: unshare {' '.join(options)}")
    return made


READ_ONLY = 'mount --rbind / / && mount -o remount,bind,ro / && unset HOME && exec "$@"'


def test_it_runs_on_a_read_only_file_system_without_a_home_or_temporary_folder(
    two_faces, set_engine
):
    made = unshared("--mount")
    if subprocess.run([*made, "sh", "-c", READ_ONLY, "sh", "true"], check=False).returncode:
        pytest.skip("needs a namespace of its own: with a read-only root")
    done = subprocess.run(
        [
            *(*made, "sh", "-c", READ_ONLY, "sh"),
            *command(f"cam={two_faces}", *set_engine, "--sink", "jsonl:/dev/stdout"),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert final_statuses(messages) == {"cam": ("ended", "end_of_file")}


# --- asked to stop ---


def test_duration_ends_a_source_that_never_would(run, looped, tmp_path):
    done = run("--config", looped, "--duration", "2")
    assert done.code == 0, done.log
    assert final_statuses(read_messages(tmp_path / "messages.jsonl")) == {
        "cam": ("ended", "stopped")
    }


@pytest.fixture
def followed(looped, tmp_path):
    """The same configuration, and a pipe to read its messages from as they come."""
    pipe = tmp_path / "messages.jsonl"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as lines:
        yield looped, lines


def assert_drained(messages: list[dict[str, Any]]) -> None:
    assert final_statuses(messages) == {"cam": ("ended", "stopped")}
    scored = {message["track"]["id"] for message in of_type(messages, "track.score")}
    assert scored
    assert scored == {message["track"]["id"] for message in of_type(messages, "track.end")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_drains_and_ends_well(running, followed, number):
    config, lines = followed
    messages = []
    with running("--config", config) as process:
        read_log_until(process, "source cam: open")
        os.set_blocking(lines.fileno(), True)
        for line in lines:  # until the program has closed its end
            messages.append(json.loads(line))
            if of_type(messages, "track.score") == messages[-1:]:  # the first
                process.send_signal(number)
        _, log = process.communicate()
    assert process.returncode == 0, log
    assert f"{number.name}: draining" in log
    assert "Traceback" not in log
    assert_drained(messages)


def test_a_terminal_that_hangs_up_drains_and_ends_well(followed):
    config, lines = followed
    messages = []
    terminal, program_side = os.openpty()

    def take_terminal() -> None:
        hear_hang_ups()
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)

    with running_afresh(
        *("--config", config),
        stderr=program_side,
        env=environment() | {"TERM": "xterm"},
        start_new_session=True,
        preexec_fn=take_terminal,
    ) as process:
        os.close(program_side)
        shown = b""
        while b"frames analysed" not in shown:  # the live table
            shown += os.read(terminal, 4096)
        os.set_blocking(lines.fileno(), True)
        for line in lines:
            messages.append(json.loads(line))
            if of_type(messages, "track.score") == messages[-1:]:
                os.close(terminal)
        assert process.wait() == 0
    assert_drained(messages)


@pytest.fixture
def config_pipe(tmp_path):
    """A pipe in place of a configuration: the program waits in its first moments to read it."""
    path = tmp_path / "config.yaml"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "number", [n for n in STOP_SIGNALS if n != signal.SIGHUP], ids=lambda n: n.name
)
def test_a_signal_in_the_first_moments_ends_it_at_once(config_pipe, number):
    with (
        running_afresh("--config", config_pipe) as process,
        config_pipe.open("w"),
    ):  # both sides are there
        process.send_signal(number)
        _, log = process.communicate()
    assert (process.returncode, f"{number.name}: stopped before" in log) == (0, True)


def test_a_hang_up_reads_the_configuration_again_and_a_broken_one_changes_nothing(
    running, looped, two_faces
):
    options = yaml.safe_load(looped.read_text(encoding="utf-8"))
    second = {"id": "second", "uri": str(two_faces), "loop": True, "realtime": True}
    with running("--config", looped) as process:
        read_log_until(process, "source cam: open")
        for sources, said in (
            ([*options["sources"], second], "SIGHUP: added second"),
            ([second, second], "SIGHUP: all stays as it was: "),
            ([second], "SIGHUP: removed cam"),
        ):
            looped.write_text(yaml.safe_dump(options | {"sources": sources}), encoding="utf-8")
            process.send_signal(signal.SIGHUP)
            read_log_until(process, said)
        looped.write_text(yaml.safe_dump(options | {"sources": [second], "shutdown_s": 9}))
        process.send_signal(signal.SIGHUP)
        read_log_until(process, "only sources can change while it runs; restart for shutdown_s")
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0
    assert final_statuses(read_messages(looped.with_name("messages.jsonl"))) == {
        "cam": ("ended", "stopped"),
        "second": ("ended", "stopped"),
    }


def test_a_hang_up_ends_it_where_there_is_no_configuration_to_read_again(
    running, set_engine, two_faces, tmp_path
):
    source = {"id": "cam", "uri": str(two_faces), "loop": True, "realtime": True}
    sink = f"jsonl:{tmp_path / 'messages.jsonl'}"
    with running(
        "--set", f"sources={json.dumps([source])}", *set_engine, "--sink", sink
    ) as process:
        read_log_until(process, "source cam: open")
        process.send_signal(signal.SIGHUP)
        _, log = process.communicate()
    assert (process.returncode, "SIGHUP: draining" in log) == (0, True)


def test_as_process_1_it_takes_sigterm_in_its_first_moments(config_pipe):
    # The kernel drops what process 1 has no handler for. A shell that waits is the parent.
    made = unshared("--pid", "--fork", "--kill-child")
    with running_afresh("--config", config_pipe, within=made) as outside, config_pipe.open("w"):
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
        os.kill(int(children.read_text()), signal.SIGTERM)
        _, log = outside.communicate(timeout=LIMIT_S)
    assert (outside.returncode, "SIGTERM: stopped before" in log) == (0, True)


def test_nohup_keeps_a_hang_up_from_it(config_pipe):
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with running_afresh("--config", config_pipe, **ignored) as process:
        with config_pipe.open("w") as config:
            process.send_signal(signal.SIGHUP)
            config.write("sources: []")
        _, log = process.communicate()
    assert (process.returncode, "sources" in log) == (2, True)  # it went on to read the file


def test_a_camera_that_never_answers_does_not_delay_the_end(
    running, two_faces, set_engine, tmp_path
):
    sink = tmp_path / "messages.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = tmp_path / "config.yaml"
        url = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        source = {"id": "cam", "uri": url, "open_timeout_s": 3600}
        config.write_text(yaml.safe_dump({"sources": [source], "shutdown_s": 20}))
        with running("--config", config, *set_engine, "--sink", f"jsonl:{sink}") as process:
            silent.settimeout(LIMIT_S)
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate()
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert final_statuses(read_messages(sink)) == {"cam": ("ended", "stopped")}


# --- bad and odd input: a status of the source, and the others go on ---


def noise(number, width, height):
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)


def test_every_odd_file_gets_a_status_none_stops_the_rest_and_the_failed_are_named(
    run, write_clip, write_sound, write_two_faces, set_engine, tmp_path
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


def test_a_name_that_is_not_utf_8_stops_nothing(run, two_faces, set_engine, tmp_path):
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
        pytest.param(
            ["cam 1=rtsp://viewer:secret@camera/1"], ["'cam 1' before = is not a valid"], id="name"
        ),
        pytest.param(
            ["clip.mp4", "--namespace", "a b"], ["namespace", "should match"], id="namespace"
        ),
        pytest.param(
            ["clip.mp4", "--set", "track.lost_after_s=NaN"], ["finite number"], id="not a number"
        ),
        pytest.param(
            ["clip.mp4", "--set", "shutdown_s=1e12"], ["must not exceed 1e+09 s"], id="duration"
        ),
        pytest.param(["clip.mp4", "--model", "n" * 300], ["--model nnn", "too long"], id="model"),
        pytest.param(
            ["clip.mp4", "--set", "score.manifest=a"],
            ["score.manifest: unknown key; did you mean 'engines'?"],
            id="the old key of the detector",
        ),
        pytest.param(
            ["--page", "clip.mp4"], ["--page clip.mp4", "expected HOST:PORT"], id="page's address"
        ),
        pytest.param(
            ["clip.mp4", "--page", "0.0.0.0:8765"],
            ["other machines can reach 0.0.0.0", "page.secret", "page.hosts"],
            id="page for all",
        ),
    ],
)
def test_a_wrong_argument_gets_one_line_and_code_2(run, arguments, complaints, set_engine):
    done = run(*set_engine, *arguments)
    assert (done.code, done.out) == (2, "")
    for complaint in complaints:
        assert complaint in done.complaint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "fuse.enter"], "expected NAME=VALUE, found 'fuse.enter'"),
        (["--set", "=3"], "expected NAME=VALUE, found '=3'"),
        (["--set", "score.engines=[a]/x"], "begins like a list or an object, and is none"),
        (["--duration", "nan"], "expected a number of seconds"),
        (["--duration", "inf"], "expected a number of seconds"),
    ],
)
def test_an_option_that_can_not_be_read_ends_it_with_code_2(run, arguments, complaint):
    done = run("clip.mp4", *arguments)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.log
    assert "Traceback" not in done.log


def test_a_wrong_key_in_a_file_is_named_with_the_file_and_the_nearest_key(run, tmp_path):
    config = tmp_path / "wrong.yaml"
    config.write_text("sources: [{id: cam, uri: clip.mp4}]\ndetekt: {min_face_px: 40}\n")
    done = run("--config", config)
    assert done.code == 2
    assert "wrong.yaml: detekt: unknown key; did you mean 'detect'?" in done.complaint


@pytest.mark.parametrize("option", [[], ["--check"]], ids=["run", "check"])
def test_a_missing_manifest_gets_one_line_and_code_2(run, option, tmp_path):
    missing = tmp_path / "no.manifest.json"
    done = run("clip.mp4", "--model", missing, *option)
    assert (done.code, done.out) == (2, "")
    assert f"{missing}: can't read the engine's manifest" in done.complaint


@pytest.mark.parametrize("option", [[], ["--check"]], ids=["run", "check"])
def test_a_threshold_that_no_track_reaches_gets_one_line_and_code_2(
    run, option, two_faces, tiny_engine
):
    arguments = ["--model", tiny_engine, "--sink", "jsonl:never", *option]
    done = run(two_faces, "--set", "fuse.enter=0.98", *arguments)
    assert (done.code, done.out) == (2, "")
    assert "fuse.enter: no track can reach 0.98 (as set)" in done.complaint
    assert "set fuse.enter to 0.958 or less" in done.complaint
    assert not Path("never").exists()


def test_a_damaged_engine_gets_one_line_and_code_2(run, two_faces, tiny_engine, tmp_path):
    manifest = tmp_path / tiny_engine.name
    manifest.write_bytes(tiny_engine.read_bytes())
    engine = bytearray((tiny_engine.parent / "tiny.onnx").read_bytes())
    engine[len(engine) // 2] ^= 1
    (tmp_path / "tiny.onnx").write_bytes(engine)
    sink = tmp_path / "messages.jsonl"
    done = run(two_faces, "--model", manifest, "--sink", f"jsonl:{sink}")
    assert done.code == 2
    assert "tiny.onnx: expected sha256" in done.complaint
    assert not sink.exists()


@pytest.mark.redis
def test_a_wrong_redis_password_gets_one_line_without_it_and_code_2(
    run, two_faces, set_engine, redis_server
):
    redis_server.client.config_set("requirepass", PASSWORD)
    path = redis_server.url.removeprefix("unix://")
    done = run(two_faces, *set_engine, "--redis", f"unix://:wr0ng%2Fword@{path}")
    assert done.code == 2, done.log
    assert path in done.complaint
    for secret in (PASSWORD, "wr0ng"):
        assert secret not in done.out + done.log


def test_the_same_model_twice_gets_one_line_and_code_2(run, two_faces, tiny_engine):
    done = run(two_faces, "--model", tiny_engine, "--model", tiny_engine)
    assert done.code == 2
    assert "an engine judges a face once; named twice: " in done.complaint


@pytest.mark.parametrize("option", [[], ["--check"]], ids=["run", "check"])
def test_a_network_that_is_no_attack_detector_gets_one_line_and_code_2(run, option, two_faces):
    done = run(two_faces, "--model", SHIPPED / "mtcnn" / "rnet.manifest.json", *option)
    assert (done.code, done.out) == (2, "")
    assert "expected an attack detector with method and thresholds" in done.complaint


# --- a camera, end to end ---


@pytest.mark.rtsp
@pytest.mark.redis
def test_a_camera_that_is_killed_and_comes_back_is_told_in_redis_and_scored_again(
    running, rtsp_camera, write_two_faces, set_engine, redis_server, tmp_path
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
        """Read on in a stream until such a message comes, of this session or a later one."""
        key = f"facewarden:{lane}"
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            found = redis_server.client.xread({key: after[lane]}, count=1, block=1000)
            if not found:
                continue
            ((_, ((after[lane], fields),)),) = found
            message = json.loads(fields[b"metadata"])
            if message["event"]["type"] == kind and message["source"]["session"] >= session:
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
        _, log = process.communicate()
    assert process.returncode == 0, log
    assert "Traceback" not in log
