"""Media come from allowed places only, in bounded size and time, and every refusal has its reason."""

from __future__ import annotations

import base64
import os
import pickle
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import fsspec
import pytest
from pydantic import ValidationError

from pipeline.config import Access, MediaLimits
from pipeline.data import fetching
from pipeline.data.access import Reader
from pipeline.data.schema import Reason, RowError
from tests.data.web import BODY, serve

LIMITS = MediaLimits(max_bytes=100_000)
NOT_PUBLIC = """
127.0.0.1 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 100.100.100.200 168.63.129.16
192.0.2.1 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254
ff02::1 fec0::1 2001:db8::1 100::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 2002:7f00:1::1
2002:a9fe:a9fe:: 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2001:0:4136:e378:8000:63bf:3fff:fdd2
"""
HERE = ("127.0.0.0/8",)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A source's directory, with something beside it that is none of its business."""
    (tmp_path / "source" / "deep").mkdir(parents=True)
    (tmp_path / "source" / "a b.png").write_bytes(b"picture")
    (tmp_path / "source" / "deep" / "c.png").write_bytes(b"deeper")
    (tmp_path / "source-2").mkdir()
    (tmp_path / "source-2" / "secret").write_bytes(b"secret")
    return tmp_path / "source"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serve() as port:
        yield port


def refused(reader: Reader, address: str) -> RowError:
    with pytest.raises(RowError) as caught:
        reader.read(address)
    return caught.value


def local(base: Path, **access: Any) -> Reader:
    return Reader(Access(**access), LIMITS, str(base))


def web(port: int, *hosts: str, networks: tuple[str, ...] = HERE, **access: Any) -> Reader:
    hosts = hosts or (f"127.0.0.1:{port}", f"localhost:{port}")
    return Reader(Access(hosts=hosts, private_networks=networks, **access), LIMITS, "/nowhere")


def test_paths_are_read_below_the_source_and_below_the_roots(base: Path) -> None:
    reader = local(base)
    assert reader.read("a b.png") == reader.read(f"{base}/a b.png") == reader.read("./a b.png") == b"picture"
    assert reader.read(f"file://{base}/a%20b.png") == reader.read(f"file://localhost{base}/a%20b.png") == b"picture"
    assert reader.read("deep/c.png") == b"deeper"
    elsewhere = f"{base.parent}/source-2/secret"
    assert refused(reader, elsewhere).reason is Reason.OUTSIDE_ROOTS, "a name that begins alike is not below"
    assert local(base, roots=(f"{base.parent}/source-2",)).read(elsewhere) == b"secret"
    assert pickle.loads(pickle.dumps(reader)).read("a b.png") == b"picture"


def test_a_relative_path_is_looked_for_beside_the_table_and_then_below_each_root_in_order(base: Path) -> None:
    pictures = base.parent / "pictures"
    for place, content in (("one/coco/1.jpg", b"first"), ("two/coco/1.jpg", b"second"), ("two/coco/2.jpg", b"only")):
        (pictures / place).parent.mkdir(parents=True, exist_ok=True)
        (pictures / place).write_bytes(content)
    fsspec.filesystem("memory").pipe_file("/gallery/coco/3.jpg", b"far")
    reader = local(base, roots=(f"{pictures}/one", f"file://{pictures}/two", "memory://gallery"))
    assert [reader.read(f"coco/{name}.jpg") for name in (1, 2, 3)] == [b"first", b"only", b"far"]
    assert reader.read("coco\\2.jpg") == reader.read("file:coco/2.jpg") == b"only", "as Windows writes it"
    assert reader.read("a b.png") == b"picture"
    assert Reader(Access(roots=(str(pictures / "two"),)), LIMITS, "memory://gallery").read("coco/2.jpg") == b"only"
    (pictures / "one" / "coco" / "2.jpg").symlink_to(base.parent / "source-2" / "secret")
    assert refused(reader, "coco/2.jpg").reason is Reason.OUTSIDE_ROOTS, "a refusal is none to be mended elsewhere"


def test_a_file_that_is_nowhere_is_refused_with_the_places_that_were_searched_and_an_archive_there(base: Path) -> None:
    roots = (f"{base.parent}/source-2", "memory://gallery?key=secret")
    error = refused(local(base, roots=roots), "coco/1.jpg")
    assert error.reason is Reason.NOT_FOUND
    assert f"below none of {base}, {base.parent}/source-2, memory://gallery; data.access.roots" in error.detail
    (base.parent / "source-2" / "Images.ZIP").write_bytes(b"")
    assert f"unpack {base.parent}/source-2/Images.ZIP" in refused(local(base, roots=roots), "coco/1.jpg").detail


def test_links_are_followed_inside_the_root_and_refused_out_of_it(base: Path) -> None:
    (base / "inside").symlink_to("deep/c.png")
    (base / "out").symlink_to("../source-2/secret")
    (base / "folder").symlink_to("../source-2")
    (base / "round").symlink_to("round")
    (base / "proc").symlink_to("/proc/self/environ")
    reader = local(base)
    assert reader.read("inside") == b"deeper"
    for name in ("out", "folder/secret", "proc"):
        assert refused(reader, name).reason is Reason.OUTSIDE_ROOTS
    assert refused(reader, "round").reason is Reason.BAD_ADDRESS
    (base.parent / "alias").symlink_to(base)
    assert local(base.parent / "alias").read("deep/c.png") == b"deeper", "a root may itself be a link"


def test_a_link_that_changes_while_it_is_read_never_leads_out(base: Path) -> None:
    reader, stop = local(base), threading.Event()

    def swing() -> None:
        while not stop.is_set():
            for target in ("../source-2/secret", "deep/c.png"):
                (base / "next").symlink_to(target)
                os.replace(base / "next", base / "swings")

    (base / "swings").symlink_to("deep/c.png")
    thread = threading.Thread(target=swing)
    thread.start()
    seen: set[bytes | Reason] = set()
    deadline = time.monotonic() + 5
    while (time.monotonic() < deadline and len(seen) < 2) or len(seen) < 1:
        try:
            seen.add(reader.read("swings"))
        except RowError as error:
            seen.add(error.reason)
    stop.set()
    thread.join()
    assert seen <= {b"deeper", Reason.OUTSIDE_ROOTS}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("../source-2/secret", Reason.OUTSIDE_ROOTS),
        ("deep/../a b.png", Reason.OUTSIDE_ROOTS),
        ("/etc/passwd", Reason.OUTSIDE_ROOTS),
        ("file:///etc/passwd", Reason.OUTSIDE_ROOTS),
        ("file:///..%2f..%2fetc/passwd", Reason.OUTSIDE_ROOTS),
        ("file:%2e%2e/source-2/secret", Reason.OUTSIDE_ROOTS),
        ("%2e%2e/source-2/secret", Reason.NOT_FOUND),  # a path is no address: these are six letters
        ("missing.png", Reason.NOT_FOUND),
        ("a b.png/more", Reason.NOT_FOUND),
        ("", Reason.BAD_ADDRESS),
        (".", Reason.BAD_ADDRESS),
        ("deep", Reason.BAD_ADDRESS),
        ("a\0b", Reason.BAD_ADDRESS),
        ("file:///a%00b", Reason.BAD_ADDRESS),
        ("file:///a%ffb", Reason.BAD_ADDRESS),
        ("a\ud800b", Reason.BAD_ADDRESS),
        ("x" * 300, Reason.BAD_ADDRESS),
        ("x/" * 3_000, Reason.BAD_ADDRESS),
        ("C:\\images\\1.png", Reason.BAD_ADDRESS),
        ("C:/images/1.png", Reason.BAD_ADDRESS),
        ("images\\1.png", Reason.NOT_FOUND),
        ("..\\source-2\\secret", Reason.OUTSIDE_ROOTS),
        ("\\images\\1.png", Reason.BAD_ADDRESS),
        ("file:images\\1.png", Reason.BAD_ADDRESS),
        ("\\\\server\\share\\1.png", Reason.BAD_ADDRESS),
        ("file://otherhost/etc/passwd", Reason.BAD_ADDRESS),
        ("file://[/a", Reason.BAD_ADDRESS),
        ("s3://bucket/key", Reason.OUTSIDE_ROOTS),
        ("gopher://127.0.0.1/x", Reason.OUTSIDE_ROOTS),
        ("ftp://127.0.0.1/x", Reason.OUTSIDE_ROOTS),
        ("javascript:alert(1)", Reason.NOT_FOUND),
        ("http://example.org/", Reason.HOST_NOT_ALLOWED),
        ("data:image/png;base64", Reason.BAD_ADDRESS),
        ("data:image/png;base64,???", Reason.BAD_ADDRESS),
        ("data:image/png;base64," + "A" * 200_000, Reason.TOO_MANY_BYTES),
        ("data:," + "A" * 500_000, Reason.TOO_MANY_BYTES),
    ],
)
def test_hostile_paths_and_addresses_are_refused(base: Path, address: str, reason: Reason) -> None:
    assert refused(local(base), address).reason is reason


def test_a_path_that_is_no_text_is_of_the_wrong_type(base: Path) -> None:
    for value in (None, 3, b"a b.png", ["a b.png"]):
        assert refused(local(base), cast(str, value)).reason is Reason.WRONG_TYPE


def test_only_files_are_read_and_only_up_to_their_bound(base: Path) -> None:
    os.mkfifo(base / "pipe")
    (base / "null").symlink_to("/dev/null")
    (base / "large").write_bytes(bytes(LIMITS.max_bytes + 1))
    (base / "exact").write_bytes(bytes(LIMITS.max_bytes))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(base / "socket"))
        reader = local(base)
        assert "a pipe" in refused(reader, "pipe").detail, "and nobody waits for a writer"
        assert "a socket" in refused(reader, "socket").detail
        assert refused(reader, "null").reason is Reason.OUTSIDE_ROOTS
        assert "a device" in refused(local(base, roots=("/dev",)), "/dev/null").detail
        assert refused(reader, "large").reason is Reason.TOO_MANY_BYTES
        assert len(reader.read("exact")) == LIMITS.max_bytes
    (base / "locked").write_bytes(b"x")
    (base / "locked").chmod(0)
    if os.geteuid() != 0:
        assert refused(reader, "locked").reason is Reason.FETCH_FAILED


def test_data_addresses_are_decoded() -> None:
    reader = Reader(Access(), LIMITS, "/nowhere")
    assert reader.read("data:image/png;base64," + base64.b64encode(BODY).decode()) == BODY
    assert reader.read("data:,a%20b") == b"a b"


def test_addresses_of_allowed_hosts_are_fetched(port: int) -> None:
    reader = web(port)
    for path in ("good", "chunked", "to?/good", "to?good", f"to?http://localhost:{port}/good"):
        assert reader.read(f"http://127.0.0.1:{port}/{path}") == BODY
    assert reader.read(f"http://127.0.0.1:{port}/long") == BODY * 9
    assert reader.read(f"HTTP://LOCALHOST:{port}/host") == f"localhost:{port}".encode()
    assert web(port, f"*.0.0.1:{port}").read(f"http://127.0.0.1:{port}/good") == BODY


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:{port}/missing", Reason.FETCH_FAILED),
        ("http://127.0.0.1:{port}/loop", Reason.FETCH_FAILED),
        ("http://127.0.0.1:{port}/empty-redirect", Reason.FETCH_FAILED),
        ("http://127.0.0.1:{port}/cut", Reason.FETCH_FAILED),
        ("http://127.0.0.1:{port}/gzip", Reason.FETCH_FAILED),
        ("http://127.0.0.1:{port}/garbage", Reason.FETCH_FAILED),
        ("http://127.0.0.1:{port}/promises-much", Reason.TOO_MANY_BYTES),
        ("http://127.0.0.1:{port}/no-length", Reason.TOO_MANY_BYTES),
        ("http://127.0.0.1:{port}/endless", Reason.TOO_MANY_BYTES),
        ("http://127.0.0.1:{port}/to?file:///etc/passwd", Reason.BAD_ADDRESS),
        ("http://127.0.0.1:{port}/to?data:,x", Reason.BAD_ADDRESS),
        ("http://127.0.0.1:{port}/to?http://[/", Reason.BAD_ADDRESS),
        ("http://127.0.0.1:{port}/to?http://169.254.169.254/latest/meta-data", Reason.HOST_NOT_ALLOWED),
        ("http://127.0.0.1:{port}/to?http://metadata/", Reason.PRIVATE_ADDRESS),
        ("http://127.0.0.1:{port}/to?//127.0.0.2:{port}/good", Reason.HOST_NOT_ALLOWED),
        ("http://user:secret@127.0.0.1:{port}/good", Reason.BAD_ADDRESS),
        ("http://127.0.0.1:{port}@example.org/", Reason.BAD_ADDRESS),
        ("http://127.0.0.1:99999/", Reason.BAD_ADDRESS),
        ("http://[::1/", Reason.BAD_ADDRESS),
        ("http:///good", Reason.BAD_ADDRESS),
        ("http://" + "a" * 64 + ".org/", Reason.BAD_ADDRESS),
        ("http://" + "a." * 1_000, Reason.HOST_NOT_ALLOWED),
        ("http://127.0.0.1/good", Reason.HOST_NOT_ALLOWED),  # not at this port
        ("http://2130706433:{port}/good", Reason.HOST_NOT_ALLOWED),
        ("http://evil.example/", Reason.HOST_NOT_ALLOWED),
        ("http://127.0.0.1:{port}/good\r\nX: y", Reason.BAD_ADDRESS),
    ],
)
def test_hostile_addresses_and_answers_are_refused(
    port: int, address: str, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    names = {"metadata": "169.254.169.254"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: resolve(names.get(host, host), *rest, **named)
    )
    error = refused(
        web(port, f"127.0.0.1:{port}", f"localhost:{port}", "metadata"), address.replace("{port}", str(port))
    )
    assert error.reason is reason, error
    assert "secret" not in error.detail


def test_too_many_redirects_are_counted(port: int) -> None:
    address = f"http://127.0.0.1:{port}/to?/good"
    assert web(port, max_redirects=1).read(address) == BODY
    assert "max_redirects=0" in refused(web(port, max_redirects=0), address).detail


@pytest.mark.parametrize("path", ["drip", "drip-header"])
def test_a_slow_drip_does_not_renew_the_deadline(port: int, path: str) -> None:
    started = time.monotonic()
    error = refused(web(port, timeout_s=0.3), f"http://127.0.0.1:{port}/{path}")
    assert "timeout_s=0.3" in error.detail
    assert time.monotonic() - started < 1.5
    while fetching.THREAD in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() - started < 5, "and nobody goes on reading"
        time.sleep(0.02)


def test_private_addresses_are_refused_unless_their_network_is_named(port: int) -> None:
    address = f"http://localhost:{port}/good"
    assert web(port, networks=(*HERE, "::1/128")).read(address) == BODY
    error = refused(web(port, networks=()), address)
    assert error.reason is Reason.PRIVATE_ADDRESS
    assert refused(web(port, networks=("10.0.0.0/8",)), address).reason is Reason.PRIVATE_ADDRESS


@pytest.mark.parametrize(
    "address",
    NOT_PUBLIC.split(),
)
def test_no_address_that_is_not_public_is_let_through(address: str) -> None:
    with pytest.raises(RowError) as caught:
        fetching.check_public(address, "host", Access())
    assert caught.value.reason is Reason.PRIVATE_ADDRESS


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f::1", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"])
def test_public_addresses_are_let_through(address: str) -> None:
    fetching.check_public(address, "host", Access())


def test_one_private_address_among_public_ones_is_enough(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("127.0.0.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    assert refused(web(port, f"two:{port}"), f"http://two:{port}/good").reason is Reason.PRIVATE_ADDRESS


def test_a_name_that_resolves_differently_a_moment_later_gains_nothing(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["127.0.0.1", "169.254.169.254"])
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def rebinding(host: str, *rest: Any, **named: Any) -> Any:
        asked.append(host)
        return resolve(next(answers) if host == "rebinds" else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert web(port, f"rebinds:{port}").read(f"http://rebinds:{port}/good") == BODY
    assert asked.count("rebinds") == 1, "the connection goes to the address that was checked"


def test_proxies_of_the_environment_are_ignored(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert web(port).read(f"http://127.0.0.1:{port}/good") == BODY


def test_certificates_are_checked_against_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = tmp_path / "both.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {tmp_path}/key -out "
        f"{tmp_path}/cert -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost",
        shell=True,
        check=True,
        capture_output=True,
    )
    both.write_text((tmp_path / "key").read_text() + (tmp_path / "cert").read_text())
    with serve(both) as port:
        networks = (*HERE, "::1/128")
        unknown = refused(web(port, networks=networks), f"https://localhost:{port}/good")
        monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/cert")
        assert web(port, networks=networks).read(f"https://localhost:{port}/good") == BODY
        wrong_name = refused(web(port, networks=networks), f"https://127.0.0.1:{port}/good")
        downgrade = refused(web(port, networks=networks), f"https://localhost:{port}/to?http://localhost:{port}/good")
    for error in (unknown, wrong_name):
        assert error.reason is Reason.FETCH_FAILED and "certificate" in error.detail
    assert downgrade.reason is Reason.BAD_ADDRESS


def test_objects_are_read_below_roots_that_are_addresses() -> None:
    files = fsspec.filesystem("memory")
    files.pipe({"/shelf/a/1.png": b"one", "/shelf/a/large": bytes(LIMITS.max_bytes + 1), "/shelf-2/secret": b"secret"})
    reader = Reader(Access(roots=("memory://shelf",)), LIMITS, "/nowhere")
    assert reader.read("memory://shelf/a/1.png") == b"one"
    assert Reader(Access(), LIMITS, "memory://shelf/a/").read("1.png") == b"one", "the source's own directory"
    for address, reason in [
        ("memory://shelf/a/2.png", Reason.NOT_FOUND),
        ("memory://shelf/a", Reason.BAD_ADDRESS),
        ("memory://shelf/a/large", Reason.TOO_MANY_BYTES),
        ("memory://shelf-2/secret", Reason.OUTSIDE_ROOTS),
        ("memory://shelf/../shelf-2/secret", Reason.OUTSIDE_ROOTS),
        ("memory://key:secret@shelf/a/1.png", Reason.BAD_ADDRESS),
        ("memory://shelf/a/1.png?endpoint=evil", Reason.BAD_ADDRESS),
        ("s3://shelf/a/1.png", Reason.OUTSIDE_ROOTS),
    ]:
        assert refused(reader, address).reason is reason, address


def test_a_bucket_is_read_below_its_root_with_the_options_of_the_root(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.setenv(name, "true")
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    reader = Reader(Access(roots=(f"s3://bucket/shelf?{options}",)), LIMITS, "/nowhere")
    assert reader.read("s3://bucket/shelf/1.png") == BODY
    assert refused(reader, "s3://bucket/shelf/2.png").reason is Reason.NOT_FOUND
    assert refused(reader, "s3://bucket/shelf/1.png?endpoint_override=evil").reason is Reason.BAD_ADDRESS
    outside = refused(reader, "s3://bucket/other/1.png")
    assert outside.reason is Reason.OUTSIDE_ROOTS and "endpoint" not in outside.detail


@pytest.mark.parametrize(
    "access",
    [
        {"hosts": ("http://example.org",)},
        {"hosts": ("*",)},
        {"hosts": ("a.*.org",)},
        {"private_networks": ("10.0.0.1/8",)},
        {"roots": ("https://example.org/",)},
        {"roots": ("zip::s3://bucket/x.zip",)},
    ],
)
def test_a_wrong_entry_names_itself_and_the_cure(access: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Access(**access)
    (name, (value,)) = next(iter(access.items()))
    assert (
        name in str(caught.value)
        and value in str(caught.value)
        and ("write" in str(caught.value) or "name" in str(caught.value))
    )


def test_a_link_that_leads_out_is_refused_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "5.png").write_bytes(b"x")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "link").symlink_to(tmp_path / "big")
    with pytest.raises(RowError) as caught:
        Reader(Access(), MediaLimits(), base=str(tmp_path / "table")).read("link/5.png")
    assert caught.value.reason is Reason.OUTSIDE_ROOTS
    assert f"leads to '{tmp_path}/big/5.png', which is none of" in caught.value.detail


def test_a_path_that_the_locale_cannot_spell_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ascii_only(path: str, flags: int) -> int:
        path.encode("ascii")
        raise AssertionError(flags)

    monkeypatch.setattr(os, "open", ascii_only)
    with pytest.raises(RowError, match=r"LC_ALL=C\.UTF-8") as caught:
        Reader(Access(), MediaLimits(), base=str(tmp_path)).read("büro.png")
    assert caught.value.reason is Reason.BAD_ADDRESS
