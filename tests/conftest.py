"""What every test stands on: a quiet environment, one thread, and small checkpoints and data built once a session."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch, transformers or Ray is imported: each reads these once, and Ray's workers inherit them.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Heads and clients of this test run share a token of their own, and no file in the home directory.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
}
for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "DS_ACCELERATOR"):
    os.environ.pop(name, None)

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

RAY = (
    *(f"tests/actors/{room}/" for room in ("fleet", "loop", "roles", "training")),
    *(f"tests/data/test_{name}.py" for name in ("clouds", "duplicates", "stream")),
    "tests/data/ingest/test_pool.py",
    "tests/decisions/",
    "tests/test_benchmarks_streaming.py",
)
"""Where tests start a Ray with few workers, or small ones."""
JOBS = ("tests/jobs/", *(f"tests/test_{name}.py" for name in ("command", "makefile", "tooling")))
"""Where they start all workers of a run, which take gigabytes, and whole installations."""


class OneRayEach(LoadScopeScheduling):
    """Where pytest runs in several processes, tests of `RAY` follow each other in one of them, as do those of `JOBS`.

    Workers of a Ray mostly wait for each other: two fit beside each other, and the other tests after the shorter one.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(JOBS):
            return "jobs"
        return "ray" if nodeid.startswith(RAY) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneRayEach:
    """Asked by pytest-xdist."""
    return OneRayEach(config, log)


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

    connect(address="local", num_cpus=8)


@pytest.fixture(scope="session", autouse=True)
def no_ray_is_left() -> Iterator[None]:
    """Ends the Ray that is there when all tests are done."""
    yield
    if ray := sys.modules.get("ray"):
        ray.shutdown()
