"""What stays float32 in a bfloat16 model: scalar heads, and the sums in scores and logits before a softmax.

DeepSpeed casts every parameter of a module and makes no exceptions; buffers it leaves as they are. Its optimizer keeps
a float32 master of each parameter that learns. So a head's float32 weights lie in buffers, which the engine fills from
the masters: the forward pass computes with these, and the cast parameter is where the gradient goes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SUFFIX = "_float32"


def float32_product(one: Tensor, other: Tensor) -> Tensor:
    """Matrix product [..., n, m] of [..., n, k] and [..., k, m] or [k, m], its sums not rounded to the factors' type.

    A product of bfloat16 matrices sums in float32 and rounds at its end, to 8 bits: 0.06 off where a sum is 18.
    """
    if one.dtype not in (torch.bfloat16, torch.float16):
        return one @ other
    if not one.is_cuda:
        return one.float() @ other.float()
    if other.ndim == 2:
        return torch.mm(one.flatten(0, -2), other, out_dtype=torch.float32).unflatten(0, one.shape[:-1])
    batched = torch.bmm(one.flatten(0, -3), other.flatten(0, -3), out_dtype=torch.float32)
    return batched.unflatten(0, one.shape[:-2])


class Float32Linear(nn.Linear):
    """A linear layer in float32, whatever its parameters are cast to after `keep_masters`."""

    def forward(self, input: Tensor) -> Tensor:
        """Float32 [..., out] of `input` [..., in] of any type."""
        return nn.functional.linear(input.float(), self._master("weight"), self._master("bias"))

    def _master(self, name: str) -> Tensor:
        parameter = getattr(self, name).float()
        master: Tensor | None = self._buffers.get(name + _SUFFIX)
        # The master's value to the bit, since x - x is zero, with the gradient of the parameter.
        return parameter if master is None else master + (parameter - parameter.detach())


def keep_masters(module: nn.Module) -> None:
    """Copies the weights of all float32 layers in `module` to where no cast reaches them."""
    for layer in module.modules():
        if isinstance(layer, Float32Linear):
            for name, parameter in list(layer.named_parameters(recurse=False)):
                # Not persistent: they are what the parameters of the same name are, and are saved as these.
                layer.register_buffer(name + _SUFFIX, parameter.detach().to(torch.float32, copy=True), persistent=False)


def masters(module: nn.Module) -> dict[str, Tensor]:
    """The kept float32 weights, by the names of their parameters in `module`."""
    return {
        f"{prefix}.{name}": layer.get_buffer(name + _SUFFIX)
        for prefix, layer in module.named_modules()
        if isinstance(layer, Float32Linear)
        for name, _ in layer.named_parameters(recurse=False)
        if hasattr(layer, name + _SUFFIX)
    }
