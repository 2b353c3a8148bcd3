"""Why the branches of a block must run as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra.kernel import Conv
from repblocks.algebra.normalization import is_batch_norm
from repblocks.algebra.rules import has_rule
from repblocks.branches import OnPatches
from repblocks.execution.convolving import convolved_dtype
from repblocks.execution.synchronising import process_group


def of(branches: nn.Module, x: Tensor) -> str | None:
    """Return what forbids to compute the branches of a block together, or None.

    Whatever torch itself says of an input is said by the branches, which then run.

    Args:
        branches: The tree of the block.
        x: Its input.
    """
    if not isinstance(x, Tensor):
        return "the input stands for tensors, as in a symbolic trace"
    # What parametrizes a weight is part of it.
    named = branches.named_modules(remove_duplicate=False)
    modules = [module for path, module in named if "parametrizations" not in path]
    found = _of_program(x) or _of_input(modules, x)
    return found or next(filter(None, map(_of_module, modules)), None)


def _of_program(x: Tensor) -> str | None:
    """Return what is done with the block that only its branches can be."""
    if torch.compiler.is_compiling():
        is_free = torch.compiler.is_exporting() and {*map(type, x.shape)} != {int}
        return "it is exported with sizes that are free" if is_free else None
    # There is no public way to ask for either.
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is at work"
    return "torch.jit.trace is at work" if torch._C._get_tracing_state() is not None else None


def _of_input(modules: Sequence[nn.Module], x: Tensor) -> str | None:
    norms = [module for module in modules if is_batch_norm(module)]
    if x.is_meta:
        return "the input is on the meta device"
    if not x.numel() and process_group(norms) is None:
        return "the input is empty"
    if len({*map(id, norms)}) < len(norms):
        return "two branches share a BatchNorm"
    if any(len(conv.kernel_size) != x.ndim - 2 for conv in _on_image(modules)):
        return "the input has another number of axes than a kernel"
    dtypes = {convolved_dtype(weight) for weight in _own_weights(modules)}
    if not dtypes <= {convolved_dtype(x)}:
        return "a weight has another dtype than the input"
    return None


def _on_image(modules: Sequence[nn.Module]) -> Iterator[Conv]:
    """Give the convolutions that read the input of the block itself, not patches of it."""
    nodes = [node for node in modules if isinstance(node, OnPatches)]
    inside = {id(module) for node in nodes for module in node.modules()}
    for module in modules:
        if isinstance(module, Conv) and id(module) not in inside:
            yield module


def _own_weights(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Give the weights of convolutions that nothing parametrizes."""
    for module in modules:
        weight = module._parameters.get("weight") if isinstance(module, Conv) else None
        if weight is not None:
            yield weight


def _of_module(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if any((module._forward_hooks, module._forward_pre_hooks)):
        return f"{kind} has hooks"
    if any((module._backward_hooks, module._backward_pre_hooks)):
        return f"{kind} has backward hooks"
    if not has_rule(module) or type(module).__call__ is not nn.Module.__call__:
        return f"{kind} is not one of the known operations"
    parametrizations = module._modules.get("parametrizations")
    if parametrizations is not None and any(True for _ in parametrizations.buffers()):
        return f"{kind} has a parametrization with a state, which each use of a weight changes"
    return None


def of_channels(branches: nn.Module, x: Tensor) -> str | None:
    """Return that an input has other channels than all kernels read, or None."""
    read = [conv.in_channels for conv in branches.modules() if isinstance(conv, Conv)]
    return "no kernel reads so many channels" if read and x.shape[1] not in read else None


def of_norms(norms: Sequence[BatchNorm]) -> str | None:
    """Return what forbids to normalise by the moments of a batch, or None."""
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return "a forward derivative is taken"
    if not all(norm.training for norm in norms):
        return "some BatchNorms are frozen and some are not"
    if any(norm.momentum is None or not _tracks(norm) for norm in norms):
        return "a BatchNorm has no momentum or does not track its statistics"
    if len({(norm.weight is None, norm.bias is None) for norm in norms}) > 1:
        return "some BatchNorms have a weight or bias and some have none"
    return None


def _tracks(norm: BatchNorm) -> bool:
    tracked = norm.running_mean, norm.running_var, norm.num_batches_tracked
    return norm.track_running_stats and not any(value is None for value in tracked)


def of_frozen(norms: Sequence[BatchNorm]) -> str | None:
    """Return what forbids to merge the kernels of frozen norms, or None."""
    if any(norm.running_mean is None for norm in norms):
        return "a frozen BatchNorm has no running statistics"
    return None
