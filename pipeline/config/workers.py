"""The workers of a role: how many, on what, how sharded, how they learn."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from pipeline.config.parts import LoopParts
from pipeline.config.paths import DiskPath
from pipeline.config.section import Section

OF_RAY = {
    "CPU": "this is cpus_per_worker",
    "GPU": "GPUs follow from num_workers and gpus_per_worker",
    "memory": "seats count CPUs and GPUs only",
    "object_store_memory": "seats count CPUs and GPUs only",
}
"""Resources that Ray knows by itself, and where they are asked for."""


class Workers(Section):
    num_workers: int = Field(default=1, ge=1)
    """Ray actors (ranks) of this role."""
    cpus_per_worker: float = Field(default=0.2, gt=0)
    """CPUs that Ray reserves for each worker."""
    resources: dict[str, float] = Field(default={})
    """Custom resources of Ray that a node must have for these workers, and how much of them each takes, such as
    `{on_demand: 0.001}`: so they lie on nodes of that kind only. Roles that ask for others share no GPU."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads for torch in each worker."""

    @field_validator("resources")
    @classmethod
    def _check_resources(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if name in OF_RAY:
                raise ValueError(f"resources.{name}={amount:g}: {OF_RAY[name]}; name a custom resource of your nodes")
            if amount <= 0:
                raise ValueError(f"resources.{name}={amount:g}: must be above 0; use 0.001 to ask for the kind of node")
        return resources


class Pooled(Workers):
    gpus_per_worker: float = Field(default=1.0, gt=0)
    """GPUs of each worker where the device is cuda: a whole number, or a share of one, such as 0.25 where four lie on a
    GPU. (A rank of a sharded role or of a training has always one.) Colocated, other roles lie on the same GPU."""

    min_workers: int | None = Field(default=None, ge=1)
    """Workers that stay, however little there is to do, and without which no stage begins; null is num_workers."""
    max_workers: int | None = Field(default=None, ge=1)
    """Workers there may be while all others wait for this role; null is num_workers. Each beyond `min_workers` has a
    seat of its own, which an autoscaler may bring, and which is given back."""
    idle_steps: int = Field(default=5, ge=1)
    """Steps one after the other that wait longer for something else, after which a worker above `min_workers` goes."""

    @property
    def least(self) -> int:
        """Workers that stay."""
        return self.num_workers if self.min_workers is None else self.min_workers

    @property
    def most(self) -> int:
        """Workers there may be."""
        return self.num_workers if self.max_workers is None else self.max_workers

    @model_validator(mode="after")
    def _check_size(self) -> Pooled:
        if not self.least <= self.num_workers <= self.most:
            raise ValueError(
                f"num_workers={self.num_workers}: it begins with as many, so at least min_workers={self.least} and at "
                f"most max_workers={self.most}"
            )
        return self

    @field_validator("gpus_per_worker")
    @classmethod
    def _check_gpus(cls, gpus: float) -> float:
        if gpus > 1 and not gpus.is_integer():
            whole = int(gpus)
            raise ValueError(f"gpus_per_worker={gpus:g}: whole GPUs, or a share of one; use {whole} or {whole + 1}")
        return gpus


class Encoder(Pooled):
    cache_mib: float = Field(default=4096.0, ge=0)
    """Processed prompts and tower features that each encoder worker keeps, in MiB of the object store; what was used
    longest ago goes first. 0 shares no features: every role runs towers of its own in every pass."""


class Rollout(Pooled):
    batch_size: int = Field(default=64, ge=1)
    """Prompts (with all completions of their group) that a worker decodes at once."""


class Sharded(Workers):
    zero_stage: int = Field(default=0, ge=0, le=3)
    """DeepSpeed ZeRO stage of this role's world. Roles without an optimizer take 0 or 3. Those with one run 0 as 1 in
    bfloat16, where stage 0 cannot sum gradients in float32."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens in one forward pass, padding included: each prompt once, and all completions of its group. A group that is
    larger than this still goes in one pass."""


class Reference(Sharded):
    checkpoint: DiskPath | None = None
    """Hugging Face directory of the model that the policy is held near; null is the SFT model. With a better one, which
    shares the towers, and `rlhf.rewards={}` the loop is on-policy distillation: this one is the teacher."""


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
    """AdamW's moment decays, each at least 0 and below 1."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"betas={list(betas)}: each is the share of a moment that a step keeps, at least 0 and below 1; "
                "use [0.9, 0.95]"
            )
        return betas


class Learner(Trained):
    parts: LoopParts = LoopParts()
    """Which parts of the model learn, how, and how fast."""

    @model_validator(mode="after")
    def _check_parts(self) -> Learner:
        self.parts.check_learns()
        return self
