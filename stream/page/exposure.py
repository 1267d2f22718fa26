"""Whether an address of the page is safe to listen on; needs none of the page's packages."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from stream.errors import ConfigError

if TYPE_CHECKING:
    from stream.config import PageConfig


def check_exposure(config: PageConfig) -> None:
    """Refuse to be seen from other machines by those who know nothing, or by all on the way.

    Raises:
        ConfigError: the address is not this machine's own, and something is missing.
    """
    if _is_loopback(config.host):
        return
    missing = []
    if not config.insecure and config.secret is None:
        missing.append("page.secret (or $FACEWARDEN_PAGE_SECRET)")
    if not config.insecure and config.certificate is None:
        missing.append("page.certificate and page.key")
    if config.host in ("0.0.0.0", "::") and not config.hosts:
        missing.append("page.hosts, the names by which browsers call it")
    if missing:
        raise ConfigError(
            f"page: other machines can reach {config.host}, which needs {', '.join(missing)}; or "
            "listen on 127.0.0.1, or set page.insecure where a proxy protects it"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
