"""Seats in a real Ray with logical GPUs: nodes of 1, 4 and 8, two of 4, and one that comes later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.fleet.placement import (
    NotEnoughResources,
    Plan,
    Ranks,
    plan,
    rank_resources,
    resolve_device,
    seat,
)
from actors.loop.crew import loop_paths
from jobs import evaluate
from jobs.command import connect
from pipeline.config import Cluster as Settings
from pipeline.config import Device, Encoder, Learner, Pooled, Recipe, Rollout, Supervised, Workers, load_recipe

RECIPES = sorted((Path(__file__).parents[3] / "jobs" / "recipes").glob("*.yaml"))
SHAPES = {"one": 1, "four": 4, "eight": 8, "pair": 8}
"""GPUs of the nodes of each kind, whose name is a resource there. The pair is two nodes, and one of them the four."""
HERE = 0.0001
Gpu = tuple[str, str]
"""Node and GPU."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ray.shutdown()
    head = {"num_cpus": 64, "num_gpus": 8, "resources": {"eight": 1}, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=head)
    try:
        found.add_node(num_cpus=32, num_gpus=4, resources={"pair": 1, "four": 1})
        found.add_node(num_cpus=32, num_gpus=4, resources={"pair": 1})
        connect(address=found.address)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@ray.remote(num_cpus=0, num_gpus=HERE)
def _gpu() -> Gpu:
    context = ray.get_runtime_context()
    (gpu,) = context.get_accelerator_ids()["GPU"]
    return context.get_node_id(), gpu


def gpus_of(group: PlacementGroup) -> list[Gpu]:
    """Where the bundles of a placement group are: one at a time, for which one process a node is enough."""
    found: list[Gpu] = []
    for index in range(group.bundle_count):
        there = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
        found.append(ray.get(_gpu.options(scheduling_strategy=there).remote()))
    return found


def stages(recipe: Recipe) -> dict[str, tuple[list[str], str | None]]:
    """The roles of each stage, and its training."""
    return {
        "sft": (["encoder"], "sft"),
        "reward_model": (["encoder", "rollout"], "reward_model"),
        "rlhf": (list(loop_paths(recipe)), None),
        "evaluate": (list(evaluate.ROLES), None),
    }


def asked(recipe: Recipe, stage: str, kind: str) -> tuple[dict[str, Workers], Ranks | None]:
    """What a stage asks for, of the nodes of one kind."""
    roles, training = stages(recipe)[stage]
    there = {"resources": {kind: HERE}}
    ranks = Ranks(training, getattr(recipe, training).model_copy(update=there)) if training else None
    return {role: getattr(recipe.rlhf, role).model_copy(update=there) for role in roles}, ranks


def sit(roles: Mapping[str, Workers], settings: Settings, ranks: Ranks | None) -> dict[str, list[Gpu]]:
    """The GPUs of each role's workers and of the training's ranks, which are asked for as Ray Train asks."""
    seating = seat(roles, settings, training=ranks)
    groups = [seating.group]
    try:
        if seating.device is Device.CPU:
            return {}
        seats = gpus_of(seating.group)
        found = {
            role: [seats[each["scheduling_strategy"].placement_group_bundle_index] for each in options]
            for role, options in seating.options.items()
        }
        if ranks:
            resources = rank_resources(ranks.workers, settings.placement, seating.device)
            groups.append(placement_group([resources] * ranks.workers.num_workers, strategy="PACK"))
            assert groups[-1].wait(10), "no room is left for the training"
            found[ranks.stage] = gpus_of(groups[-1])
        return found
    finally:
        for group in groups:
            remove_placement_group(group)


def test_gpu_nodes_that_come_later_are_waited_for(cluster: Cluster) -> None:
    role: dict[str, Workers] = {"policy": Learner(resources={"one": HERE})}
    settings = Settings(max_gpus=100, resource_timeout_s=0.1)
    with pytest.raises(NotEnoughResources, match=r"resource_timeout_s=0.1; .*: lower .* or raise cluster.max_gpus"):
        seat(role, settings)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sit, role, settings.model_copy(update={"resource_timeout_s": 60.0}), None)
        cluster.add_node(num_cpus=8, num_gpus=1, resources={"one": 1})
        found = waiting.result()
    assert len(found["policy"]) == 1


@pytest.mark.parametrize("kind", SHAPES)
def test_every_stage_of_every_recipe_has_its_seats_or_is_refused_at_once(cluster: Cluster, kind: str) -> None:
    tried: list[Plan] = []
    for path in RECIPES:
        recipe = load_recipe(path, [])
        settings = recipe.cluster.model_copy(update={"resource_timeout_s": 20})
        for stage in stages(recipe):
            roles, ranks = asked(recipe, stage, kind)
            found = plan(roles, placement=settings.placement, device=resolve_device(settings), training=ranks)
            if found in tried:
                continue  # Most recipes ask for the same.
            tried.append(found)
            most = max(each.num_workers for each in [*roles.values(), *([ranks.workers] if ranks else [])])
            if resolve_device(settings) is Device.CUDA and most > SHAPES[kind]:
                with pytest.raises(NotEnoughResources, match=rf"rlhf\.encoder\.num_workers={most}"):
                    seat(roles, settings, training=ranks)
                continue
            for name, gpus in sit(roles, settings, ranks).items():
                assert len(gpus) == (ranks.workers if ranks and name == ranks.stage else roles[name]).num_workers
                if not isinstance(roles.get(name), Pooled):
                    assert len(set(gpus)) == len(gpus), f"{path.stem}: two ranks of {name} on one GPU"
    assert len(tried) > 4


def test_seats_that_came_first_leave_room_for_a_training(cluster: Cluster) -> None:
    # Four small encoder bundles would fit on two GPUs, and then two ranks of the training would fit nowhere.
    there = {"four": HERE}
    found = sit(
        {"encoder": Encoder(num_workers=4, resources=there)},
        Settings(),
        Ranks("sft", Supervised(num_workers=4, resources=there)),
    )
    assert len(set(found["sft"])) == 4
    assert set(found["encoder"]) == set(found["sft"])


def test_trainers_and_rollouts_lie_on_nodes_of_their_kind(cluster: Cluster) -> None:
    roles = {
        "policy": Learner(num_workers=2, resources={"four": HERE}),
        "rollout": Rollout(num_workers=3, resources={"eight": HERE}),
    }
    found = sit(roles, Settings(), None)
    kinds = {node["NodeID"]: SHAPES.keys() & node["Resources"].keys() for node in ray.nodes()}
    assert {frozenset(kinds[node]) for node, _ in found["policy"]} == {frozenset({"four"})}
    assert {frozenset(kinds[node]) for node, _ in found["rollout"]} == {frozenset({"pair"})}


def test_auto_is_the_gpus_that_are_there_or_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert resolve_device(Settings()) is Device.CPU
    assert resolve_device(Settings(max_gpus=8)) is Device.CUDA
    assert resolve_device(Settings(device=Device.CPU, max_gpus=8)) is Device.CPU
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    assert resolve_device(Settings()) is Device.CUDA
