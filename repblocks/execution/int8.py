"""Weights and inputs as INT8 has them, for training that is aware of quantization.

The branches are merged in weight space; the kernel is rounded to 8 bits for each output channel
(symmetric), the input to 8 bits as a whole (its range in the batch). What is rounded is the kernel
that is deployed, while the branches train; gradients pass as if nothing had been rounded.

Source:
    Jacob et al., Quantization and Training, CVPR 2018, section 3, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


def rounded_weight(weight: Tensor) -> Tensor:
    """Round ``(C_out, C_in // groups, *k)`` to 127 steps to each side of 0, for each output."""
    scale = weight.detach().abs().flatten(1).amax(1).div(127).clamp_min(_TINY)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def rounded_input(x: Tensor) -> Tensor:
    """Round a float32 tensor to 256 steps between its extremes, of which 0 is one."""
    low, high = torch.aminmax(x.detach())
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / 255).clamp_min(_TINY)
    zero = torch.round(-low / scale).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)
