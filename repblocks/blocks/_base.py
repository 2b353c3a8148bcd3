"""The contract of a block: it declares its branches, everything else is derived from them."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.algebra.normalization import is_batch_norm, is_uncalibrated
from repblocks.algebra.rules import apply, rule
from repblocks.blocks._registry import check_options
from repblocks.blocks._tail import create_tail
from repblocks.branches import CHANNELS_LAST, ConvShape, Size, is_channels_last
from repblocks.errors import ConfigurationError, NotFoldable
from repblocks.execution import check_execution, execute

#: Stands for the default that the class of a block has itself.
OWN: Any = object()


class RepBlock(nn.Module, ABC):
    """A module with a training form of many branches and a deployed form of few convolutions."""

    #: Names of 1-d parameters that weight decay shall act on nevertheless.
    decayed: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def is_deployed(self) -> bool:
        """Whether the block is in its deployed form."""

    @abstractmethod
    def _fold(self) -> Mapping[str, nn.Module | None]:
        """Return what becomes of each attribute, and change nothing; gradients are off."""

    def switch_to_deploy(self) -> None:
        """Turn the block into its deployed form, in place; a second call does nothing.

        The kernel is computed in float64 and then given the dtype, device, memory format and
        ``requires_grad`` of the weights it replaces.

        Raises:
            NotFoldable: in training mode, whose function is another one, or if the branches have
                no equivalent kernel.
        """
        if not self.is_deployed:
            self.become(self.deployed_parts())

    def become(self, parts: Mapping[str, nn.Module | None]) -> None:
        """Take the parts of the deployed form, by the paths of the attributes that they replace."""
        for path, part in parts.items():
            parent, _, name = path.rpartition(".")
            setattr(self.get_submodule(parent), name, part)

    def anneal(self, progress: float) -> None:
        """Set what changes in the course of training; most blocks have nothing of the kind.

        Args:
            progress: Finished fraction of the course, from 0 to 1.
        """

    def deployed_parts(self) -> Mapping[str, nn.Module | None]:
        """Return what becomes of each attribute in the deployed form; the block stays as it is.

        Raises:
            NotFoldable: as :meth:`switch_to_deploy`.
        """
        if self.training:
            raise NotFoldable(
                f"{type(self).__name__} is in training mode, where BatchNorm uses the statistics "
                "of each batch, so no kernel equals it; call .eval() first."
            )
        if any(is_batch_norm(m) and is_uncalibrated(m) for m in self.modules()):
            warnings.warn(
                f"{type(self).__name__} is folded with BatchNorm statistics that were never "
                "updated: mean 0, variance 1. Train it, or load its weights, before.",
                stacklevel=3,
            )
        # A caller in inference mode shall get weights that can be trained, too; index arithmetic
        # stays on the CPU whatever the default device is.
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return self._fold()

    def decayed_parameters(self) -> tuple[str, ...]:
        """Return the names of the 1-d parameters that weight decay shall act on."""
        present = dict(self.named_parameters())
        return tuple(name for name in self.decayed if name in present)


class Executed(nn.Module):
    """A module with branches, and a choice of how they are computed in training."""

    @property
    def execution(self) -> str:
        """How the branches are computed in training; it may be set at any time."""
        return self._execution

    @execution.setter
    def execution(self, execution: str) -> None:
        check_execution(execution)
        self._execution = execution


class ConvBlock(RepBlock, Executed):
    """A block that replaces convolution, normalisation and activation.

    A subclass says what its branches are, in :meth:`build_branches`; the keyword-only arguments of
    that method are the options of the block.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: Taps on each axis.
        stride: On each axis.
        padding: On each axis; None keeps the size at stride 1 and needs odd kernel sizes.
        dilation: On each axis.
        groups: Divides both channel counts.
        ndim: 1, 2 or 3 spatial axes.
        activation: A torch activation in lower case, or None; the block's own by default.
        se: Squeeze-and-excitation before the activation: its hidden channels as a fraction of
            C_out, or None for none; the block's own by default.
        execution: How the branches are computed in training: ``"branchwise"``, ``"merged"``,
            ``"weight_space"`` or ``"auto"``; it may be set at any time.
        options: What the block itself offers.

    Raises:
        ConfigurationError: if an argument is out of range or cannot be honoured.
        UnknownNameError: for an option that the block does not have.
    """

    #: Defaults of the constructor, where a block has its own.
    defaults: ClassVar[Mapping[str, Any]] = {"activation": "relu", "se": None}
    #: Whether one of the branches can take any kernel of the shape, so that ``expand`` is possible.
    takes_any_kernel: ClassVar[bool] = True
    #: Whether squeeze-and-excitation follows the activation.
    se_is_last: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | None = None,
        dilation: Size = 1,
        groups: int = 1,
        *,
        ndim: int = 2,
        activation: str | None = OWN,
        se: float | None = OWN,
        execution: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        check_options(type(self), options)
        self.execution = execution
        self.shape = ConvShape.create(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, ndim
        )
        self.branches: nn.Module | None = self.build_branches(self.shape, **options)
        self.conv: nn.Module | None = None
        activation = self.defaults["activation"] if activation is OWN else activation
        se = self.defaults["se"] if se is OWN else se
        self.tail = create_tail(out_channels, activation, se, ndim, self.se_is_last)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class the signature of the constructor with the block's own options."""
        super().__init_subclass__(**kwargs)
        common = inspect.signature(ConvBlock.__init__).parameters.values()
        own = inspect.signature(cls.build_branches).parameters.values()
        fixed = [
            p.replace(default=cls.defaults[p.name]) if p.default is OWN else p
            for p in common
            if p.name not in ("self", "options")
        ]
        options = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
        cls.__signature__ = inspect.Signature(fixed + options)  # type: ignore[attr-defined]

    @classmethod
    @abstractmethod
    def build_branches(cls, shape: ConvShape) -> nn.Module:
        """Return the tree of branches for a shape; keyword-only arguments are options."""

    @property
    def is_deployed(self) -> bool:
        """Whether the branches have become one convolution."""
        return self.branches is None

    @property
    def _linear(self) -> nn.Module:
        """What comes before the tail: the branches, or the convolution that they became."""
        return self.conv if self.branches is None else self.branches  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, *spatial)`` to ``(N, C_out, *spatial)``."""
        if self.is_deployed:
            return self.tail(self._linear(x))
        return execute(self._linear, x, self.execution, self.tail)

    def equivalent_kernel(self, dtype: torch.dtype | None = None) -> ConvKernel:
        """Return the kernel that computes what the branches compute in evaluation mode.

        Args:
            dtype: What to compute in, differentiably; the dtype of the weights by default.

        Raises:
            NotFoldable: if a BatchNorm is in training mode or has no running statistics.
        """
        return kernel_of(self._linear, self.shape.in_channels, self.shape.ndim, dtype)

    def _fold(self) -> Mapping[str, nn.Module | None]:
        kernel = self.equivalent_kernel(torch.float64)
        return {"conv": deployed_conv(kernel, self._linear), "branches": None}


@rule(ConvBlock)
def _conv_block(module: ConvBlock, value: AffineMap, like: Tensor | None) -> AffineMap:
    """Let a block without squeeze-and-excitation and activation be a part of another one."""
    return apply(module.tail, apply(module._linear, value, like), like)


def set_execution(model: nn.Module, execution: str) -> None:
    """Choose how all blocks of a network compute their branches in training.

    Raises:
        ConfigurationError: if there is no execution of that name.
    """
    check_execution(execution)
    for module in model.modules():
        if isinstance(module, Executed):
            module.execution = execution


def anneal(model: nn.Module, progress: float) -> None:
    """Tell all blocks of a network how much of the training is over.

    Args:
        model: Any network.
        progress: Finished fraction of the course, from 0 to 1.

    Raises:
        ConfigurationError: if it is another number.
    """
    if isinstance(progress, bool) or not 0 <= progress <= 1:
        raise ConfigurationError(f"progress must be a number from 0 to 1, got {progress!r}.")
    for module in model.modules():
        if isinstance(module, RepBlock):
            module.anneal(progress)


def kernel_of(
    tree: nn.Module, in_channels: int, ndim: int, dtype: torch.dtype | None
) -> ConvKernel:
    """Return the kernel that equals a tree of branches, differentiably.

    Args:
        tree: Modules that the table of rules knows.
        in_channels: C_in.
        ndim: Number of spatial axes; 0 for features, whose kernel has one axis of one tap.
        dtype: What to compute in; None for the dtype of the weights.

    Raises:
        NotFoldable: if there is none.
    """
    weight = next(tree.parameters())
    # Metal has no float64.
    on_cpu = dtype == torch.float64 and weight.device.type == "mps"
    like = torch.empty(0, dtype=dtype or weight.dtype, device="cpu" if on_cpu else weight.device)
    start = AffineMap.identity(in_channels).with_axes(ndim)
    return ConvKernel.from_affine(apply(tree, start, like).with_axes(ndim or 1), like)


def deployed_conv(kernel: ConvKernel, replaced: nn.Module) -> Conv:
    """Return a convolution with dtype, device, memory format and gradients of what it replaces."""
    weights = list(replaced.parameters())
    conv = kernel.to_conv(weights[0])
    memory_format = CHANNELS_LAST.get(kernel.weight.ndim)
    if memory_format is not None and any(map(is_channels_last, weights)):
        conv.to(memory_format=memory_format)
    return conv.requires_grad_(any(weight.requires_grad for weight in weights))
