"""A pool to which Ray's own autoscaler gives nodes and takes them away while the loop runs; its provider is a fake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from actors.loop.scaling import Scaler
from jobs import rlhf
from jobs.command import connect
from jobs.local import _free_port as free_port  # pyright: ignore[reportPrivateUsage]
from tests.jobs.small import MakeRecipe, curve

SPOT = {"resources": {"CPU": 1, "spot": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3}
STEPS = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization")
LISTS = ("cluster_synced_files", "rsync_exclude", "rsync_filter", *(f"{step}_commands" for step in STEPS))
"""What a cluster's description has beside that; here it is empty."""


@pytest.fixture
def autoscaling(tmp_path: Path) -> Iterator[None]:
    """A head for all roles, to which the autoscaler adds up to three nodes of another kind."""
    ray.shutdown()
    port, address = free_port(), ray.util.get_node_ip_address()
    config = {
        "cluster_name": "fake",
        "max_workers": 3,
        "idle_timeout_minutes": 0.05,
        "provider": {
            # Its own name stands for a file of defaults that Ray does not ship.
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider",
            "gcs_address": f"{address}:{port}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in LISTS},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 8}, "node_config": {}, "max_workers": 0},
            "spot": SPOT,
        },
    }
    file = tmp_path / "autoscaler.json"
    file.write_text(json.dumps(config))
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=8",
    ]
    command += [f"--autoscaling-config={file}", "--include-dashboard=false", "--object-store-memory=200000000"]
    command += [f"--ray-client-server-port={free_port()}"]
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with (tmp_path / "head.log").open("wb") as log:
        # `ray start` that loses a child ends its whole process group.
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until(lambda: head.poll() is not None or joined(f"{address}:{port}"))
        assert head.poll() is None, (tmp_path / "head.log").read_text()
        yield
    finally:
        ray.shutdown()
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()


def joined(address: str) -> bool:
    try:
        connect(address=address)
    except ConnectionError:
        return False
    return True


def wait_until(holds: Callable[[], bool], timeout_s: float = 180.0) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def num_spot() -> int:
    return sum(node["Alive"] and "spot" in node["Resources"] for node in ray.nodes())


@pytest.mark.usefixtures("autoscaling")
def test_rollouts_grow_to_three_nodes_and_back_while_the_loop_runs_and_no_sample_changes(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["rlhf.num_steps=9", "rlhf.rollout.batch_size=2", "rlhf.rollout.resources={spot: 1}"]
    # The roles that it takes, and no others.
    settings += ["rlhf.algorithm.advantage=grpo", "rlhf.algorithm.kl.weight=0", "rlhf.rewards={exact_match: 1}"]
    settings += ["cluster.resource_timeout_s=180", "rlhf.parity.num_rows=0", "rlhf.checkpoints.save_every=9"]
    fixed = make_recipe(*settings)
    assert num_spot() == 0
    rlhf.run(fixed)
    expected = curve(fixed)

    seen: list[tuple[int, int]] = []
    stepped = Scaler.stepped

    def watched(scaler: Scaler, _: Mapping[str, float]) -> None:
        """Decides as it would if generation took long in the first steps, and waits until that has come about."""
        pool: Any = scaler._pools["rollout"]  # pyright: ignore[reportPrivateUsage]
        is_early = len(seen) < 3
        before = len(pool)
        stepped(scaler, {"generate": 2.0 if is_early else 0.5, "update": 1.0})
        wanted = min(before + 1, 3) if is_early else max(before - 1, 1)
        wait_until(lambda: len(pool) == wanted)
        if len(seen) == 8:
            wait_until(lambda: num_spot() == 1)  # Nobody sits on the others any more.
        seen.append((len(pool), num_spot()))

    monkeypatch.setattr(Scaler, "stepped", watched)
    elastic = make_recipe(*settings, "rlhf.rollout.max_workers=3", "rlhf.rollout.idle_steps=1")
    rlhf.run(elastic)
    assert [size for size, _ in seen] == [2, 3, 3, 2, 1, 1, 1, 1, 1]
    assert max(nodes for _, nodes in seen) == 3 and seen[-1] == (1, 1)
    of_size = ("pool/", "queue/")
    for one, other in zip(expected, curve(elastic), strict=True):
        assert {name: value for name, value in other.items() if not name.startswith(of_size)} == {
            name: value for name, value in one.items() if not name.startswith(of_size)
        }
