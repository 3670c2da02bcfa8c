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
import time
from typing import Any, cast
from urllib.parse import quote, urljoin, urlsplit

from pipeline.config import Access, MediaLimits
from pipeline.data.schema import Reason, RowError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 2**16

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA = (ipaddress.IPv4Address("168.63.129.16"),)
"""Of a cloud's hosts, although the address is a public one."""


def fetch(address: str, *, access: Access, limits: MediaLimits, tls: ssl.SSLContext) -> bytes:
    """The body behind an address, after at most `access.max_redirects` redirects, in at most `access.timeout_s`.

    Raises:
        RowError: a host, port or network that is not allowed, a body that is too large, or no answer of status 200.
    """
    deadline = time.monotonic() + access.timeout_s
    for _ in range(access.max_redirects + 1):
        try:
            status, found = _request(address, access, limits, tls, deadline)
        except RowError:
            raise
        except TimeoutError:
            detail = f"{short(address)} takes longer than data.access.timeout_s={access.timeout_s:g}"
            raise RowError(Reason.FETCH_FAILED, detail) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RowError(Reason.FETCH_FAILED, f"{short(address)}: {type(error).__name__}: {error}") from None
        if status == 200:
            return cast(bytes, found)
        address = _redirected(address, cast(str, found))
    raise RowError(Reason.FETCH_FAILED, f"more than data.access.max_redirects={access.max_redirects} redirects")


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


def _request(
    address: str, access: Access, limits: MediaLimits, tls: ssl.SSLContext, deadline: float
) -> tuple[int, bytes | str]:
    """Status 200 and the body, or a redirect's status and where it leads."""
    scheme, host, port, target = _parts(address)
    _check_host(host, port, access, default=_PORTS[scheme])
    addresses = _resolve(host, port, deadline)
    for found in addresses:
        check_public(found, host, access)
    connection = _Pinned(host, port, addresses, tls if scheme == "https" else None, deadline)
    try:
        connection.request("GET", target, headers={"User-Agent": "polyphony", "Accept": "*/*", "Connection": "close"})
        response = connection.getresponse()
        if response.status in _REDIRECTS and (where := response.getheader("Location")):
            return response.status, where
        if response.status != 200:
            raise RowError(Reason.FETCH_FAILED, f"{short(address)}: status {response.status} {response.reason[:80]}")
        encoding = response.getheader("Content-Encoding", "identity")
        if encoding != "identity":  # we asked for none, and a body that unpacks is a bomb in waiting
            raise RowError(Reason.FETCH_FAILED, f"{short(address)}: Content-Encoding {encoding[:40]!r}")
        return 200, _body(response, address, limits)
    finally:
        connection.hang_up()


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


def _resolve(host: str, port: int, deadline: float) -> list[str]:
    """The addresses of a name, in the resolver's order. A thread of its own: the resolver takes no timeout."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # whatever it is, the caller waits for it
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise RowError(Reason.FETCH_FAILED, f"{host[:200]} has no address: {answer}")
    return list(dict.fromkeys(str(found[4][0]) for found in answer))


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

    def __init__(self, host: str, port: int, addresses: list[str], tls: ssl.SSLContext | None, deadline: float) -> None:
        super().__init__(host, port)
        self.default_port = 443 if tls else 80  # left out of the Host header
        self._addresses, self._tls, self._deadline = addresses, tls, deadline
        self._raw: socket.socket | None = None

    def connect(self) -> None:
        last: OSError | None = None
        for address in self._addresses:
            try:
                raw = socket.create_connection((address, self.port), timeout=_left(self._deadline))
                break
            except OSError as error:
                last = error
        else:
            raise last or OSError("no address")
        try:
            if self._tls is not None:
                raw.settimeout(_left(self._deadline))
                raw = self._tls.wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise
        self._raw = raw
        self.sock = cast(Any, _Timed(raw, self._deadline))

    def hang_up(self) -> None:
        """Closes the connection itself."""
        self.close()
        if self._raw is not None:
            self._raw.close()


class _Timed:
    """As much of a socket as http.client needs, with one deadline over all reads: a slow drip cannot renew it."""

    def __init__(self, raw: socket.socket, deadline: float) -> None:
        self._raw, self._deadline = raw, deadline

    def sendall(self, data: bytes) -> None:
        self._raw.settimeout(_left(self._deadline))
        self._raw.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._raw, self._deadline))

    def close(self) -> None:
        """Nothing: http.client lets go of its socket while the answer is still being read. See `_Pinned.hang_up`."""


class _TimedReader(io.RawIOBase):
    def __init__(self, raw: socket.socket, deadline: float) -> None:
        self._raw, self._deadline = raw, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._raw.settimeout(_left(self._deadline))
        return self._raw.recv_into(buffer)


def _left(deadline: float) -> float:
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


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
