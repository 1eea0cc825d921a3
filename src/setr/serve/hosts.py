"""Which names a server answers to, and which web pages may use it.

A server without keys trusts whoever reaches it, and so whoever can make a browser reach it. A page
whose own domain is made to resolve to 127.0.0.1 (DNS rebinding) passes for a page of this server;
its `Host` header tells. Any page can send a form to any address; `Sec-Fetch-Site` and `Origin` tell
(browsers send the first to localhost and over https only). Clients other than browsers, and proxies
that name the server by its address, send none of what is refused here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from setr.errors import UsageError
from setr.serve.limits import Refusal

_LOCAL = ("localhost", "*.localhost", "*.internal")
"""Names that no domain outside can take."""


class Hosts:
    """The names a server answers to.

    Args:
        allowed: host names in ASCII, without scheme and port; `*` stands for any part.
        local: answer to addresses, local names and `allowed` alone; the same where any is allowed.

    Raises:
        SetrError: a name that no `Host` header can have.
    """

    def __init__(self, allowed: Sequence[str] = (), *, local: bool = False) -> None:
        for name in allowed:
            if not re.fullmatch(r"[\w.*-]+", name, re.ASCII):
                raise UsageError(
                    f"--allowed-hosts {name}: give a host name in ASCII, without scheme and port "
                    "(addresses need no entry)"
                )
        self.allowed = (*_LOCAL, *(name.lower().rstrip(".") for name in allowed))
        self.restricted = local or bool(allowed)

    def check(self, headers: Headers) -> None:
        """Refuse a request to a name that is none of this server.

        Raises:
            Refusal: 403.
        """
        name = _host_of(f"//{headers.get('host', '')}")
        if self.restricted and name and not (_is_address(name) or self._allows(name)):
            raise Refusal(
                403,
                "host",
                f"{name:.80} is no name of this server; use its address or localhost, or start it "
                f"with --allowed-hosts {name:.80}",
            )

    def check_page(self, headers: Headers) -> None:
        """Refuse a request that a page of another site makes.

        Pages of the same host may ask from any port. A proxy may change `Host`, so what the browser
        says in `Sec-Fetch-Site` comes first, as the names that were allowed do.

        Raises:
            Refusal: 403.
        """
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site in ("same-origin", "none") or (site != "cross-site" and origin is None):
            return
        page = _host_of(origin or "")
        own = page and (page == _host_of(f"//{headers.get('host', '')}") or self._allows(page))
        if site == "cross-site" or not own:
            raise Refusal(403, "cross_site", "pages of other sites may not use this server")

    def _allows(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.allowed)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address that a socket is bound to."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _host_of(url: str) -> str:
    """The host of a URL in lower case, without brackets; empty where there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return url.lower()  # no host, and equal to none


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
