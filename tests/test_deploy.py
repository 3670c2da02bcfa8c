"""Descriptions of hardware: for Ray's cluster launcher on two clouds, and for KubeRay. No cloud is asked."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as read_by_autoscaler,  # pyright: ignore[reportPrivateUsage]
)

from pipeline.config import Device, load_recipe

ROOT = Path(__file__).parent.parent
LAUNCHED = ("cluster.yaml", "deploy/gcp.yaml")
KUBERAY = ROOT / "deploy" / "kuberay"
KINDS = {"on_demand", "spot"}
"""Kinds of nodes that recipes ask for."""
# Names in KubeRay's custom resources that ours use, by where they stand. They were checked against the whole schema of
# 1.5.1, 1.6.2 and 1.7.0, in which what it does not know was made an error; after a change here do that again, with
# KUBERAY_CRDS=<KubeRay's helm-chart/kuberay-operator/crds> pytest tests/test_deploy.py
FIELDS = {
    "cluster": {
        *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
        *("headGroupSpec", "workerGroupSpecs"),
    },
    "group": {"groupName", "minReplicas", "maxReplicas", "replicas", "resources", "rayStartParams", "template"},
    "pod": {"nodeSelector", "tolerations", "containers", "volumes"},
    "container": {"name", "image", "ports", "resources", "volumeMounts"},
    "job": {"clusterSelector", "submissionMode", "entrypoint"},
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(params=LAUNCHED)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


@pytest.fixture(scope="module")
def on_kubernetes() -> dict[str, Any]:
    return read("deploy/kuberay/raycluster.yaml")


def workers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    types = cluster["available_node_types"]
    return {name: each for name, each in types.items() if name != cluster["head_node_type"]}


def test_a_launched_cluster_follows_rays_schema(cluster: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"autoscaling_mode": "default"}, schema)


def test_workers_scale_from_zero_and_only_rollouts_run_on_spot_nodes(cluster: dict[str, Any]) -> None:
    found = workers(cluster)
    assert found.keys() == {"trainer", "rollout_spot"}
    for each in found.values():
        assert each["min_workers"] == 0
        assert 0 < each["max_workers"] <= cluster["max_workers"]
    # AWS and Google Cloud say it in different words.
    spot = {name for name, each in found.items() if "spot" in json.dumps(each["node_config"]).lower()}
    assert spot == {"rollout_spot"}


def test_nodes_have_the_kinds_that_recipes_ask_for(cluster: dict[str, Any]) -> None:
    kinds = {name: each["resources"].keys() & KINDS for name, each in workers(cluster).items()}
    assert kinds == {"trainer": {"on_demand"}, "rollout_spot": {"spot"}}


def test_images_hold_the_ray_that_pyproject_asks_for(on_kubernetes: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = (each for each in project["dependencies"] if each.startswith("ray["))
    images = [read(name)["docker"][image] for name in LAUNCHED for image in ("head_image", "worker_image")]
    (base,) = re.findall(r"^FROM (\S+)", (KUBERAY / "Dockerfile").read_text(), re.MULTILINE)
    for image in (*images, base, f"rayproject/ray:{on_kubernetes['spec']['rayVersion']}-py311-gpu"):
        found = re.fullmatch(r"rayproject/ray:(\d+\.\d+)\.\d+-py311-(cpu|gpu)", image)
        assert found is not None, image
        assert f">={found[1]}," in requirement


def test_only_files_of_this_project_and_the_token_are_brought_to_nodes(cluster: dict[str, Any]) -> None:
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", (KUBERAY / "Dockerfile").read_text(), re.MULTILINE)
    local = {*cluster["file_mounts"].values(), *" ".join(copied).split()} - {"~/.ray/auth_token"}
    assert {name for name in local if not (ROOT / name).exists()} == set()


def test_clouds_differ_in_their_machines_only() -> None:
    aws, gcp = (read(name) for name in LAUNCHED)
    for name in ("provider", "available_node_types", "head_setup_commands"):
        del aws[name], gcp[name]
    assert aws == gcp


def test_the_cluster_recipe_puts_every_world_on_nodes_that_stay_and_rollouts_on_spot_nodes() -> None:
    recipe = load_recipe(ROOT / "jobs" / "recipes" / "qwen2_5_omni_3b_cluster.yaml", [])
    loop = ("encoder", "policy", "critic", "reference", "reward")
    trained = {"sft": recipe.sft, "reward_model": recipe.reward_model, "preference": recipe.preference}
    for workers_of in (*trained.values(), *(getattr(recipe.rlhf, role) for role in loop)):
        assert workers_of.resources.keys() == {"on_demand"}
    assert recipe.rlhf.rollout.resources.keys() == {"spot"}
    types = workers(read("deploy/gcp.yaml")).values()
    assert recipe.cluster.device is Device.AUTO
    assert recipe.cluster.max_gpus == sum(each["max_workers"] * each["resources"]["GPU"] for each in types)


def test_the_autoscaler_reads_the_same_nodes_from_kuberays_cluster(on_kubernetes: dict[str, Any]) -> None:
    resource = on_kubernetes | {"metadata": {**on_kubernetes["metadata"], "namespace": "default"}}
    found = read_by_autoscaler(resource)
    launched = workers(read("deploy/gcp.yaml"))
    assert {name.replace("-", "_"): each for name, each in workers(found).items()}.keys() == launched.keys()
    for name, each in workers(found).items():
        same = launched[name.replace("-", "_")]
        assert (each["min_workers"], each["max_workers"]) == (0, same["max_workers"])
        for resource_name in {"GPU", *KINDS}:
            assert each["resources"].get(resource_name) == same["resources"].get(resource_name)
    assert found["idle_timeout_minutes"] == read("cluster.yaml")["idle_timeout_minutes"]


def test_kuberays_cluster_scales_by_itself_asks_for_a_token_and_shares_a_volume(on_kubernetes: dict[str, Any]) -> None:
    spec = on_kubernetes["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_ray_job_runs_a_stage_of_a_recipe_on_that_cluster(on_kubernetes: dict[str, Any]) -> None:
    job = read("deploy/kuberay/rayjob.yaml")["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": on_kubernetes["metadata"]["name"]}
    stage = re.search(r"python -m jobs\.(\w+) --config (\S+)", job["entrypoint"])
    assert stage is not None
    assert (ROOT / "jobs" / f"{stage[1]}.py").is_file()
    load_recipe(ROOT / stage[2], [])


def test_kuberays_resources_have_no_field_that_was_not_checked(on_kubernetes: dict[str, Any]) -> None:
    spec = on_kubernetes["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    found = {
        "cluster": [spec],
        "group": groups,
        "pod": pods,
        "container": [each for pod in pods for each in pod["containers"]],
        "job": [read("deploy/kuberay/rayjob.yaml")["spec"]],
    }
    for place, mappings in found.items():
        assert set[str]().union(*mappings) == FIELDS[place]


def _strict(schema: Any) -> Any:
    """The schema of a custom resource in which a field that it does not know is an error, and not left out silently."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {name: _strict(each) for name, each in schema.items()}
    if isinstance(found.get("properties"), dict) and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("anyOf", None)
        found["type"] = ["integer", "string"]
    return found


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_kuberays_resources_follow_its_schema(kind: str) -> None:
    path = Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{kind}s.yaml"
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1")
    checked = _strict(schema["properties"]["spec"])
    spec = read(f"deploy/kuberay/{kind}.yaml")["spec"]
    # The schema of schemas would take a minute to check a megabyte.
    validator = jsonschema.Draft7Validator(checked)
    validator.validate(spec)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(spec | {"autoscaling": True})
