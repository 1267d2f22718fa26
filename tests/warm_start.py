"""Programs that start with what takes long already imported.

`WarmStarts` holds one process that has imported the heavy modules and forks for each program. What
is forked is a process of its own, with its own session, streams, folder and environment; it runs
the program from the top, and ends as any. Only its imports are done before, so one start of each
program in the tests, and all that depends on what is imported when, are true ones.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[1]
_REQUEST_BYTES = 1 << 20


class WarmProcess:
    """A program that runs; in what it has, it is `subprocess.Popen` with pipes of text."""

    def __init__(self, streams: tuple[IO[str], IO[str], IO[str]], report: IO[str]) -> None:
        self.stdin, self.stdout, self.stderr = streams
        self._report = report
        self.pid = int(report.readline())
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end. pytest-timeout is what ends a test that hangs."""
        if self.returncode is None:
            self.returncode = int(self._report.readline())
            self._report.close()
        return self.returncode

    def communicate(self, text: str = "") -> tuple[str, str]:
        """Write to its stdin and read to its end; its stdout must fit into a pipe."""
        with suppress(BrokenPipeError), self.stdin:
            self.stdin.write(text)
        with self.stdout, self.stderr:
            err, out = self.stderr.read(), self.stdout.read()
        self.wait()
        return out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has ended, and nobody asked yet
                self.kill()
            self.communicate()


class WarmStarts:
    """Starts programs from a process that has imported some modules; close it at the end."""

    def __init__(self, *modules: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                cwd=ROOT,
            )

    def start(
        self, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> WarmProcess:
        """Start a program.

        Args:
            arguments: path of the program, or `-m` and a module, or `-c` and code; and more.
            env: what its environment differs in from this one's.
            cwd: its folder.
        """
        request = {
            "arguments": [*map(str, arguments)],
            "env": {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            "cwd": str(cwd),
        }
        (gets, puts), *others = (os.pipe() for _ in range(4))
        theirs = [gets, *(writes for _, writes in others)]
        socket.send_fds(self._channel, [json.dumps(request).encode()], theirs)
        for fd in theirs:
            os.close(fd)
        out, err, report = (os.fdopen(reads, encoding="utf-8") for reads, _ in others)
        given = os.fdopen(puts, "w", encoding="utf-8", buffering=1)
        return WarmProcess((given, out, err), report)

    def close(self) -> None:
        self._channel.close()
        self._server.wait()


def _serve(channel: socket.socket) -> dict[str, Any]:
    """Fork for each request; return it in the process that is to become the program."""
    waiting: list[int] = []  # processes that each wait for a program
    while True:
        data, fds, _, _ = socket.recv_fds(channel, _REQUEST_BYTES, 4)
        if not data:
            for pid in waiting:
                os.waitpid(pid, 0)
            os._exit(0)
        waiting = [pid for pid in waiting if os.waitpid(pid, os.WNOHANG) == (0, 0)]
        if not (pid := os.fork()):
            break
        waiting.append(pid)
        for fd in fds:
            os.close(fd)
    channel.close()
    *streams, report = fds
    program = os.fork()
    if program:
        for fd in streams:
            os.close(fd)
        with os.fdopen(report, "w", encoding="utf-8") as told:
            print(program, file=told, flush=True)
            _, status = os.waitpid(program, 0)
            print(os.waitstatus_to_exitcode(status), file=told, flush=True)
        os._exit(0)
    os.close(report)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    request: dict[str, Any] = json.loads(data)
    return request


def _run(request: dict[str, Any]) -> None:
    os.setsid()
    for number in (signal.SIGQUIT, signal.SIGHUP):  # a shell may have ignored them
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    first, *rest = request["arguments"]
    match first:
        case "-c":
            code, *sys.argv[1:] = rest
            exec(code, {"__name__": "__main__"})
        case "-m":
            sys.path[0], sys.argv = request["cwd"], rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        case _:
            sys.path[0], sys.argv = str(Path(first).parent), request["arguments"]
            runpy.run_path(first, run_name="__main__")


def main() -> None:
    sys.path[0] = str(ROOT)
    _, fd, *modules = sys.argv
    for module in modules:
        import_module(module)
    gc.freeze()  # else collecting in a forked process would copy all that it shares
    with socket.socket(fileno=int(fd)) as channel:
        request = _serve(channel)
    _run(request)


if __name__ == "__main__":
    main()
