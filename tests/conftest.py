"""What every test stands on: a quiet environment, one thread, and small checkpoints and data built once a session."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before torch, transformers or Ray is imported: each reads these once, and Ray's workers inherit them.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What Ray looks at again and again, and nobody asks for here: a twentieth of all CPU time.
    "LOG_NAME_UPDATE_INTERVAL_S": "3600",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    # Processes that nobody asks for either.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Heads and clients of this test run share a token of their own, and no file in the home directory.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
}
if "POLYPHONY_FORKS" not in os.environ:
    # Workers of all clusters are copies of one process: its imports are done once. The processes of xdist inherit it.
    forks = tempfile.mkdtemp(prefix="forks-")
    atexit.register(shutil.rmtree, forks, ignore_errors=True)
    os.environ["POLYPHONY_FORKS"] = f"{forks}/server@{os.getpid()}"
for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "DS_ACCELERATOR"):
    os.environ.pop(name, None)

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

WORKERS = tuple(
    f"tests/jobs/test_{name}.py" for name in ("checkpoints", "distill", "mixes", "parity", "refit", "rewards", "rlhf")
)
"""Where tests share the workers of a run, which take gigabytes."""
RAY = (
    *(f"tests/actors/{room}/" for room in ("fleet", "loop", "roles", "training")),
    *(f"tests/data/test_{name}.py" for name in ("clouds", "duplicates", "stream")),
    "tests/data/ingest/test_pool.py",
    "tests/decisions/",
    "tests/jobs/",
    *(f"tests/test_{name}.py" for name in ("benchmarks_streaming", "command", "makefile", "tooling")),
)
"""Where else they start a Ray, or many processes."""
AFTERWARDS = tuple(f"tests/jobs/test_{name}.py" for name in ("kills", "autoscaling", "classify", "rewards_page"))
"""Long ones of these, that share nothing: they follow those of `WORKERS`, of which there are fewer."""


def place(nodeid: str) -> int:
    """Where in the order of all tests one comes, and with which others in the same process."""
    if nodeid.startswith(AFTERWARDS):
        return 2
    if nodeid.startswith(WORKERS):
        return 1
    return 0 if nodeid.startswith(RAY) else 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Asked by pytest."""
    items.sort(key=lambda item: place(item.nodeid))


class OneRayEach(LoadScopeScheduling):
    """Where pytest runs in two processes, one has the tests of `WORKERS` and one those of `RAY`; then both the others.

    Workers of a Ray mostly wait for each other: two Rays fit beside each other.
    """

    def _split_scope(self, nodeid: str) -> str:
        return ("ray", "workers", "workers", nodeid.partition("::")[0])[place(nodeid)]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneRayEach:
    """Asked by pytest-xdist."""
    config.option.loadscopereorder = False  # The order is ours.
    return OneRayEach(config, log)


@pytest.fixture(scope="module", autouse=True)
def ray_ends_with_its_tests(request: pytest.FixtureRequest) -> None:
    """Those that need none find its memory free."""
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized() and place(request.node.nodeid) == 3:
        ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests share few cores, and sums in one order give the same bits."""
    torch.set_num_threads(1)


def _tiny(factory: pytest.TempPathFactory, architecture: str) -> Path:
    from pipeline.data import demo
    from pipeline.models import tiny

    directory = factory.mktemp(architecture)
    tiny.build(directory, architecture=architecture, corpus=demo.corpus(), seed=0)
    return directory


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the tiny omni checkpoint: text, image, audio and video. Read it only."""
    return _tiny(tmp_path_factory, "qwen2_5_omni_thinker")


@pytest.fixture(scope="session")
def tiny_vl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a second architecture: text, image and video. Read it only."""
    return _tiny(tmp_path_factory, "qwen2_5_vl")


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a small built-in data set, all tasks and splits. Read it only."""
    from pipeline.config import Prepare
    from pipeline.data import demo

    directory = tmp_path_factory.mktemp("data")
    demo.build(directory, prepare=Prepare(train_rows=12, validation_rows=4, test_rows=4), seed=0)
    return directory


@pytest.fixture(scope="module")
def local_ray() -> None:
    """A Ray of one node with more CPUs than the machine has: workers mostly wait for each other.

    It stays for the modules that follow. A test that needs another one shuts it down, and shuts down its own.
    """
    from jobs.command import connect

    connect(address="local", num_cpus=8, include_dashboard=False)


@pytest.fixture(scope="session", autouse=True)
def no_ray_is_left() -> Iterator[None]:
    """Ends the Ray that is there when all tests are done."""
    yield
    if ray := sys.modules.get("ray"):
        ray.shutdown()
