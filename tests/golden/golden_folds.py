"""What is stored of a block: a few numbers of its folded weights and of what it computes."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from truth import fitting

from repblocks.blocks import CONV_BLOCKS, STAGE_BLOCKS, RepBlock, anneal

FOLDER = Path(__file__).parent / "blocks"
SQUARE = {"in_channels": 6, "out_channels": 6, "kernel_size": 3}
CONV_CASES: dict[str, dict[str, Any]] = {
    "square": SQUARE,
    "line": {**SQUARE, "kernel_size": 5, "ndim": 1},
    "volume": {**SQUARE, "ndim": 3},
    "strided": {**SQUARE, "out_channels": 8, "stride": 2, "groups": 2, "padding": 0},
    "dilated": {**SQUARE, "dilation": 2, "se": 0.5, "activation": "silu"},
}
STAGE_CASES: dict[str, dict[str, Any]] = {
    "add": {"dim": 6},
    "expand": {"dim": 6, "deploy_shortcut": "expand"},
    "volume": {"dim": 6, "ndim": 3},
}
_SIZES = {1: (13,), 2: (8, 9), 3: (5, 6, 7)}
_NUM_VALUES = 6


def cases(name: str) -> dict[str, dict[str, Any]]:
    """Return the arguments of each case of a block."""
    if name in CONV_BLOCKS:
        return CONV_CASES
    known = inspect.signature(STAGE_BLOCKS[name]).parameters
    return {case: given for case, given in STAGE_CASES.items() if given.keys() <= known.keys()}


def stored() -> dict[str, Any]:
    """Return what is stored, by block and case."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def numbers(name: str, case: str) -> dict[str, dict[str, Any]]:
    """Return what is stored of a block, computed anew in float64.

    Raises:
        UnknownNameError: if there is no such block.
    """
    registry = CONV_BLOCKS if name in CONV_BLOCKS else STAGE_BLOCKS
    arguments = cases(name)[case]
    sizes = _SIZES[arguments.get("ndim", 2)]
    block = registry[name](**arguments, **fitting(registry[name], *sizes)).double().eval()
    assert isinstance(block, RepBlock)
    random = np.random.RandomState(0)
    draw(block, random)
    anneal(block, 1.0)
    x = normal(random, 2, 6, *sizes)
    with torch.no_grad():
        before = summary(block(x))
        with warnings.catch_warnings():  # the statistics are drawn, no batch updated them
            warnings.filterwarnings("ignore", "(?s).*never updated")
            block.switch_to_deploy()
        after = {"output": summary(block(x)), "output before": before}
    return {key: summary(value) for key, value in block.state_dict().items()} | after


def draw(block: nn.Module, random: np.random.RandomState) -> None:
    """Fill all parameters and statistics, in the order of their names."""
    tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        if name.endswith("running_var"):
            tensor.data = torch.from_numpy(random.uniform(0.5, 2.0, tuple(tensor.shape)))
        elif isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
            tensor.data = 0.5 * normal(random, *tensor.shape)


def normal(random: np.random.RandomState, *shape: int) -> Tensor:
    """Return standard normal values."""
    return torch.from_numpy(random.standard_normal(shape))


def summary(tensor: Tensor) -> dict[str, Any]:
    """Return the shape, two sums that any change shows in, and some of the values."""
    flat = tensor.flatten()
    places = torch.linspace(0, len(flat) - 1, min(_NUM_VALUES, len(flat))).long()
    return {
        "shape": list(tensor.shape),
        "sum": flat.sum().item(),
        "projection": (flat @ normal(np.random.RandomState(1), len(flat))).item(),
        "values": flat[places].tolist(),
    }
