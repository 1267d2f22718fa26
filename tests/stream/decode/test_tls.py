"""Sources behind TLS: who is trusted, who is not, and what is said of it."""

from __future__ import annotations

import functools
import http.server
import shutil
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder, source_kind
from stream.decode.tls import fingerprint
from stream.errors import ConfigError, SourceError
from stream.records import SourceCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs openssl for certificates"
)

SELF_SIGNED = "req -x509 -newkey rsa:2048 -nodes -days 2"
CA_CONFIG = """
[ca]
default_ca = here
[here]
database = index.txt
new_certs_dir = .
serial = serial
default_md = sha256
policy = any
[any]
commonName = optional
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of NAME.pem and NAME.key.

    `ca` signed `good`, which is for localhost and 127.0.0.1, and `elsewhere`, for another host;
    `camera`, `nameless` and `expired` signed themselves.
    """
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, capture_output=True, check=True)

    openssl(f"{SELF_SIGNED} -subj /CN=authority -keyout ca.key -out ca.pem")
    openssl(f"{SELF_SIGNED} -subj /CN=camera -keyout camera.key -out camera.pem")
    openssl(f"{SELF_SIGNED} -subj / -keyout nameless.key -out nameless.pem")
    for name, hosts in (("good", "DNS:localhost,IP:127.0.0.1"), ("elsewhere", "DNS:nas.lan")):
        (folder / "hosts").write_text(f"subjectAltName={hosts}\n")
        openssl(f"req -newkey rsa:2048 -nodes -subj /CN=x -keyout {name}.key -out {name}.csr")
        openssl(
            f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
            f"-extfile hosts -out {name}.pem"
        )
    (folder / "ca.cnf").write_text(CA_CONFIG)
    (folder / "index.txt").touch()
    (folder / "serial").write_text("1000")
    openssl("req -newkey rsa:2048 -nodes -subj /CN=old -keyout expired.key -out expired.csr")
    openssl(
        "ca -config ca.cnf -selfsign -keyfile expired.key -in expired.csr -batch -notext "
        "-startdate 20200101000000Z -enddate 20210101000000Z -out expired.pem -outdir ."
    )
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class HttpsServer(http.server.ThreadingHTTPServer):
    def __init__(self, folder: Path, certificates: Path, name: str) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.requests: list[str] = []
        self.address = f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up in the handshake is what we are here for."""


@pytest.fixture
def https_server(certificates, tmp_path) -> Iterator[Callable[..., HttpsServer]]:
    """Return a function that serves a folder with the certificate of that name."""
    with ExitStack() as servers:

        def start(name: str = "good", folder: Path = tmp_path) -> HttpsServer:
            server = HttpsServer(folder, certificates, name)
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            servers.callback(thread.join)
            servers.callback(server.server_close)
            servers.callback(server.shutdown)
            thread.start()
            return server

        yield start


def read(url: str, **options: Any) -> int:
    """Return how many frames a source gives."""
    config = SourceConfig(id="cam", uri=url, allow_http=True, open_timeout_s=2, **options)
    with closing(open_decoder(config, DecodeConfig(analyse_fps=1000), session=0)) as decoder:
        return sum(frame is not None for frame in decoder.frames())


def refusal(url: str, **options: Any) -> str:
    """Return what is said of a source that is not trusted."""
    with pytest.raises(SourceError) as raised:
        read(url, **options)
    assert raised.value.code is SourceCode.UNTRUSTED, raised.value
    assert "hunter2" not in str(raised.value)
    return str(raised.value)


def fingerprint_of(path: Path) -> str:
    return fingerprint(ssl.PEM_cert_to_DER_cert(path.read_text()))


@pytest.mark.parametrize("name", ["good", "camera"])
def test_a_certificate_of_unknown_origin_is_not_trusted_and_the_message_says_what_to_do(
    https_server, certificates, write_clip, tmp_path, name
):
    write_clip(tmp_path / "clip.mkv", n=5)
    server = https_server(name)
    message = refusal(f"https://admin:hunter2@{server.address}/clip.mkv")
    assert fingerprint_of(certificates / f"{name}.pem") in message
    assert all(option in message for option in ("ca_file", "fingerprint", "insecure"))
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("camera", {}, "self-signed"),
        ("good", {}, "unable to get local issuer"),
        ("elsewhere", {"ca_file": "ca.pem"}, "mismatch"),
        ("camera", {"ca_file": "camera.pem"}, "mismatch"),
        ("camera", {"ca_file": "ca.pem"}, "self-signed"),
        ("good", {"ca_file": "ca.key"}, "no certificates can be read"),
        ("camera", {"fingerprint": "good.pem"}, "has the fingerprint"),
        ("expired", {"fingerprint": "expired.pem"}, "expired"),
        ("nameless", {"fingerprint": "nameless.pem"}, "no name"),
    ],
)
def test_a_certificate_that_was_not_named_is_refused_with_the_reason(
    https_server, certificates, write_clip, tmp_path, name, options, words
):
    write_clip(tmp_path / "clip.mkv", n=5)
    server = https_server(name)
    given = dict(options)
    if "ca_file" in given:
        given["ca_file"] = certificates / given["ca_file"]
    if "fingerprint" in given:
        given["fingerprint"] = fingerprint_of(certificates / given["fingerprint"])
    assert words in refusal(f"https://admin:hunter2@{server.address}/clip.mkv", **given)
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "trusted"),
    [
        ("good", {"ca_file": "ca.pem"}),
        ("good", {"ca_file": "good.pem"}),
        ("good", {"fingerprint": "good.pem"}),
        ("camera", {"fingerprint": "camera.pem"}),
        ("elsewhere", {"fingerprint": "elsewhere.pem"}),
        ("camera", {"insecure": True}),
        ("expired", {"insecure": True}),
        ("nameless", {"insecure": True}),
    ],
)
@pytest.mark.parametrize("path", ["clip.mkv", "list.m3u8"])
def test_a_certificate_that_was_named_is_trusted(
    https_server, certificates, write_clip, tmp_path, name, trusted, path
):
    container = {"hls_time": "1", "hls_list_size": "0"} if path == "list.m3u8" else {}
    write_clip(tmp_path / path, n=50, container_options=container)
    given = dict(trusted)
    if "ca_file" in given:
        given["ca_file"] = certificates / given["ca_file"]
    if "fingerprint" in given:
        digits = fingerprint_of(certificates / given["fingerprint"]).upper()
        given["fingerprint"] = ":".join(digits[i : i + 2] for i in range(0, 64, 2))
    assert read(f"https://{https_server(name).address}/{path}", **given) == 50


def test_the_systems_authorities_are_trusted_by_default(
    https_server, certificates, write_clip, tmp_path, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    write_clip(tmp_path / "clip.mkv", n=5)
    assert read(f"https://{https_server().address}/clip.mkv") == 5


def segments_at(folder: Path, address: str) -> Path:
    """Return a playlist like list.m3u8 whose segments are at another address."""
    lines = (folder / "list.m3u8").read_text().splitlines()
    moved = [f"{address}/{line}" if line.endswith(".ts") else line for line in lines]
    (folder / "moved.m3u8").write_text("\n".join(moved) + "\n")
    return folder / "moved.m3u8"


def test_hls_segments_are_trusted_no_more_than_their_playlist(
    https_server, certificates, write_clip, tmp_path
):
    write_clip(tmp_path / "list.m3u8", n=50, container_options={"hls_time": "1"})
    stranger = https_server("camera")
    segments_at(tmp_path, f"https://{stranger.address}")
    url = f"https://{https_server().address}/moved.m3u8"
    assert "self-signed" in refusal(url, ca_file=certificates / "ca.pem")
    assert stranger.requests == []


def test_hls_segments_are_not_read_without_tls_if_their_playlist_was(
    https_server, http_server, certificates, write_clip, tmp_path
):
    write_clip(tmp_path / "list.m3u8", n=50, container_options={"hls_time": "1"})
    segments_at(tmp_path, http_server(tmp_path))
    url = f"https://{https_server().address}/moved.m3u8"
    assert "without TLS" in refusal(url, ca_file=certificates / "ca.pem")


def test_a_missing_segment_is_a_fault_of_the_stream_and_not_ours(
    https_server, certificates, write_clip, tmp_path
):
    write_clip(tmp_path / "list.m3u8", n=50, container_options={"hls_time": "1"})
    (tmp_path / "list1.ts").unlink()
    with pytest.raises(SourceError):
        read(f"https://{https_server().address}/list.m3u8", ca_file=certificates / "ca.pem")


# --- RTSP ---

TLS_PROXY = """
import asyncio, contextlib, ssl, sys
async def pump(reader, writer):
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
async def serve(reader, writer):
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2] + ".pem", sys.argv[2] + ".key")
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def rtsps_camera(rtsp_camera, camera_clip, certificates) -> Iterator[Callable[..., str]]:
    """Return a function that starts a camera behind TLS, with the certificate of that name."""
    with ExitStack() as proxies:

        def start(name: str, **habits: Any) -> str:
            camera = rtsp_camera(camera_clip, **habits)
            command = [sys.executable, "-c", TLS_PROXY, str(camera.port), str(certificates / name)]
            proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            proxies.enter_context(proxy)
            proxies.callback(proxy.kill)
            assert proxy.stdout is not None
            port = proxy.stdout.readline().strip()
            return f"rtsps://admin:hunter2@127.0.0.1:{port}/{camera_clip.name}?play_count=0"

        yield start


def first_frame(url: str, **options: Any) -> int:
    """Return the width of a source's first frame."""
    config = SourceConfig(id="cam", uri=url, **options)
    with closing(open_decoder(config, DecodeConfig(), session=0)) as decoder:
        return next(frame for frame in decoder.frames() if frame is not None).stamp.width


@pytest.mark.rtsp
def test_a_camera_behind_tls_is_read_if_its_certificate_was_named(rtsps_camera, certificates):
    camera = rtsps_camera("camera")
    assert first_frame(camera, fingerprint=fingerprint_of(certificates / "camera.pem")) == 320
    assert first_frame(camera, insecure=True) == 320
    assert first_frame(rtsps_camera("good"), ca_file=certificates / "ca.pem") == 320


@pytest.mark.rtsp
def test_a_camera_behind_tls_is_not_trusted_otherwise(rtsps_camera, certificates):
    camera = rtsps_camera("camera")
    assert "self-signed" in refusal(camera)
    assert "mismatch" in refusal(camera, ca_file=certificates / "camera.pem")
    other = fingerprint_of(certificates / "good.pem")
    assert "has the fingerprint" in refusal(camera, fingerprint=other)


@pytest.mark.rtsp
def test_a_camera_behind_tls_gets_the_password_by_md5_wherever_that_is_on_offer(
    rtsps_camera, certificates
):
    challenges = [f'Digest realm="x", nonce="{n}", algorithm={n}' for n in ("MD5", "SHA-256")]
    camera = rtsps_camera("good", challenges=challenges, user="admin", password="hunter2")
    assert first_frame(camera, ca_file=certificates / "ca.pem") == 320


def test_a_camera_behind_tls_that_is_off_is_told_from_one_that_is_not_trusted(
    unused_port, certificates
):
    for given in ({}, {"fingerprint": fingerprint_of(certificates / "camera.pem")}):
        with pytest.raises(SourceError) as raised:
            read(f"rtsps://127.0.0.1:{unused_port}/x", **given)
        assert raised.value.code is SourceCode.REFUSED


# --- configuration ---


def make_config(uri: str, **options: Any) -> SourceConfig:
    return SourceConfig.model_validate({"id": "cam", "uri": uri, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ca_file": "missing.pem"}, "does not point to a file"),
        ({"fingerprint": "ab:cd"}, "should match pattern"),
        ({"fingerprint": "ab" * 32, "insecure": True}, "exclude each other"),
    ],
)
def test_trust_that_can_not_be_meant_is_a_mistake_in_the_configuration(options, words):
    with pytest.raises(ValidationError, match=words):
        make_config("rtsps://cam/1", **options)


@pytest.mark.parametrize("uri", ["rtsp://cam/1", "http://cam/1", "clip.mp4"])
def test_trust_without_tls_is_a_mistake_in_the_configuration(uri):
    with pytest.raises(ConfigError, match="source cam: ca_file, fingerprint and insecure are for"):
        source_kind(make_config(uri, fingerprint="ab" * 32, allow_http=True))
