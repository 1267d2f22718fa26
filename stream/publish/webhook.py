"""Messages to an HTTPS address, signed by the Standard Webhooks specification.

One thread sends one message after the other, each again and again until the receiver has taken it
(2xx). So a receiver that is slow or away holds up nothing else, and what it gets is in order, by
kind. With a `spool` that lasts a message is on the disk before it is sent.

Whoever can write the configuration could make this process call what only it can reach. So names
are resolved here, addresses that are not public are refused, and the very address that was checked
is connected to; redirects are not followed, and no proxy of the environment is used.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import logging
import os
import random
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

import httpx
from standardwebhooks import Webhook

from stream import __version__
from stream.errors import ConfigError, SinkError
from stream.messages import Lane
from stream.publish.backlog import Backlog, event_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.config import WebhookSinkConfig
    from stream.messages import OutMessage

log = logging.getLogger(__name__)

SECRET_VARIABLE: Final = "FACEWARDEN_WEBHOOK_SECRET"
_FIRST_WAIT_S: Final = 0.5
_LONGEST_ASKED_S: Final = 600.0  # that a receiver may ask us to wait
_MOST_REFUSALS: Final = 10  # of one message, until it is given up: others wait behind it
_BUSY: Final = (408, 425, 429)  # of the client's errors those that waiting cures
# Networks that are embedded in public addresses: NAT64.
_TRANSLATED: Final = ipaddress.ip_network("64:ff9b::/96")


class Address(NamedTuple):
    """Where to send, taken apart."""

    scheme: str
    host: str
    port: int
    target: str  # path and query

    @property
    def shown(self) -> str:
        """The address for people, without its path, which may be a secret."""
        return f"{self.scheme}://{self._host_in_url}:{self.port}"

    @property
    def authority(self) -> str:
        """The Host header."""
        default = self.port == (443 if self.scheme == "https" else 80)
        return self._host_in_url if default else f"{self._host_in_url}:{self.port}"

    @property
    def _host_in_url(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def at(self, ip: str) -> str:
        """Return the URL with the host's name replaced by one of its addresses."""
        host = f"[{ip}]" if ":" in ip else ip
        return f"{self.scheme}://{host}:{self.port}{self.target}"


class NotPublicError(Exception):
    """The receiver's name leads where we must not send."""


class WebhookSink:
    """Delivers every message at least once, if the receiver is up or comes back.

    Nothing ends for its sake: while it is away messages wait, up to the limits; what is too much
    is dropped, counted and logged.

    Args:
        config: of this sink.
        lanes: kinds that are sent; None: those of `config`.

    Attributes:
        sent: messages that the receiver took.
        given_up: messages that it refused `_MOST_REFUSALS` times.
        backlog: what waits, and counts what was lost.

    Raises:
        ConfigError: address, secret or spool can't be used, or the address is not public and
            `allow_private` is not set. A name that can't be resolved now is an outage instead.
    """

    def __init__(self, config: WebhookSinkConfig, lanes: Sequence[Lane] | None = None) -> None:
        self.sent = self.given_up = 0
        self._config = config
        self._address = read_address(config)
        self._signer = _signer(config)
        self._lanes = tuple(lanes or (Lane(name) for name in config.messages))
        try:
            self._look_up()
        except NotPublicError as error:
            raise ConfigError(f"webhook {self._address.shown}: {error}") from None
        except OSError as error:
            log.warning("webhook %s: %s: messages wait", self._address.shown, _why(error))
        self.backlog = Backlog(
            config.spool,
            spool_limits={
                lane: config.spool_messages for lane in self._lanes if lane is not Lane.TRACKS
            },
            memory_limit=config.queue_messages,
            lanes=self._lanes,
        )
        trusted = ssl.create_default_context(cafile=config.ca_file)
        for library in ("httpx", "httpcore"):  # they log addresses, which may hold a token
            logging.getLogger(library).setLevel(logging.WARNING)
        self._client = httpx.Client(
            verify=trusted, timeout=config.timeout_s, trust_env=False, follow_redirects=False
        )
        self._waiting_since: float | None = None  # of an outage; monotonic seconds
        self._lost = 0
        self._changed = threading.Condition()  # guards all of this and the backlog
        self._close_by: float | None = None
        self._bug: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()
        log.info("%s go to webhook %s", " and ".join(self._lanes), self._address.shown)

    def publish(self, messages: Sequence[OutMessage]) -> None:
        """Queue those messages that are to be sent; returns at once.

        Raises:
            SinkError: the thread that sends them ended by an error of ours.
        """
        wanted = [m for m in messages if m.lane in self._lanes]
        if self._bug is not None:
            raise SinkError(f"webhook {self._address.shown}: failed: {self._bug!r}")
        if not wanted:
            return
        with self._changed:
            for message in wanted:
                self.backlog.add(message.lane, message.to_json())
            lasting = self._config.spool is not None
            is_full = len(self.backlog) > self._config.queue_messages
            if lasting or is_full or self._waiting_since is not None:
                self._keep()
            self._changed.notify()

    def close(self) -> None:
        """Deliver what waits, as far as that is possible within `close_s`; release everything.

        A second call does nothing.

        Raises:
            SinkError: something remains undelivered; the message says what is kept where.
        """
        if self._close_by is not None:
            return
        with self._changed:
            self._close_by = time.monotonic() + self._config.close_s
            self._changed.notify()
        self._thread.join(self._config.close_s + 2 * self._config.timeout_s)
        self._client.close()
        with self._changed:
            if not self.backlog:
                self.backlog.close()
                return
            self._keep()
            self.backlog.abandon()
            account = self.backlog.account()
            self.backlog.close()
        raise SinkError(f"webhook {self._address.shown}: not all was delivered; {account}")

    def _run(self) -> None:
        try:
            while (message := self._next()) is not None:
                if not self._deliver(*message):
                    return
        except Exception as error:
            log.exception("webhook %s: failed: a bug in facewarden", self._address.shown)
            self._bug = error

    def _next(self) -> tuple[Lane, str] | None:
        """Wait for a message and return the next; None when closing and all is delivered."""
        with self._changed:
            while not self.backlog and self._close_by is None:
                self._changed.wait()
            if self._close_by is not None and time.monotonic() > self._close_by:
                return None
            for lane, messages in self.backlog.head(1).items():
                if messages:
                    return lane, messages[0]
            return None

    def _deliver(self, lane: Lane, message: str) -> bool:
        """Send a message until it is taken or given up; False: it waits, and we are closing."""
        wait_s, refusals = _FIRST_WAIT_S, 0
        while True:
            complaint, asked_s, refused = self._post(message)
            if complaint is None:
                break
            refusals += refused
            if refusals >= _MOST_REFUSALS:
                log.error(
                    "webhook %s refused a message %d times (%s); it is given up: %s",
                    self._address.shown,
                    refusals,
                    complaint,
                    event_id(message),
                )
                break
            if not self._rest(complaint, max(asked_s, wait_s * random.uniform(0.75, 1.25))):
                return False
            wait_s = min(2 * wait_s, self._config.retry_max_s)
        with self._changed:
            if self.backlog.first(lane) == message:  # else it was dropped for want of room
                self.backlog.drop(lane, 1)
            if complaint is None:
                self.sent += 1
                self._say_back()
            else:
                self.given_up += 1
        return True

    def _post(self, message: str) -> tuple[str | None, float, bool]:
        """Send a message once.

        Returns:
            What went wrong, if anything; for how many seconds the receiver asked us to wait; and
            whether it refused this very message.
        """
        now = datetime.now(UTC)
        # Ids of events hold dots, which separate what is signed.
        name = f"fw_{hashlib.sha256(event_id(message).encode()).hexdigest()[:32]}"
        headers = {
            "Host": self._address.authority,
            "Content-Type": "application/json",
            "User-Agent": f"facewarden/{__version__}",
            "webhook-id": name,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(name, now, message),
        }
        try:
            ip = random.choice(self._look_up())
            with self._client.stream(
                "POST",
                self._address.at(ip),
                content=message.encode(),
                headers=headers,
                extensions={"sni_hostname": self._address.host},
            ) as response:
                pass  # what it says beyond its status is not read: it might never end
        except (httpx.HTTPError, OSError, NotPublicError) as error:
            return _why(error), 0.0, False
        if response.is_success:
            return None, 0.0, False
        complaint = f"it answers {response.status_code}"
        if response.is_redirect:
            complaint += ", and redirects are not followed"
        refused = response.is_client_error and response.status_code not in _BUSY
        return complaint, _seconds(response.headers.get("retry-after", "")), refused

    def _rest(self, complaint: str, wait_s: float) -> bool:
        """Wait before the next attempt; return whether there is to be one."""
        with self._changed:
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
                log.warning("webhook %s: %s: messages wait", self._address.shown, complaint)
            self._keep()
            if self._close_by is not None:
                return False
            until = time.monotonic() + wait_s
            while (left := until - time.monotonic()) > 0 and self._close_by is None:
                self._changed.wait(left)
            return True

    def _keep(self) -> None:
        self.backlog.keep()
        lost = self.backlog.lost.total()
        if lost > self._lost:
            log.error("webhook %s: %s", self._address.shown, self.backlog.account())
        self._lost = lost

    def _say_back(self) -> None:
        if self._waiting_since is not None:
            away_s = time.monotonic() - self._waiting_since
            log.warning("webhook %s: back after %.1f s", self._address.shown, away_s)
            self._waiting_since = None

    def _look_up(self) -> list[str]:
        """Return the receiver's addresses.

        Raises:
            NotPublicError: one of them is not public, and that is not allowed.
            OSError: the name can't be resolved now.
        """
        found = socket.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        if not self._config.allow_private:
            for ip in addresses:
                if not is_public(ip):
                    raise NotPublicError(
                        f"its name leads to {ip}, which is not a public address; if that is meant, "
                        "set this sink's allow_private"
                    )
        return addresses


def is_public(ip: str) -> bool:
    """Return whether an address is one of the public internet, whatever it is wrapped in.

    >>> [is_public(ip) for ip in ("1.1.1.1", "10.0.0.7", "169.254.169.254", "::ffff:127.0.0.1")]
    [True, False, False, False]
    """
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast


def read_address(config: WebhookSinkConfig) -> Address:
    """Take a sink's address apart.

    Raises:
        ConfigError: it is none, or it is http:// and that is not allowed. The message repeats no
            part of it but its scheme.
    """
    try:
        parts = urlsplit(config.url.get_secret_value())
        port = parts.port
    except ValueError:
        raise ConfigError("webhook: its address can't be taken apart") from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ConfigError("webhook: expected https://host[:port]/path")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ConfigError("webhook: its address must hold no user, password or fragment")
    if parts.scheme == "http" and not config.allow_http:
        raise ConfigError("webhook: http:// is not encrypted; use https, or set allow_http")
    if not parts.hostname.isascii() or any(c.isspace() for c in parts.netloc):
        raise ConfigError("webhook: expected a host's name in ASCII")
    query = f"?{parts.query}" if parts.query else ""
    default = 443 if parts.scheme == "https" else 80
    return Address(parts.scheme, parts.hostname, port or default, f"{parts.path or '/'}{query}")


def _signer(config: WebhookSinkConfig) -> Webhook:
    if config.secret is not None:
        secret = config.secret.get_secret_value()
    else:
        secret = os.environ.get(SECRET_VARIABLE, "")
    advice = (
        f"expected whsec_ and 24 to 64 bytes as base64 in this sink's `secret` or in "
        f"${SECRET_VARIABLE}; `openssl rand -base64 32` makes them"
    )
    if not secret:
        raise ConfigError(f"webhook: there is no secret to sign with; {advice}")
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise ConfigError(f"webhook: its secret is no base64; {advice}") from None
    if not 24 <= len(key) <= 64:
        raise ConfigError(f"webhook: its secret has {len(key)} bytes; {advice}")
    return Webhook(key)


def _why(error: Exception) -> str:
    """Return one line that says what went wrong, without the address."""
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.HTTPError):
        cause = error.__cause__ or error
        return " ".join(str(cause).split()) or type(error).__name__
    if isinstance(error, OSError):
        return f"its name can't be resolved ({error.strerror})"
    return str(error)


def _seconds(retry_after: str) -> float:
    """Read the seconds of a Retry-After header; its other form, a date, is passed over."""
    return min(float(retry_after), _LONGEST_ASKED_S) if retry_after.isdecimal() else 0.0
