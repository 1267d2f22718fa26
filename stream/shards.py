"""Parts of a whole that several machines share without talking: `--shard I/N`."""

from __future__ import annotations

import hashlib

from stream.errors import ConfigError


def part_of(name: bytes, parts: int) -> int:
    """Return the part, 0 to `parts` - 1, that a name belongs to, whatever else there is.

    The digest is the same on every machine and in every version: it must not change.

    >>> [part_of(name, 3) for name in (b"lobby", b"gate", b"yard")]
    [2, 0, 0]
    """
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % parts


def parse_shard(text: str) -> tuple[int, int]:
    """Read `I/N`.

    >>> parse_shard("3/8")
    (3, 8)

    Raises:
        ConfigError: it is something else, or I is not in 0..N-1.
    """
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise ConfigError(f"--shard {text}: expected I/N with I from 0 to N-1, such as 0/8")
    return int(number), int(parts)
