"""Small DeepSpeed worlds for tests, in processes of their own that are forked from one which has done the imports."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from pipeline.config import Device

if TYPE_CHECKING:
    from actors.engine.place import Place

WARM_MODULE = "tests.worlds.warm"


def start(
    function: Callable[..., Any], num_ranks: int, *args: Any, device: Device = Device.CPU
) -> list[tuple[BaseProcess, Connection]]:
    """Starts `function(*args)` on the ranks of a new world; each process with what it sends its result through."""
    if device is Device.CPU:
        context = multiprocessing.get_context("forkserver")
        # Imports take 10 s: the server does them once, and forks before there is a thread or a process group.
        context.set_forkserver_preload([WARM_MODULE])
    else:
        context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    started: list[tuple[BaseProcess, Connection]] = []
    for rank in range(num_ranks):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank, args=(function, rank, num_ranks, port, device, sender, args), daemon=True
        )
        process.start()
        sender.close()
        started.append((process, receiver))
    return started


def run(
    function: Callable[..., Any], num_ranks: int, *args: Any, device: Device = Device.CPU, timeout_s: float = 120.0
) -> list[Any]:
    """What `function(*args)` returns on each rank."""
    results: list[Any] = []
    for process, receiver in start(function, num_ranks, *args, device=device):
        assert receiver.poll(timeout_s), f"a rank did not answer within {timeout_s} s"
        succeeded, result = receiver.recv()
        assert succeeded, result
        results.append(result)
        process.join()
    return results


def here() -> Place:
    """Where this process stands in the world that it has joined."""
    import torch

    from actors.engine.place import Place

    device = Device.CUDA if torch.distributed.get_backend() == "nccl" else Device.CPU
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return Place(rank=rank, size=size, address="", port=0, device=device, timeout_s=60)


def _rank(
    function: Callable[..., Any], rank: int, size: int, port: int, device: Device, sender: Connection, args: Any
) -> None:
    import torch

    from actors.engine.engine import join
    from actors.engine.place import Place

    torch.set_num_threads(1)
    try:
        join(Place(rank=rank, size=size, address="127.0.0.1", port=port, device=device, timeout_s=60))
        sender.send((True, function(*args)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()
        # Without the end of the interpreter, which waits for what DeepSpeed has left.
        os._exit(0)
