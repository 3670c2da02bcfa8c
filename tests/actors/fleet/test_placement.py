"""Who sits where, as a plan: nothing here needs Ray."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import ray

from actors.fleet.placement import Plan, Ranks, Share, plan, rank_resources, resolve_device, shortage
from pipeline.config import Cluster, Device, Encoder, Grader, Learner, Placement, Rollout, Sharded, Supervised, Workers

NODE = {"CPU": 16.0, "GPU": 8.0, "memory": 1e9, "node:10.0.0.1": 1.0}


def planned(
    roles: Mapping[str, Workers],
    *,
    training: Workers | None = None,
    device: Device = Device.CUDA,
    placement: Placement = Placement.COLOCATED,
) -> Plan:
    return plan(roles, placement=placement, device=device, training=Ranks("sft", training) if training else None)


def test_colocated_workers_of_all_roles_share_whole_gpus() -> None:
    found = planned({"rollout": Rollout(num_workers=3), "policy": Learner(num_workers=2, cpus_per_worker=1)})
    assert [each.roles for each in found.seats] == [
        {"CPU": 1.2, "GPU": 1},
        {"CPU": 1.2, "GPU": 1},
        {"CPU": 0.2, "GPU": 1},
    ]
    assert [each.training for each in found.seats] == [{}, {}, {}]
    assert found.places == {"rollout": [(0, 0.5), (1, 0.5), (2, 1)], "policy": [(0, 0.5), (1, 0.5)]}


def test_on_cpus_the_seats_are_what_they_were_without_gpus() -> None:
    roles = {"encoder": Encoder(num_workers=2, gpus_per_worker=0.25), "policy": Learner(cpus_per_worker=0.5)}
    found = planned(roles, device=Device.CPU)
    assert [each.roles for each in found.seats] == [{"CPU": 0.7}, {"CPU": 0.2}]
    assert found.places == {"encoder": [(0, 0), (1, 0)], "policy": [(0, 0)]}
    apart = planned(roles, device=Device.CPU, placement=Placement.APART)
    assert [each.roles for each in apart.seats] == [{"CPU": 0.2}, {"CPU": 0.2}, {"CPU": 0.5}]


def test_graders_take_no_gpu_unless_judges_are_checkpoints() -> None:
    roles = {"policy": Learner(), "grader": Grader(num_workers=2)}
    found = planned(roles)
    assert [each.roles for each in found.seats] == [{"CPU": 0.2, "GPU": 1}, {"CPU": 0.2}, {"CPU": 0.2}]
    assert (
        found.places["grader"] == [(1, 0), (2, 0)]
        and shortage(found, [{"CPU": 16.0, "GPU": 1.0}], max_gpus=None) is None
    )
    judged = planned({"policy": Learner(), "grader": Grader(num_workers=2, gpus_per_worker=0.5)})
    assert [each.roles["GPU"] for each in judged.seats] == [1] and len(judged.places["grader"]) == 2


def test_apart_no_gpu_has_two_roles_nor_a_role_and_a_rank() -> None:
    roles = {"rollout": Rollout(num_workers=2), "policy": Learner()}
    found = planned(roles, training=Supervised(), placement=Placement.APART)
    assert [each.roles.get("GPU") for each in found.seats] == [1, 1, 1, None]
    assert [each.training.get("GPU") for each in found.seats] == [None, None, None, 1]
    assert found.places == {"rollout": [(0, 1), (1, 1)], "policy": [(2, 1)]}


def test_a_rank_of_a_training_shares_its_gpu_with_pools_and_with_no_other_rank() -> None:
    roles = {"encoder": Encoder(num_workers=2), "rollout": Rollout()}
    found = planned(roles, training=Supervised(num_workers=3, cpus_per_worker=4))
    assert [each.roles for each in found.seats] == [{"CPU": 0.4, "GPU": 0.05}, {"CPU": 0.2, "GPU": 0.05}, {}]
    assert [each.training for each in found.seats] == [{"CPU": 4, "GPU": 0.95}] * 3
    assert [each.whole["GPU"] for each in found.seats] == [1, 1, 1]
    assert found.places == {"encoder": [(0, 0.025), (1, 0.05)], "rollout": [(0, 0.025)]}


def test_the_share_of_a_rank_is_kept_on_seats_that_have_none() -> None:
    found = planned(
        {"encoder": Encoder(num_workers=2, resources={"here": 0.1})}, training=Supervised(resources={"here": 0.1})
    )
    assert [each.training for each in found.seats] == [
        {"CPU": 0.2, "GPU": 0.95, "here": 0.1},
        {"GPU": 0.95, "here": 0.1},
    ]


def test_a_training_never_shares_a_gpu_with_a_world() -> None:
    found = planned({"encoder": Encoder(), "reference": Sharded()}, training=Supervised())
    assert [each.roles.get("GPU") for each in found.seats] == [1, None]
    assert [each.whole["GPU"] for each in found.seats] == [1, 1]


def test_workers_of_a_pool_share_a_gpu_where_they_take_part_of_one() -> None:
    roles = {"encoder": Encoder(num_workers=5, gpus_per_worker=0.4), "policy": Learner(num_workers=2)}
    found = planned(roles)
    assert [place.seat for place in found.places["encoder"]] == [0, 0, 1, 1, 2]
    assert [place.seat for place in found.places["policy"]] == [0, 1]
    assert found.places["policy"] == [Share(0, 1 / 3), Share(1, 1 / 3)]


def test_a_worker_with_several_gpus_has_them_alone() -> None:
    found = planned({"policy": Learner(num_workers=2), "rollout": Rollout(num_workers=2, gpus_per_worker=2)})
    assert [each.roles["GPU"] for each in found.seats] == [1, 1, 2, 2]
    assert found.places["rollout"] == [(2, 2), (3, 2)]


def test_roles_that_ask_for_other_nodes_share_no_seat() -> None:
    on_demand, spot = {"on_demand": 0.001}, {"spot": 0.001}
    roles = {
        "policy": Learner(resources=on_demand),
        "critic": Learner(resources=on_demand),
        "rollout": Rollout(resources=spot),
    }
    found = planned(roles)
    assert [each.roles for each in found.seats] == [
        {"CPU": 0.4, "GPU": 1, **on_demand},
        {"CPU": 0.2, "GPU": 1, **spot},
    ]
    assert [found.places[role][0].seat for role in roles] == [0, 0, 1]
    beside = planned({"encoder": Encoder(resources=spot)}, training=Supervised(resources=on_demand))
    assert [set(each.whole) for each in beside.seats] == [{"CPU", "GPU", "spot"}, {"CPU", "GPU", "on_demand"}]


def test_ray_trains_ranks_ask_for_more_than_half_a_gpu_and_for_the_nodes_of_the_recipe() -> None:
    asked = Supervised(cpus_per_worker=2, resources={"on_demand": 0.001})
    assert rank_resources(asked, Placement.COLOCATED, Device.CUDA) == {"CPU": 2, "GPU": 0.95, "on_demand": 0.001}
    assert rank_resources(asked, Placement.APART, Device.CUDA) == {"CPU": 2, "GPU": 1, "on_demand": 0.001}
    assert rank_resources(asked, Placement.COLOCATED, Device.CPU) == {"CPU": 2, "on_demand": 0.001}


def test_what_fits_is_short_of_nothing() -> None:
    found = planned({"encoder": Encoder(num_workers=8)}, training=Supervised(num_workers=8, cpus_per_worker=1.8))
    assert shortage(found, [NODE], max_gpus=None) is None


def test_too_few_gpus_are_told_with_what_is_there() -> None:
    found = planned({"encoder": Encoder(num_workers=2)}, training=Supervised(num_workers=9))
    assert shortage(found, [NODE], max_gpus=None) == ("the workers need 9 GPUs, and the cluster has 1 x (CPU:16 GPU:8)")
    assert shortage(found, [NODE], max_gpus=8) == "the workers need 9 GPUs, and cluster.max_gpus=8"


def test_gpus_that_an_autoscaler_may_bring_are_waited_for() -> None:
    found = planned({"encoder": Encoder(num_workers=9)})
    assert shortage(found, [], max_gpus=9) is None
    assert shortage(found, [NODE], max_gpus=9) is None


def test_too_few_cpus_beside_the_gpus_are_told() -> None:
    # 8 GPUs are there; with 3 CPUs each, 16 CPUs are enough for five seats.
    found = planned({"encoder": Encoder(num_workers=8)}, training=Supervised(num_workers=8, cpus_per_worker=2.8))
    assert shortage(found, [NODE], max_gpus=None) == (
        "the workers need 8 x (CPU:3 GPU:1); 1 x (CPU:16 GPU:8) have room for 5 of them"
    )


def test_a_worker_with_more_gpus_than_a_node_has_is_told() -> None:
    found = planned({"rollout": Rollout(gpus_per_worker=2)})
    assert shortage(found, [{"CPU": 4.0, "GPU": 1.0}] * 4, max_gpus=None) is not None
    assert shortage(found, [{"CPU": 4.0, "GPU": 2.0}], max_gpus=None) is None


def test_gpus_on_nodes_of_another_kind_do_not_count() -> None:
    found = planned({"rollout": Rollout(resources={"spot": 0.001})})
    assert shortage(found, [NODE], max_gpus=None) == (
        "the workers need 1 x (CPU:0.2 GPU:1 spot:0.001); 1 x (CPU:16 GPU:8) have room for 0 of them"
    )
    assert shortage(found, [NODE, NODE | {"spot": 1.0}], max_gpus=None) is None


@pytest.mark.parametrize("num_gpus", [1, 4, 8])
def test_seats_with_roles_come_first_as_the_bundles_of_their_group_do(num_gpus: int) -> None:
    found = planned({"encoder": Encoder()}, training=Supervised(num_workers=num_gpus))
    assert [bool(each.roles) for each in found.seats] == [True] + [False] * (num_gpus - 1)


def test_auto_is_the_gpus_that_are_there_or_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert resolve_device(Cluster()) is Device.CPU
    assert resolve_device(Cluster(max_gpus=8)) is Device.CUDA
    assert resolve_device(Cluster(device=Device.CPU, max_gpus=8)) is Device.CPU
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    assert resolve_device(Cluster()) is Device.CUDA
