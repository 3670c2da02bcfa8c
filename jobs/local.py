"""Runs one job on a Ray head of its own and leaves nothing behind: a laptop's stand-in for a cluster.

free ports, own token -> `ray start --head` -> the job server answers -> submit -> follow the log -> stop that head

    python -m jobs.local -- python -m jobs.quickstart --config jobs/recipes/tiny_cpu.yaml

From the submission on this is what `ray job submit --working-dir .` does on a cluster: the same server, the same upload
of the working directory (what `.gitignore` names stays behind), the same supervisor around the job's driver. Relative
paths in the command and its recipe are relative to the directory in which this is run, as without a job.
Left out on purpose: reaching a cluster that runs already, which is `ray job submit --address`, and trying again.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from actors.fleet.forks import descendants

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STANDS = "POLYPHONY_DIRECTORY"
"""Environment variable: where the user gave the job's command. Relative paths in it and in its recipe begin there."""
OBJECT_STORE_BYTES = 512 * 2**20
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.1
FOLLOW_S = 0.5
_ENDING = (signal.SIGTERM, signal.SIGHUP)
EXCLUDED = [".git", "docs", "tests", "benchmarks"]


class HeadError(RuntimeError):
    """The private Ray head did not come up, or went; the message ends with what it printed."""


def run(entrypoint: Sequence[str]) -> int:
    """Runs `entrypoint` as a job on a private head and returns the exit status of its driver."""
    _prepare_environment()
    # Ray puts Unix sockets below this directory, and their paths are limited to about 100 characters.
    directory = Path(tempfile.mkdtemp(prefix="polyphony-", dir="/tmp"))
    keep = False
    try:
        with private_head(directory) as (head, address):
            client = _connect(head, address, directory)
            print(f"Ray dashboard: {address}  (token: {os.environ['RAY_AUTH_TOKEN']})", flush=True)
            try:
                status = _run_job(client, shlex.join(entrypoint), directory / "session_latest" / "logs")
            except (OSError, RuntimeError) as error:  # What the server's client raises, and names no cause.
                raise _head_error(head, address, directory) from error
            keep = status != 0
    except HeadError:
        keep = True
        raise
    finally:
        if keep:
            print(f"Ray's logs are kept in {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return status


@contextmanager
def private_head(directory: Path) -> Generator[tuple[subprocess.Popen[bytes], str], None, None]:
    """A Ray head of this machine alone. Yields its process and the address of its dashboard; stops it at the end."""
    # No port is Ray's usual one: another Ray may run here, and one that starts meanwhile would take it.
    port = _free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    # The jobs here do not ask for what workers print (`log_to_driver=False`), so no process needs to collect it.
    command += ["--dashboard-agent-listen-port=0", "--include-log-monitor=false"]
    command += [f"--ray-client-server-port={_free_port()}", f"--temp-dir={directory}", "--disable-usage-stats"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    with (directory / "head.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield head, f"http://127.0.0.1:{port}"
    finally:
        _stop(head)


def _prepare_environment() -> None:
    """Sets what the head, and through it every worker, inherits; the client reads the same token."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "DS_ACCELERATOR"):
        os.environ.pop(name, None)
    os.environ |= {
        # The job's `python` is the one that runs this.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        # Arguments and paths are UTF-8, whatever letters the locale has.
        "PYTHONUTF8": "1",
        # The job runs in Ray's copy of this directory, and that is deleted.
        STANDS: os.getcwd(),
        # Several workers share few cores: more threads each only get in the way.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # Whoever reaches a head can run code as its user, and only the dashboard stays on 127.0.0.1: a token it is.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Roles take turns on few cores, so many processes are meant: Ray warns of four times as many as this number,
        # which is that of the cores unless it is set here.
        "RAY_worker_maximum_startup_concurrency": "8",
        # Workers that Ray starts before anybody asks, without what ours are started with.
        "RAY_prestart_worker_first_driver": "0",
        # A process of Ray Train that waits for notices of preemption, which nobody gives here.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }


def _free_port() -> int:
    """A free port that no process gets by chance: above those of Ray's workers, below those that systems give out."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _connect(head: subprocess.Popen[bytes], address: str, directory: Path) -> JobSubmissionClient:
    # Imported here: it reads the environment that was just set, and takes its seconds while the head starts.
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):  # They list the upload and every file that it ignores.
        logging.getLogger(name).setLevel(logging.ERROR)
    deadline = time.monotonic() + START_TIMEOUT_S
    while head.poll() is None and time.monotonic() < deadline:
        try:
            return JobSubmissionClient(address)
        except ConnectionError:
            time.sleep(POLL_S)
    raise _head_error(head, address, directory)


def _head_error(head: subprocess.Popen[bytes], address: str, directory: Path) -> HeadError:
    with suppress(subprocess.TimeoutExpired):
        head.wait(STOP_TIMEOUT_S)  # Its server goes first, and then it says why.
    state = f"ended with status {head.returncode}" if head.returncode is not None else f"is silent at {address}"
    lines = (directory / "head.log").read_text(errors="replace", encoding="utf-8").splitlines()
    told = "\n".join(line for line in lines if "[state-dump]" not in line)  # Hundreds of lines about the last daemon.
    return HeadError(f"`ray start` {state}:\n{told[-8000:]}")


def _submit(client: JobSubmissionClient, entrypoint: str) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": ".", "excludes": EXCLUDED})
        except RuntimeError as error:
            # On a busy machine the process that starts jobs is up much later than the server that takes them.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise


def _run_job(client: JobSubmissionClient, entrypoint: str, logs: Path) -> int:
    job = _submit(client, entrypoint)
    # Ray names the driver's log after the job. Following the file costs nothing; the server's stream lags by seconds.
    log = logs / f"job-driver-{job}.log"
    position = 0
    while True:
        info = client.get_job_info(job)
        position = _print_from(log, position)
        if info.status.is_terminal():
            break
        time.sleep(FOLLOW_S)
    if info.driver_exit_code != 0:
        # Without an exit status the driver never ran, and the message says why; with one, the log has just said it.
        reason = info.message if info.driver_exit_code is None else f"exit status {info.driver_exit_code}"
        print(f"The job has {info.status}: {reason}", file=sys.stderr)
    return 1 if info.driver_exit_code is None else info.driver_exit_code


def _print_from(log: Path, position: int) -> int:
    """Prints what `log` holds after `position`, in bytes, and returns where it ends."""
    if not log.exists():
        return position
    with log.open("rb") as file:
        file.seek(position)
        sys.stdout.buffer.write(file.read())
        sys.stdout.buffer.flush()
        return file.tell()


def _stop(head: subprocess.Popen[bytes]) -> None:
    """Ends the head and all that descends from it: Ray's daemons, workers, the job and what the job started."""
    for number in (signal.SIGINT, *_ENDING):
        signal.signal(number, signal.SIG_IGN)
    # Listed while the head lives: workers have process groups of their own, and an orphan no longer shows its parent.
    # Nothing here outlives the head, so there is nothing to save and no reason to wait for goodbyes.
    processes = [psutil.Process(head.pid)] if head.poll() is None else []
    processes += [child for process in processes for child in descendants(process)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while any(_is_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _is_alive(process: psutil.Process) -> bool:
    # A zombie is as good as gone: whoever adopted it reads its status in its own time.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def print_in_any_locale() -> None:
    """Lets what the locale has no letters for be printed as escapes, where Python would stop."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: everything after `--` is the job's command."""
    print_in_any_locale()
    parser = argparse.ArgumentParser(prog="python -m jobs.local", description="Run one job on a Ray head of its own.")
    parser.add_argument("entrypoint", nargs="+", metavar="-- COMMAND", help="the job's command, run from the upload")
    arguments = sys.argv[1:] if arguments is None else arguments
    # What begins with no option is the command, `--` or not, and the options in it are its own.
    is_command = bool(arguments) and not arguments[0].startswith("-")
    parsed = parser.parse_args(["--", *arguments] if is_command else arguments)
    try:
        # Bytes for which the locale has no letters are the UTF-8 that was typed.
        entrypoint = [each.encode(errors="surrogateescape").decode() for each in parsed.entrypoint]
    except UnicodeDecodeError as error:
        parser.error(f"{error.object!r}: neither in the locale's encoding nor in UTF-8")
    for number in _ENDING:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return run(entrypoint)
    except HeadError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
