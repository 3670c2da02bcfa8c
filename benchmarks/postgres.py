"""A PostgreSQL server of one's own: started in a new directory on a socket there, and stopped at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil


def binaries() -> Path | None:
    """Where initdb lies; None where PostgreSQL is not installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    return max(found, default=Path(on_path).parent if on_path else None, key=str)


@contextmanager
def server(directory: Path) -> Generator[str, None, None]:
    """The URL of a database in a server that lives as long as this."""
    tools = binaries()
    assert tools is not None
    user = "postgres" if os.getuid() == 0 else None  # It refuses to run as root.
    if user is not None:
        shutil.chown(directory, user)
        for parent in directory.parents[:-1]:
            if parent.owner() == "root" and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    data = directory / "data"
    initdb = [tools / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]
    subprocess.run(initdb, check=True, user=user, capture_output=True)
    settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={directory}", "-c", "max_connections=120"]
    process = subprocess.Popen(
        [tools / "postgres", "-D", data, *settings], user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        ready = [tools / "pg_isready", "-q", "-h", directory, "-U", "postgres", "-t", "30"]
        while subprocess.run(ready, check=False).returncode:
            assert process.poll() is None, "PostgreSQL did not start"
        yield f"postgresql://postgres@/postgres?host={directory}"
    finally:
        psutil.Process(process.pid).terminate()
        process.wait(60)
