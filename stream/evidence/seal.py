"""Signed manifests: what a bundle holds, and whether it still does.

The manifest lists the SHA-256 of every file; an Ed25519 signature covers its bytes. The public key
lies beside it, so that anybody can check that nothing was changed since; whose key it is, only one
that came another way can tell.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import BaseModel, Field, ValidationError

from models import file_sha256, one_line
from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
PUBLIC_KEY: Final = "public_key.pem"
_OF_THE_SEAL: Final = {MANIFEST, SIGNATURE, PUBLIC_KEY}


class SealedFile(BaseModel, frozen=True, extra="forbid"):
    """A file of a bundle."""

    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Contents(BaseModel, frozen=True, extra="forbid"):
    """What was sealed."""

    schema_version: Literal["facewarden-evidence/v1"] = "facewarden-evidence/v1"
    bundle: str
    sealed_at: str = Field(description="ISO 8601, UTC, by the clock of the machine.")
    files: dict[str, SealedFile]


def make_keys(private: Path) -> Path:
    """Write a new pair of keys; return the path of the public one, `<private>.pub`.

    Raises:
        ConfigError: a file of that name is there, or it can't be written.
    """
    public = private.with_name(private.name + ".pub")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        for path, data, mode in ((private, secret, 0o600), (public, _pem(key), 0o644)):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename}: is there already; a key that signed bundles must not be lost: "
            "name another"
        ) from None
    except OSError as error:
        raise ConfigError(f"{error.filename}: can't be written ({error.strerror})") from error
    return public


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a key to sign with.

    Raises:
        ConfigError: it can't be read, others may read it, or it is no such key.
    """
    advice = "expected one that `python -m stream.evidence keygen` made"
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: can't read the key ({error.strerror}); {advice}") from error
    if mode & 0o077:
        raise ConfigError(
            f"{path}: others than its owner may read or write this key (mode {mode:o}): chmod 600"
        )
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: no private key without a passphrase; {advice}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: found a {type(key).__name__}; {advice}")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a key to verify with.

    Raises:
        ConfigError: it can't be read, or is no such key.
    """
    try:
        return _public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: can't read the key ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; expected the .pub file of keygen") from error


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return what people compare keys by: SHA-256 of the raw key, hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def sealed(
    bundle: str, files: Mapping[str, bytes], key: Ed25519PrivateKey, sealed_at: str
) -> dict[str, bytes]:
    """Return files with the manifest, its signature and the public key added.

    Args:
        bundle: its name.
        files: by path within the bundle.
        key: signs.
        sealed_at: ISO 8601.
    """
    listed = {
        path: SealedFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in sorted(files.items())
    }
    contents = Contents(bundle=bundle, sealed_at=sealed_at, files=listed)
    manifest = (contents.model_dump_json(indent=1) + "\n").encode()
    signature = key.sign(manifest).hex().encode() + b"\n"
    return {**files, MANIFEST: manifest, SIGNATURE: signature, PUBLIC_KEY: _pem(key)}


def broken_seals(folder: Path, key: Ed25519PublicKey | None = None) -> list[str]:
    """Return what is wrong with a bundle, a line each; none: it is as it was signed.

    Args:
        folder: of the bundle.
        key: of who must have signed it; None: the key that lies in the bundle, which whoever
            changed the bundle could have replaced.

    Raises:
        ConfigError: it is no folder that can be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected the folder of a bundle")
    try:
        manifest = (folder / MANIFEST).read_bytes()
        signature = (folder / SIGNATURE).read_bytes()
        enclosed = (folder / PUBLIC_KEY).read_bytes()
    except FileNotFoundError as error:
        name = os.path.basename(error.filename)  # noqa: PTH119 - of a string
        return [f"{name}: missing; without it nothing can be verified"]
    except OSError as error:
        raise ConfigError(f"{error.filename}: can't be read ({error.strerror})") from error
    wrong = _signature_problems(manifest, signature, enclosed, key)
    try:
        contents = Contents.model_validate_json(manifest)
    except ValidationError as error:
        return [*wrong, f"{MANIFEST}: not a manifest: {one_line(error, Contents)}"]
    if contents.bundle != folder.resolve().name:
        wrong.append(f"{MANIFEST}: is of the bundle {contents.bundle}, not of {folder.name}")
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name, path in sorted(there.items()):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            wrong.append(f"{name}: expected a plain file, found a link or a device")
        elif path.is_file() and name not in contents.files and name not in _OF_THE_SEAL:
            wrong.append(f"{name}: was added; the manifest does not list it")
    for name, expected in contents.files.items():
        found = there.get(name)
        if found is None:
            wrong.append(f"{name}: missing")
        elif found.is_symlink() or not found.is_file():
            continue  # said above
        elif found.stat().st_size != expected.size or file_sha256(found) != expected.sha256:
            wrong.append(f"{name}: was changed; its SHA-256 is not the one that was signed")
    return wrong


def key_of(folder: Path) -> Ed25519PublicKey:
    """Return the key that lies in a bundle.

    Raises:
        ConfigError: there is none.
    """
    return load_public_key(folder / PUBLIC_KEY)


def _signature_problems(
    manifest: bytes, signature: bytes, enclosed: bytes, key: Ed25519PublicKey | None
) -> list[str]:
    try:
        its_own = _public_key(enclosed)
    except ValueError as error:
        return [f"{PUBLIC_KEY}: {error}"]
    if key is not None and fingerprint(key) != fingerprint(its_own):
        return [
            f"{PUBLIC_KEY}: signed by the key {fingerprint(its_own)[:16]}, expected "
            f"{fingerprint(key)[:16]}"
        ]
    try:
        its_own.verify(bytes.fromhex(signature.decode("ascii").strip()), manifest)
    except (InvalidSignature, ValueError):
        return [f"{SIGNATURE}: does not fit {MANIFEST}: one of them was changed"]
    return []


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _public_key(data: bytes) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        ValueError: it is none, or of another kind.
    """
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("no public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"a {type(key).__name__}, no Ed25519 key")  # noqa: TRY004 - of its content
    return key
