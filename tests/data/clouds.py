"""Object stores on this machine: servers that speak the protocols of S3 and of Google Cloud Storage, in own processes.

In threads of a test they would hang: pyarrow holds Python's lock while it asks for the size of a file.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.data.filesystems import filesystem

BUCKET = "shelf"
_START_S = 60.0
_S3 = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
_GCS = (
    "import logging; logging.basicConfig(level=logging.INFO); from gcp_storage_emulator.server import create_server; "
    f"create_server('127.0.0.1', {{port}}, in_memory=True, default_bucket={BUCKET!r}).run()"
)


@dataclass(frozen=True)
class Store:
    """A bucket: its address, with the user that the client needs, and what its server logs."""

    root: str
    log: Path

    @property
    def address(self) -> str:
        """The bucket as rows name it."""
        return f"{self.root.partition('://')[0]}://{BUCKET}"

    def num_reads(self) -> int:
        """How many times a file's content was asked for."""
        return self.log.read_text().count('"GET /')


def upload(directory: Path, address: str) -> None:
    """Copies the files below a directory to an address."""
    system, inner = filesystem(address)
    for file in directory.rglob("*"):
        if file.is_file():
            with system.open_output_stream(f"{inner}/{file.relative_to(directory).as_posix()}") as out:
                out.write(file.read_bytes())


@contextmanager
def s3(directory: Path) -> Generator[Store]:
    """A store of S3's protocol; the environment says where it is, also to a Ray that is started inside."""
    with _served(_S3, directory / "s3.log") as port, pytest.MonkeyPatch.context() as patch:
        environment = {"ACCESS_KEY_ID": "name", "SECRET_ACCESS_KEY": "secret", "REGION": "eu-west-1"}
        for name, value in {**environment, "ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(f"AWS_{name}", value)
        filesystem(f"s3://{BUCKET}", "allow_bucket_creation=true")[0].create_dir(BUCKET)
        yield Store(f"s3://{BUCKET}", directory / "s3.log")


@contextmanager
def gcs(directory: Path) -> Generator[Store]:
    """A store of Google Cloud Storage's protocol."""
    with _served(_GCS, directory / "gcs.log") as port, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
        yield Store(f"gs://anonymous@{BUCKET}", directory / "gcs.log")


@contextmanager
def _served(code: str, log: Path) -> Generator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("w") as out:
        server = subprocess.Popen([sys.executable, "-c", code.format(port=port)], stdout=out, stderr=out)
    try:
        end = time.monotonic() + _START_S
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no server of an object store, see its output:\n{log.read_text()}")
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
