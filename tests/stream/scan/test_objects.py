"""Archives in object stores, against a real S3 server."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import TYPE_CHECKING

import pytest

from stream.errors import ConfigError
from stream.scan.inputs import Item, Selection
from stream.scan.listing import list_items
from stream.scan.objects import Fetcher, UnfetchableError

if TYPE_CHECKING:
    from collections.abc import Iterator

boto3 = pytest.importorskip("boto3", reason="needs the extra objects")
pytest.importorskip("s3fs", reason="needs the extra objects")
moto_server = pytest.importorskip("moto.server", reason="needs the extra objects")

SECRET = "very-secret-key-0123456789"


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Start a server, give our environment its address and a user's keys; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            environment.setenv(name, value)
        yield address
    server.stop()


@pytest.fixture
def bucket(store):
    reset = urllib.request.Request(f"{store}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()
    client = boto3.client("s3", endpoint_url=store)
    client.create_bucket(Bucket="clips")
    return client


def put(bucket, key, content):
    bucket.put_object(Bucket="clips", Key=key, Body=content)


def test_objects_are_scanned_like_files_and_known_again_by_their_tags(
    bucket, scan, clip, two_faces, read_rows, tmp_path
):
    whole = clip.read_bytes()
    for key, content in {
        "a/b.mp4": whole,
        "a/cut.mp4": whole[: len(whole) // 2],
        "a/empty.mp4": b"",
        "a/notes.txt": b"no video",
        "a/faces = 1.mp4": two_faces.read_bytes(),
        "a/large.mp4": bytes(2 * 2**20),
        "other.mp4": whole,
    }.items():
        put(bucket, key, content)
    (tmp_path / "list").write_text("s3://clips/other.mp4\ns3://clips/none.mp4\n")
    out = tmp_path / "out"
    what = ["s3://clips/a", "--from", tmp_path / "list", "--exclude", "*.txt"]
    how = ["--mode", "keyframes", "--limit", "temporary_mb=1"]
    code, _, log = scan(*what, *how)
    assert code == 3, log
    rows = {row["path"].removeprefix("s3://clips/"): row for row in read_rows(out)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a/b.mp4": "ok",
        "a/cut.mp4": "unreadable",
        "a/empty.mp4": "unreadable",
        "a/faces = 1.mp4": "ok",
        "a/large.mp4": "too_large",
        "none.mp4": "unreadable",
        "other.mp4": "ok",
    }, log
    assert rows["none.mp4"]["reason"] == "no such object"
    assert "fetched" not in rows["a/cut.mp4"]["reason"]  # where it lay for a moment
    assert rows["a/faces = 1.mp4"]["n_tracks"] == 2
    assert rows["a/b.mp4"]["etag"] == rows["other.mp4"]["etag"]
    assert not any((out / "fetched").rglob("*.*"))
    put(bucket, "other.mp4", two_faces.read_bytes())
    log = scan(*what, *how).log
    assert "1 files scanned" in log.splitlines()[-1], log
    assert "6 known from before" in log.splitlines()[-1]
    written = [p for p in out.rglob("*") if p.is_file()]
    assert not any(SECRET.encode() in p.read_bytes() for p in written)
    assert SECRET not in log


@pytest.fixture
def refusing(store):
    """Return the function that makes the server ask for keys that it knows: it knows none."""

    def tell(requests_before: str) -> None:
        request = urllib.request.Request(
            f"{store}/moto-api/reset-auth",
            data=requests_before.encode(),
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()

    yield lambda: tell("0")
    tell("inf")


def test_what_the_store_refuses_is_said_without_its_words(bucket, clip, tmp_path, refusing):
    put(bucket, "a.mp4", clip.read_bytes())
    (item,) = list_items([b"s3://clips/a.mp4"], Selection()).items
    refusing()
    with (
        Fetcher(tmp_path / "fetched", at_once=1, limit_bytes=2**20) as fetcher,
        pytest.raises(UnfetchableError, match=r"^can't be fetched: access denied$"),
    ):
        fetcher.start(item).result()
    (refused,) = list_items([b"s3://clips/a.mp4"], Selection()).items
    assert refused.problem == "access denied"
    with pytest.raises(
        ConfigError, match=r"^s3://clips/: can't list what is there \(access denied"
    ):
        list_items([b"s3://clips/"], Selection())


def test_an_object_that_changed_since_it_was_listed_is_not_scanned(bucket, clip, tmp_path):
    put(bucket, "a.mp4", clip.read_bytes())
    (item,) = list_items([b"s3://clips/a.mp4"], Selection()).items
    for content in (clip.read_bytes()[:-1], clip.read_bytes() + b"more"):
        put(bucket, "a.mp4", content)
        with Fetcher(tmp_path / "fetched", at_once=1, limit_bytes=2**20) as fetcher:
            with pytest.raises(UnfetchableError, match="is it changing"):
                fetcher.start(item).result()
            assert not any((tmp_path / "fetched").iterdir())


def test_a_fetcher_has_room_again_once_a_file_is_discarded(bucket, clip, tmp_path):
    content = clip.read_bytes()
    put(bucket, "a.mp4", content)
    (item,) = list_items([b"s3://clips/a.mp4"], Selection()).items
    with Fetcher(tmp_path / "fetched", at_once=1, limit_bytes=len(content)) as fetcher:
        fetched = fetcher.start(item)
        assert fetched.result().read_bytes() == content
        assert not fetcher.has_room(item)
        fetcher.discard(item, fetched)
        assert fetcher.has_room(item)
        assert not any((tmp_path / "fetched").iterdir())
    assert fetcher.never_has_room(Item(b"s3://clips/b.mp4", len(content) + 1, 0))
    assert not (tmp_path / "fetched").exists()


def test_shards_take_objects_and_files_alike(bucket, clip, tmp_path):
    for number in range(6):
        put(bucket, f"{number}.mp4", b"x")
        (tmp_path / f"{number}.mp4").write_bytes(b"x")
    paths = [b"s3://clips", bytes(tmp_path)]
    parts = [list_items(paths, Selection(), shard=(i, 3)).items for i in range(3)]
    found = [item.path for part in parts for item in part]
    assert len(found) == len(set(found)) == 12
    assert all(parts)


@pytest.mark.parametrize("address", [b"s3://user:key@clips/a.mp4", b"s3://"])
def test_an_address_with_credentials_is_refused_without_repeating_it(address):
    with pytest.raises(ConfigError) as raised:
        list_items([address], Selection())
    assert str(raised.value).startswith("s3://***: expected s3://BUCKET/KEY")
    assert "key@" not in json.dumps(str(raised.value))


def test_a_store_whose_package_is_missing_says_what_to_install():
    with pytest.raises(ConfigError, match="gs:// needs fsspec and gcsfs"):
        list_items([b"gs://clips/a.mp4"], Selection())
