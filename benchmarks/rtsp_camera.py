"""A real RTSP camera in a process of its own, which can be killed.

`python -m benchmarks.rtsp_camera FOLDER PORT` is that process.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Self

import aio_rtsp_toolkit.server as toolkit

from benchmarks.record import ROOT

if TYPE_CHECKING:
    from pathlib import Path


class RtspCamera:
    """Plays a clip over and over, on a port of 127.0.0.1 that it keeps over restarts.

    Args:
        clip: H.264 without B-frames, .mp4.
    """

    def __init__(self, clip: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._port = int(server.getsockname()[1])
        self._folder = clip.parent
        self.url = f"rtsp://127.0.0.1:{self._port}/{clip.name}?play_count=0"
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_on(self) -> bool:
        """Whether it was started and not killed since."""
        return self._process is not None

    def start(self) -> None:
        """Switch on; return once clients are accepted."""
        arguments = ["-m", "benchmarks.rtsp_camera", str(self._folder), str(self._port)]
        command = [sys.executable, *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the RTSP camera did not start; its own message is above")

    def kill(self) -> None:
        """Pull the plug; a second call does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


async def _serve(folder: str, port: int) -> None:
    toolkit.logger = logging.getLogger("rtsp_camera")  # its own writes a line per packet
    server = await toolkit.RtspServer(folder, host="127.0.0.1", port=port).start()
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
