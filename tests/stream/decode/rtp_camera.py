"""An RTSP camera for codecs that aio-rtsp-toolkit lacks: FFmpeg makes its RTP packets.

It plays a clip over and over, as fast as it was filmed, over TCP, to one viewer at a time.
"""

from __future__ import annotations

import socketserver
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import av
from av.packet import Packet

if TYPE_CHECKING:
    from pathlib import Path

_MEDIA = {"mjpeg": ("26", "JPEG/90000"), "vp9": ("96", "VP9/90000"), "vp8": ("96", "VP8/90000")}


class _Viewer(socketserver.StreamRequestHandler):
    """Answers one viewer's requests, then plays."""

    server: RtpCamera

    def handle(self) -> None:
        while line := self.rfile.readline().decode():
            method = line.split(" ")[0]
            headers = dict(self._headers())
            self._answer(method, headers)
            if method == "PLAY":
                self._play()
                return

    def _headers(self) -> Any:
        while (line := self.rfile.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            yield name.lower(), value.strip()

    def _answer(self, method: str, headers: dict[str, str]) -> None:
        body, more = "", []
        if method == "DESCRIBE":
            number, name = _MEDIA[self.server.codec]
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
                f"m=video 0 RTP/AVP {number}\r\na=rtpmap:{number} {name}\r\na=control:video\r\n"
            )
            more = [f"Content-Base: {self.server.url}/", "Content-Type: application/sdp"]
        elif method == "SETUP":
            more = ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
        elif method == "OPTIONS":
            more = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY"]
        head = [
            f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}",
            *more,
            f"Content-Length: {len(body)}",
        ]
        self.wfile.write(("\r\n".join(head) + "\r\n\r\n" + body).encode())

    def _play(self) -> None:
        try:
            with av.open(self, "w", format="rtp", options=self._options()) as output:
                self._mux(output)
        except (OSError, ValueError, av.FFmpegError):
            return  # the viewer is gone, or the camera is off

    def _options(self) -> dict[str, str]:
        number, _ = _MEDIA[self.server.codec]
        return {"packetsize": "1400", "payload_type": number, "strict": "experimental"}

    def _mux(self, output: Any) -> None:
        began, shift = time.monotonic(), 0.0
        video = None
        while not self.server.off.is_set():
            with av.open(str(self.server.clip)) as clip:
                stream = clip.streams.video[0]
                video = video or output.add_stream_from_template(stream)
                end_s = 0.0
                for packet in clip.demux(stream):
                    if not packet.size or packet.pts is None:
                        continue
                    base = stream.time_base
                    assert base is not None
                    at_s = shift + float(packet.pts * base)
                    end_s = at_s + 1 / float(stream.average_rate or 25)
                    self.server.off.wait(max(began + at_s - time.monotonic(), 0))
                    copy: Any = Packet(bytes(packet))
                    copy.time_base, copy.is_keyframe = base, packet.is_keyframe
                    copy.pts = copy.dts = round(at_s / base)
                    copy.stream = video
                    output.mux(copy)
            shift = end_s

    def write(self, data: bytes) -> int:
        """Take one packet from FFmpeg's muxer."""
        channel = 1 if 200 <= data[1] <= 204 else 0  # RTCP is not RTP
        self.wfile.write(struct.pack(">cBH", b"$", channel, len(data)) + bytes(data))
        return len(data)


class RtpCamera(socketserver.ThreadingTCPServer):
    """The camera; switched on and off by `with`."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, clip: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Viewer)
        self.clip = clip
        self.off = threading.Event()
        self.url = f"rtsp://127.0.0.1:{self.server_address[1]}/clip"
        with av.open(str(clip)) as container:
            self.codec = container.streams.video[0].codec_context.codec.canonical_name

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.off.set()
        self.shutdown()
        self.server_close()
