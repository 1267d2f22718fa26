"""Paths, folders, addresses of object stores: all that one scan is to read, in a steady order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream.scan.inputs import is_object, list_files
from stream.scan.objects import list_objects
from stream.shards import part_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stream.scan.inputs import Listing, Selection


def list_items(
    paths: Iterable[bytes], selection: Selection, *, shard: tuple[int, int] = (0, 1)
) -> Listing:
    """Return what is to be scanned, sorted by path, each path once.

    Args:
        paths: files, folders, addresses of objects and of folders in object stores.
        selection: of what lies in folders; a path that is named itself is always taken.
        shard: (I, N): of N parts that share no file and leave none out, the one number I, from 0.

    Raises:
        ConfigError: a folder or a store can't be listed.
    """
    named = list(paths)
    addresses = list(filter(is_object, named))
    listing = list_files([path for path in named if not is_object(path)], selection)
    if addresses:
        objects = list_objects(addresses, selection)
        listing.items += objects.items
        listing.left_out += objects.left_out
    number, parts = shard
    listing.items = sorted(
        (item for item in listing.items if part_of(item.path, parts) == number),
        key=lambda item: item.path,
    )
    return listing
