"""What all networks share: a stem, stages, a head, and timm's ways of using them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from torch import Tensor, nn

from repblocks.blocks import RepBlock
from repblocks.errors import ConfigurationError
from repblocks.folding.switch import switch_blocks
from repblocks.models._published import Published


class Network(Published):
    """A stem, stages one after the other, and a pooled linear head.

    Args:
        stem: The first layers.
        stages: The stages.
        channels: Output channels of each stage.
        reductions: Input size divided by output size, of each stage.
        num_classes: Scores; 0 leaves the classifier out.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        deploy: Build the deployed form, for weights that are deployed already.
        final: What comes between the last stage and the pooling; it is no part of the features.
        head_channels: What it gives; None for the channels of the last stage.
        head: Makes the head from these channels, the number of scores, ``pool_type`` and
            ``drop_rate``.
        head_size: Features that the classifier reads; None for ``head_channels``.

    Raises:
        ConfigurationError: if the number of scores or the dropout is out of range.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        reductions: Sequence[int],
        *,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        deploy: bool,
        final: nn.Module | None = None,
        head_channels: int | None = None,
        head: Callable[..., nn.Module] = ClassifierHead,
        head_size: int | None = None,
    ) -> None:
        super().__init__()
        if type(num_classes) is not int or num_classes < 0:
            raise ConfigurationError(
                f"num_classes must be a whole number of at least 0, got {num_classes!r}."
            )
        if not isinstance(drop_rate, int | float) or not 0 <= drop_rate < 1:
            raise ConfigurationError(f"drop_rate must be in [0, 1), got {drop_rate!r}.")
        self.num_classes = num_classes
        self.num_features = channels[-1]
        width = head_channels or channels[-1]
        self.head_hidden_size = head_size or width
        self.grad_checkpointing = False
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.final = final or nn.Identity()
        self.head: Any = head(width, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": f"stages.{i}"}
            for i, (width, reduction) in enumerate(zip(channels, reductions, strict=True))
        ]
        if deploy:
            fold_shapes(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map images ``(N, C, H, W)`` to scores ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to the last stage's features."""
        x = self.stem(x)
        if self.grad_checkpointing and self.training:
            features: Tensor = checkpoint_seq(self.stages, x)
            return features
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to scores, or to what the classifier reads."""
        scores: Tensor = self.head(self.final(x), pre_logits=pre_logits)
        return scores

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place, in the form, dtype and device of the network."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        classifier = self.get_classifier()
        if num_classes > 0 and self.is_deployed:
            fold_shapes(classifier)
        like = next(self.stem.parameters())
        classifier.to(like.device, like.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the stages in the backward pass instead of keeping their features.

        BatchNorm then sees each batch twice, and moves its statistics twice.
        """
        self.grad_checkpointing = enable


def fold_shapes(network: nn.Module) -> None:
    """Fold a new network for its shapes alone, in place: weights that are deployed already follow.

    Args:
        network: It ends in training mode, with the initial weights of torch.
    """
    device = next(network.parameters()).device
    for block in network.modules():
        if isinstance(block, RepBlock):
            block.to("meta")
    switch_blocks(network.eval())
    for module in network.modules():
        if any(p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device=device, recurse=False)
            module.reset_parameters()  # type: ignore[operator] # torch's layers have it
    network.train()


def doubled(first: int, count: int = 4) -> tuple[int, ...]:
    """Return numbers of which each is twice the one before, as channels and reductions are."""
    return tuple(first * 2**i for i in range(count))


def check_stages(**values: Sequence[object]) -> None:
    """Check that lists with one value for each stage are of one length.

    Raises:
        ConfigurationError: if they are not.
    """
    lengths = {name: len(value) for name, value in values.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        shown = ", ".join(f"{name}={list(value)}" for name, value in values.items())
        raise ConfigurationError(
            f"{' and '.join(values)} must have one value for each stage, as many in each, got "
            f"{shown}."
        )
