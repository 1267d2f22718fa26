"""Redis Cluster: real servers in cluster mode, alone and several."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from redis.crc import key_slot

from stream.config import RedisSinkConfig
from stream.errors import ConfigError
from stream.publish.redis_stream import RedisSink
from stream.subscribe import Subscription

pytestmark = pytest.mark.redis

ALERTS = "{fw}:alerts"


@pytest.fixture
def open_sink(tmp_path):
    sinks = []

    def open_one(url, **options):
        config = RedisSinkConfig(url=url, spool=tmp_path / "spool", timeout_s=2, **options)
        sinks.append(RedisSink(config, run="0a1b2c3d", heartbeat_s=5, source_ids=["cam1", "cam2"]))
        return sinks[-1]

    yield open_one
    for sink in sinks:
        sink.close()


def ordinals(client):
    entries = [json.loads(fields[b"metadata"]) for _, fields in client.xrange(ALERTS)]
    return [int(entry["event"]["id"].rpartition(":")[2]) for entry in entries]


@pytest.mark.parametrize("n", [1, 2])
def test_namespace_without_a_hash_tag_ends_the_start_with_one_that_has_it(
    start_cluster, open_sink, n
):
    cluster = start_cluster(n)
    for node in cluster.nodes:
        with pytest.raises(ConfigError, match=r"needs a hash tag: --namespace '{facewarden}'"):
            open_sink(node.url)


@pytest.mark.parametrize("n", [1, 2])
def test_subscriber_without_a_hash_tag_is_told_the_same(start_cluster, n):
    for node in start_cluster(n).nodes:
        with (
            pytest.raises(ConfigError, match=r"needs a hash tag: --namespace '{facewarden}'"),
            Subscription(node.url, group="siem") as alerts,
        ):
            next(alerts)


@pytest.mark.parametrize("n", [1, 2])
def test_messages_go_through_a_cluster_from_whichever_node(start_cluster, open_sink, messages, n):
    cluster = start_cluster(n)
    step = [
        messages.alert(),
        messages.source_alert(),
        messages.score(),
        messages.status(),
        messages.status(source="cam2"),
    ]
    for node in cluster.nodes:
        with Subscription(node.url, group="siem", namespace="{fw}") as alerts:
            sink = open_sink(node.url, namespace="{fw}")
            sink.publish(step)
            kinds = {message["event"]["type"] for message in islice(alerts, 2)}
            assert kinds == {"track.verdict", "source.lost"}
            sink.close()
            assert sink.outages == 0
        owner = cluster.owner(ALERTS).client
        keys = {key.decode() for key in owner.scan_iter("{fw}:*")}
        assert keys > {f"{{fw}}:{k}" for k in ("alerts", "sources", "tracks", "status:cam1")}
        owner.flushall()


def test_channel_is_heard_on_every_node(start_cluster, open_sink, messages):
    cluster = start_cluster(2)
    sink = open_sink(cluster.nodes[0].url, namespace="{fw}")
    for node in cluster.nodes:
        with node.client.pubsub() as pubsub:
            pubsub.subscribe(ALERTS)
            assert pubsub.get_message(timeout=5)["type"] == "subscribe"
            sink.publish([messages.alert()])
            assert pubsub.get_message(timeout=5)["type"] == "message"


def test_nothing_is_lost_when_the_keys_move_to_another_node(start_cluster, open_sink, messages):
    cluster = start_cluster(2)
    old = cluster.owner(ALERTS)
    (new,) = set(cluster.nodes) - {old}
    sink = open_sink(old.url, namespace="{fw}")
    sink.publish([messages.alert(ordinal=1)])
    assert ordinals(old.client) == [1]
    old.client.flushall()  # so that the slot can be given away at once
    for node in (new, old):
        node.cluster("SETSLOT", key_slot(ALERTS.encode()), "NODE", new.id)
    sink.publish([messages.alert(ordinal=2)])
    assert ordinals(new.client) == [2]
    assert sink.outages == 0


def test_publisher_and_subscriber_find_the_node_that_took_over(
    start_cluster, start_node, open_sink, messages
):
    cluster = start_cluster(2)
    owner = cluster.owner(ALERTS)
    (named,) = set(cluster.nodes) - {owner}
    replica = start_node()
    cluster.join(replica)
    replica.cluster("REPLICATE", owner.id)
    with Subscription(named.url, group="siem", namespace="{fw}", from_start=True) as alerts:
        sink = open_sink(named.url, namespace="{fw}")
        sink.publish([messages.alert(ordinal=1)])
        assert next(alerts)["event"]["id"].endswith(":1")
        owner.kill()
        replica.cluster("FAILOVER", "TAKEOVER")
        while named.holder_of(ALERTS) != replica.port:
            pass
        sink.publish([messages.alert(ordinal=2)])
        sink.close()
        ids = [message["event"]["id"] for message in islice(alerts, 1)]
    assert ids[0].endswith(":2")
    assert ordinals(replica.client)[-1] == 2
