from __future__ import annotations

import logging
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.exceptions import AskError, ClusterCrossSlotError, MovedError, ResponseError

from stream.errors import ConfigError
from stream.publish.redis_client import Node, cluster_hint, read_address, reason

# Every character that means something in a URL, and some that do not.
PASSWORDS = st.text("pW7@/?#%:[]&=;+ é~", min_size=1, max_size=12).map(lambda s: f"S3cr{s}t")


@pytest.mark.parametrize(
    ("url", "shown", "options"),
    [
        (
            "redis://localhost",
            "redis://localhost:6379",
            {"host": "localhost", "port": 6379, "db": 0},
        ),
        ("redis://127.0.0.1:7000/2", "redis://127.0.0.1:7000/2", {"port": 7000, "db": 2}),
        ("rediss://r.example/", "rediss://r.example:6379", {"ssl": True, "ssl_ca_certs": None}),
        ("redis://[::1]:7000", "redis://[::1]:7000", {"host": "::1"}),
        ("redis://:pw@localhost", "redis://localhost:6379", {"username": None, "password": "pw"}),
        ("redis://fw:p%40%2Fw@localhost", "redis://localhost:6379", {"password": "p@/w"}),
        (
            "unix:///run/redis.sock",
            "unix:///run/redis.sock",
            {"unix_socket_path": "/run/redis.sock"},
        ),
        ("unix://fw:pw@/run/r.sock?db=3", "unix:///run/r.sock", {"username": "fw", "db": 3}),
    ],
)
def test_url_names_server_user_and_database(url, shown, options):
    address = read_address(url)
    assert address.shown == shown
    assert {key: address.options[key] for key in options} == options


@given(user=PASSWORDS, password=PASSWORDS, scheme=st.sampled_from(["redis", "rediss"]))
def test_percent_encoded_password_is_understood_and_never_shown(user, password, scheme):
    url = f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@localhost:7000/1"
    address = read_address(url)
    assert (address.options["username"], address.options["password"]) == (user, password)
    assert "S3cr" not in f"{address.shown} {address!r}"


@example(password="S3cr@/t", scheme="unix")  # the path seems to begin inside the password
@given(password=PASSWORDS, scheme=st.sampled_from(["redis", "rediss", "unix", "redsi"]))
def test_password_that_is_not_encoded_is_either_understood_or_refused_but_never_told(
    password, scheme
):
    tail = "/run/redis.sock" if scheme == "unix" else "localhost"
    try:
        address = read_address(f"{scheme}://fw:{password}@{tail}")
    except ConfigError as error:
        assert "S3cr" not in str(error)
        assert "percent-encoded" in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__
    else:
        assert address.shown in (
            "redis://localhost:6379",
            "rediss://localhost:6379",
            f"unix://{tail}",
        )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://",
        "redis://localhost:port",
        "redis://localhost/first",
        "redis://localhost?ssl_cert_reqs=none",
        "unix://run/redis.sock",
        "unix://",
        "redis://[::1",
    ],
)
def test_what_is_no_redis_url_is_refused_with_the_forms_that_are(url):
    with pytest.raises(ConfigError, match=r"expected redis\[s\]://"):
        read_address(url)


def test_ca_file_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_address("rediss://localhost", tmp_path / "ca.pem")


@pytest.mark.parametrize("url", ["redis://localhost", "unix:///run/redis.sock"])
def test_ca_file_without_tls_is_refused_instead_of_ignored(url, tmp_path):
    (tmp_path / "ca.pem").touch()
    with pytest.raises(ConfigError, match="ca_file is for rediss"):
        read_address(url, tmp_path / "ca.pem")


def test_reason_does_not_repeat_the_command_which_may_hold_a_message():
    text = 'Command # 1 (XADD alerts * metadata {"schema") of pipeline caused error: OOM here.'
    assert reason(ResponseError(text)) == "OOM here"


def test_redirection_is_called_by_its_name():
    assert reason(MovedError("8470 10.0.0.7:7000")) == "MOVED 8470 10.0.0.7:7000"
    assert reason(AskError("8470 10.0.0.7:7000")) == "ASK 8470 10.0.0.7:7000"


@pytest.mark.parametrize(
    ("namespace", "hint"),
    [
        ("facewarden", "; cluster mode needs a hash tag: --namespace '{facewarden}'"),
        ("{facewarden}", ""),
    ],
)
def test_hash_tag_is_proposed_to_who_has_none(namespace, hint):
    assert cluster_hint(MovedError("8470 10.0.0.7:7000"), namespace) == hint
    assert cluster_hint(ClusterCrossSlotError("Keys in request"), namespace) == hint
    assert cluster_hint(ResponseError("OOM"), namespace) == ""


@pytest.mark.parametrize(
    ("url", "host", "shown"),
    [
        ("redis://fw:S3cret@one:7000", "two", "redis://two:7001"),
        ("redis://fw:S3cret@one:7000", "", "redis://one:7001"),
        ("rediss://fw:S3cret@one", "2001:db8::7", "rediss://[2001:db8::7]:7001"),
        ("unix://fw:S3cret@/run/redis.sock", "two", "redis://two:7001"),
        ("unix://fw:S3cret@/run/redis.sock", "", "redis://localhost:7001"),
    ],
)
def test_other_node_of_a_cluster_is_reached_as_the_same_user(url, host, shown):
    address = read_address(url).elsewhere(host, 7001)
    assert address.shown == shown
    assert (address.options["username"], address.options["password"]) == ("fw", "S3cret")
    assert "unix_socket_path" not in address.options
    assert ("ssl" in address.options) is shown.startswith("rediss")


def test_node_follows_redirections_but_not_in_circles():
    node = Node(read_address("redis://one"), name="test", timeout_s=1)
    answers = [node.follow(MovedError(f"1 node{n}:7000")) for n in range(5)]
    assert answers == [True, True, True, False, False]
    assert node.client.connection_pool.connection_kwargs["host"] == "node2"
    node.arrived()
    assert node.follow(MovedError("1 node9:7000"))
    node.start_over()
    assert node.client.connection_pool.connection_kwargs["host"] == "one"
    assert not node.follow(AskError("1 node9:7000"))
    node.close()


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("redis://fw:S3cret@10.0.0.7", True),
        ("redis://redis.example", True),
        ("redis://localhost", False),
        ("redis://127.8.8.8", False),
        ("redis://[::1]", False),
        ("rediss://redis.example", False),
        ("unix:///run/redis.sock", False),
    ],
)
def test_connection_over_a_network_without_tls_is_warned_of(url, warned, caplog):
    with caplog.at_level(logging.WARNING):
        read_address(url)
    assert ("without TLS" in caplog.text) is warned
    assert "S3cret" not in caplog.text
