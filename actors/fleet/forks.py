"""Workers that start with all their imports done: as copies of a process that has them, on Linux without a GPU.

raylet -> launch(), this file as Ray's `py_executable` --arguments, environment, files--> serve() --fork--> the worker

Imports are most of what a start costs, 8 CPU-seconds and 800 MB a worker; copies have them at once, and share the
memory (`benchmarks.starting`). There is one server a node, a job and an environment: Ray reads the job's name when it
is imported, and a copy for another job would never be given work. It starts with the first worker, and ends with its
raylet. Clusters that come and go on one machine may share a server without Ray, below which each job has its own
(`SHARED`). What it cannot do (a GPU, whose driver survives no fork; another system; a server that does not come) is
done as if it were not there: Ray's own way.

The launcher runs without site-packages: above all functions that it calls there is only the standard library.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import psutil

    from pipeline.config import Device

PRELOADED = (
    "actors.roles.critic",
    "actors.roles.grader",
    "actors.roles.policy",
    "actors.roles.reward",
    "actors.roles.rollout",
    "actors.training.training",
)
"""By name: what lies above this room."""
PATIENCE_S = 50.0
"""How long a worker waits for its server and its answer. Ray waits 60 seconds for a worker."""
SHARED = "POLYPHONY_FORKS"
"""In the environment: where the server listens and whose end is its own, as `path@pid`, in place of the raylet's."""
OF_A_PROCESS = ("RAY_", "PYTEST_", "PYTHONBREAKPOINT", "_", "SHLVL", "OLDPWD", "PWD")
"""Begin names in the environment that say nothing of what is imported."""
IDLE_S = 120.0
"""A server without copies of which nobody has asked anything for so long ends: its job has, most likely."""
REQUEST_BYTES = 2**20

OF_ARROW = "jemalloc_bg_thd"
"""The thread of Arrow's allocator, which starts its own again in a copy (`pthread_atfork`)."""

Request = tuple[bytes, list[int]]
"""A worker's command, environment and directory; the connection to its launcher, and its standard files."""
SERVE = "--serve-forks"
OF_NVIDIA = "/dev/nvidiactl"
DONE = b"."


class Closable(Protocol):
    """An open file or socket."""

    def close(self) -> None:
        """Closes it."""
        ...


def started_as(device: Device) -> dict[str, str]:
    """What a runtime environment has so that workers start as copies where that can be."""
    if device != "cpu" or sys.platform != "linux":
        return {}
    # Ray gives it to a shell.
    return {"py_executable": shlex.join([sys.executable, "-S", "-E", str(Path(__file__).absolute())])}


def copied(device: Device) -> dict[str, Any]:
    """Options of an actor that imports what roles do."""
    environment = started_as(device)
    return {"runtime_env": environment} if environment else {}


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All processes that `process` has started, and the servers of raylets among them, whose launchers are gone."""
    import psutil  # the launcher has none

    found = process.children(recursive=True)
    raylets = {str(each.pid) for each in found}
    for each in psutil.process_iter(["cmdline"]):
        command = " ".join(each.info["cmdline"] or []).split()  # What a process calls itself is one word.
        if SERVE in command and command[-1] in raylets:
            found += [each, *each.children(recursive=True)]
    return found


def launch(command: Sequence[str]) -> None:
    """Becomes the worker that `command` starts, or has it start as a copy. Returns in the second case alone."""
    try:
        if os.path.exists(OF_NVIDIA):
            raise OSError(f"there is {OF_NVIDIA}")
        request = {"command": [*command], "environment": dict(os.environ), "directory": os.getcwd()}
        with _connected(*_address(command, os.environ)) as server:
            socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
            if server.recv(1) != DONE:
                raise OSError("the fork server has ended")
    except (OSError, KeyError, StopIteration, ValueError) as error:
        print(f"starts without a fork server: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *command])


def _address(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, int]:
    """Where the server for such workers listens, beside the raylet's own socket, and with which process it ends."""
    raylet = next(each.partition("=")[2] for each in command if each.startswith("--raylet-name="))
    place, _, owner = environment.get(SHARED, f"{raylet}@{environment['RAY_RAYLET_PID']}").rpartition("@")
    kept = sorted(item for item in environment.items() if not item[0].startswith(OF_A_PROCESS))
    if SHARED not in environment:
        kept.append(("", environment["RAY_JOB_ID"]))
    return f"{place}.{hashlib.sha256(repr((sys.executable, kept)).encode()).hexdigest()[:12]}", int(owner)


def _connected(address: str, owner: int) -> socket.socket:
    """A connection to the server at `address`, which is started where there is none."""
    until, started = time.monotonic() + PATIENCE_S, None
    while time.monotonic() < until:
        server = _socket()
        try:
            server.settimeout(until - time.monotonic())
            server.connect(address)
            return server
        except (FileNotFoundError, ConnectionRefusedError):
            server.close()
        started = started or _start_server(address, owner)
        if started is not None and started.poll() is not None:
            raise OSError(f"the fork server ended with status {started.returncode}: {address}.log")
        time.sleep(0.05)
    raise TimeoutError(f"no fork server after {PATIENCE_S:.0f} s")


def _start_server(address: str, owner: int) -> subprocess.Popen[bytes] | None:
    """Starts a server; None where there is one that holds the lock: it will listen when its imports are done."""
    with open(f"{address}.lock", "a", encoding="utf-8") as lock, open(f"{address}.log", "ab") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        held, none = lock.fileno(), subprocess.DEVNULL
        command = [sys.executable, "-P", __file__, SERVE, address, str(held), str(owner)]
        return subprocess.Popen(command, stdin=none, stdout=log, stderr=log, pass_fds=[held], start_new_session=True)


def serve(address: str, lock: int, owner: int) -> None:
    """Imports, listens at `address`, and copies itself for everyone who asks, until the process `owner` ends.

    lock: the open file that says, while this process lives, that there is a server.
    """
    os.set_inheritable(lock, False)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _prepare(_import_all_but_ray)
    if os.path.exists(address):
        os.unlink(address)
    with _socket() as listening, os.fdopen(lock) as held:
        listening.bind(address)
        listening.listen(128)
        if SHARED in os.environ:
            _serve_jobs(_accepted(listening, owner, None), (listening, held))
        else:
            _serve_job(_accepted(listening, owner, IDLE_S), (listening, held), owner)


def _serve_jobs(requests: Iterator[Request], held: Sequence[Closable]) -> None:
    """Copies this process, without Ray, for every job, and passes its requests on."""
    jobs: dict[tuple[str, str], socket.socket] = {}
    for content, files in requests:
        try:
            environment = json.loads(content)["environment"]
            job = environment["RAY_JOB_ID"], environment["RAY_RAYLET_PID"]
        except (ValueError, KeyError) as error:
            print(f"no request: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        else:
            if not (job in jobs and _tell(jobs[job], content, files)):
                jobs[job], given = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                jobs[job].settimeout(PATIENCE_S)
                if os.fork() == 0:
                    _close(*held, *jobs.values(), *files)
                    os.environ.clear()
                    os.environ.update(environment)
                    raylet = int(environment["RAY_RAYLET_PID"])
                    return _serve_job(_passed_on(given, raylet), (given,), raylet)
                given.close()
                _tell(jobs[job], content, files)
        _close(*files)


def _serve_job(requests: Iterator[Request], held: Sequence[Closable], raylet: int) -> None:
    """Imports Ray as well, and copies this process for every worker of a job."""
    _prepare(_import_ray)
    importlib.import_module("ray._raylet").setproctitle(f"{SERVE} {raylet}")
    for content, files in requests:
        if os.fork() == 0:
            asking, *standard = files
            os.write(asking, DONE)
            _close(*held, asking)
            _become(standard, json.loads(content))
        _close(*files)


def _accepted(listening: socket.socket, owner: int, idle_s: float | None) -> Iterator[Request]:
    """What launchers ask for, with the connection to each before its standard files."""
    for _ in _asked(listening, owner, idle_s):
        connection, _ = listening.accept()
        connection.settimeout(PATIENCE_S / 5)  # A launcher that is stopped stops no others.
        try:
            content, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 3)
        except OSError as error:
            print(f"a launcher has gone: {error}", file=sys.stderr, flush=True)
            connection.close()
        else:
            yield content, [connection.detach(), *files]


def _passed_on(given: socket.socket, raylet: int) -> Iterator[Request]:
    """What the server that is shared passes on, until that one ends."""
    for _ in _asked(given, raylet, IDLE_S):
        content, files, _, _ = socket.recv_fds(given, REQUEST_BYTES, 4)
        if not content:
            return
        yield content, files


def _tell(server: socket.socket, content: bytes, files: Sequence[int]) -> bool:
    """Whether the server of a job, which may have ended, has been sent a request."""
    try:
        socket.send_fds(server, [content], files)
        return True
    except OSError:
        return False


def _close(*files: Closable | int) -> None:
    for file in files:
        if isinstance(file, int):
            os.close(file)
        else:
            file.close()


def _socket() -> socket.socket:
    """One on which a request is one message."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _asked(asked: socket.socket, owner: int, idle_s: float | None) -> Iterator[None]:
    """Once for each that asks, until the process `owner` ends, or there is no copy and nobody asks for `idle_s`."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # No zombies.
    end = os.pidfd_open(owner)
    while True:
        ready, _, _ = select.select([asked, end], [], [], idle_s)
        if end in ready or not (ready or _has_children()):
            return
        if ready:
            yield


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _prepare(imports: Callable[[], None]) -> None:
    """Imports what copies have from the start.

    Raises:
        RuntimeError: a thread runs now.
    """
    gc.disable()  # A sixth of an import, and it finds nothing.
    imports()
    tasks = sorted(map(int, os.listdir("/proc/self/task")))[1:]
    names = [Path(f"/proc/self/task/{each}/comm").read_text(encoding="utf-8").strip() for each in tasks]
    if lost := [name for name in names if name != OF_ARROW]:
        raise RuntimeError(f"threads {lost} run after the imports, which would not be in a copy")
    gc.enable()
    gc.freeze()


def _import_all_but_ray() -> None:
    from actors.engine.engine import import_deepspeed
    from pipeline.config import Device
    from pipeline.models.imports import TINY, import_modeling

    import_deepspeed(Device.CPU)
    import_modeling()
    for name in TINY:
        importlib.import_module(name)
    if "ray" in sys.modules:
        raise RuntimeError("what a model stands on imports Ray, which reads a job's name when it is imported")


def _import_ray() -> None:
    """Ray draws no id meanwhile.

    It seeds its generator of ids with the first one, such as that of a class of actors: all copies would draw the same
    ids, of placement groups among others.
    """
    actors: Any = importlib.import_module("ray.actor")
    drawing = actors.ActorClassID
    actors.ActorClassID = SimpleNamespace(from_random=lambda: drawing(os.urandom(drawing.size())))
    for name in PRELOADED:
        importlib.import_module(name)
    actors.ActorClassID = drawing


def _become(files: Sequence[int], request: dict[str, Any]) -> None:
    """Runs a worker's command in this process, and ends it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends a worker with its process group.
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.modules["numpy"].random.seed()  # Python's own generator is seeded anew by itself.
    program, *_ = sys.argv = request["command"]
    sys.path.insert(0, os.path.dirname(program))
    runpy.run_path(program, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    if sys.argv[1] == SERVE:
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        launch(sys.argv[1:])
