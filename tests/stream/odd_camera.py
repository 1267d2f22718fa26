"""An RTSP camera with the habits of real ones; a program of its own, which `rtsp_camera` starts.

    python odd_camera.py FOLDER PORT HABITS

It is aio-rtsp-toolkit's server, and differs from it by HABITS, a JSON object:

- `transport`: "tcp" (the default), "udp" or "none": what SETUP accepts; all else is answered 461,
  or, if it is `stubborn`, with what was not asked for.
- `sound`: "refused" when it is to be set up, though announced; "forced": no PLAY without it.
- `bare`: the description holds no parameter sets; they come with the pictures, or never.
- `join_at_s`: viewers get the stream from that second of the clip on, wherever key frames are.
- `leap_at_s`, `leap_s`: the stamps are `leap_s` ahead from that second on.
- `challenges`: values of `WWW-Authenticate` in answer to requests without a valid MD5 digest or
  password of `user`, `password`.
- `deaf`: accept everything, and send no packets.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
import socket
import sys
from typing import Any

import aio_rtsp_toolkit.server as toolkit
from aio_rtsp_toolkit.server_session import RtspServerSession

HABITS: dict[str, Any] = {}


class OddSession(RtspServerSession):  # type: ignore[misc]
    datagrams: socket.socket | None = None

    async def _read_request(self):
        request = await super()._read_request()
        while request is not None and not is_welcome(request):
            await self._challenge(request.headers["cseq"])
            request = await super()._read_request()
        return request

    async def _challenge(self, sequence):
        lines = ["RTSP/1.0 401 Unauthorized", f"CSeq: {sequence}"]
        lines += [f"WWW-Authenticate: {challenge}" for challenge in HABITS["challenges"]]
        await self.sock.send("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"))

    async def _handle_setup(self, uri, req_headers):
        wanted = req_headers.get("transport", "")
        over_tcp = "rtp/avp/tcp" in wanted.lower()
        if self._is_sound(uri) and HABITS.get("sound") == "refused":
            await self._send_response(req_headers, 404, "Not Found")
        elif HABITS.get("transport", "tcp") == ("tcp" if over_tcp else "udp"):
            await self._accept(uri, req_headers, wanted)
        elif HABITS.get("stubborn"):
            transport = "RTP/AVP;unicast;client_port=5000-5001;server_port=5000-5001"
            headers = {"Transport": transport, "Session": self._session_header_value()}
            await self._send_response(req_headers, 200, "OK", headers)
        else:
            await self._send_response(req_headers, 461, "Unsupported Transport")

    async def _handle_play(self, req_headers):
        states = self.track_states.values()
        if HABITS.get("sound") == "forced" and any(s.rtp_channel is None for s in states):
            await self._send_response(req_headers, 455, "Method Not Valid In This State")
        else:
            await super()._handle_play(req_headers)

    def _is_sound(self, uri):
        return self.track_states[self.server.resolve_track_name(uri)].info.media_type == "audio"

    async def _accept(self, uri, req_headers, wanted):
        if "client_port" in wanted:
            await self._set_up_udp(uri, req_headers, wanted)
        else:
            await super()._handle_setup(uri, req_headers)

    async def _set_up_udp(self, uri, req_headers, wanted):
        ports = re.search(r"client_port=(\d+)-(\d+)", wanted)
        state = self.track_states[self.server.resolve_track_name(uri)]
        state.rtp_channel, state.rtcp_channel = int(ports[1]), int(ports[2])
        if self.datagrams is None:
            self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.datagrams.bind(("127.0.0.1", 0))
        port = self.datagrams.getsockname()[1]
        transport = f"RTP/AVP;unicast;client_port={ports[1]}-{ports[2]};server_port={port}-{port}"
        headers = {"Transport": transport, "Session": self._session_header_value()}
        await self._send_response(req_headers, 200, "OK", headers)

    async def _send_interleaved_frame(self, channel, payload):
        if HABITS.get("deaf"):
            return
        if self.datagrams is None:
            await super()._send_interleaved_frame(channel, payload)
        else:
            self.datagrams.sendto(payload, ("127.0.0.1", channel))

    async def _send_video_packet(self, state, data, media_time, duration_seconds, is_keyframe):
        media_time -= HABITS.get("join_at_s", 0)
        if media_time < 0:
            state.sent_codec_config = True
            return
        await super()._send_video_packet(state, data, media_time, duration_seconds, is_keyframe)

    async def _send_rtp_packet(self, state, payload, timestamp, marker):
        if timestamp >= HABITS.get("leap_at_s", float("inf")) * state.info.clock_rate:
            timestamp += round(HABITS["leap_s"] * state.info.clock_rate)
        await super()._send_rtp_packet(state, payload, timestamp, marker)


def is_welcome(request) -> bool:
    if "challenges" not in HABITS:
        return True
    scheme, _, answer = request.headers.get("authorization", "").partition(" ")
    user, password = HABITS["user"], HABITS["password"]
    if scheme == "Basic":
        return bool(base64.b64decode(answer).decode() == f"{user}:{password}")
    values = {name: quoted or bare for name, quoted, bare in PARAMETER.findall(answer)}
    if scheme != "Digest" or values.get("algorithm", "MD5") != "MD5":
        return False
    who = md5(f"{user}:{values['realm']}:{password}")
    what = md5(f"{request.method}:{values['uri']}")
    return bool(values["response"] == md5(f"{who}:{values['nonce']}:{what}"))


PARAMETER = re.compile(r'(\w+)=(?:"([^"]*)"|([^,\s]*))')


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


class OddServer(toolkit.RtspServer):  # type: ignore[misc]
    def load_media_source(self, file_path):
        source = super().load_media_source(file_path)
        for track in source.tracks:
            if HABITS.get("bare") and track.media_type == "video":
                track.fmtp = "packetization-mode=1"
        return source


async def main(folder: str, port: str, habits: str) -> None:
    HABITS.update(json.loads(habits))
    server = await OddServer(folder, host="127.0.0.1", port=int(port)).start()
    print("ready", flush=True)  # noqa: T201 - `rtsp_camera` waits for it
    await server.serve_forever()


if __name__ == "__main__":
    toolkit.logger = logging.getLogger("camera")
    toolkit.RtspServerSession = OddSession
    asyncio.run(main(*sys.argv[1:]))
