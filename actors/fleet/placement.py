"""Where the workers of each role run: placement groups, colocated or apart, on GPUs or CPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.config import Cluster, Device, Placement, Workers


class NotEnoughResources(RuntimeError):
    """The cluster cannot hold the roles; the message says what they ask for and what there is."""


@dataclass(frozen=True)
class Seating:
    """Ray actor options for every worker of every role, and the placement group that holds their resources."""

    group: PlacementGroup
    options: Mapping[str, Sequence[Mapping[str, Any]]]
    device: Device

    def release(self) -> None:
        """Gives the resources back."""
        remove_placement_group(self.group)


def resolve_device(device: Device) -> Device:
    """`auto` becomes cuda where the cluster has GPUs."""
    if device is Device.AUTO:
        return Device.CUDA if ray.cluster_resources().get("GPU", 0) > 0 else Device.CPU
    return device


def seat(roles: Mapping[str, Workers], cluster: Cluster) -> Seating:
    """Reserves resources for every worker of every role, all or none.

    `colocated`: the k-th workers of all roles share bundle k, and its GPU in equal parts; `apart`: a bundle each.
    An autoscaling cluster has `cluster.resource_timeout_s` to bring the nodes.

    Raises:
        NotEnoughResources: the resources did not come in time.
    """
    device = resolve_device(cluster.device)
    bundles, places = _bundles(roles, cluster.placement, device)
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(cluster.resource_timeout_s):
        remove_placement_group(group)
        raise NotEnoughResources(
            f"the roles ask for {bundles} and the cluster has {ray.cluster_resources()}, after "
            f"cluster.resource_timeout_s={cluster.resource_timeout_s}: lower <role>.num_workers, "
            "cpus_per_worker or gpus_per_worker, or add nodes"
        )
    options = {
        role: [_options(workers, group, place, device, share) for place, share in places[role]]
        for role, workers in roles.items()
    }
    return Seating(group, options, device)


def _bundles(
    roles: Mapping[str, Workers], placement: Placement, device: Device
) -> tuple[list[dict[str, float]], dict[str, list[tuple[int, float]]]]:
    """Bundles, and for each role the (bundle, GPU share) of its workers."""
    bundles: list[dict[str, float]] = []
    places: dict[str, list[tuple[int, float]]] = {role: [] for role in roles}
    if placement is Placement.APART:
        for role, workers in roles.items():
            for _ in range(workers.num_workers):
                places[role].append((len(bundles), workers.gpus_per_worker))
                bundles.append(_resources(workers, device, workers.gpus_per_worker))
        return bundles, places
    for index in range(max(workers.num_workers for workers in roles.values())):
        sharing = [role for role, workers in roles.items() if workers.num_workers > index]
        bundle: dict[str, float] = {}
        for role in sharing:
            share = roles[role].gpus_per_worker / len(sharing)
            places[role].append((index, share))
            for resource, amount in _resources(roles[role], device, share).items():
                bundle[resource] = bundle.get(resource, 0.0) + amount
        bundles.append({resource: round(amount, 4) for resource, amount in bundle.items()})
    return bundles, places


def _resources(workers: Workers, device: Device, gpus: float) -> dict[str, float]:
    resources = {"CPU": workers.cpus_per_worker}
    if device is Device.CUDA and gpus > 0:
        resources["GPU"] = gpus
    return resources


def _options(workers: Workers, group: PlacementGroup, place: int, device: Device, gpus: float) -> dict[str, Any]:
    return {
        "num_cpus": workers.cpus_per_worker,
        # A hair less than the share, so that rounding never makes a bundle too small for its workers.
        "num_gpus": int(gpus * 1000) / 1000 if device is Device.CUDA else 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=place, placement_group_capture_child_tasks=False
        ),
    }
