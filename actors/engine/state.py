"""What an engine's checkpoint holds: every trained parameter with its optimizer state, whole and by name.

    <name>/weight, <name>/exp_avg, <name>/exp_avg_sq   float32, in the parameter's own shape
    <name>/step                                        float32 [], optimizer steps taken
    rng/cpu/<rank>, rng/cuda/<rank>                    uint8, a rank's random state

in safetensors files. Nothing depends on the number of ranks or the ZeRO stage that wrote it. DeepSpeed keeps master
weights in flat tensors, cut where it suits the ranks; a `Fragment` says which piece of which parameter lies where, and
that is all that differs between the stages. (Its own `safe_set_full_*` functions fail at stage 3 where the ranks do not
divide a parameter, and before the first step there is no state to set.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actors.engine.files import File, Folder, Unwritable
from pipeline.config import ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq")
PIECES = ("weight", *MOMENTS)
# A file is written when it holds this much, so that a rank never copies all that it saves.
FILE_BYTES = 2**30
_DTYPES = {"F32": torch.float32, "U8": torch.uint8}


@dataclass(frozen=True)
class Saved:
    """What a rank has written: its files, by their names below the engine's folder, and the schedule's position."""

    files: tuple[File, ...]
    schedule: Mapping[str, Any]
    failure: str | None = None
    """Why not all of it could be written."""


@dataclass(frozen=True)
class Fragment:
    """This rank's piece of a trained parameter: `flat[start : start + size]` are its elements from `first` on.

    `flat` is what torch's optimizer steps: the parameter itself, its float32 copy, or a partition of many parameters.
    """

    name: str
    shape: tuple[int, ...]
    group: int
    flat: Tensor
    start: int
    first: int
    size: int

    def of(self, tensor: Tensor) -> Tensor:
        """The piece of a tensor that is laid out as `flat` is."""
        return tensor.detach().view(-1)[self.start : self.start + self.size]

    def set(self, whole: Tensor) -> None:
        """Copies this rank's piece out of a whole parameter."""
        self.of(self.flat).copy_(whole.view(-1)[self.first : self.first + self.size])


def fragments(engine: Any) -> list[Fragment]:
    """The pieces on this rank, one for each trained parameter (perhaps empty), in the same order on every rank."""
    places = {place[0]: place[1:] for place in _places(engine.optimizer)}
    result: list[Fragment] = []
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            group, flat, start, first, size = places[parameter]
            result.append(Fragment(name, shape, group, flat, start, first, max(0, min(size, math.prod(shape) - first))))
    return result


def _places(optimizer: Any) -> Iterator[tuple[nn.Parameter, int, Tensor, int, int, int]]:
    """(parameter, group, flat, start, first, size) for DeepSpeed's kinds of optimizers; see `Fragment`."""
    if isinstance(optimizer, torch.optim.Optimizer):  # Stage 0.
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                yield parameter, index, parameter, 0, 0, parameter.numel()
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):  # Stage 3.
        rank = torch.distributed.get_rank()
        for index, parameters in enumerate(optimizer.fp16_groups):
            for parameter in parameters:
                subgroup, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
                flat = optimizer.fp32_partitioned_groups_flat[subgroup]
                yield parameter, optimizer.sub_group_to_group_id[index], flat, start, rank * size, size
    else:  # Stages 1 and 2; bfloat16 at stage 1 has other names for the same.
        is_bf16 = hasattr(optimizer, "bf16_groups")
        groups = optimizer.bf16_groups if is_bf16 else optimizer.bit16_groups
        flats = optimizer.fp32_groups_flat_partition if is_bf16 else optimizer.single_partition_of_fp32_groups
        for index, (parameters, flat) in enumerate(zip(groups, flats, strict=True)):
            for parameter in parameters:
                mapping = parameter._hp_mapping
                if mapping is None:
                    yield parameter, index, flat, 0, 0, 0
                else:
                    inside, own = mapping.hp_fragment_address, mapping.lp_fragment_address
                    yield parameter, index, flat, inside.start, own.start, inside.numel


def save(engine: Any, folder: Folder) -> Saved:
    """Writes this rank's share of the state: every n-th parameter, whole. All ranks must call it."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    writer = _Writer(folder, rank)
    for name, state in _random_state().items():
        writer.add(f"rng/{name}/{rank}", state)
    is_sharded = _is_sharded(engine)
    for index, fragment in enumerate(fragments(engine)):
        owner = index % size
        if is_sharded or owner == rank:
            pieces = _pieces(engine.basic_optimizer, fragment)
            if is_sharded:
                # Each element comes from one rank and the others add zeros; as integers, so that every bit is kept.
                torch.distributed.reduce(pieces.view(torch.int32), dst=owner)
            if owner == rank:
                writer.add(f"{fragment.name}/step", _steps(engine.basic_optimizer, fragment))
                for name, piece in zip(PIECES, pieces, strict=True):
                    writer.add(f"{fragment.name}/{name}", piece.view(fragment.shape))
    writer.flush()
    schedule = engine.lr_scheduler.state_dict()
    position = {key: schedule[key] for key in ("last_epoch", "base_lrs", "_last_lr")}
    return Saved(tuple(writer.files), position, writer.failure)


def num_bytes(engine: Any) -> int:
    """What `save` writes in all, but for names and random states."""
    return sum(len(PIECES) * 4 * math.prod(fragment.shape) for fragment in fragments(engine))


def weight(engine: Any, fragment: Fragment) -> Tensor:
    """A parameter's float32 master, whole, on every rank. All ranks must call it."""
    whole = torch.zeros(math.prod(fragment.shape), device=fragment.flat.device)
    whole[fragment.first : fragment.first + fragment.size] = fragment.of(fragment.flat)
    if _is_sharded(engine):
        torch.distributed.all_reduce(whole.view(torch.int32))
    return whole.view(fragment.shape)


def _is_sharded(engine: Any) -> bool:
    return torch.distributed.get_world_size() > 1 and engine.zero_optimization_stage() > 0


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _pieces(optimizer: torch.optim.Optimizer, fragment: Fragment) -> Tensor:
    """Weight and moments [3, numel] of a parameter, zero where its elements lie on other ranks."""
    # An optimizer that has not stepped has no moments: that is zeros.
    state = optimizer.state.get(fragment.flat) or {}
    pieces = torch.zeros(len(PIECES), math.prod(fragment.shape), device=fragment.flat.device)
    for row, source in zip(pieces, [fragment.flat, *(state.get(moment) for moment in MOMENTS)], strict=True):
        if source is not None:
            row[fragment.first : fragment.first + fragment.size] = fragment.of(source)
    return pieces


def _steps(optimizer: torch.optim.Optimizer, fragment: Fragment) -> Tensor:
    state = optimizer.state.get(fragment.flat) or {}
    return torch.as_tensor(state.get("step", 0.0), dtype=torch.float32)


class _Writer:
    """Collects tensors and writes them into files of bounded size.

    After a failure it writes nothing more, and raises nothing: other ranks wait for this one's share of each parameter.
    """

    def __init__(self, folder: Folder, rank: int):
        self.files: list[File] = []
        self.failure: str | None = None
        self._folder = folder
        self._rank = rank
        self._tensors: dict[str, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        # A copy: pieces of one tensor would count as shared memory.
        self._tensors[name] = tensor.detach().to("cpu", copy=True)
        if sum(each.nbytes for each in self._tensors.values()) >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        from safetensors.torch import save as serialized

        if self._tensors and self.failure is None:
            name = f"rank-{self._rank:05d}-{len(self.files):03d}.safetensors"
            try:
                self.files.append(self._folder.write(name, serialized(self._tensors)))
            except Unwritable as error:
                self.failure = str(error)
        self._tensors = {}


class TensorFiles:
    """The tensors in the safetensors files of a folder, by name. Only the bytes that are asked for are read."""

    def __init__(self, folder: Folder, names: Iterable[str]):
        """`names` are those of the files, below the folder."""
        self._folder = folder
        self._entries: dict[str, tuple[str, int, Mapping[str, Any]]] = {}
        for file in names:
            # The format: the header's length in 8 bytes, the header in JSON, the tensors.
            length = int.from_bytes(folder.read(file, 0, 8), "little")
            header: dict[str, Any] = json.loads(folder.read(file, 8, 8 + length))
            header.pop("__metadata__", None)
            self._entries.update({name: (file, 8 + length, entry) for name, entry in header.items()})

    def __str__(self) -> str:
        return str(self._folder)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._entries[name][2]["shape"])

    def read(self, name: str, first: int = 0, size: int | None = None) -> Tensor:
        """`size` elements from `first` on, or all that are left, as a flat tensor."""
        file, offset, entry = self._entries[name]
        dtype = _DTYPES[entry["dtype"]]
        last = math.prod(entry["shape"]) if size is None else first + size
        if first == last:
            return torch.empty(0, dtype=dtype)
        start = offset + entry["data_offsets"][0]
        content = self._folder.read(file, start + first * dtype.itemsize, start + last * dtype.itemsize)
        return torch.frombuffer(bytearray(content), dtype=dtype)


def load(engine: Any, folder: Folder, names: Sequence[str], schedule: Mapping[str, Any]) -> None:
    """Restores what `save` wrote, at any number of ranks and ZeRO stage. All ranks must call it.

    Learning rates come from the recipe, at the schedule's old position.

    Raises:
        ConfigError: the parameters that train are not those of the checkpoint; nothing has been changed then.
    """
    files, pieces = TensorFiles(folder, names), fragments(engine)
    check_parameters(files, pieces)
    steps = {fragment.name: float(files.read(f"{fragment.name}/step")) for fragment in pieces}
    if engine.zero_optimization_stage() > 0:
        _check_steps(pieces, steps)
    for fragment in pieces:
        _fill(engine.basic_optimizer, fragment, files, steps[fragment.name])
    _refresh_module(engine.optimizer)
    _restore_schedule(engine.lr_scheduler, int(schedule["last_epoch"]))
    _restore_random_state(files)


def check_parameters(files: TensorFiles, pieces: Sequence[Fragment]) -> None:
    """Makes sure that a checkpoint holds the parameters that train, no more and no less.

    Raises:
        ConfigError: it does not; the message names them.
    """
    stored = {name.removesuffix("/weight") for name in files if name.endswith("/weight")}
    shapes = {fragment.name: fragment.shape for fragment in pieces}
    for names, what, cure in (
        (shapes.keys() - stored, "it lacks parameters that train now", "freeze what was frozen when it was written"),
        (stored - shapes.keys(), "it holds parameters that do not train now", "train what trained when it was written"),
    ):
        if names:
            raise ConfigError(f"{files}: {what}: {_listed(names)}; {cure}, or start without --resume")
    for name, shape in shapes.items():
        found = files.shape(f"{name}/weight")
        if found != shape:
            raise ConfigError(
                f"{files}: {name} has shape {list(found)} there and {list(shape)} in the model: start from the model "
                "that it was written from, or without --resume"
            )


def _listed(names: Iterable[str], limit: int = 5) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more


def _check_steps(pieces: Sequence[Fragment], steps: Mapping[str, float]) -> None:
    """ZeRO keeps one step count for all parameters of a group."""
    first: dict[int, str] = {}
    for fragment in pieces:
        other = first.setdefault(fragment.group, fragment.name)
        if steps[fragment.name] != steps[other]:
            raise ConfigError(
                f"{fragment.name} took {steps[fragment.name]:.0f} optimizer steps and {other} {steps[other]:.0f}, but "
                "they share a group, and ZeRO counts once a group: resume at zero_stage=0 in float32"
            )


def _fill(optimizer: torch.optim.Optimizer, fragment: Fragment, files: TensorFiles, steps: float) -> None:
    state = optimizer.state[fragment.flat]
    if not state:
        # As torch's AdamW(fused=True) makes it at its first step.
        state["step"] = torch.zeros((), dtype=torch.float32, device=fragment.flat.device)
        state.update({moment: torch.zeros_like(fragment.flat.detach()) for moment in MOMENTS})
    state["step"].fill_(steps)
    for piece, target in zip(PIECES, (fragment.flat, *(state[moment] for moment in MOMENTS)), strict=True):
        fragment.of(target).copy_(files.read(f"{fragment.name}/{piece}", fragment.first, fragment.size))


def _refresh_module(optimizer: Any) -> None:
    """Brings the restored master weights into the module that computes."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer.checkpoint_event_prologue()
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer.checkpoint_event_epilogue()
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


def _restore_schedule(schedule: Any, position: int) -> None:
    shares = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    rates: list[float] = []
    for group, base, share in shares:
        group["lr"] = base * share(position)
        rates.append(group["lr"])
    # The functions themselves stay: None stands for each.
    functions = [None] * len(rates)
    schedule.load_state_dict(
        {"last_epoch": position, "_step_count": position + 1, "_last_lr": rates, "lr_lambdas": functions}
    )


def _restore_random_state(files: TensorFiles) -> None:
    """Each rank goes on with its own random numbers; in a larger world some share theirs."""
    for kind, restore in (("cpu", torch.set_rng_state), ("cuda", torch.cuda.set_rng_state)):
        num_stored = sum(name.startswith(f"rng/{kind}/") for name in files)
        if num_stored and (kind == "cpu" or torch.cuda.is_available()):
            restore(files.read(f"rng/{kind}/{torch.distributed.get_rank() % num_stored}"))
