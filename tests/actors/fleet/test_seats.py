"""Every stage of the shipped GPU recipes finds its seats in a real Ray, on one node and on two, of logical GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from actors.fleet.failures import WorldLost
from actors.fleet.placement import NotEnoughResources, Ranks, rank_resources, seat
from actors.fleet.world import World
from jobs.command import connect
from jobs.evaluate import ROLES
from pipeline.config import Device, Recipe, Workers, load_recipe
from tests.actors.fleet.test_pool import Adder, adders, wait_until
from tests.actors.fleet.test_world import Scale

RECIPES = Path(__file__).parents[3] / "jobs" / "recipes"
ONE, CLUSTER = (RECIPES / f"qwen2_5_omni_3b_{name}.yaml" for name in ("gpu", "cluster"))
STAGES: dict[str, tuple[str, ...]] = {
    "sft": ("encoder",),
    "reward_model": ("encoder", "rollout"),
    "preference": ("encoder", "rollout"),
    "distill": ("encoder", "rollout", "reward"),
    "rlhf": ("encoder", "rollout", "policy", "reference", "reward", "critic"),
    "evaluate": tuple(ROLES),
}

TRAININGS = ("sft", "reward_model", "preference")


class Node(NamedTuple):
    num_gpus: int
    kind: str = "on_demand"


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Sequence[Node]]:
    """A cluster of such nodes, beside a head that has nothing."""
    ray.shutdown()
    nodes: Sequence[Node] = request.param
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False})
    try:
        for node in nodes:
            made.add_node(num_cpus=12 * node.num_gpus, num_gpus=node.num_gpus, resources={node.kind: 1})
        made.wait_for_nodes()
        connect(address=made.address)
        yield nodes
    finally:
        ray.shutdown()
        made.shutdown()


def recipe_of(file: Path, num_gpus: int) -> Recipe:
    """The recipe with a worker a GPU."""
    names = [*TRAININGS, *(f"rlhf.{role}" for role in STAGES["rlhf"])]
    numbers = [f"{name}.num_workers={num_gpus}" for name in names]
    bounds = [f"rlhf.rollout.{bound}={num_gpus}" for bound in ("min_workers", "max_workers")]
    return load_recipe(file, [*numbers, *bounds, f"cluster.max_gpus={2 * num_gpus}", "cluster.resource_timeout_s=30"])


@pytest.mark.parametrize(
    ("cluster", "file"),
    [
        ([Node(1)], ONE),
        ([Node(4)], ONE),
        ([Node(8)], ONE),
        ([Node(4), Node(4)], ONE),
        ([Node(8), Node(4, "spot"), Node(4, "spot")], CLUSTER),
    ],
    indirect=["cluster"],
    ids=["one", "four", "eight", "two nodes", "two kinds"],
)
def test_every_stage_finds_its_seats_and_its_training_a_gpu_for_each_rank(cluster: Sequence[Node], file: Path) -> None:
    num_trainers = sum(node.num_gpus for node in cluster if node.kind == "on_demand")
    recipe = recipe_of(file, num_trainers)
    for stage, roles in STAGES.items():
        settings: dict[str, Workers] = {role: getattr(recipe.rlhf, role) for role in roles}
        training = Ranks(stage, getattr(recipe, stage)) if stage in TRAININGS else None
        seating = seat(settings, recipe.cluster, training=training)
        assert seating.device is Device.CUDA
        assert {role: len(options) for role, options in seating.options.items()} == dict.fromkeys(roles, num_trainers)
        bundles = placement_group_table(seating.group)["bundles"].values()
        assert sum(bundle.get("GPU", 0) for bundle in bundles) <= sum(node.num_gpus for node in cluster)
        if training is not None:
            # As Ray Train asks for them, once the roles sit.
            rank = rank_resources(training.workers, recipe.cluster.placement, Device.CUDA)
            assert rank["GPU"] > 0.5
            ranks = placement_group([rank] * training.workers.num_workers, strategy="PACK")
            assert ranks.wait(30), f"{stage}: no room for its ranks"
            remove_placement_group(ranks)
        seating.release()

    # With twice as many workers the cluster is too small, and that is told at once.
    larger = recipe_of(file, 2 * num_trainers)
    needed, most = 2 * num_trainers, recipe.cluster.max_gpus
    training = Ranks("sft", larger.sft.model_copy(update={"num_workers": 2 * needed}))
    with pytest.raises(NotEnoughResources, match=rf"need {2 * needed} GPUs, .*max_gpus={most}.*sft.num_workers"):
        seat({"encoder": larger.rlhf.encoder}, recipe.cluster, training=training)


def test_a_node_that_goes_takes_a_pools_worker_and_no_result() -> None:
    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        # Each has room for both workers.
        nodes = [made.add_node(num_cpus=1, resources={"spot": 1}) for _ in range(2)]
        connect(address=made.address)
        options = {"num_cpus": 0, "resources": {"spot": 0.5}, "scheduling_strategy": "SPREAD"}
        pool = adders(Path("/somewhere"), options=options)
        homes: list[str] = ray.get([actor.__ray_call__.remote(node_of) for actor in pool.actors])
        found = pool.submit(Adder.add, list(range(300)))
        made.remove_node(next(node for node in nodes if node.node_id == homes[0]), allow_graceful=False)
        assert [sum_ for sum_, _, _ in found.result()] == list(range(300))
        wait_until(lambda: len(pool.recoveries.all) == homes.count(homes[0]))
        pool.shutdown()
    finally:
        ray.shutdown()
        made.shutdown()


def test_a_node_that_goes_takes_a_rank_and_the_world_starts_again_on_another(tmp_path: Path) -> None:
    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [made.add_node(num_cpus=1) for _ in range(2)]
        connect(address=made.address)
        recipe = load_recipe(None, ["cluster.device=cpu", "rlhf.reward={num_workers: 2, cpus_per_worker: 1}"])
        seating = seat({"reward": recipe.rlhf.reward}, recipe.cluster)
        world = World(Scale, "reward", seating, recipe, recipe.rlhf.reward)
        world.setup(tmp_path).result()
        homes: list[str] = ray.get([actor.__ray_call__.remote(node_of) for actor in world.actors])
        assert len({*homes}) == 2
        made.add_node(num_cpus=1)
        made.remove_node(next(node for node in nodes if node.node_id == homes[1]), allow_graceful=False)
        with pytest.raises(WorldLost, match="reward: rank 1 died"):
            for number in range(200):  # Each takes a fifth of a second.
                world.on_all(Scale.weights, number).result()
        for _ in range(10):  # Until Ray knows that the node has gone it may start the rank there once more.
            with suppress(WorldLost):
                world.setup(world.restart()).result()
                break
        assert world.on_all(Scale.weights, 9).result() == [9, 9]
        after: list[str] = ray.get([actor.__ray_call__.remote(node_of) for actor in world.actors])
        assert len({*after}) == 2 and homes[1] not in after
        world.shutdown()
        seating.release()
    finally:
        ray.shutdown()
        made.shutdown()


def node_of(_: object) -> str:
    return ray.get_runtime_context().get_node_id()
