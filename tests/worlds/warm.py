"""What every world imports."""

import torch

from actors.engine import import_deepspeed
from pipeline.config import Device

torch.set_num_threads(1)
import_deepspeed(Device.CPU)
