"""Which form of paradigm 9 runs faster here: a 1 x 1 convolution or a linear layer.

    uv run benchmarks/pointwise_or_linear.py [--threads 1]

Both compute the same function of the same weights. The linear layer acts on the last axis, so it is
timed on channels-last data as it lies; the convolution on both memory formats. Ratios are to the
convolution in the usual format (NCHW).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _interleaved import print_table, time_interleaved

from repblocks.algebra import linear_to_pointwise

SHAPES = [(1, 64, 56), (1, 256, 14), (16, 64, 56), (16, 128, 28), (32, 256, 14), (32, 768, 7)]


def measure(batch: int, channels: int, size: int) -> list[str]:
    """Return one row of the table."""
    linear = torch.nn.Linear(channels, channels)
    conv = linear_to_pointwise(linear)
    conv_last = linear_to_pointwise(linear).to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, size, size)
    x_last = x.to(memory_format=torch.channels_last)
    on_last_axis = x_last.permute(0, 2, 3, 1)
    difference = (linear(on_last_axis).permute(0, 3, 1, 2) - conv(x)).abs().max().item()
    times = time_interleaved(
        {
            "conv": lambda: conv(x),
            "conv_last": lambda: conv_last(x_last),
            "linear": lambda: linear(on_last_axis),
        }
    )
    ratios = [f"{times[name] / times['conv']:.2f}" for name in ("conv_last", "linear")]
    return [f"{batch} x {channels} x {size}²", f"{times['conv']:.3f}", *ratios, f"{difference:.0e}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    with torch.inference_mode():
        rows = [measure(*shape) for shape in SHAPES]
    columns = ["input", "1x1 NCHW, ms", "1x1 NHWC, ratio", "linear, ratio", "difference"]
    print_table("A pointwise convolution and the same linear layer", columns, rows)


if __name__ == "__main__":
    main()
