"""Parts of a network in training form for which a file holds one kernel, the deployed form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from repblocks.algebra import is_batch_norm
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.blocks import ConvBlock
from repblocks.blocks._base import deployed_conv, kernel_of
from repblocks.blocks._stage import Affine
from repblocks.branches import Scale
from repblocks.errors import NotFoldable
from repblocks.expansion.solving import set_to_kernel_

_TOLERANCE = 1e-4  # of a wrong shape of the affine part, not of rounding


@dataclass(frozen=True)
class Part:
    """A conv block, or an affine part of a stage block, in training form and evaluation mode.

    Args:
        root: The network.
        path: Where the part stands in it.
        key: Where its convolution stands in the deployed form.
        module: The part.
    """

    root: nn.Module
    path: str
    key: str
    module: ConvBlock | Affine

    def names(self, state: Mapping[str, Tensor]) -> list[str]:
        """Return the names of what the kernel decides, in either form."""
        tail = f"{self.path}.tail."
        inside = (f"{self.path}.", f"{self.key}.")
        return [key for key in state if key.startswith(inside) and not key.startswith(tail)]

    def take_(self, state: dict[str, Tensor], *, keep: bool) -> None:
        """Take the kernel out of a state, and compute it from now on.

        Args:
            state: Loses the weight and the bias.
            keep: Whether the part becomes one convolution; else its branches take the kernel.

        Raises:
            NotFoldable: if the branches cannot.
        """
        weight, bias = state.pop(f"{self.key}.weight"), state.pop(f"{self.key}.bias", None)
        own = _kernel(self.module)
        if weight.shape != own.weight.shape:
            raise NotFoldable(
                f"The kernel of {self.path} has the shape {tuple(own.weight.shape)}, that of the "
                f"file {tuple(weight.shape)}."
            )
        like = own.weight.detach()
        kernel = replace(own, weight=weight.to(like), bias=None if bias is None else bias.to(like))
        if not keep:
            _set_to_(self.module, kernel, self.path)
        elif isinstance(self.module, ConvBlock):
            conv = deployed_conv(kernel, self.module)
            self.module.become({"conv": conv, "branches": None})
        else:
            self.root.set_submodule(self.path, deployed_conv(kernel, self.module))


def deployed_in(root: nn.Module, state: Mapping[str, Tensor]) -> Iterator[Part]:
    """Yield the outermost parts of a network for which a state holds one kernel."""
    inside: tuple[str, ...] = ()
    for path, module in root.named_modules():
        if not isinstance(module, ConvBlock | Affine) or path.startswith(inside):
            continue
        key = path if isinstance(module, Affine) else f"{path}.conv"
        if f"{key}.weight" in state:
            inside += (f"{path}.",)
            yield Part(root, path, key, module)


def _kernel(part: ConvBlock | Affine) -> ConvKernel:
    return _copied(part.equivalent_kernel(torch.float64))


def _set_to_(part: ConvBlock | Affine, kernel: ConvKernel, path: str) -> None:
    if isinstance(part, ConvBlock):
        try:
            return set_to_kernel_(part, kernel)
        except NotFoldable:  # it has no BatchNorm to take a bias
            if kernel.bias is not None:
                raise
    return _set_affine_(part, kernel, path)


def _set_affine_(part: ConvBlock | Affine, kernel: ConvKernel, path: str) -> None:
    """Let the block or convolution inside a part take what the rest leaves of a kernel.

    The kernel of the part is ``D * K + R``, with the kernel ``K`` of what is inside, a factor for
    each channel, and what stands beside it: two values of ``K`` tell both.
    """
    shape = kernel.weight.shape
    inside = list(part.modules())[1:]
    found: list[nn.Module] = [m for m in inside if isinstance(m, ConvBlock)]
    found += [m for m in inside if isinstance(m, Conv) and m.weight.shape == shape]
    if not found:
        raise NotFoldable(f"{path} has no convolution that could take the kernel of the file.")
    inner = found[0]
    for module in part.modules():
        if isinstance(module, Scale):
            module.weight.data.fill_(1)  # the file holds none, and the usual one is close to 0
        if is_batch_norm(module) and module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(1)  # meant to be as it is: nothing shall warn of it
    start = _copied(kernel_of(inner, kernel.in_channels, len(kernel.axes), torch.float64))
    values = []
    for step in (0, 1):
        _give_(inner, replace(start, weight=start.weight + step, bias=_bias(start) + step))
        values.append(_kernel(part))
    first, second = values
    weight = start.weight + (kernel.weight - first.weight) / (second.weight - first.weight)
    bias = _bias(start) + (_bias(kernel) - _bias(first)) / (_bias(second) - _bias(first))
    _give_(inner, replace(start, weight=weight, bias=bias))
    made = _kernel(part)
    if not (_near(made.weight, kernel.weight) and _near(_bias(made), _bias(kernel))):
        raise NotFoldable(f"The branches of {path} cannot take the kernel of the file.")


def _give_(inner: nn.Module, kernel: ConvKernel) -> None:
    if isinstance(inner, ConvBlock):
        set_to_kernel_(inner, kernel)
    elif isinstance(inner, Conv):
        with torch.no_grad():
            inner.weight.copy_(kernel.weight)
            if inner.bias is not None:
                inner.bias.copy_(_bias(kernel))


def _copied(kernel: ConvKernel) -> ConvKernel:
    """Return a kernel that shares no memory with the parameters it comes from."""
    return replace(
        kernel, weight=kernel.weight.detach().clone(), bias=_bias(kernel).detach().clone()
    )


def _bias(kernel: ConvKernel) -> Tensor:
    return kernel.weight.new_zeros(kernel.out_channels) if kernel.bias is None else kernel.bias


def _near(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= _TOLERANCE * (1 + wanted.abs().max()))
