"""The recipe: one frozen pydantic model a section, read from YAML and `section.field=value` overrides.

A job reads the whole recipe and uses its own section, so one file describes a run from data to report.
The docstring under a field is its documentation: `python -m jobs.<stage> --help` prints it.
An unknown key, a wrong type or a value out of bounds is a `ConfigError` that names the field, the value and the cure.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_jsonable_python


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message names field, value and cure."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, documentation from attribute docstrings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Placement(StrEnum):
    COLOCATED = "colocated"
    APART = "apart"


class AdvantageEstimator(StrEnum):
    GAE = "gae"
    GRPO = "grpo"


class KlPlace(StrEnum):
    REWARD = "reward"
    LOSS = "loss"


class KlEstimator(StrEnum):
    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


class KlControl(StrEnum):
    FIXED = "fixed"
    ADAPTIVE = "adaptive"


class RewardName(StrEnum):
    LEARNED = "learned"
    EXACT_MATCH = "exact_match"
    CONTAINS = "contains"
    WER = "wer"
    LENGTH = "length"


class Sink(StrEnum):
    CONSOLE = "console"
    JSONL = "jsonl"
    TENSORBOARD = "tensorboard"
    RAY = "ray"
    WANDB = "wandb"
    MLFLOW = "mlflow"


class Run(Section):
    name: str = "demo"
    """Name of the run, shown in trackers and in the report."""
    directory: Path = Path("runs/demo")
    """Where data, checkpoints, metrics and the report go. On a cluster: a path that all nodes share."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random: data, initialisation, order, sampling."""
    sinks: tuple[Sink, ...] = (Sink.CONSOLE, Sink.JSONL, Sink.TENSORBOARD, Sink.RAY)
    """Where metrics go. `wandb` and `mlflow` need the extras of the same name."""


class Cluster(Section):
    device: Device = Device.AUTO
    """`cpu` (gloo), `cuda` (NCCL), or `auto`: cuda where the cluster has GPUs."""
    placement: Placement = Placement.COLOCATED
    """`colocated`: the roles share the same bundles; `apart`: each worker has a bundle of its own."""
    resource_timeout_s: float = Field(default=60.0, gt=0)
    """How long a stage waits for the resources of its roles, in seconds; give an autoscaler time to bring nodes."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """How long a collective may take before its world is given up, in seconds."""


class MediaLimits(Section):
    """Bounds that every decoder keeps; what is outside goes to the quarantine with a reason."""

    max_bytes: int = Field(default=64 * 2**20, gt=0)
    """Largest encoded medium, in bytes."""
    max_pixels: int = Field(default=4096 * 4096, gt=0)
    """Largest image, or frame of a video, in pixels."""
    max_aspect_ratio: float = Field(default=100.0, ge=1)
    """Longest side divided by shortest side of an image or a frame."""
    min_seconds: float = Field(default=0.05, gt=0)
    """Shortest sound, in seconds: shorter ones give no token."""
    max_seconds: float = Field(default=30.0, gt=0)
    """Longest sound or video, in seconds."""
    max_channels: int = Field(default=8, gt=0)
    """Most channels in a sound."""
    max_frames: int = Field(default=64, gt=1)
    """Most frames that are kept of a video."""


class Data(Section):
    path: Path | None = None
    """Directory with the prompt table (`train.parquet`, `validation.parquet`, `test.parquet`); default `<run>/data`."""
    limits: MediaLimits = MediaLimits()
    """Bounds of media decoding."""
    max_prompt_tokens: int = Field(default=512, gt=0)
    """Longer prompts, placeholders included, go to the quarantine."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of rows in quarantine before a job stops."""


class Prepare(Section):
    """The built-in data: digits, speech, scenes and videos made offline."""

    train_rows: int = Field(default=480, gt=0)
    """Rows of each task in the train split."""
    validation_rows: int = Field(default=16, gt=0)
    """Rows of each task in the validation split."""
    test_rows: int = Field(default=64, gt=0)
    """Rows of each task in the test split."""
    tasks: tuple[str, ...] = ("digit", "speech", "sum", "video", "scene", "text")
    """Which of the built-in tasks to make."""


class Model(Section):
    path: Path | None = None
    """Hugging Face directory of the checkpoint to start from; null builds the tiny one in `<run>/checkpoints/base`."""
    tiny_architecture: str = "qwen2_5_omni_thinker"
    """Architecture of the tiny checkpoint that is built where `path` is null."""
    dtype: Dtype = Dtype.FLOAT32
    """Parameters' type. `bfloat16` is for GPUs."""
    trust_remote_code: bool = False
    """Whether code inside a checkpoint may run. Leave it off for checkpoints you have not read."""


class Workers(Section):
    num_workers: int = Field(default=1, ge=1)
    """Ray actors (ranks) of this role."""
    cpus_per_worker: float = Field(default=0.2, gt=0)
    """CPUs that Ray reserves for each worker."""
    gpus_per_worker: float = Field(default=1.0, ge=0)
    """GPUs that Ray reserves for each worker where the device is cuda; a fraction where roles are colocated."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads for torch in each worker."""


class Rollout(Workers):
    batch_size: int = Field(default=64, ge=1)
    """Prompts (with all completions of their group) that a worker decodes at once."""


class Sharded(Workers):
    zero_stage: int = Field(default=0, ge=0, le=3)
    """DeepSpeed ZeRO stage of this role's world. Roles without an optimizer take 0 or 3."""
    micro_batch_size: int = Field(default=16, ge=1)
    """Prompts (with all completions of their group) in one forward pass."""


class Trained(Sharded):
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly; the first step is never at zero."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps over which the rate falls along a cosine to `final_rate`; null keeps it."""
    final_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak rate at the end of the decay."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decays."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""


class Supervised(Trained):
    num_steps: int = Field(default=300, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=64, gt=0)
    """Rows in an optimizer step, over all workers."""
    rows: int | None = Field(default=None, gt=0)
    """Rows of the train split that have demonstrations (the first ones of the file); null takes all."""
    train_towers: bool = True
    """Whether vision and audio towers train too. The roles of the RLHF loop share frozen towers."""


class Preferences(Section):
    num_prompts: int = Field(default=512, gt=0)
    """Prompts of the train split for which the SFT model's samples are compared."""
    samples_per_prompt: int = Field(default=4, ge=2)
    """Completions sampled for each prompt; one pair of different ones is taken."""
    temperature: float = Field(default=1.8, gt=0)
    """Temperature of those samples: hot ones differ more, so that pairs hold clear mistakes beside subtle ones."""
    error_rate: float = Field(default=0.05, ge=0, lt=0.5)
    """How often the scripted rater prefers the worse completion."""


class RewardModel(Trained):
    num_steps: int = Field(default=60, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=32, gt=0)
    """Preference pairs in an optimizer step, over all workers."""


class Sampling(Section):
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the distribution sampled from; 0 is greedy."""
    max_new_tokens: int = Field(default=16, gt=0)
    """Completions stop here at the latest, with finish reason `length`."""


class Kl(Section):
    weight: float = Field(default=0.05, ge=0)
    """Weight of the KL penalty to the reference; 0 leaves the reference out altogether."""
    place: KlPlace = KlPlace.REWARD
    """`reward`: subtracted from each token's reward (InstructGPT); `loss`: added to the policy loss (GRPO)."""
    estimator: KlEstimator = KlEstimator.K1
    """Estimator of the per-token KL (Schulman 2020)."""
    control: KlControl = KlControl.FIXED
    """`adaptive`: the weight follows `target` (Ziegler et al. 2019)."""
    target: float = Field(default=0.1, gt=0)
    """Target of the adaptive controller: mean KL a token, in nats."""
    horizon: int = Field(default=1000, gt=0)
    """Time constant of the adaptive controller, in completions."""

    @model_validator(mode="after")
    def _check(self) -> Kl:
        if self.place is KlPlace.LOSS and self.estimator is KlEstimator.K1:
            raise ValueError(
                "place=loss with estimator=k1: its gradient is zero on average, so that it would hold nothing; "
                "use k2 or k3, or place=reward"
            )
        return self


class Algorithm(Section):
    advantage: AdvantageEstimator = AdvantageEstimator.GAE
    """`gae`: PPO with a critic; `grpo`: group-relative advantages without one."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda."""
    clip: float = Field(default=0.2, gt=0)
    """PPO's clip range of the policy ratio."""
    value_clip: float = Field(default=0.2, gt=0)
    """Clip range of the value update."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""
    whiten_advantages: bool = True
    """Whether advantages are shifted and scaled to mean 0 and variance 1 over the step's tokens."""
    scale_rewards: bool = False
    """Whether rewards are divided by a running standard deviation."""
    clip_reward: float | None = Field(default=10.0, gt=0)
    """Absolute bound of a completion's reward; null for none."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over a step's experience."""
    num_minibatches: int = Field(default=2, ge=1)
    """Optimizer steps in a pass."""
    kl: Kl = Kl()
    """The KL penalty."""


class Rlhf(Section):
    num_steps: int = Field(default=40, gt=0)
    """Steps of generate -> score -> update."""
    prompts_per_step: int = Field(default=32, gt=0)
    """Prompts drawn in a step."""
    group_size: int = Field(default=4, ge=1)
    """Completions sampled for each prompt."""
    sampling: Sampling = Sampling()
    """How completions are sampled."""
    algorithm: Algorithm = Algorithm()
    """Advantages, losses and KL."""
    rewards: dict[RewardName, float] = {RewardName.LEARNED: 1.0, RewardName.EXACT_MATCH: 1.0}
    """Weight of each reward part in the sum. `learned` is the reward model's score, standardised."""
    encoder: Workers = Workers()
    """Workers that process prompts and run the frozen towers."""
    rollout: Rollout = Rollout()
    """Workers that sample completions, each on a whole copy of the model."""
    reference: Sharded = Sharded()
    """The world of the reference model."""
    reward: Sharded = Sharded()
    """The world of the reward model."""
    policy: Trained = Trained()
    """The world of the policy."""
    critic: Trained = Trained()
    """The world of the critic."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """First steps in which the critic learns and the policy waits, so that its advantages come from a critic that knows
    this policy."""
    save_every: int = Field(default=20, gt=0)
    """Steps between checkpoints; the last step always saves one."""
    keep_last: int = Field(default=2, ge=1)
    """Checkpoints that are kept."""
    samples_every: int = Field(default=10, gt=0)
    """Steps between samples written to `samples.jsonl`."""

    @model_validator(mode="after")
    def _check(self) -> Rlhf:
        if self.prompts_per_step < self.algorithm.num_minibatches:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} cannot be split into "
                f"num_minibatches={self.algorithm.num_minibatches}: a minibatch holds at least one prompt"
            )
        for name in ("reference", "reward"):
            if cast(Sharded, getattr(self, name)).zero_stage in (1, 2):
                raise ValueError(
                    f"{name}.zero_stage={getattr(self, name).zero_stage}: no optimizer to shard; use 0 or 3"
                )
        if self.algorithm.advantage is AdvantageEstimator.GRPO and self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: grpo compares the completions of a group; use 2 or more")
        return self


class Evaluate(Section):
    split: str = "test"
    """Split to evaluate on."""
    samples_per_prompt: int = Field(default=2, ge=1)
    """Completions sampled for each prompt at `rlhf.sampling`; greedy ones are scored beside them."""
    blind: bool = True
    """Whether to measure the blind gap: the same prompts with pictures, sounds and videos blanked."""
    browser_rows: int = Field(default=48, ge=0)
    """Rows in the report's sample browser."""


class Recipe(Section):
    """A whole run, from data to report."""

    run: Run = Run()
    """Name, place and seed."""
    cluster: Cluster = Cluster()
    """Device and placement."""
    model: Model = Model()
    """The checkpoint to start from."""
    data: Data = Data()
    """The prompt table and the bounds of its media."""
    prepare: Prepare = Prepare()
    """The built-in data."""
    sft: Supervised = Supervised()
    """Supervised fine-tuning on demonstrations."""
    preferences: Preferences = Preferences()
    """Pairs of completions and who prefers which."""
    reward_model: RewardModel = RewardModel()
    """The reward model's training."""
    rlhf: Rlhf = Rlhf()
    """The loop: generate -> score -> update."""
    evaluate: Evaluate = Evaluate()
    """The held-out evaluation and its report."""

    @property
    def data_path(self) -> Path:
        """Directory of the prompt table."""
        return self.data.path or self.run.directory / "data"

    def checkpoint(self, stage: str) -> Path:
        """Directory of the checkpoint that `stage` (base, sft, reward_model, rlhf) writes."""
        if stage == "base" and self.model.path is not None:
            return self.model.path
        return self.run.directory / "checkpoints" / stage


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a YAML recipe (or the defaults where `path` is None) and applies `section.field=value` overrides.

    Raises:
        ConfigError: the file is missing, no YAML or no mapping, an override has no `=`, a key is unknown, a value is
            wrong.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"--config {path}: no such file; recipes lie in jobs/recipes/")
        loaded = _yaml(path.read_text(), f"--config {path}")
        if not isinstance(loaded, dict):
            raise ConfigError(f"--config {path}: a recipe is a mapping of sections, not {type(loaded).__name__}")
        tree = cast(dict[str, Any], loaded)
    for override in overrides:
        _apply(tree, override)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"override {override!r}: write section.field=value")
    *parents, leaf = dotted.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
        node = cast(dict[str, Any], child)
    node[leaf] = _yaml(text, f"override {override!r}")


def _yaml(text: str, origin: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not YAML: {error}") from None


def _explain(item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    field = ".".join(location) or "recipe"
    if item["type"] == "extra_forbidden":
        known = list(_section_at(location[:-1]).model_fields)
        close = difflib.get_close_matches(location[-1], known, n=1)
        cure = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{field}: unknown key; {cure}"
    return (
        f"{field}: {item['msg']} (got {item['input']!r})"
        if not isinstance(item["input"], dict)
        else f"{field}: {item['msg']}"
    )


def _section_at(location: Sequence[str]) -> type[Section]:
    section: type[Section] = Recipe
    for part in location:
        section = section_of(section.model_fields[part].annotation) or section
    return section


def section_of(annotation: object) -> type[Section] | None:
    """The section class that a field's annotation names, or None where the field is a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None


def describe(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Lines that document every field below `section`: dotted name, type, default, docstring."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            yield f"\n[{prefix}{name}]  {field.description or ''}"
            yield from describe(inner, f"{prefix}{name}.")
        else:
            yield f"  {prefix}{name}: {_type_name(field.annotation)} = {_as_yaml(field.default)}"
            yield f"      {field.description or ''}"


def _type_name(annotation: object) -> str:
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " | ".join(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " | ".join(_type_name(part) for part in typing.get_args(annotation))
    if annotation is types.NoneType:
        return "null"
    inner = [_type_name(part) for part in typing.get_args(annotation) if part is not Ellipsis]
    if typing.get_origin(annotation) is tuple:
        return f"[{', '.join(inner)}]" if Ellipsis not in typing.get_args(annotation) else f"list of ({inner[0]})"
    if typing.get_origin(annotation) is dict:
        return f"mapping of ({inner[0]}) to {inner[1]}"
    return annotation.__name__ if isinstance(annotation, type) and not inner else str(annotation)


def _as_yaml(value: object) -> str:
    """A default as one would write it in a recipe or an override."""
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()
