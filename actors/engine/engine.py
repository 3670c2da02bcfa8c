"""A plain class around DeepSpeed: join a world, shard a module, step, save, load, gather. No Ray inside."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from io import StringIO
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.engine import state
from actors.engine.files import Folder
from actors.engine.place import Place
from actors.engine.state import Saved
from pipeline.config import Device, Dtype, Sharded, Trained
from pipeline.models.float32 import keep_masters, masters

ParameterGroups = list[dict[str, Any]]
MAX_SKIPPED_IN_A_ROW = 5
"""Optimizer steps without a finite gradient after which a run stops: it has met no outlier, it has diverged."""
# Below this size every parameter is sharded; above it, DeepSpeed keeps small ones whole, which is faster.
SMALL_MODEL_PARAMETERS = 100_000_000


def join(world: Place) -> None:
    """Makes this process a rank of its role's world; a process group that already exists is used as it is."""
    backend = "nccl" if world.device is Device.CUDA else "gloo"
    os.environ.update(
        RANK=str(world.rank),
        LOCAL_RANK=str(world.local_rank),
        WORLD_SIZE=str(world.size),
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR=world.address,
        MASTER_PORT=str(world.port),
    )
    deepspeed = import_deepspeed(world.device)
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=world.timeout_s),
        verbose=False,
    )


def import_deepspeed(device: Device) -> Any:
    """DeepSpeed, imported so that it neither compiles kernels nor pulls in inductor on a CPU."""
    if device is Device.CPU:
        os.environ["DS_ACCELERATOR"] = "cpu"
    with _without_compile():
        import deepspeed

        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    if device is Device.CPU:
        # Else init_distributed builds a shared-memory kernel: 87 s, and a compiler is needed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    return deepspeed


@contextmanager
def _without_compile() -> Generator[None, None, None]:
    """A decorator at DeepSpeed's import would load torch's inductor (6 s); we never run what it decorates."""
    real = torch.compile
    torch.compile = cast(Any, lambda function=None, **_: function if function is not None else (lambda inner: inner))
    try:
        yield
    finally:
        torch.compile = real


class Engine:
    """A module sharded by ZeRO over the ranks of the world that this process joined.

    With `Trained` settings it has an AdamW optimizer over `groups`, by default all parameters with a gradient; with
    `Sharded` ones it only runs forward (stage 0 or 3).
    """

    def __init__(
        self, module: nn.Module, *, world: Place, settings: Sharded, dtype: Dtype, groups: ParameterGroups | None = None
    ):
        deepspeed = import_deepspeed(world.device)
        self.world = world
        self.settings = settings
        self.device = world.torch_device
        is_bfloat16 = dtype is Dtype.BFLOAT16
        self._stage = _stage(settings, dtype)
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        config: dict[str, Any] = {
            # Losses carry global normalisers and micro-batches are counted here, so DeepSpeed scales nothing.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": self._stage},
            "bf16": {"enabled": is_bfloat16},
            "steps_per_print": 2**31,
        }
        if self._stage == 3 and num_parameters < SMALL_MODEL_PARAMETERS:
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        optimizer = scheduler = None
        if isinstance(settings, Trained):
            config["gradient_clipping"] = settings.max_grad_norm
            # The optimizer is torch's own: DeepSpeed's would compile for minutes, and must be told that it is meant.
            config["zero_allow_untested_optimizer"] = True
            if is_bfloat16:
                # The sums over passes and over ranks; each pass's own gradients are bfloat16.
                config["data_types"] = {"grad_accum_dtype": "fp32"}
                config["communication_data_type"] = "fp32"
            optimizer = torch.optim.AdamW(
                groups or [parameter for parameter in module.parameters() if parameter.requires_grad],
                lr=settings.learning_rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                fused=True,
            )
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_schedule(settings))
        else:
            module.requires_grad_(False)
        module.to(self.device)
        if is_bfloat16:
            keep_masters(module)
        # Without what DeepSpeed prints about its memory.
        with redirect_stdout(StringIO()):
            self._engine: Any = deepspeed.initialize(
                model=module, optimizer=optimizer, lr_scheduler=scheduler, config=config
            )[0]
        self._engine.eval()
        self._plain_norm = 0.0
        self._skipped_in_a_row = 0
        self._masters = masters(module)
        self._learning_masters: list[state.Fragment] = []
        if self._masters and optimizer is not None:
            self._start_from_masters()

    def _start_from_masters(self) -> None:
        """Gives the optimizer the heads' float32 weights: it starts from what the cast has left of them."""
        self._learning_masters = [each for each in state.fragments(self._engine) if each.name in self._masters]
        for fragment in self._learning_masters:
            fragment.set(self._masters[fragment.name])

    def _refresh_masters(self) -> None:
        """Brings the optimizer's float32 weights to the heads that compute with them. All ranks must call it."""
        for fragment in self._learning_masters:
            self._masters[fragment.name].copy_(state.weight(self._engine, fragment))

    @property
    def module(self) -> Any:
        """The wrapped module."""
        return self._engine.module

    def __call__(self, *args: Any) -> Any:
        """The module's forward pass."""
        return self._engine(*args)

    def train(self, loss: Callable[[], Tensor], *, last: bool) -> None:
        """Forward and backward of one micro-batch; the optimizer steps after the `last` one.

        The loss is a sum over this rank's rows divided by global counts. DeepSpeed averages gradients over the ranks:
        the factor makes that a sum, so that the result does not depend on how rows are split.

        A step whose gradient is not finite is skipped: parameters, moments and schedule stay as they are.

        Raises:
            FloatingPointError: the gradients of `MAX_SKIPPED_IN_A_ROW` steps in a row were not finite.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss() * self.world.size, scale_wrt_gas=False)
        if last and self._stage == 0:
            # Without ZeRO, DeepSpeed clips the reduced gradients but keeps no norm.
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._plain_norm = float(torch.nn.utils.get_total_norm(gradients))
        num_skipped = self._engine.skipped_steps
        if last and not math.isfinite(self._plain_norm) and not hasattr(self._engine.optimizer, "overflow"):
            # DeepSpeed's own optimizers skip such a step; the plain one would write NaN into every weight.
            self._engine.zero_grad()
            self._engine.skipped_steps += 1
        else:
            self._engine.step()
        if last:
            self._note_skipped(self._engine.skipped_steps > num_skipped)
            self._refresh_masters()

    def _note_skipped(self, is_skipped: bool) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if is_skipped else 0
        if self._skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"the gradients of {MAX_SKIPPED_IN_A_ROW} optimizer steps in a row were not finite, so none was taken; "
                "look for the first of `counts/steps_skipped` in the metrics, lower learning_rate, or use float32"
            )

    @property
    def is_skipped(self) -> bool:
        """Whether the last optimizer step was skipped because its gradient was not finite."""
        return self._skipped_in_a_row > 0

    @property
    def grad_norm(self) -> float:
        """Global gradient norm of the last optimizer step, before clipping; infinite where that was skipped."""
        if self.is_skipped:
            return math.inf  # DeepSpeed keeps the norm of the step before at some stages, at others -1.
        return self._plain_norm if self._stage == 0 else float(self._engine.get_global_grad_norm())

    @property
    def learning_rate(self) -> float:
        """The rate that the next optimizer step uses."""
        return float(self._engine.get_lr()[0])

    def save(self, folder: Folder) -> Saved:
        """Every rank writes its share of the trained parameters, their optimizer state, and its random state."""
        return state.save(self._engine, folder)

    @property
    def checkpoint_bytes(self) -> int:
        """What `save` writes, of all ranks together."""
        return state.num_bytes(self._engine)

    def load(self, folder: Folder, names: Sequence[str], schedule: Mapping[str, Any]) -> None:
        """Restores what `save` wrote into the files of these names; see `state.load`. All ranks must call it."""
        state.load(self._engine, folder, names, schedule)
        self._refresh_masters()

    def gather(self, *, trainable_only: bool = False) -> dict[str, NDArray[Any]]:
        """Whole parameters and buffers by name, on rank 0; empty elsewhere. All ranks must call it.

        bfloat16 travels as float32, which holds it exactly; a float32 head travels as it is.
        """
        deepspeed = import_deepspeed(self.world.device)
        gathered: dict[str, NDArray[Any]] = {}
        parameters = [
            (name, parameter)
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad or not trainable_only
        ]
        for bucket in _buckets(parameters):
            sharded = [parameter for _, parameter in bucket if hasattr(parameter, "ds_id")]
            with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
                if self.world.rank == 0:
                    gathered.update((name, _to_numpy(self._masters.get(name, each))) for name, each in bucket)
        if self.world.rank == 0 and not trainable_only:
            persistent = self.module.state_dict().keys()
            gathered.update((name, _to_numpy(item)) for name, item in self.module.named_buffers() if name in persistent)
        return gathered

    def sum_over_ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums statistics over the world, so that every rank reports the global ones."""
        if self.world.size == 1 or not values:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def max_over_ranks(self, value: float) -> float:
        """The largest of all ranks' values."""
        if self.world.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return float(largest)


def _stage(settings: Sharded, dtype: Dtype) -> int:
    """The ZeRO stage that DeepSpeed runs: in bfloat16 a learner's stage 0 is its stage 1.

    There stage 0 cannot sum gradients in float32, and steps once before it has any. Stage 1 gives the same numbers, and
    shares the optimizer's state out over the ranks.
    """
    learns_in_bfloat16 = dtype is Dtype.BFLOAT16 and isinstance(settings, Trained)
    return max(settings.zero_stage, 1) if learns_in_bfloat16 else settings.zero_stage


def learning_rate_schedule(settings: Trained) -> Callable[[int], float]:
    """Share of the peak rate at an optimizer step: linear warm-up that never starts at zero, then a cosine."""

    def share(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.decay_steps is None:
            return 1.0
        done = min(1.0, (step - settings.warmup_steps) / max(1, settings.decay_steps - settings.warmup_steps))
        return settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * done))

    return share


def _buckets(
    parameters: list[tuple[str, nn.Parameter]], bucket_bytes: int = 32 * 2**20
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Groups of parameters of about `bucket_bytes`, so that a whole sharded model is never gathered at once."""
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in parameters:
        bucket.append((name, parameter))
        size += int(getattr(parameter, "ds_numel", parameter.numel())) * parameter.element_size()
        if size >= bucket_bytes:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    return np.array(tensor.detach().float().cpu().numpy())
