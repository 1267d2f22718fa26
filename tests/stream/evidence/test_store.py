"""Where bundles are kept, and that they go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from stream.errors import ConfigError
from stream.evidence.seal import load_private_key, make_keys
from stream.evidence.store import Store

DAY_S = 86_400
WRITER = """
import sys
from pathlib import Path
from stream.evidence.store import Store
store = Store(Path(sys.argv[1]))
with store._partial("half") as partial:
    (partial / "cut.mkv").write_bytes(b"0" * 1000)
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def put(store, name, *, size=1000, age_s=0.0, now=1e9):
    folder = store.put(name, {"manifest.json": b"{}", "crops/1.png": b"0" * (size - 2)})
    os.utime(folder / "manifest.json", (now - age_s, now - age_s))
    return folder


def test_what_is_too_old_is_gone_from_the_disk(store):
    put(store, "old", age_s=8 * DAY_S)
    put(store, "young", age_s=6 * DAY_S)
    assert store.prune(keep_days=7, keep_gb=1, now=1e9) == ["old"]
    assert [path.name for path in store.folder.rglob("*") if path.is_file()] == [
        "manifest.json",
        "1.png",
    ]


def test_of_too_many_the_oldest_go_first(store):
    for number in range(5):
        put(store, f"b{number}", age_s=100 - number)
    assert store.prune(keep_days=7, keep_gb=3e-6, now=1e9) == ["b0", "b1"]
    assert [kept.name for kept in store.bundles()] == ["b2", "b3", "b4"]


def test_nothing_goes_that_may_stay(store):
    put(store, "young")
    assert store.prune(keep_days=7, keep_gb=1, now=1e9) == []


def test_a_killed_writer_leaves_nothing_behind_and_a_living_one_is_left_alone(store):
    command = [sys.executable, "-c", WRITER, str(store.folder)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "half\n"
    store.prune(keep_days=7, keep_gb=1, now=1e9)
    assert (store.folder / ".part-half" / "cut.mkv").exists()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert (store.folder / ".part-half" / "cut.mkv").exists()
    store.prune(keep_days=7, keep_gb=1, now=1e9)
    assert list(store.folder.iterdir()) == []


def test_a_bundle_half_deleted_by_a_killed_process_goes_with_the_next_look(store):
    put(store, "half").rename(store.folder / ".part-half")
    store.prune(keep_days=7, keep_gb=1, now=1e9)
    assert list(store.folder.iterdir()) == []


def test_a_bundle_that_fails_half_way_is_not_there(store):
    with pytest.raises(FileExistsError):
        store.put("twice", {"a/b": b"1", "a/../a/b": b"2"})
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "../a", ".part-a", "a/b", "a" * 201])
def test_a_name_that_leads_elsewhere_is_refused(store, name):
    with pytest.raises(ValueError, match="not the name of a bundle"):
        store.put(name, {})


def test_a_folder_that_others_may_enter_is_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match=r"others may enter it .* chmod 700"):
        Store(tmp_path / "open")


def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="expected a folder, no link"):
        Store(tmp_path / "link")


def test_a_key_that_others_may_read_is_refused(tmp_path):
    make_keys(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_private_key(tmp_path / "key")


def test_a_public_key_in_place_of_the_private_one_is_refused(tmp_path):
    public = make_keys(tmp_path / "key")
    public.chmod(0o600)
    with pytest.raises(ConfigError, match="no private key"):
        load_private_key(public)


def test_no_key_is_ever_overwritten(tmp_path):
    make_keys(tmp_path / "key")
    with pytest.raises(ConfigError, match="is there already"):
        make_keys(tmp_path / "key")
