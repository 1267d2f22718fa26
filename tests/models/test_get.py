"""`python -m models get`: from a file, and from a real HTTP server that may behave badly."""

import hashlib
import re
import resource
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from click.testing import CliRunner

import models.minifasnet
from models import load_checkpoint, load_method, method_names
from models.__main__ import main
from models._fetch import TRIES, FetchError, fetch


class _Site:
    """Serves files with ranges and strong tags; what else it does is said by its attributes."""

    def __init__(self):
        self.files = {}
        self.break_after = []  # bytes of each next answer that are sent before the line is cut
        self.statuses = []  # of each next answer, instead of the file
        self.takes_ranges = True
        self.tags = True
        self.asked = []  # the Range header of each request
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    site: _Site

    def do_GET(self):
        site = self.site
        wanted = self.headers.get("Range")
        site.asked.append(wanted)
        if site.statuses:
            self.send_error(site.statuses.pop(0))
            return
        content = site.files.get(self.path.partition("?")[0])
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and site.takes_ranges else 0
        if self.headers.get("If-Range") not in (None, tag):
            start = 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if site.tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if site.break_after:
            body = body[: site.break_after.pop(0)]
        self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = _Site()
    yield served
    served.close()


@pytest.fixture
def waits():
    """Times that a fetch would have waited."""
    return []


PIECE = 1 << 14  # bytes that are read at a time
CONTENT = bytes(range(256)) * 2000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def _leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_whole(site, tmp_path, waits):
    site.files["/x.pth"] = CONTENT
    target = tmp_path / "x.pth"
    assert fetch(f"{site.url}/x.pth", target, accepted=[DIGEST], sleep=waits.append) == DIGEST
    assert target.read_bytes() == CONTENT
    assert _leftovers(tmp_path) == ["x.pth"]
    assert waits == []


def test_a_download_that_breaks_off_goes_on_where_it_was(site, tmp_path, waits):
    site.files["/x.pth"] = CONTENT
    site.break_after = [6 * PIECE, 3 * PIECE + 5]
    fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={6 * PIECE}-", f"bytes={9 * PIECE}-"]
    assert waits == [1, 2]


def test_what_came_is_kept_for_the_next_run(site, tmp_path, waits):
    site.files["/x.pth"] = CONTENT
    site.break_after = [PIECE] * TRIES
    with pytest.raises(FetchError, match=rf"{PIECE * TRIES} bytes came and are kept in .*\.part"):
        fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert not (tmp_path / "x.pth").exists()
    fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert site.asked[-1] == f"bytes={PIECE * TRIES}-"
    assert (tmp_path / "x.pth").read_bytes() == CONTENT


def test_a_run_killed_after_the_last_byte_asks_for_nothing_again(site, tmp_path, waits):
    site.files["/x.pth"] = CONTENT
    (tmp_path / ".x.pth.part").write_bytes(CONTENT)
    fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT
    assert site.asked == [f"bytes={len(CONTENT)}-"]


def test_more_than_the_file_holds_is_thrown_away(site, tmp_path, waits):
    site.files["/x.pth"] = CONTENT
    (tmp_path / ".x.pth.part").write_bytes(CONTENT + b"more")
    fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_of_it_again(site, tmp_path, waits):
    site.files["/x.pth"] = CONTENT
    site.takes_ranges = False
    site.break_after = [100_000]
    fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT


def test_without_a_digest_the_rest_of_another_file_is_not_joined(site, tmp_path, waits):
    """The file changes between two tries; its tag tells."""
    other = CONTENT[::-1]
    site.files["/x.pth"] = CONTENT
    site.break_after = [100_000]

    def changed(_):
        site.files["/x.pth"] = other

    found = fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[], sleep=changed)
    assert (tmp_path / "x.pth").read_bytes() == other
    assert found == hashlib.sha256(other).hexdigest()


def test_without_digest_and_tag_it_begins_anew(site, tmp_path, waits):
    site.files["/x.pth"] = CONTENT
    site.tags = False
    site.break_after = [100_000]
    (tmp_path / ".x.pth.part").write_bytes(b"of an earlier run")
    fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[], sleep=waits.append)
    assert site.asked == [None, None]
    assert (tmp_path / "x.pth").read_bytes() == CONTENT


def test_another_digest_is_refused_and_nothing_is_left(site, tmp_path, waits):
    site.files["/x.pth"] = CONTENT
    wanted = "0" * 64
    with pytest.raises(FetchError, match=f"expected sha256 {wanted}, found {DIGEST}") as caught:
        fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[wanted], sleep=waits.append)
    assert "--from FILE" in str(caught.value)
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"x\.pth: not there \(404 Not Found\): its authors may have moved it; .*--from FILE"),
        (403, r"x\.pth: the server refuses it \(403 Forbidden\)"),
    ],
)
def test_what_is_not_there_is_said_at_once(site, tmp_path, waits, status, message):
    site.statuses = [status]
    with pytest.raises(FetchError, match=message):
        fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert waits == []


def test_a_server_that_is_busy_is_asked_again(site, tmp_path, waits):
    site.files["/x.pth"] = CONTENT
    site.statuses = [503, 429]
    fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT


def _closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_no_server_is_said_with_what_to_do_and_without_the_password(tmp_path, waits, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"http://me:secret@127.0.0.1:{_closed_port()}/x.pth?token=secret"
    with pytest.raises(
        FetchError, match=r"127\.0\.0\.1:\d+/x\.pth: .*Connection refused"
    ) as caught:
        fetch(url, tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert "HTTPS_PROXY" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(waits) == TRIES - 1


def test_a_name_that_nobody_knows_is_not_asked_for_again(tmp_path, waits, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(FetchError, match="name of the server can't be resolved"):
        fetch("http://nowhere.invalid/x", tmp_path / "x", accepted=[DIGEST], sleep=waits.append)
    assert waits == []


def test_a_dead_proxy_is_said_without_its_password(tmp_path, waits, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{_closed_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    with pytest.raises(
        FetchError, match=r"the proxy does not let it through: Conn.*HTTP_PROXY"
    ) as c:
        fetch("http://example.invalid/x", tmp_path / "x", accepted=[DIGEST], sleep=waits.append)
    assert "secret" not in str(c.value)


def test_a_full_disk_is_said_and_what_came_is_kept(site, tmp_path, waits):
    """A limit on the size of files stands for the full disk: the write fails in the same place."""
    site.files["/x.pth"] = CONTENT
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(FetchError, match="can't write the file: File too large; make room"):
            fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _leftovers(tmp_path) == [".x.pth.part"]
    fetch(f"{site.url}/x.pth", tmp_path / "x.pth", accepted=[DIGEST], sleep=waits.append)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT


def _run(*arguments):
    return CliRunner().invoke(main, ["get", *map(str, arguments)])


@pytest.fixture
def published(site, tmp_path, minifasnet_keys, monkeypatch):
    """Both files as their authors name and pickle them, with numbers of our own, on a server."""
    publications = []
    for publication in load_method("minifasnet").publications:
        generator = torch.Generator().manual_seed(1)
        state = {
            f"module.{name}": torch.zeros((), dtype=torch.int64)
            if kind == "torch.int64"
            else torch.rand(shape, generator=generator)
            for name, shape, kind in minifasnet_keys(publication.name)
        }
        path = tmp_path / publication.url.rpartition("/")[2]
        torch.save(state, path)
        content = path.read_bytes()
        site.files[f"/{path.name}"] = content
        digest = hashlib.sha256(content).hexdigest()
        publications.append(replace(publication, url=f"{site.url}/{path.name}", sha256=digest))
    method = replace(load_method("minifasnet"), publications=tuple(publications))
    monkeypatch.setattr(models.minifasnet, "METHOD", method)
    return tmp_path


def test_get_writes_both_published_networks_and_shows_their_licence(published):
    out = published / "out"
    done = _run("minifasnet", "--out", out)
    assert done.exit_code == 0, done.output
    assert _leftovers(out) == ["minifasnet-v1se.safetensors", "minifasnet-v2.safetensors"]
    assert done.output.count("licence: Apache-2.0 (Minivision") == 2
    assert (
        load_checkpoint("minifasnet", out / "minifasnet-v1se.safetensors").config.variant == "v1se"
    )


def test_get_takes_a_local_copy_and_knows_which_one_it_is(published):
    out = published / "out"
    done = _run("minifasnet", "--from", published / "4_0_0_80x80_MiniFASNetV1SE.pth", "--out", out)
    assert done.exit_code == 0, done.output
    assert _leftovers(out) == ["minifasnet-v1se.safetensors"]
    assert done.output.count("licence:") == 1
    assert (published / "4_0_0_80x80_MiniFASNetV1SE.pth").exists()


def test_get_takes_a_mirror(published, site):
    out = published / "out"
    name = "2.7_80x80_MiniFASNetV2.pth"
    site.files[f"/mirror/{name}"] = site.files[f"/{name}"]
    done = _run("minifasnet", "--from", f"{site.url}/mirror/{name}", "--out", out)
    assert done.exit_code == 0, done.output
    assert _leftovers(out) == ["minifasnet-v2.safetensors"]


def test_get_refuses_a_local_file_that_is_not_as_published(published):
    path = published / "2.7_80x80_MiniFASNetV2.pth"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    done = _run("minifasnet", "--from", path, "--out", published / "out")
    assert done.exit_code == 1
    assert re.search(r"expected sha256 \w{64} or \w{64}, found \w{64}: it is not as", done.output)
    assert _leftovers(published / "out") == []


def test_get_refuses_what_a_server_changed_and_writes_nothing(published, site):
    site.files["/2.7_80x80_MiniFASNetV2.pth"] = b"<html>please log in</html>"
    done = _run("minifasnet", "--out", published / "out")
    assert done.exit_code == 1
    assert "(26 bytes): the file was changed at its source, or on the way" in done.output
    assert _leftovers(published / "out") == []


def test_a_digest_of_the_users_own_stands_in_for_the_published_ones(published):
    path = published / "own.pth"
    state = torch.load(published / "2.7_80x80_MiniFASNetV2.pth")
    state["module.prob.weight"] += 1
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    out = published / "out"
    done = _run("minifasnet", "--from", path, "--sha256", digest.upper(), "--out", out)
    assert done.exit_code == 0, done.output
    assert _leftovers(out) == ["minifasnet-own.safetensors"]


def test_a_fetched_file_of_no_known_layout_is_kept_and_named(site, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "odd.pth")
    site.files["/odd.pth"] = (tmp_path / "odd.pth").read_bytes()
    out = tmp_path / "out"
    done = _run("recce", "--from", f"{site.url}/odd.pth", "--out", out)
    assert done.exit_code == 1
    assert f"{out / 'odd.pth'}: not a checkpoint of recce" in done.output
    assert "not known beforehand" in done.output
    assert _leftovers(out) == ["odd.pth"]


@pytest.mark.parametrize("method", ["highfreq", "recce"])
def test_weights_without_a_fixed_address_are_said_to_be_where_they_are(method):
    done = _run(method)
    assert done.exit_code == 2
    assert "github.com/SCLBD/DeepfakeBench/releases" in done.output
    assert "CC BY-NC 4.0" in done.output


@pytest.mark.parametrize("method", ["fghv", "lgsc", "udr"])
def test_methods_whose_weights_nobody_publishes_say_so(method):
    done = _run(method)
    assert done.exit_code == 2
    assert "nobody is known to publish trained weights" in done.output


def test_every_published_address_is_pinned_and_every_file_has_a_licence():
    for name in method_names():
        for publication in load_method(name).publications:
            assert publication.licence
            assert publication.where.startswith("https://")
            assert (publication.url is None) == (publication.sha256 is None)


def test_a_digest_that_is_none_is_a_mistake_of_the_command_line():
    assert _run("minifasnet", "--from", "x", "--sha256", "12").exit_code == 2
    assert _run("minifasnet", "--sha256", "0" * 64).exit_code == 2
