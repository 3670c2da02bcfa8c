"""What every world imports, and what DeepSpeed's first engine would."""

import importlib

import torch

from actors.engine.engine import import_deepspeed
from pipeline.config import Device

torch.set_num_threads(1)
import_deepspeed(Device.CPU)
for module in (
    "actors.loop.checkpoints",
    "deepspeed.module_inject.auto_ep_layer",
    "fsspec.implementations.local",
    "numpy.random",
    "safetensors.torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
):
    importlib.import_module(module)
