"""Workers that start as copies: of what, with what of their own, and what happens where there is none to copy."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.fleet import forks
from pipeline.config import Device

WORKER = """
import json, os, random, sys
import numpy as np
import ray
about = {
    "pid": os.getpid(),
    "parent": os.getppid(),
    "group": os.getpgid(0),
    "arguments": sys.argv[1:],
    "directory": os.getcwd(),
    "mine": os.environ.get("RAY_MINE"),
    "path": sys.path[0],
    "name": __name__,
    "chance": [random.random(), np.random.rand(), ray.ObjectID.from_random().hex()],
    "imported": "torch" in sys.modules and "transformers.modeling_utils" in sys.modules,
}
print(json.dumps(about), flush=True)
input()  # Until it is told to end, or who started it is gone.
"""


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    """A process with which a server ends."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def started(
    directory: Path, raylet: subprocess.Popen[bytes], *, mine: str, **environment: str
) -> subprocess.Popen[str]:
    """Starts a worker as Ray does."""
    program = directory / "worker.py"
    program.write_text(WORKER, encoding="utf-8")
    launcher = shlex.split(forks.copied(Device.CPU)["runtime_env"]["py_executable"])
    return subprocess.Popen(
        [*launcher, str(program), f"--raylet-name={directory}/raylet", mine],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=directory,
        env={**alone(raylet), "RAY_MINE": mine, **environment},
    )


def alone(raylet: subprocess.Popen[bytes]) -> dict[str, str]:
    """The environment of a worker whose cluster shares its server with no other."""
    ours = {name: value for name, value in os.environ.items() if name != forks.SHARED}
    return {**ours, "RAY_RAYLET_PID": str(raylet.pid), "RAY_JOB_ID": "01000000"}


def told(launcher: subprocess.Popen[str]) -> dict[str, Any]:
    """What a worker says of itself."""
    assert launcher.stdout is not None
    return json.loads(launcher.stdout.readline())


def wait_until_gone(*pids: int) -> None:
    until = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_workers_are_copies_of_one_server_with_all_that_is_their_own_and_it_ends_with_its_raylet(
    tmp_path: Path, raylet: subprocess.Popen[bytes]
) -> None:
    launchers = [started(tmp_path, raylet, mine=mine) for mine in ("one", "two")]
    one, two = map(told, launchers)
    for worker, mine in ((one, "one"), (two, "two")):
        assert worker["imported"] and worker["name"] == "__main__"
        assert worker["arguments"] == [f"--raylet-name={tmp_path}/raylet", mine]
        assert (worker["mine"], worker["directory"], worker["path"]) == (mine, str(tmp_path), str(tmp_path))
        assert worker["group"] == worker["pid"]
    assert one["parent"] == two["parent"] and one["pid"] != two["pid"]
    assert all(a != b for a, b in zip(one["chance"], two["chance"], strict=True))
    assert [launcher.wait(20) for launcher in launchers] == [0, 0]
    # What dies leaves nothing, and who comes later finds the same server.
    psutil.Process(one["pid"]).kill()
    wait_until_gone(one["pid"])
    three = told(started(tmp_path, raylet, mine="three"))
    assert three["parent"] == two["parent"]
    # One that goes before it has told all stops nobody.
    (address,) = (each for each in tmp_path.glob("raylet.*") if each.suffixes[-1] not in (".lock", ".log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as half:
        half.connect(str(address))
        half.send(b'{"environment": ')
    assert told(started(tmp_path, raylet, mine="more"))["parent"] == two["parent"]


def without_imports(directory: Path) -> str:
    """Where a server finds modules of ours in which there is nothing, so that it is there at once."""
    contents: dict[str, str] = {
        "actors.engine.engine": "def import_deepspeed(device): pass",
        "pipeline.config": "import numpy\nclass Device: CPU = 'cpu'",
        "pipeline.models.imports": "TINY = ()\ndef import_modeling(): pass",
    }
    for name in (*forks.PRELOADED, *contents):
        module = directory.joinpath(*name.split(".")).with_suffix(".py")
        module.parent.mkdir(parents=True, exist_ok=True)
        for package in module.relative_to(directory).parents[:-1]:
            (directory / package / "__init__.py").touch()
        module.write_text(contents.get(name, ""), encoding="utf-8")
    return str(directory)


def test_each_job_has_a_server_and_copies_outlive_it(tmp_path: Path, raylet: subprocess.Popen[bytes]) -> None:
    path = without_imports(tmp_path / "empty")
    # Ray has read a job's name by then.
    launchers = [started(tmp_path, raylet, mine=mine, PYTHONPATH=path, RAY_JOB_ID=f"0{mine}000000") for mine in "12"]
    one, other = map(told, launchers)
    assert len({one["parent"], other["parent"], os.getpid()}) == 3
    # Where the server dies its copies live on, and the next worker has another one made.
    psutil.Process(one["parent"]).kill()
    wait_until_gone(one["parent"])
    launchers.append(started(tmp_path, raylet, mine="1", PYTHONPATH=path, RAY_JOB_ID="01000000"))
    two = told(launchers[-1])
    assert two["parent"] not in (os.getpid(), one["parent"], other["parent"])
    assert psutil.pid_exists(one["pid"])
    raylet.kill()
    wait_until_gone(two["parent"], other["parent"])


def test_clusters_that_share_a_server_have_one_below_it_each(tmp_path: Path, raylet: subprocess.Popen[bytes]) -> None:
    shared = {forks.SHARED: f"{tmp_path}/shared@{os.getpid()}", "PYTHONPATH": without_imports(tmp_path / "empty")}
    with subprocess.Popen(["sleep", "60"]) as second:
        launchers = [started(tmp_path, each, mine="1", **shared) for each in (raylet, second)]
        one, other = map(told, launchers)
        servers = [psutil.Process(worker["parent"]) for worker in (one, other)]
        assert servers[0] != servers[1] and servers[0].ppid() == servers[1].ppid() != os.getpid()
        assert {*servers} <= {*forks.descendants(psutil.Process())}
        raylet.kill()
        wait_until_gone(one["parent"])
        # Another job of the second cluster finds the server that is shared.
        launchers.append(started(tmp_path, second, mine="1", **shared, RAY_JOB_ID="02000000"))
        third = told(launchers[-1])
        assert psutil.Process(third["parent"]).ppid() == servers[1].ppid() and third["parent"] != other["parent"]
        second.kill()
        wait_until_gone(other["parent"], third["parent"])


SERVER = """
import os, sys
from actors.fleet import forks
forks.IDLE_S = 0.2
forks._import_all_but_ray = forks._import_ray = lambda: __import__("numpy")
forks.serve(sys.argv[1], os.open(sys.argv[1] + ".lock", os.O_CREAT | os.O_RDWR), int(sys.argv[2]))
"""


def test_a_server_ends_when_its_copies_have_gone_and_nobody_asks(
    tmp_path: Path, raylet: subprocess.Popen[bytes]
) -> None:
    worker, address = tmp_path / "worker.py", tmp_path / "socket"
    worker.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(1000)", encoding="utf-8")
    environment = alone(raylet)
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(address), str(raylet.pid)], env=environment)
    until = time.monotonic() + 30
    reading, writing = os.pipe()
    while not address.exists():
        assert time.monotonic() < until and server.poll() is None
        time.sleep(0.02)
    request = {"command": [str(worker)], "environment": environment, "directory": str(tmp_path)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.connect(str(address))
        socket.send_fds(asking, [json.dumps(request).encode()], [0, writing, writing])
        assert asking.recv(1) == forks.DONE
    copy = int(os.read(reading, 100))
    with pytest.raises(subprocess.TimeoutExpired):
        server.wait(2)
    os.kill(copy, signal.SIGKILL)
    assert server.wait(10) == 0


def test_where_no_server_comes_a_worker_starts_by_itself(tmp_path: Path, raylet: subprocess.Popen[bytes]) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "deepspeed.py").write_text("raise RuntimeError('no DeepSpeed here')", encoding="utf-8")
    path = os.pathsep.join([str(broken), str(Path(forks.__file__).parents[2])])
    launcher = started(tmp_path, raylet, mine="one", PYTHONPATH=path)
    worker = told(launcher)
    assert (worker["pid"], worker["parent"], worker["imported"]) == (launcher.pid, os.getpid(), False)
    launcher.kill()
    (log,) = tmp_path.glob("raylet.*.log")
    assert "no DeepSpeed here" in log.read_text(encoding="utf-8")


def test_beside_a_gpu_nothing_is_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert forks.copied(Device.CUDA) == {}
    ran: list[list[str]] = []
    monkeypatch.setattr(forks, "OF_NVIDIA", str(tmp_path))
    monkeypatch.setattr(os, "execv", lambda _, command: ran.append(command))
    forks.launch(["worker.py", f"--raylet-name={tmp_path}/raylet"])
    assert ran == [[sys.executable, "worker.py", f"--raylet-name={tmp_path}/raylet"]]
    assert not list(tmp_path.glob("raylet.*"))


def test_a_path_may_have_a_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "__file__", "/my checkout/forks.py")
    command = forks.copied(Device.CPU)["runtime_env"]["py_executable"]
    assert shlex.split(command) == [sys.executable, "-S", "-E", "/my checkout/forks.py"]
