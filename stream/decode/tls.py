"""Whom a source's TLS connections trust.

FFmpeg's own TLS (GnuTLS in PyAV's wheels) does the checking, so that there is no moment between
the check and the use. A pinned certificate is fetched, compared, and handed to FFmpeg as the only
one to trust. Tried with PyAV 18 (FFmpeg 8.1): it honours `tls_verify`, `ca_file` and `verifyhost`,
for rtsps and https; it refuses an expired certificate and one without any name, pinned or not; and
its HLS reader checks the playlist but not the segments, which is why `open_checked` reads those.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import (
    HTTPBasicAuthHandler,
    HTTPDigestAuthHandler,
    HTTPPasswordMgrWithDefaultRealm,
    HTTPSHandler,
    build_opener,
)

from stream.decode.reasons import source_error
from stream.records import SourceCode
from stream.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from http.client import HTTPResponse

    from stream.config import SourceConfig
    from stream.errors import SourceError

_PORTS: Final = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_HTTP_CODES: Final = {
    401: SourceCode.UNAUTHORISED,
    403: SourceCode.UNAUTHORISED,
    404: SourceCode.NOT_FOUND,
}
# Where distributions keep the certificates of the public authorities; OpenSSL's default is first.
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True)
class Trust:
    """Whom to trust, for both TLS libraries in use."""

    options: dict[str, str]  # FFmpeg's
    context: ssl.SSLContext  # Python's


def trust_of(source: SourceConfig, resources: ExitStack) -> Trust:
    """Return whom a source of scheme https or rtsps trusts, as its options say.

    Args:
        source: with `ca_file`, `fingerprint`, `insecure` or none of them.
        resources: what FFmpeg needs for as long as it connects.

    Raises:
        SourceError: the pinned certificate is not the one that is shown, or can't be used.
    """
    if source.insecure:
        return Trust({"tls_verify": "0"}, _context(verify=False))
    if source.fingerprint is not None:
        return _pinned(source, source.fingerprint, resources)
    bundle = source.ca_file or _system_bundle()
    try:
        context = ssl.create_default_context(cafile=bundle)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as FFmpeg: it may be its own
    except (OSError, ssl.SSLError) as error:
        raise _untrusted(source, f"no certificates can be read from {bundle}: {error}") from None
    options = {"tls_verify": "1"}
    return Trust(options if bundle is None else options | {"ca_file": str(bundle)}, context)


def distrust(source: SourceConfig, trust: Trust) -> str | None:
    """Return why a source's certificate is not trusted; None if that is not the trouble."""
    try:
        shown = fingerprint(_shown_certificate(source))
        _handshake(source, trust.context)
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted: {error.verify_message}; sha256 {shown}"
    except OSError:
        pass
    return None


def open_checked(source: SourceConfig, trust: Trust) -> Callable[[str, int, object], HTTPResponse]:
    """Return what opens the playlists and segments of HLS over https, for PyAV's `io_open`.

    It opens https alone, trusts whom the source trusts, and gives user and password only to the
    source's own server.
    """
    parts = urlsplit(_uri(source))
    host = parts.netloc.rpartition("@")[2]
    passwords = HTTPPasswordMgrWithDefaultRealm()
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        passwords.add_password(None, f"https://{host}/", user, password)
    opener = build_opener(
        HTTPSHandler(context=trust.context),
        HTTPBasicAuthHandler(passwords),
        HTTPDigestAuthHandler(passwords),
    )

    def open_url(url: str, _flags: int, _options: object) -> HTTPResponse:
        parts = urlsplit(url)
        plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        response: HTTPResponse | None = None
        try:
            if parts.scheme == "https":
                response = opener.open(plain, timeout=source.read_timeout_s)
        except HTTPError as error:
            code = _HTTP_CODES.get(error.code, SourceCode.REFUSED)
            raise source_error(code, _uri(source), f"{redact(plain)}: {error}") from None
        except URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                why = f"the certificate of {redact(plain)}: {error.reason.verify_message}"
                raise _untrusted(source, why) from None
            raise source_error(SourceCode.UNREACHABLE, _uri(source), str(error.reason)) from None
        if response is None or not response.url.startswith("https:"):
            raise _untrusted(source, f"it leads to {redact(plain)}, without TLS")
        return response

    return open_url


def dial(source: SourceConfig, context: ssl.SSLContext | None) -> socket.socket:
    """Return a connection of our own to a source's server, by TLS if a context is given.

    Raises:
        OSError: there is none; with TLS, perhaps because the certificate is not trusted.
    """
    try:
        parts = urlsplit(_uri(source))
        host = parts.hostname or ""
        connection = socket.create_connection(
            (host, parts.port or _PORTS[parts.scheme]), source.open_timeout_s
        )
        if context is None:
            return connection
        try:
            return context.wrap_socket(connection, server_hostname=host)
        except BaseException:
            connection.close()
            raise
    except ssl.SSLError:
        raise  # a certificate that is not trusted is a ValueError, too
    except ValueError as error:  # of a host or port that can't be one
        raise OSError(str(error)) from None


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate (DER), 64 hex digits."""
    return hashlib.sha256(certificate).hexdigest()


def _pinned(source: SourceConfig, wanted: str, resources: ExitStack) -> Trust:
    try:
        certificate = _shown_certificate(source)
    except OSError as error:
        code = (
            SourceCode.REFUSED
            if isinstance(error, ConnectionRefusedError)
            else SourceCode.UNREACHABLE
        )
        raise source_error(code, _uri(source), str(error)) from None
    shown = fingerprint(certificate)
    if shown != wanted:
        raise _untrusted(source, f"its certificate has the fingerprint {shown}, not {wanted}")
    pem = ssl.DER_cert_to_PEM_cert(certificate)
    context = _context(verify=True)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=pem)
    try:
        _, fields = _handshake(source, context)
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(
            source, f"FFmpeg can't use the pinned certificate: {error.verify_message}"
        ) from None
    name = _name_in(fields)
    if name is None:
        raise _untrusted(source, "FFmpeg can't use the pinned certificate: there is no name in it")
    # A file in memory: FFmpeg wants a path, and the disk may be read-only.
    file = resources.enter_context(os.fdopen(os.memfd_create("certificate"), "w"))
    file.write(pem)
    file.flush()
    path = f"/proc/self/fd/{file.fileno()}"
    return Trust({"tls_verify": "1", "ca_file": path, "verifyhost": name}, context)


def _context(*, verify: bool) -> ssl.SSLContext:
    """Return a context for a camera, whose TLS may be old, that asks for no name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


def _shown_certificate(source: SourceConfig) -> bytes:
    """Return the certificate that the far end shows, whoever that is (DER)."""
    certificate, _ = _handshake(source, _context(verify=False))
    return certificate


def _handshake(source: SourceConfig, context: ssl.SSLContext) -> tuple[bytes, dict[str, Any]]:
    """Return the far end's certificate: as sent (DER), and its fields if the context checks it.

    Raises:
        OSError: no connection, or no certificate that the context accepts.
    """
    with dial(source, context) as connection:
        assert isinstance(connection, ssl.SSLSocket)
        sent = connection.getpeercert(binary_form=True)
        if sent is None:
            raise OSError("no certificate was shown")
        return sent, dict(connection.getpeercert() or {})


def _name_in(certificate: dict[str, Any]) -> str | None:
    """Return a name that FFmpeg will find in a certificate; None if it has none."""
    names = [
        name
        for kind, name in certificate.get("subjectAltName", ())
        if kind in {"DNS", "IP Address"}
    ]
    parts = [part for parts in certificate.get("subject", ()) for part in parts]
    names += [name for kind, name in parts if kind == "commonName"]
    return str(names[0]).replace("*", "any") if names else None


def _system_bundle() -> Path | None:
    """Return the file of the public authorities' certificates, None if there is none."""
    default = ssl.get_default_verify_paths().cafile
    paths = ([default] if default else []) + list(_BUNDLES)
    return next((Path(path) for path in paths if Path(path).is_file()), None)


def _uri(source: SourceConfig) -> str:
    return source.uri.get_secret_value()


def _untrusted(source: SourceConfig, what: str) -> SourceError:
    return source_error(SourceCode.UNTRUSTED, _uri(source), what)
