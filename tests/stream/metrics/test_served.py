"""`--metrics`: real runs, whose answers are read by HTTP."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from stream.shards import part_of
from tests.stream.metrics.monitoring import (
    ROOT,
    dashboard_expressions,
    exported,
    metrics_in,
    rule_expressions,
)
from tests.stream.metrics.scrape import Served

pytestmark = pytest.mark.redis

WORKER = re.compile(r"worker (\d+) \(process (\d+)\): (.*)")


def test_what_is_counted_is_what_was_published(scraped):
    _, scrape, client = scraped
    alerts = scrape.value("facewarden_redis_publish_total", lane="alerts", result="sent")
    assert 0 < alerts <= client.xlen("facewarden:alerts")
    assert scrape.value("facewarden_verdicts_total", source="cam", state="bona_fide") >= 1
    assert scrape.value("facewarden_verdicts_total", source="cam", state="attack") >= 1
    assert scrape.value("facewarden_alerts_total", source="gone", type="source.lost") == 1
    assert scrape.value("facewarden_source_reconnects_total", source="gone", code="refused") == 1
    assert scrape.value("facewarden_time_to_decision_seconds_count") >= 2
    assert scrape.value("facewarden_e2e_latency_seconds_count") >= 2
    assert scrape.value("facewarden_consumer_lag_entries", lane="alerts", group="siem") > 0


def test_frames_and_faces_add_up_through_the_stages(scraped):
    _, scrape, _ = scraped
    analysed = scrape.value("facewarden_frames_analysed_total", source="cam")
    assert 1.5 * analysed <= scrape.value("facewarden_faces_detected_total") <= 2 * analysed
    assert scrape.value("facewarden_tracks_active", source="cam") == 2
    stages = {"detect", "track_and_crop", "infer", "fuse"}
    for stage in stages:
        assert scrape.value("facewarden_stage_latency_seconds_count", stage=stage) >= analysed
    crops = scrape.value("facewarden_inference_total", detector="tiny")
    assert crops == scrape.value("facewarden_batch_size_sum", detector="tiny") > 0
    assert scrape.value("facewarden_source_last_frame_timestamp_seconds", source="cam") > 1e9
    assert not scrape.has("facewarden_source_last_frame_timestamp_seconds", source="gone")


def test_every_source_is_in_one_state_and_the_missing_one_is_lost(scraped):
    _, scrape, _ = scraped
    assert scrape.value("facewarden_source_state", source="cam", state="open") == 1
    assert scrape.value("facewarden_source_state", source="gone", state="lost") == 1
    assert scrape.value("facewarden_source_state") == 2


def test_no_label_is_an_address_a_password_or_a_track(scraped):
    _, scrape, _ = scraped
    values = {value for sample in scrape.samples for value in sample.labels.values()}
    assert not [value for value in values if "://" in value or "pa55word" in value]
    assert not [value for value in values if re.match(r"cam-[0-9a-f]{8}-", value)]
    labels = {label for sample in scrape.samples for label in sample.labels}
    # fmt: off
    assert labels <= {"source", "state", "family", "type", "reason", "code", "stage", "detector",
                      "lane", "result", "group", "le", "method", "backend", "sha256", "version",
                      "python", "file"}
    # fmt: on


def test_rules_and_dashboard_name_only_what_the_program_exports(scraped):
    _, scrape, _ = scraped
    for title, expression in {**rule_expressions(), **dashboard_expressions()}.items():
        named = metrics_in(expression)
        assert named, title
        assert named <= exported(scrape), title


def test_every_metric_of_ours_is_explained_and_no_other_is(scraped):
    _, scrape, _ = scraped
    explained = set(re.findall(r"`(facewarden_[a-z0-9_]+)", (ROOT / "docs/operate.md").read_text()))
    families = [f for f in scrape.families.values() if f.name.startswith("facewarden_")]
    assert explained == {f.name + ("_total" if f.type == "counter" else "") for f in families}


def test_a_run_with_a_source_that_is_up_is_healthy_and_ready(scraped):
    served, _, _ = scraped
    assert served.get("/healthz") == (200, "ok\n")
    assert served.get("/readyz") == (200, "ok\n")
    assert served.get("/")[0] == 404


def test_a_second_run_on_the_same_port_is_refused_with_what_to_do(scraped, warm, two_faces):
    served, _, _ = scraped
    port = served.address.rpartition(":")[2]
    with warm.start("run_stream.py", two_faces, f"--metrics=127.0.0.1:{port}") as process:
        _, log = process.communicate()
        assert process.wait() == 2
    assert f"can't listen on 127.0.0.1:{port} (Address already in use)" in log
    assert "--metrics HOST:PORT" in log


def test_what_is_no_port_is_refused_with_what_to_do(warm, two_faces):
    with warm.start("run_stream.py", "--metrics", two_faces) as process:
        _, log = process.communicate()
        assert process.wait() == 2
    assert "expected HOST:PORT" in log
    assert "--metrics comes after the sources" in log


def test_without_a_source_that_is_up_a_run_is_not_ready(serve, write_config, tmp_path):
    config = write_config(
        {"gone": "rtsp://127.0.0.1:1/stream"}, [{"kind": "jsonl", "path": str(tmp_path / "out")}]
    )
    with serve("--config", config) as process:
        served = Served(process)
        assert served.get("/readyz") == (503, "the engines are loading\n")
        served.scrape(lambda s: s.has("facewarden_source_state", source="gone", state="lost"))
        served.until(re.compile("source gone: lost"))
        served.scrape(lambda s: s.value("facewarden_source_state", state="lost") == 1)
        assert served.get("/readyz") == (503, "no source is up: gone lost (refused)\n")
        assert served.get("/healthz") == (200, "ok\n")


def test_sources_that_come_and_go_are_told_of_as_long_as_they_are_there(
    serve, write_config, two_faces, tmp_path
):
    sink = {"kind": "jsonl", "path": str(tmp_path / "out")}
    config, later = (
        write_config(sources, [sink])
        for sources in ({"a": two_faces}, {"b": "rtsp://127.0.0.1:1/stream"})
    )
    with serve("--config", config) as process:
        served = Served(process)
        before = served.scrape(lambda s: s.value("facewarden_tracks_active", source="a") == 2)
        assert before.value("facewarden_source_state", source="a", state="open") == 1
        config.write_text(later.read_text())
        process.send_signal(signal.SIGHUP)
        after = served.scrape(
            lambda s: (
                s.value("facewarden_source_state", source="b", state="lost") == 1
                and s.has("facewarden_verdicts_total", source="b")
            )
        )
        assert {s.labels["source"] for s in after.samples if "source" in s.labels} == {"b"}
        assert after.value("facewarden_verdicts_total") == 0
        assert served.get("/readyz") == (503, "no source is up: b lost (refused)\n")
        config.write_text(
            config.read_text()
            .replace("id: b", "id: a")
            .replace("rtsp://127.0.0.1:1/stream", str(two_faces))
        )
        process.send_signal(signal.SIGHUP)
        again = served.scrape(lambda s: s.value("facewarden_source_state", state="open") == 1)
        served.scrape(lambda s: s.value("facewarden_tracks_active", source="a") == 2)
        counted = "facewarden_frames_analysed_total"
        assert again.value(counted, source="a") >= before.value(counted, source="a")
        assert not again.has("facewarden_source_state", source="b")
        assert served.get("/readyz") == (200, "ok\n")


def test_a_shard_without_sources_is_ready(serve, write_config, tmp_path):
    config = write_config(
        {"a": "rtsp://127.0.0.1:1/stream"}, [{"kind": "jsonl", "path": str(tmp_path / "out")}]
    )
    empty = 1 - part_of(b"a", 2)
    with serve("--config", config, "--shard", f"{empty}/2") as process:
        served = Served(process)
        assert served.get("/readyz") == (200, "ok\n")
        assert served.get("/healthz") == (200, "ok\n")


def test_workers_have_one_port_and_what_a_dead_one_counted_stands(
    serve, write_config, two_faces, tmp_path
):
    config = write_config(
        {"a": two_faces, "b": two_faces}, [{"kind": "jsonl", "path": str(tmp_path / "out")}]
    )
    with serve("--config", config, "--workers", "2") as process:
        served = Served(process)
        workers = {}  # process by source
        while len(workers) < 2:
            _, pid, source = served.until(WORKER)
            workers[source] = int(pid)
        analysed = "facewarden_frames_analysed_total"
        served.scrape(lambda s: s.has("facewarden_tracks_active", source="a"))
        served.scrape(lambda s: s.value(analysed, source="b") >= 5)
        os.kill(workers["a"], signal.SIGKILL)
        lost = {"source": "a", "code": "worker_failed"}
        dead = served.scrape(lambda s: s.value("facewarden_source_reconnects_total", **lost))
        assert not dead.has("facewarden_tracks_active", source="a")
        assert dead.has("facewarden_tracks_active", source="b")
        assert dead.value(analysed, source="a") > 0
        assert served.get("/readyz") == (200, "ok\n")
        served.until(WORKER)
        enough = dead.value(analysed, source="a") + 5
        later = served.scrape(
            lambda s: (
                s.value(analysed, source="a") >= enough
                and s.has("facewarden_tracks_active", source="a")
            )
        )
        for sample in dead.samples:
            if (
                sample.name.endswith(("_total", "_count", "_bucket"))
                and "process" not in sample.name
            ):
                assert later.value(sample.name, **sample.labels) >= sample.value, sample
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.wait() == 0
    said = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert {"a", "b"} <= {message["source"]["id"] for message in said if "verdict" in message}
