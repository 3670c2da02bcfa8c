"""Fetching over http and https from hosts that the config allows, and from no address that is not public.

Names are resolved here, every address is checked, and the connection goes to the very address that was checked: a
name that resolves differently a moment later (DNS rebinding) gains nothing. TLS still checks the name. Redirects are
followed by hand, each checked like the first address. Proxies that the environment names are ignored.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import socket
import ssl
import threading
from contextlib import closing, suppress
from urllib.parse import quote, urljoin, urlsplit

from pipeline.config import Access, MediaLimits
from pipeline.data.schema import Reason, RowError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 2**16
THREAD = "fetch"
"""The name of the threads that fetch."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA = (ipaddress.IPv4Address("168.63.129.16"),)
"""Of a cloud's hosts, although the address is a public one."""


def fetch(address: str, *, access: Access, limits: MediaLimits, tls: ssl.SSLContext) -> bytes:
    """The body behind an address, after at most `access.max_redirects` redirects, in at most `access.timeout_s`.

    Raises:
        RowError: a host, port or network that is not allowed, a body that is too large, or no answer of status 200.
    """
    line = _Line(access, limits, tls)
    answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(line.follow(address))
        except Exception as error:  # whatever it is, the caller waits for it
            answers.put(error)

    # A thread of its own: a resolver takes no timeout, and a slow drip renews every one.
    threading.Thread(target=ask, name=THREAD, daemon=True).start()
    try:
        answer = answers.get(timeout=access.timeout_s)
    except queue.Empty:
        line.hang_up()
        answer = TimeoutError()
    match answer:
        case bytes():
            return answer
        case RowError():
            raise answer
        case TimeoutError():
            detail = f"{short(address)} takes longer than data.access.timeout_s={access.timeout_s:g}"
            raise RowError(Reason.FETCH_FAILED, detail)
        case OSError() | http.client.HTTPException() | ValueError():
            raise RowError(Reason.FETCH_FAILED, f"{short(address)}: {type(answer).__name__}: {answer}")
        case _:
            raise answer


class _Line:
    """A fetch, and what it takes to end it from outside."""

    def __init__(self, access: Access, limits: MediaLimits, tls: ssl.SSLContext) -> None:
        self._access, self._limits, self._tls = access, limits, tls
        self._connection: _Pinned | None = None
        self._is_late = False

    def hang_up(self) -> None:
        """Ends the connection: whoever reads from it stops."""
        self._is_late = True
        if self._connection is not None and self._connection.line is not None:
            with suppress(OSError):
                self._connection.line.shutdown(socket.SHUT_RDWR)

    def follow(self, address: str) -> bytes:
        """The body behind an address."""
        for _ in range(self._access.max_redirects + 1):
            found = self._request(address)
            if isinstance(found, bytes):
                return found
            address = _redirected(address, found)
        detail = f"more than data.access.max_redirects={self._access.max_redirects} redirects"
        raise RowError(Reason.FETCH_FAILED, detail)

    def _request(self, address: str) -> bytes | str:
        """The body, or where a redirect leads."""
        access = self._access
        scheme, host, port, target = _parts(address)
        _check_host(host, port, access, default=_PORTS[scheme])
        addresses = _resolve(host, port)
        for found in addresses:
            check_public(found, host, access)
        self._connection = _Pinned(host, port, addresses, self._tls if scheme == "https" else None, access.timeout_s)
        with closing(self._connection) as connection:
            connection.connect()
            if self._is_late:
                raise TimeoutError
            connection.request(
                "GET", target, headers={"User-Agent": "polyphony", "Accept": "*/*", "Connection": "close"}
            )
            with connection.getresponse() as response:
                if response.status in _REDIRECTS and (where := response.getheader("Location")):
                    return where
                if response.status != 200:
                    detail = f"{short(address)}: status {response.status} {response.reason[:80]}"
                    raise RowError(Reason.FETCH_FAILED, detail)
                encoding = response.getheader("Content-Encoding", "identity")
                if encoding != "identity":  # we asked for none, and a body that unpacks is a bomb in waiting
                    raise RowError(Reason.FETCH_FAILED, f"{short(address)}: Content-Encoding {encoding[:40]!r}")
                return _body(response, address, self._limits)


def _redirected(address: str, where: str) -> str:
    try:
        target = urljoin(address, where)
        before, after = urlsplit(address).scheme, urlsplit(target).scheme
    except ValueError as error:
        raise RowError(Reason.BAD_ADDRESS, f"{short(address)} leads to {short(where)}: {error}") from None
    if after not in _PORTS or (before, after) == ("https", "http"):
        raise RowError(Reason.BAD_ADDRESS, f"{short(address)} leads to {short(target)}")
    return target


def short(address: str) -> str:
    """An address as a refusal's detail shows it."""
    return repr(address if len(address) <= 200 else address[:200] + "...")


def _parts(address: str) -> tuple[str, str, int, str]:
    """Scheme, host in ASCII, port, and path with query."""
    try:
        parts = urlsplit(address)
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
        host = host if ":" in host else host.encode("idna").decode()
    except ValueError as error:
        raise RowError(Reason.BAD_ADDRESS, f"{short(address)}: {error}") from None
    if not host:
        raise RowError(Reason.BAD_ADDRESS, f"{short(address)} names no host")
    if "@" in parts.netloc:
        raise RowError(Reason.BAD_ADDRESS, "an address with a user or a password")  # which the detail does not repeat
    target = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*[]")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:=&~+!$,;'@()*[]?")
    return parts.scheme, host, _PORTS[parts.scheme] if port is None else port, target


def _check_host(host: str, port: int, access: Access, *, default: int) -> None:
    for allowed in access.hosts:
        name, allowed_port = split_host(allowed)
        matches = host.endswith(name[1:]) and host != name[1:] if name.startswith("*.") else host == name
        if matches and port == (default if allowed_port is None else allowed_port):
            return
    detail = f"{host[:200]} at port {port} is none of data.access.hosts={list(access.hosts)}"
    raise RowError(Reason.HOST_NOT_ALLOWED, detail)


def split_host(allowed: str) -> tuple[str, int | None]:
    """Name and port of an entry of `access.hosts`: `host`, `host:port`, `*.host`, `[IPv6]:port`."""
    allowed = allowed.lower()
    if allowed.startswith("["):
        name, _, port = allowed[1:].partition("]")
        return name, int(port[1:]) if port else None
    if allowed.count(":") == 1:
        name, _, port = allowed.partition(":")
        return name, int(port)
    return allowed, None


def _resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, in the resolver's order."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except Exception as error:
        raise RowError(Reason.FETCH_FAILED, f"{host[:200]} has no address: {error}") from None
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def check_public(address: str, host: str, access: Access) -> None:
    """Refuses an address that is not public, unless it lies in one of `access.private_networks`.

    An IPv4 address inside an IPv6 one (mapped, 6to4, Teredo, NAT64) counts as well: that is where packets would go.
    """
    networks = [ipaddress.ip_network(network) for network in access.private_networks]
    for found in _hops(ipaddress.ip_address(address.partition("%")[0])):
        if not _is_public(found) and not any(found in network for network in networks):
            detail = f"{host[:200]} is at {address}, which is not public nor in data.access.private_networks"
            raise RowError(Reason.PRIVATE_ADDRESS, detail)


def _hops(address: IpAddress) -> list[IpAddress]:
    """The address and those inside it; a mapped IPv4 address is that address alone."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    inside: list[IpAddress] = [address]
    if address.sixtofour is not None:
        inside.append(address.sixtofour)
    if address.teredo is not None:
        inside += address.teredo
    if address in _NAT64:
        inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return inside


def _is_public(address: IpAddress) -> bool:
    if address.is_multicast or address in _METADATA:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address in _NAT64 or (address.is_global and address in _GLOBAL_UNICAST)
    return address.is_global


class _Pinned(http.client.HTTPConnection):
    """A connection to one of the addresses given, whatever the name resolves to by now."""

    def __init__(
        self, host: str, port: int, addresses: list[str], tls: ssl.SSLContext | None, timeout_s: float
    ) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self.default_port = 443 if tls else 80  # left out of the Host header
        self._addresses, self._tls = addresses, tls
        self.line: socket.socket | None = None
        """The connection itself: http.client lets go of it while the answer is still being read."""

    def connect(self) -> None:
        for place, address in enumerate(self._addresses, 1):
            try:
                self.line = self.sock = socket.create_connection((address, self.port), self.timeout)
                break
            except OSError:
                if place == len(self._addresses):
                    raise
        if self._tls is not None:
            tls = self._tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.line = self.sock = tls
            tls.do_handshake()


def _body(response: http.client.HTTPResponse, address: str, limits: MediaLimits) -> bytes:
    promised = response.length
    if promised is not None and promised > limits.max_bytes:
        raise too_large(address, promised, limits)
    body = io.BytesIO()
    while chunk := response.read(_CHUNK_BYTES):
        body.write(chunk)
        if body.tell() > limits.max_bytes:
            raise too_large(address, body.tell(), limits)
    if promised is not None and body.tell() != promised:
        raise RowError(Reason.FETCH_FAILED, f"{short(address)} ends after {body.tell()} of {promised} bytes")
    return body.getvalue()


def too_large(address: str, num_bytes: int, limits: MediaLimits) -> RowError:
    """The refusal of a file of at least `num_bytes`."""
    detail = f"{short(address)}: {num_bytes} bytes or more; data.limits.max_bytes is {limits.max_bytes}"
    return RowError(Reason.TOO_MANY_BYTES, detail)
