"""A whole run, from data to report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field, model_validator

from pipeline.config.classify import Classify
from pipeline.config.data import Data, Dataset
from pipeline.config.decide import Decide
from pipeline.config.feedback import Feedback
from pipeline.config.paths import DiskPath
from pipeline.config.preference import PreferenceLearning
from pipeline.config.prepare import Prepare
from pipeline.config.pretrain import Pretrain
from pipeline.config.retrieve import Retrieve
from pipeline.config.rlhf import RewardName, Rlhf
from pipeline.config.section import Section
from pipeline.config.stages import Distill, Evaluate, Export, Preferences, RewardModel, Supervised


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


class Sink(StrEnum):
    CONSOLE = "console"
    JSONL = "jsonl"
    TENSORBOARD = "tensorboard"
    RAY = "ray"
    WANDB = "wandb"
    MLFLOW = "mlflow"


class Resume(StrEnum):
    NEVER = "never"
    AUTO = "auto"


class Run(Section):
    name: str = "demo"
    """Name of the run, shown in trackers and in the report."""
    directory: DiskPath = Path("runs/demo")
    """Where data, checkpoints, metrics and the report go. On a cluster: a path that all nodes share."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random: data, initialisation, order, sampling."""
    resume: Resume = Resume.NEVER
    """What the same command does that was cut off: begin again (`never`), or go on from what its last try has finished
    and, within the loop, from its last checkpoint (`auto`); where nothing is left, it begins."""
    sinks: tuple[Sink, ...] = (Sink.CONSOLE, Sink.JSONL, Sink.TENSORBOARD, Sink.RAY)
    """Where metrics go. `wandb` and `mlflow` need the extras of the same name."""


class Deadlines(Section):
    first_s: float = Field(default=1800.0, gt=0)
    """Seconds for the first call of a kind, of which nothing is known."""
    least_s: float = Field(default=120.0, gt=0)
    """Seconds that every call has."""
    factor: float = Field(default=10.0, ge=1)
    """How many times as long as the longest of its kind so far a call may take."""

    @property
    def fetch_s(self) -> float:
        """Seconds that a call waits for what others put into the object store, before these count as out of reach."""
        return self.least_s / 4  # It waits twice: for prompts, and then for their media.


class Cluster(Section):
    device: Device = Device.AUTO
    """`cpu` (gloo), `cuda` (NCCL), or `auto`: cuda where the cluster has GPUs, or may get some (`max_gpus`)."""
    max_gpus: int | None = Field(default=None, ge=1)
    """GPUs that the cluster has once its autoscaler has brought all that it may: a stage waits for those it needs, and
    ends at once where it needs more. Null: the cluster stays as it is."""
    placement: Placement = Placement.COLOCATED
    """`colocated`: the k-th workers of all roles share a GPU; `apart`: each role has GPUs of its own."""
    resource_timeout_s: float = Field(default=60.0, gt=0)
    """How long a stage waits for the resources of its roles, in seconds; give an autoscaler time to bring nodes."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """How long a collective may take before its world is given up, in seconds."""

    deadlines: Deadlines = Deadlines()
    """How long calls to workers may take before the worker counts as hanging, and is started again."""
    max_recoveries_an_hour: int = Field(default=20, ge=0)
    """Workers that may be lost and brought back within an hour; one more ends the run, and says what kept failing."""


class Model(Section):
    path: DiskPath | None = None
    """Hugging Face directory of the checkpoint to start from; null builds the tiny one in `<run>/checkpoints/base`."""
    tiny_architecture: str = "qwen2_5_omni_thinker"
    """Architecture of the tiny checkpoint that is built where `path` is null."""
    tiny_hidden: int = Field(default=128, ge=64, multiple_of=64)
    """Width of the tiny checkpoint's decoder; 64 makes a third of the parameters, with the same tokens: a student."""
    dtype: Dtype = Dtype.FLOAT32
    """Parameters' type. `bfloat16` is for GPUs."""
    share_prefix: bool = True
    """Whether a prompt runs once for all completions of its group, in generation, scoring and update. Off, results are
    the same; for architectures that cannot keep a prompt's state apart."""
    trust_remote_code: bool = False
    """Whether code inside a checkpoint may run. Leave it off for checkpoints you have not read."""


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
    preference: PreferenceLearning = PreferenceLearning()
    """Learning from preferences without a loop."""
    distill: Distill = Distill()
    """Learning the best of many samples, or a smaller model from a better one."""
    rlhf: Rlhf = Rlhf()
    """The loop: generate -> score -> update."""
    evaluate: Evaluate = Evaluate()
    """The held-out evaluation and its report."""
    classify: Classify = Classify()
    """Fusion models that classify, against single modalities."""
    pretrain: Pretrain = Pretrain()
    """Contrastive pretraining of a joint embedding."""
    retrieve: Retrieve = Retrieve()
    """Retrieval across modalities, zero- and few-shot classification."""
    export: Export = Export()
    """A checkpoint in 8 bits, for deployment."""
    feedback: Feedback = Feedback()
    """People who judge completions."""
    decide: Decide = Decide()
    """Choosing among K actions."""

    @model_validator(mode="after")
    def _check_validation(self) -> Recipe:
        split = self.rlhf.validation.split
        others = {"rlhf.split": self.rlhf.split, "preferences.split": self.preferences.split}
        others |= {"evaluate.split": self.evaluate.split, "the demonstrations' split": "train"}
        for field, other in others.items():
            if self.rlhf.evaluate_every and split == other:
                raise ValueError(
                    f"rlhf.validation.split={split}: {field} has the same rows, and what is chosen by rows that are "
                    "learned from, or reported on, is not chosen fairly; use a split of its own, such as validation"
                )
        return self

    @model_validator(mode="after")
    def _check_people(self) -> Recipe:
        if RewardName.HUMAN in self.rlhf.rewards and not self.feedback.enabled:
            raise ValueError("rlhf.rewards.human: nobody is asked; use feedback.enabled=true, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_graders(self) -> Recipe:
        least_s = self.cluster.deadlines.least_s
        for name, settings in self.rlhf.outside_rewards.items():
            if settings.limit_s >= least_s:
                raise ValueError(
                    f"rlhf.rewards.{name}: timeout_s={settings.timeout_s:g} with retries={settings.retries} is no less "
                    f"than cluster.deadlines.least_s={least_s:g}, after which the grader worker itself counts as "
                    "hanging; raise that one, or lower these"
                )
        return self

    @property
    def data_path(self) -> Path:
        """Directory on disk of the prompt table that is made where `data.path` names none."""
        return Path(self.data.path or self.run.directory / "data")

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The prompt tables of the run: those of the mixture, or the one of `data.path`."""
        return self.data.mixture or (Dataset(path=self.data.path or str(self.data_path), name="data"),)

    @property
    def feedback_url(self) -> str:
        """The feedback store's database."""
        return self.feedback.url or f"sqlite:///{self.run.directory.absolute() / 'feedback' / 'store.sqlite'}"

    @property
    def feedback_media(self) -> Path:
        """Directory of the feedback store's media."""
        return self.feedback.media_directory or self.run.directory / "feedback" / "media"

    @property
    def rollout_is_exact(self) -> bool:
        """Whether a rollout copy with the policy's weights gives the policy's logprobs, but for the last float32 bits.

        The built-in engine decodes token by token what the trainer runs at once: in float32 that is 1e-6 nats, in
        bfloat16 1e-2. An engine of other kernels or of another precision belongs here: it is never exact.
        """
        return self.model.dtype is Dtype.FLOAT32

    @property
    def scores_proximal(self) -> bool:
        """Whether the policy scores its samples before the update: behaviour logprobs may differ from its own."""
        return self.rlhf.is_off_policy or not self.rollout_is_exact

    def checkpoint(self, stage: str) -> Path:
        """Directory of the checkpoint that `stage` (base, sft, reward_model, preference, distilled, rlhf) writes."""
        if stage == "base" and self.model.path is not None:
            return self.model.path
        return self.run.directory / "checkpoints" / stage
