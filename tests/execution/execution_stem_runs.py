"""Steps of blocks of few channels with a stride, in channels_last, under one execution.

A strided pointwise convolution there corrupts memory in torch 2.15: a program of its own, so that
a crash is a failed test.
"""

import sys

import torch
from execution_runs import block_of, image

execution = sys.argv[1]
for name, size, groups in [("repvgg", 3, 1), ("mobileone", 1, 1), ("mobileone", 1, 8)]:
    channels = (3, 48) if groups == 1 else (groups, groups)
    block = block_of(name, *channels, size, 2, groups=groups, execution=execution).float()
    block.to(memory_format=torch.channels_last)
    x = image(8, channels[0], 64, 64, dtype=torch.float32).to(memory_format=torch.channels_last)
    if execution == "weight_space":
        block.branches.apply(lambda m: m.eval() if hasattr(m, "running_mean") else m)
    for _ in range(4):
        block(x.requires_grad_()).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())
