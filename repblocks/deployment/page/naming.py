"""What a layer or a function is called in a drawing, and which colour it has."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

from repblocks.algebra.normalization import is_batch_norm
from repblocks.branches.nodes import Pad, Subsample

#: Kind, label and detail of a box.
About = tuple[str, str, str]

_IDLE_MODULES = ("Identity", "Flatten", "Unflatten", "DropPath", "DropBlock2d")
_IDLE_FUNCTIONS = {
    *("flatten", "unflatten", "view", "reshape", "contiguous", "permute", "transpose", "expand"),
    *("squeeze", "unsqueeze", "to", "float", "double", "type_as", "movedim", "swapaxes", "detach"),
    *("dropout", "__get__", "clone", "view_as", "expand_as"),
}
_ADDING = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_SCALING = {"mul", "mul_", "__mul__", "__rmul__", "__imul__"}
_ACTIVATIONS = {
    *("relu", "gelu", "silu", "sigmoid", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu"),
    *("prelu", "elu", "mish", "tanh", "softmax", "relu6", "selu", "softplus"),
}
_JOINING = {"cat": "concat", "concat": "concat", "concatenate": "concat", "stack": "stack"}
_ALIASES = {
    "scaled_dot_product_attention": "attention",
    "batch_norm": "BN",
    "layer_norm": "LayerNorm",
    "group_norm": "GroupNorm",
    "conv2d": "conv",
    "adaptive_avg_pool2d": "average pool",
    "avg_pool2d": "average pool",
    "max_pool2d": "max pool",
    "__getitem__": "slice",
    "__matmul__": "matmul",
}


def is_idle(module: nn.Module) -> bool:
    """Tell whether a module changes no value in evaluation mode."""
    name = type(module).__name__
    return name in _IDLE_MODULES or name.startswith(("Dropout", "AlphaDropout"))


def describe_layer(module: nn.Module, num_read: int) -> About | None:
    """Name a layer, or the function that it calls, as a node of an ONNX graph does.

    Args:
        module: The layer.
        num_read: How many activations it reads.

    Returns:
        None if it changes no value.
    """
    function = getattr(module, "function", None)
    if function is not None:
        return describe_function(getattr(function, "__name__", type(module).__name__), num_read)
    return None if is_idle(module) else describe_module(module)


def describe_module(module: nn.Module) -> About:
    """Name a layer."""
    name = type(module).__name__
    if isinstance(module, _ConvNd):
        return "conv", f"conv {_size(module.kernel_size)}", _conv_detail(module)
    if isinstance(module, nn.Linear):
        return "conv", "linear", f"{module.in_features} → {module.out_features}"
    if is_batch_norm(module):
        return "norm", "BN", ""
    if "Norm" in name:
        return "norm", name, ""
    if isinstance(module, Subsample):
        return "other", f"stride {_size(module.stride)}", ""
    if isinstance(module, Pad):
        return "other", "pad", ", ".join(f"{low}+{high}" for low, high in module.padding)
    if type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activ")):
        return "activation", name, ""
    return "other", name, ""


def describe_function(name: str, num_read: int) -> About | None:
    """Name a function of torch; None for one that changes no value.

    Args:
        name: As torch calls it.
        num_read: How many activations it reads: one that reads a single one has a constant beside.
    """
    if name in _IDLE_FUNCTIONS:
        return None
    if name in _ADDING:
        return ("join", "+", "") if num_read > 1 else ("other", "shift", "")
    if name in _SCALING:
        return ("join", "×", "") if num_read > 1 else ("other", "scale", "")
    if name in _JOINING:
        return "join", _JOINING[name], ""
    if name in _ACTIVATIONS:
        return "activation", name, ""
    label = _ALIASES.get(name, name.strip("_"))
    kinds = {"BN": "norm", "LayerNorm": "norm", "GroupNorm": "norm", "conv": "conv"}
    return kinds.get(label, "other"), label, ""


def _conv_detail(conv: _ConvNd) -> str:
    parts = [f"{conv.in_channels} → {conv.out_channels}"]
    if conv.groups == conv.in_channels > 1:
        parts.append("depthwise")
    elif conv.groups > 1:
        parts.append(f"{conv.groups} groups")
    if any(stride != 1 for stride in conv.stride):
        parts.append(f"stride {_size(conv.stride)}")
    if any(dilation != 1 for dilation in conv.dilation):
        parts.append(f"dilation {_size(conv.dilation)}")
    return ", ".join(parts)


def _size(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else "×".join(map(str, sizes))
