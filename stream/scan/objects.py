"""Objects of stores (s3://, gs://, az://), through fsspec.

Whoever reads a file has no network (`stream.scan.confine`). So the program itself fetches an object
to a temporary file, which the reading child gets like any file, and which is removed afterwards.

Who may read is left to each store's own ways: environment, profile, the machine's role. No
credential passes through here; errors are put into our own words, since those of the stores'
clients hold addresses and headers.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from stream.closing import Closing
from stream.errors import ConfigError, StreamError
from stream.scan.inputs import STILLS, VIDEOS, Item, Listing, shown

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future
    from pathlib import Path

    from stream.scan.inputs import Selection

_PACKAGES: Final = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
_CHUNK_BYTES: Final = 8 * 2**20
_LISTED_AT_ONCE: Final = 16  # requests; each waits for the network, mostly
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


class UnfetchableError(Exception):
    """An object can't be fetched; the message says why, for people, and names no address."""


def list_objects(addresses: Iterable[bytes], selection: Selection) -> Listing:
    """Return the objects at some addresses, and those below addresses that are folders.

    Raises:
        ConfigError: an address is malformed, its store can't be asked, or its package is missing.
    """
    listing = Listing()
    found: dict[bytes, Item] = {}
    with ThreadPoolExecutor(_LISTED_AT_ONCE) as pool:
        for address, entries in pool.map(_entries, addresses):
            if entries is None:
                found[address] = Item(address, 0, 0, "no such object")
                continue
            for path, info in entries:
                below = path.removeprefix(address.rstrip(b"/") + b"/")
                if path == address or selection.takes(below):
                    found[path] = _item(path, info)
                else:
                    listing.left_out += 1
    listing.items = list(found.values())
    return listing


def _entries(address: bytes) -> tuple[bytes, list[tuple[bytes, dict[str, Any]]] | None]:
    """Return what lies at an address, with what the store says of it; None: nothing."""
    scheme, key = _split(address)
    store = _store(scheme)
    try:
        info = store.info(key)
        if info["type"] == "file":
            return address, [(address, info)]
        infos = store.find(key, detail=True).values()
    except FileNotFoundError:
        return address, None
    except Exception as error:
        if isinstance(error, PermissionError) and not key.endswith("/"):
            return address, [(address, {"size": 0, "problem": "access denied"})]
        raise ConfigError(f"{shown(address)}: can't list what is there ({_why(error)})") from None
    return address, [
        (f"{scheme}://{each['name']}".encode(errors="surrogateescape"), each)
        for each in infos
        if each["type"] == "file"
    ]


def _item(path: bytes, info: dict[str, Any]) -> Item:
    changed = next((info[n] for n in ("LastModified", "last_modified", "mtime") if n in info), None)
    etag = next((str(info[name]) for name in ("ETag", "etag") if info.get(name)), None)
    return Item(
        path,
        int(info["size"] or 0),
        round(changed.timestamp() * 1e9) if isinstance(changed, datetime) else 0,
        info.get("problem"),
        etag=None if etag is None else etag.strip('"'),
    )


def _split(address: bytes) -> tuple[str, str]:
    scheme, _, key = address.decode(errors="surrogateescape").partition("://")
    bucket = key.partition("/")[0]
    if not bucket or "@" in bucket or ":" in bucket:
        raise ConfigError(
            f"{scheme}://***: expected {scheme}://BUCKET/KEY; credentials go into the environment, "
            "not into addresses"
        )
    return scheme, key


def _store(scheme: str) -> Any:
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError:
        raise ConfigError(
            f"{scheme}:// needs fsspec and {_PACKAGES[scheme]}: pip install 'facewarden[objects]', "
            f"and {_PACKAGES[scheme]}"
        ) from None
    except Exception as error:
        raise ConfigError(f"{scheme}://: the store can't be used ({_why(error)})") from None


def _why(error: Exception) -> str:
    """Say what went wrong, without what a store's client says, which may hold anything."""
    match error:
        case FileNotFoundError():
            return "no such object"
        case PermissionError():
            return "access denied"
        case TimeoutError():
            return "the store does not answer"
        case OSError(errno=int(number)) if number:
            return os.strerror(number)
        case _:
            return type(error).__name__


class Fetcher(Closing):
    """Fetches objects to temporary files, some at a time, within a limit of the disk.

    Args:
        folder: where to; emptied now and at the end.
        at_once: objects that are fetched at a time.
        limit_bytes: what all temporary files may have together.
    """

    def __init__(self, folder: Path, *, at_once: int, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._started = 0
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="fetch")
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed

    def has_room(self, item: Item) -> bool:
        """Return whether an object can be fetched now; one that is too large always can't."""
        return self._held_bytes + item.size <= self._limit_bytes

    def never_has_room(self, item: Item) -> bool:
        """Return whether an object exceeds the limit alone."""
        return item.size > self._limit_bytes

    def start(self, item: Item) -> Future[Path]:
        """Begin to fetch an object; the future has its file, or raises what `fetch` does."""
        self._started += 1
        self._held_bytes += item.size
        suffix = os.path.splitext(item.path)[1].lower().decode(errors="replace")
        name = f"{self._started}{suffix if suffix in STILLS | VIDEOS else ''}"
        return self._pool.submit(self._fetch, item, self._folder / name)

    def discard(self, item: Item, fetched: Future[Path]) -> None:
        """Remove the file of an object, whatever became of it."""
        self._held_bytes -= item.size
        if not fetched.cancel() and fetched.exception() is None:
            fetched.result().unlink(missing_ok=True)

    def close(self) -> None:
        """Stop fetching, and remove what is there."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fetch(self, item: Item, path: Path) -> Path:
        """Write an object's content to a file.

        Raises:
            UnfetchableError: the store does not give it, or not as it was listed.
            StreamError: the disk is full.
        """
        scheme, key = _split(item.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        n = 0
        try:
            with (
                _store(scheme).open(
                    key, "rb", block_size=_CHUNK_BYTES, cache_type="readahead"
                ) as source,
                path.open("xb") as file,
            ):
                while not self._stop.is_set() and n <= item.size:
                    chunk = source.read(_CHUNK_BYTES)
                    if not chunk:
                        break
                    n += len(chunk)
                    file.write(chunk)
        except Exception as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise StreamError(
                    f"{path.parent}: no room for what is fetched from stores: make some, or lower "
                    "--limit temporary_mb"
                ) from None
            raise UnfetchableError(f"can't be fetched: {_why(error)}") from None
        if n != item.size:
            path.unlink(missing_ok=True)
            raise UnfetchableError(f"gave {n} bytes where {item.size} were listed: is it changing?")
        return path
