"""Where the workers of a stage run: seats, which roles and Ray Train's ranks share, and what holds them in Ray.

    what roles and a training ask for -> plan -> short of something? say so -> placement group -> actor options

A seat is a whole GPU (or several, for a worker that asks for them); without GPUs it is CPUs. No two ranks of a world
sit on one: NCCL refuses two ranks on a GPU. Shares of a GPU tell Ray who may lie where, and divide no memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.config import Cluster, Device, Grader, Placement, Pooled, Workers

TRAINING_SHARE = 0.95
"""What a rank of Ray Train takes of a GPU that it shares with pools. So much that k + 1 of them are more than k GPUs
(k < 19): Ray counts a node's GPUs together when it packs bundles, and one too many is then tried for ever."""

Resources = dict[str, float]
UNSAID = ("node:", "memory", "object_store_memory")
"""Resources of nodes that no seat asks for."""


class NotEnoughResources(RuntimeError):
    """The cluster cannot hold the workers; the message says what they ask for, what there is, and what to lower."""


class Ranks(NamedTuple):
    """A training's ranks, which Ray Train starts itself."""

    stage: str
    workers: Workers


@dataclass(frozen=True)
class Seat:
    """What Ray is asked for, for those who share a GPU: the workers of roles, and a rank of Ray Train."""

    roles: Resources = field(default_factory=Resources)
    training: Resources = field(default_factory=Resources)

    @property
    def whole(self) -> Resources:
        """Both together, and of a GPU all: nobody else gets the rest."""
        both = Counter(self.roles) + Counter(self.training)
        return _rounded(both | Counter(GPU=math.ceil(both["GPU"] - 1e-6)))


class Share(NamedTuple):
    """The seat of a role's worker, and its share of the GPUs there."""

    seat: int
    num_gpus: float


@dataclass(frozen=True)
class Plan:
    """The seats of a stage, those with roles first, and who sits where."""

    seats: Sequence[Seat]
    places: Mapping[str, Sequence[Share]]
    """Of each worker of each role."""


@dataclass(frozen=True)
class Seating:
    """Ray actor options for every worker of every role, and the placement group that holds their resources."""

    group: PlacementGroup
    options: Mapping[str, Sequence[Mapping[str, Any]]]
    device: Device

    def release(self) -> None:
        """Gives the resources back."""
        remove_placement_group(self.group)


class ExtraSeat:
    """Resources for one more worker of a pool: asked for at once, there when the cluster has them."""

    def __init__(self, workers: Workers, device: Device):
        kind = _Kind.of("", workers, Placement.APART, device)
        share = Share(0, float(kind.num_gpus))
        self._group = placement_group(
            [_rounded({"CPU": workers.cpus_per_worker, "GPU": share.num_gpus, **workers.resources})]
        )
        self.options = _options(workers, self._group, share, device)
        """Of the worker's actor."""

    def is_there(self) -> bool:
        """Whether the cluster has given the resources."""
        return placement_group_table(self._group)["state"] == "CREATED"

    def release(self) -> None:
        """Gives them back, or takes the request back."""
        remove_placement_group(self._group)


def resolve_device(cluster: Cluster) -> Device:
    """`auto` becomes cuda where the cluster has GPUs, or an autoscaler that may bring some."""
    if cluster.device is Device.AUTO:
        has_gpus = cluster.max_gpus is not None or ray.cluster_resources().get("GPU", 0) > 0
        return Device.CUDA if has_gpus else Device.CPU
    return cluster.device


def num_standing(workers: Workers) -> int:
    """Workers without which a stage does not begin; a pool may have more, and give them back."""
    return workers.least if isinstance(workers, Pooled) else workers.num_workers


def rank_resources(training: Workers, placement: Placement, device: Device) -> Resources:
    """What each of Ray Train's ranks asks for."""
    share = TRAINING_SHARE if placement is Placement.COLOCATED else 1.0
    gpus = {"GPU": share} if device is Device.CUDA else {}
    return {"CPU": training.cpus_per_worker, **gpus, **training.resources}


def plan(roles: Mapping[str, Workers], *, placement: Placement, device: Device, training: Ranks | None = None) -> Plan:
    """Who sits where: the workers of roles, and the ranks of a training beside them.

    `colocated`: the k-th workers of all roles share seat k, and its GPU in equal parts; beside pools sits the k-th rank
    of the training too. Who asks for nodes of another kind, or for several GPUs, sits elsewhere. `apart`: each role has
    seats of its own, and so has the training.
    """
    sitting: dict[_Spot, list[str]] = {}
    for role, workers in roles.items():
        kind = _Kind.of(role, workers, placement, device)
        for index in range(num_standing(workers)):
            sitting.setdefault(_Spot(kind, index // _on_a_seat(workers, device)), []).append(role)
    ranks: list[_Spot] = []
    if training is not None:
        kind = _Kind.of(training.stage, training.workers, placement, device)
        if any(spot.kind == kind and not isinstance(roles[role], Pooled) for spot in sitting for role in sitting[spot]):
            kind = kind._replace(owner=training.stage)
        ranks = [_Spot(kind, index) for index in range(training.workers.num_workers)]

    def rank_at(spot: _Spot) -> Resources:
        if training is not None and spot in ranks:
            return rank_resources(training.workers, placement, device)
        # More seats than ranks: what a rank would take is kept there too, or else two seats of roles fit on one GPU.
        return {"GPU": TRAINING_SHARE, **dict(spot.kind.resources)} if ranks and spot.kind == ranks[0].kind else {}

    def roles_at(spot: _Spot) -> Resources:
        if spot not in sitting:
            return {}
        cpus = sum(roles[role].cpus_per_worker for role in sitting[spot])
        gpus = spot.kind.num_gpus - rank_at(spot).get("GPU", 0.0)
        return _rounded({"CPU": cpus, "GPU": gpus, **dict(spot.kind.resources)})

    spots = list(dict.fromkeys([*sitting, *ranks]))
    places: dict[str, list[Share]] = {role: [] for role in roles}
    for number, (spot, names) in enumerate(sitting.items()):
        for role in names:
            places[role].append(Share(number, roles_at(spot).get("GPU", 0.0) / len(names)))
    return Plan([Seat(roles_at(spot), rank_at(spot)) for spot in spots], places)


def shortage(plan: Plan, nodes: Sequence[Resources], *, max_gpus: int | None) -> str | None:
    """What the nodes will never have of the GPU seats, as far as that can be told beforehand; None where nothing.

    max_gpus: GPUs that the cluster may have once an autoscaler has brought more; None where no node comes.
    """
    seats = [each.whole for each in plan.seats if "GPU" in each.whole]
    needed = sum(each["GPU"] for each in seats)
    there = sum(node.get("GPU", 0.0) for node in nodes)
    if needed > max(there, max_gpus or 0):
        most = f"cluster.max_gpus={max_gpus}" if max_gpus else f"the cluster has {_counted(nodes)}"
        return f"the workers need {needed:g} GPUs, and {most}"
    if max_gpus is not None and there < max_gpus:
        return None
    for names in dict.fromkeys(frozenset(each) for each in seats):
        alike = [each for each in seats if each.keys() == names]
        least = {name: min(each[name] for each in alike) for name in sorted(names)}
        room = sum(int(min(node.get(name, 0.0) / least[name] for name in names) + 1e-6) for node in nodes)
        if room < len(alike):
            return f"the workers need {_counted([least] * len(alike))}; {_counted(nodes)} have room for {room} of them"
    return None


def seat(roles: Mapping[str, Workers], cluster: Cluster, *, training: Ranks | None = None) -> Seating:
    """Reserves resources for every worker of every role, all or none, and sees that a training fits beside them.

    An autoscaling cluster has `cluster.resource_timeout_s` to bring the nodes: what is not there yet is its demand.

    training: whose ranks will be started next, where there are GPUs to share; room for them is left.

    Raises:
        NotEnoughResources: the cluster has too few GPUs, or the resources did not come in time.
    """
    device = resolve_device(cluster)
    if device is Device.CPU:
        training = None
    planned = plan(roles, placement=cluster.placement, device=device, training=training)
    cure = _cure(roles, training, cluster)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device is Device.CUDA and (lacking := shortage(planned, nodes, max_gpus=cluster.max_gpus)):
        raise NotEnoughResources(f"{lacking}: {cure}")
    until = monotonic() + cluster.resource_timeout_s
    try:
        # Ranks first: Ray packs small bundles together, and roles that come first could leave no GPU with room enough.
        with _held([each.training for each in planned.seats if each.training], until):
            group = _reserve([each.roles for each in planned.seats if each.roles], until)
    except TimeoutError as error:
        raise NotEnoughResources(
            f"{error} after cluster.resource_timeout_s={cluster.resource_timeout_s:g}; the cluster has "
            f"{_counted(nodes)}: {cure}"
        ) from None
    options = {
        role: [_options(workers, group, place, device) for place in planned.places[role]]
        for role, workers in roles.items()
    }
    return Seating(group, options, device)


class _Kind(NamedTuple):
    """What seats have in common that the workers of several roles can share."""

    owner: str | None
    """The role or stage that shares them with nobody."""
    num_gpus: int
    resources: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, owner: str, workers: Workers, placement: Placement, device: Device) -> _Kind:
        gpus = _gpus_per_worker(workers)
        num_gpus = max(1, int(gpus)) if device is Device.CUDA and gpus else 0
        is_shared = placement is Placement.COLOCATED and num_gpus <= 1
        return cls(None if is_shared else owner, num_gpus, tuple(sorted(workers.resources.items())))


class _Spot(NamedTuple):
    """A seat to be: which of its kind."""

    kind: _Kind
    number: int


def _gpus_per_worker(workers: Workers) -> float:
    return workers.gpus_per_worker if isinstance(workers, Pooled | Grader) else 1.0


def _on_a_seat(workers: Workers, device: Device) -> int:
    """How many workers of one role sit on a seat: of a pool, as many as their shares of a GPU allow."""
    gpus = _gpus_per_worker(workers)
    return max(1, int(1 / gpus + 1e-6)) if device is Device.CUDA and gpus else 1


def _rounded(resources: Mapping[str, float]) -> Resources:
    """To Ray's own precision; without what is 0."""
    return {name: round(amount, 4) for name, amount in resources.items() if amount > 0}


def _reserve(bundles: list[Resources], until: float) -> PlacementGroup:
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(max(0.1, until - monotonic())):
        remove_placement_group(group)
        raise TimeoutError(f"no room for {_counted(bundles)}")
    return group


@contextmanager
def _held(bundles: list[Resources], until: float) -> Generator[None, None, None]:
    """Keeps resources meanwhile, for whoever asks for them next."""
    if not bundles:
        yield
        return
    group = _reserve(bundles, until)
    try:
        yield
    finally:
        remove_placement_group(group)


def _options(workers: Workers, group: PlacementGroup, place: Share, device: Device) -> dict[str, Any]:
    return {
        "num_cpus": workers.cpus_per_worker,
        # A hair less than the share, so that rounding never makes a bundle too small for its workers.
        "num_gpus": int(place.num_gpus * 1000) / 1000 if device is Device.CUDA else 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=place.seat, placement_group_capture_child_tasks=False
        ),
    }


def _cure(roles: Mapping[str, Workers], training: Ranks | None, cluster: Cluster) -> str:
    asked = {f"rlhf.{role}": workers for role, workers in roles.items()}
    if training is not None:
        asked[training.stage] = training.workers
    fields = ", ".join(f"{field}.num_workers={workers.num_workers}" for field, workers in asked.items())
    nodes = "raise cluster.max_gpus" if cluster.max_gpus else "name with cluster.max_gpus what its autoscaler may bring"
    colocate = ", take cluster.placement=colocated" if cluster.placement is Placement.APART else ""
    return f"lower {fields} or their cpus_per_worker{colocate}, add nodes, or {nodes}"


def _counted(resources: Sequence[Resources]) -> str:
    """Resources as one would say them: `2 x (CPU:16 GPU:8)`."""
    shown = [
        " ".join(f"{name}:{each[name]:g}" for name in sorted(each) if not name.startswith(UNSAID)) for each in resources
    ]
    return ", ".join(f"{number} x ({each})" for each, number in Counter(shown).items()) or "nothing"
