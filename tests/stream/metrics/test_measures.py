"""What is measured, part by part, against real parts."""

from __future__ import annotations

import logging
import shutil
import ssl
import subprocess
import threading
from dataclasses import replace
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stream.analyse import Step
from stream.config import MetricsConfig, RedisSinkConfig, StreamConfig
from stream.errors import ConfigError
from stream.messages import MessageWriter
from stream.metrics.measures import Measures
from stream.metrics.server import MetricsServer
from stream.metrics.standing import Standing
from stream.pipeline import Pipeline, Progress
from stream.publish.redis_stream import RedisSink
from stream.records import SourceCode, SourceState
from stream.sources import Source
from tests.stream.metrics.scrape import Scrape

LIMIT_S = 30.0


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def measures(registry):
    return Measures(registry, ["cam1"], ["tiny"])


@pytest.fixture
def scrape(registry):
    return lambda: Scrape(generate_latest(registry).decode())


def config(**options):
    return StreamConfig.model_validate({"sources": [{"id": "cam1", "uri": "unused"}], **options})


def test_what_waits_for_redis_is_measured_in_entries_bytes_and_age(
    measures, scrape, redis_server, messages, records, tmp_path
):
    options = RedisSinkConfig(url=redis_server.url, spool=tmp_path / "spool")
    sink = RedisSink(options, run="0a1b2c3d", heartbeat_s=5)
    counting = measures.sink([sink])
    redis_server.kill()
    for ordinal in (1, 2):
        step = [messages.alert(ordinal=ordinal), messages.score(track=ordinal)]
        sink.publish(step)
        counting.publish(step)
    counting.close()
    away = scrape()
    assert away.value("facewarden_redis_up") == 0
    assert away.value("facewarden_redis_outages_total") == 1
    assert away.value("facewarden_redis_queue_entries", lane="alerts") == 2
    assert away.value("facewarden_redis_queue_bytes", lane="alerts") == 0
    spooled = sum(file.stat().st_size for file in (tmp_path / "spool").glob("alerts*"))
    assert away.value("facewarden_spool_bytes", lane="alerts") == spooled > 0
    assert away.value("facewarden_redis_queue_bytes", lane="tracks") > 0
    assert away.value("facewarden_spool_oldest_age_seconds") > 0
    assert away.value("facewarden_alerts_total", type="track.verdict") == 2
    redis_server.restart()
    sink.close()
    counting.close()
    back = scrape()
    assert back.value("facewarden_redis_publish_total", result="sent") == 4
    assert back.value("facewarden_redis_queue_entries") == 0
    assert back.value("facewarden_spool_oldest_age_seconds") == 0


def test_where_nothing_goes_to_redis_it_is_not_away(measures, scrape, messages):
    measures.sink([]).publish([messages.alert()])
    assert scrape().value("facewarden_redis_up") == 1


def test_a_stall_is_a_reconnect_of_its_own_kind_and_a_heartbeat_is_none(measures, scrape, messages):
    frozen = (SourceState.LOST, SourceCode.FROZEN)
    sink = measures.sink([])
    sink.publish([messages.status(*frozen), messages.status(*frozen, changed=False)])
    sink.publish([messages.status(SourceState.LOST, SourceCode.REFUSED)])
    assert scrape().value("facewarden_source_reconnects_total", source="cam1") == 2
    assert scrape().value("facewarden_source_stalls_total", source="cam1") == 1


def test_a_track_is_active_until_it_ends(measures, scrape, messages):
    sink = measures.sink([])
    sink.publish([messages.score(track=1), messages.score(track=2), messages.score(track=1)])
    assert scrape().value("facewarden_tracks_active", source="cam1") == 2
    sink.publish([messages.score(track=1, ended=True)])
    assert scrape().value("facewarden_tracks_active", source="cam1") == 1


def test_a_stream_that_falls_behind_its_media_time_shows_until_the_next_session(
    measures, scrape, read_events, two_faces
):
    first, second, *_ = [e for e in read_events(two_faces) if hasattr(e, "stamp")]

    def seen(frame, **stamp):
        late = replace(frame, stamp=replace(frame.stamp, **stamp))
        measures.analysis.watch([late], Step(tracks={"cam": ()}))
        return scrape().value("facewarden_clock_offset_seconds", source="cam")

    assert seen(first, captured_at=1000.0 + first.stamp.pts_s) == pytest.approx(0)
    assert seen(second, captured_at=1002.5 + second.stamp.pts_s) == pytest.approx(2.5)
    assert seen(first, captured_at=2000.0, session=1) == pytest.approx(0)


class Blocked:
    """A sink that hangs until it is released."""

    def __init__(self):
        self.entered, self.release = threading.Event(), threading.Event()

    def publish(self, messages):
        self.entered.set()
        assert self.release.wait(LIMIT_S)

    def close(self):
        pass


def test_a_publisher_that_hangs_is_unhealthy_and_one_that_waits_for_work_is_not(
    open_analyser, two_faces, registry
):
    options = config(sources=[{"id": "cam", "uri": str(two_faces)}])
    stop, sink = threading.Event(), Blocked()
    pipeline = Pipeline(
        [Source(options.sources[0], options.decode, stop=stop)],
        open_analyser(),
        MessageWriter(run="0" * 8, version="", models=()),
        [sink],
        stop=stop,
        shutdown_s=LIMIT_S,
    )
    standing = Standing(options, [], stuck_s=0.05)
    assert pipeline.progress().busy_s == 0
    standing.of(pipeline.progress)
    assert standing.unhealthy() == ""
    thread = threading.Thread(target=pipeline.run)
    thread.start()
    try:
        assert sink.entered.wait(LIMIT_S)
        stop.wait(0.06)
        assert "has been at one thing for" in standing.unhealthy()
    finally:
        sink.release.set()
        thread.join()
    stop.wait(0.06)
    assert standing.unhealthy() == ""


def test_what_is_unhealthy_answers_503(registry):
    standing = Standing(config(), [])
    with MetricsServer(MetricsConfig(port=0), registry, standing) as server:
        assert urlopen(f"{server.address}/healthz").status == 200
        standing.of(lambda: Progress({}, 0, {}, busy_s=31))
        with pytest.raises(HTTPError, match="503") as answer:
            urlopen(f"{server.address}/healthz")
        assert "for 31 s" in answer.value.read().decode()
        answer.value.close()


def test_another_address_than_the_loopback_is_logged_as_a_warning(registry, caplog):
    with caplog.at_level(logging.WARNING):
        MetricsServer(
            MetricsConfig(host="0.0.0.0", port=0), registry, Standing(config(), [])
        ).close()
    assert "have no password" in caplog.text


def test_an_address_of_another_machine_is_refused(registry):
    with pytest.raises(ConfigError, match="an address of this machine"):
        MetricsServer(MetricsConfig(host="192.0.2.1", port=0), registry, Standing(config(), []))


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl"
)
def test_the_expiry_of_an_authority_is_told_and_a_damaged_file_is_none(registry, tmp_path):
    ca = tmp_path / "ca.pem"
    # fmt: off
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=ca",
                    "-keyout", str(tmp_path / "ca.key"), "-out", str(ca)],
                   check=True, capture_output=True)
    end = subprocess.run(["openssl", "x509", "-in", str(ca), "-noout", "-enddate"],
                         check=True, capture_output=True, text=True).stdout
    # fmt: on
    sink = {"kind": "redis", "url": "rediss://localhost", "ca_file": str(ca)}
    standing = Standing(config(sinks=[sink]), [])
    registry.register(standing)
    name = "facewarden_certificate_expiry_timestamp_seconds"

    def expiry():
        return Scrape(generate_latest(registry).decode()).value(name, file=str(ca))

    assert expiry() == ssl.cert_time_to_seconds(end.strip().removeprefix("notAfter="))
    ca.write_text("not a certificate")
    assert expiry() == 0
    standing.close()


def test_a_redis_that_does_not_let_us_ask_for_groups_is_said_once(registry, redis_server, caplog):
    redis_server.client.acl_setuser("default", commands=["-xinfo"], enabled=True, keys=["*"])
    with Standing(config(sinks=[{"kind": "redis", "url": redis_server.url}]), []) as standing:
        registry.register(standing)
        with caplog.at_level(logging.WARNING):
            texts = [generate_latest(registry).decode() for _ in range(2)]
    assert not any("consumer_lag_entries{" in text for text in texts)
    assert len([r for r in caplog.records if "consumer groups is not known" in r.message]) == 1


def test_attacks_on_a_feed_and_a_camera_that_drifts_are_alerts_too(
    measures, writer, records, scrape
):
    said = [writer.write(record) for record in (records.feed_alert(), records.drift())]
    measures.sink([]).publish(said)
    assert scrape().value("facewarden_alerts_total", source="cam1", type="feed.looped") == 1
    assert scrape().value("facewarden_alerts_total", source="cam1", type="camera.drift") == 1


def test_counters_of_a_source_stand_at_zero_before_anything_happens(measures, scrape):
    for name in ("alerts", "verdicts", "abstain", "source_reconnects", "source_stalls"):
        assert scrape().has(f"facewarden_{name}_total", source="cam1"), name
    assert scrape().has("facewarden_alerts_total", type="source.flapping")
    assert scrape().value("facewarden_alerts_total") == 0
