"""A pooled classifier of which the layer before the scores, and the scores' own, are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from repblocks.blocks import AveragedHeads, NormLinear
from repblocks.models._rules import unit_norm

_EPS = nn.BatchNorm1d(1).eps
#: Where the linear layers of normalised classifiers stand, in either form.
HEADS = ("head.fc.linear", "head.fc.heads.0.linear", "head.fc.heads.1.linear")


class PooledHead(nn.Module):
    """Pooling, a hidden layer if wished, dropout, and a classifier, in the manner of timm's heads.

    Args:
        channels: Of the features.
        num_classes: Scores; 0 leaves the classifier out.
        pool_type: timm's name of the pooling; empty for none.
        drop_rate: Dropout before the classifier.
        hidden: Channels of a pointwise layer with ReLU after the pooling; None for none.
        classifier: Makes the classifier from the numbers of features and of classes.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        *,
        hidden: int | None = None,
        classifier: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.classifier_of = classifier
        self.global_pool = SelectAdaptivePool2d(pool_type=pool_type)
        width = channels * self.global_pool.feat_mult()
        self.hidden = (
            nn.Identity()
            if hidden is None
            else nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU())
        )
        self.num_features = width if hidden is None else hidden
        self.drop = nn.Dropout(drop_rate)
        self.fc = self._classifier(num_classes)

    def _classifier(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        return self.classifier_of(self.num_features, num_classes)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Put a new classifier in place."""
        if pool_type is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=pool_type)
        self.fc = self._classifier(num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features ``(N, C, H, W)`` to scores, or to what the classifier reads."""
        y = self.hidden(self.global_pool(x))
        y = self.drop(y.flatten(1) if self.global_pool.pool_type else y)
        return y if pre_logits else self.fc(y)


def norm_linear(features: int, num_classes: int, *, distilled: bool) -> nn.Module:
    """Return one normalised classifier, or two whose average is deployed."""
    return (AveragedHeads if distilled else NormLinear)(features, num_classes)


def with_heads(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state whose one deployed classifier has become the normalised ones of a network.

    Args:
        state: Under the names of a network; is changed.
        own: The state of the network.
    """
    weight, bias = (state.get(f"head.fc.linear.{kind}") for kind in ("weight", "bias"))
    norms = [key for key in own if key.startswith("head.fc.") and key.endswith(".running_var")]
    if weight is None or bias is None or not norms or norms[0] in state:
        return state
    for key in norms:
        path = key.removesuffix("norm.running_var")
        state |= {f"{path}linear.weight": weight, f"{path}linear.bias": bias}
        state |= unit_norm(f"{path}norm", weight.new_zeros(weight.shape[1]), _EPS)
    if "head.fc.linear.weight" not in own:
        del state["head.fc.linear.weight"], state["head.fc.linear.bias"]
    return state
