"""RepVGG: a plain stack of 3 x 3 blocks.

Source:
    Ding et al., RepVGG, CVPR 2021, tables 2 and 3, https://arxiv.org/abs/2101.03697
    RepVGGplus: https://github.com/DingXiaoH/RepVGG, ``repvggplus.py``
    Chu et al., Make RepVGG Greater Again: A Quantization-aware Approach, AAAI 2024 (QARepVGG),
    https://arxiv.org/abs/2212.01593

``l2pse`` has the widths and depths of ``d2se``, squeeze-and-excitation after the ReLU, which stays
after deployment, and three auxiliary classifiers, which only guide its training.

QARepVGG is the same networks with the block ``qarepvgg``, which keeps its accuracy in eight bits;
deployed, both have the same architecture.

``tiny`` is a network of ours for images of 28 to 32 pixels: no stride in the stem. Initial
weights are torch's, as in the official code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, final

from timm.models import checkpoint
from torch import Tensor, nn

from repblocks.blocks import AuxiliaryHeads
from repblocks.branches import Scale
from repblocks.models._network import Network, check_stages
from repblocks.models._rules import SE_RULES, Rules, norm_folded
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class RepVGG(Network):
    """3 x 3 blocks only, the first of each stage with stride 2.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage.
        stem_width: Channels of the stem.
        stem_stride: Stride of the stem.
        groups: Groups of every second block.
        se: Squeeze-and-excitation in every block, as a fraction of its channels; None for what
            the block has itself, which is none in ``repvgg``.
        own_block: The network's own conv block by name.
        auxiliary: Whether there are classifiers after the first two stages and the first half of
            the third: in training mode the network returns the list of its scores and of theirs.
        block: Another conv block by name for all places; None for the network's own.
        block_options: Options of the block.
        in_chans: Channels of the images.
        num_classes: Scores.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        deploy: Build the deployed form.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        stem_width: int,
        *,
        stem_stride: int = 2,
        groups: int = 1,
        se: float | None = None,
        own_block: str = "repvgg",
        auxiliary: bool = False,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, widths=widths)
        slot = Slot.create(block, block_options, own_block)
        self._sum_has_norm = slot.block == "qarepvgg"
        stages, reductions = [], []
        channels, reduction, number = stem_width, stem_stride, 1
        for depth, width in zip(depths, widths, strict=True):
            blocks = []
            for i in range(depth):
                own_groups = groups if number % 2 == 0 else 1
                stride = 2 if i == 0 else 1
                blocks.append(slot(channels, width, 3, stride, groups=own_groups, se=se))
                channels, number = width, number + 1
            reduction *= 2
            _start_by_depth_(blocks)
            stages.append(nn.Sequential(*blocks))
            reductions.append(reduction)
        super().__init__(
            slot(in_chans, stem_width, 3, stem_stride, se=se),
            stages,
            widths,
            reductions,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
        )
        ends = [*depths[:2], *(max(depth // 2, 1) for depth in depths[2:3])]
        self._tapped = [(i, end - 1) for i, end in enumerate(ends)]
        self._tapped_widths = widths[:3]
        self._auxiliary_is_wanted = auxiliary
        self.auxiliary: AuxiliaryHeads | None = None
        self._add_auxiliary()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map images ``(N, C, H, W)`` to scores ``(N, num_classes)``, or to a list in training."""
        if self.auxiliary is None or self.auxiliary.is_deployed or not self.training:
            return super().forward(x)
        x, tapped = self.stem(x), []
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage.children()):
                x = checkpoint(block, x) if self.grad_checkpointing else block(x)
                if (i, j) in self._tapped:
                    tapped.append(x)
        return [self.forward_head(x), *self.auxiliary(tapped)]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put new classifiers in place."""
        super().reset_classifier(num_classes, global_pool)
        self._add_auxiliary()

    def _add_auxiliary(self) -> None:
        """Put new auxiliary classifiers in place, none without classes or when deployed."""
        self.auxiliary = None
        if self._auxiliary_is_wanted and self.num_classes > 0 and not self.is_deployed:
            like = next(self.parameters())
            heads = AuxiliaryHeads(self._tapped_widths, self.num_classes)
            self.auxiliary = heads.to(like.device, like.dtype).train(self.training)

    def official_rules(self) -> Rules:
        """Return the names of the official code, timm, OpenMMLab and OREPA, and what they are."""
        half = sum(len(list(stage.children())) for stage in self.stages[2:3]) // 2
        branch = ".branches.sum." if self._sum_has_norm else ".branches."
        return (
            (r"^backbone\.", ""),
            *(_AUXILIARY_RULES if self._is_guided() else ((_AUXILIARY, None),)),
            (r"^stage0\.", "stem."),
            (r"^stage3_second\.blocks\.(\d+)", lambda m: f"stages.2.{int(m[1]) + half}"),
            (r"^stage3_first\.", "stage3."),
            (r"^stage_?(\d+)\.(?:blocks\.)?", lambda m: f"stages.{int(m[1]) - 1}."),
            (r"\.(rbr_dense|conv_kxk|branch_3x3)\.", f"{branch}kxk."),
            (r"\.rbr_1x1\.(?=weight$)", f"{branch}pointwise.conv."),  # it has no norm
            (r"\.(rbr_1x1|conv_1x1|branch_1x1)\.", f"{branch}pointwise."),
            (
                r"(?<!branches)(?<!\.sum)\.(rbr_identity|identity|branch_norm)\.",
                f"{branch}identity.norm.",
            ),
            (r"^(stem|stages\.\d+\.\d+)\.bn\.", r"\1.branches.norm."),  # that of the sum
            (r"(\.(kxk|pointwise|branches))\.bn\.", r"\1.norm."),
            (r"\.(rbr_reparam|reparam_conv|branch_reparam)\.", ".conv."),
            *SE_RULES,
            (r"^(linear|head\.fc)\.", "head.fc."),
        )

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights whose kernels have taken in the norms that YOLOv6 keeps after them."""
        for path in [name.removesuffix(_NORM) for name in state if name.endswith(_NORM)]:
            kernel, norm = f"{path}.conv", f"{path}.branches.norm"
            if {f"{kernel}.weight", f"{kernel}.bias"} <= state.keys():
                weight, bias = norm_folded(state, kernel, norm, nn.BatchNorm2d(1).eps)
                state |= {f"{kernel}.weight": weight, f"{kernel}.bias": bias}
                state = {k: v for k, v in state.items() if not k.startswith(f"{norm}.")}
        return state

    def in_training_form(self, **changed: Any) -> Self:
        """Return a new network in its training form, with auxiliary classifiers if these are."""
        return super().in_training_form(**{"auxiliary": self._is_guided(), **changed})

    def _is_guided(self) -> bool:
        return self.auxiliary is not None and not self.auxiliary.is_deployed


def _start_by_depth_(blocks: Sequence[nn.Module]) -> None:
    """Let the factors of RepOptimizer's search start from ``sqrt(2 / l)`` in block l of a stage.

    The first one, block 0, keeps ``scale``, of which the others take the share.

    Source:
        Ding et al., Re-parameterizing Your Optimizers rather than Architectures, ICLR 2023,
        https://arxiv.org/abs/2205.15242, and its official code
    """
    for number, block in list(enumerate(blocks))[1:]:
        parts = dict(block.named_modules())
        for name in ("kxk", "pointwise"):
            factor = parts.get(f"branches.sum.{name}.scale")
            if isinstance(factor, Scale):
                factor.weight.data.mul_((2 / number) ** 0.5)


_NORM = ".branches.norm.running_var"
_AUXILIARY = r"^(stage\w+_aux|auxiliary)\."
_AUXILIARY_RULES: Rules = (
    (r"^stage(\d)(?:_first)?_aux\.", lambda m: f"auxiliary.heads.{int(m[1]) - 1}."),
    (r"^(auxiliary\.heads\.\d\.0)\.(?!branches)", r"\1.branches."),
)


def _row(depths: Sequence[int], a: float, b: float, **options: Any) -> dict[str, Any]:
    """Return the arguments for the width factors of table 2."""
    widths = (int(64 * a), int(128 * a), int(256 * a), int(512 * b))
    return {"depths": depths, "widths": widths, "stem_width": min(64, int(64 * a)), **options}


_A, _B, _D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {"depths": (1, 3, 1), "widths": (32, 64, 128), "stem_width": 16, "stem_stride": 1},
    "a0": _row(_A, 0.75, 2.5),
    "a1": _row(_A, 1, 2.5),
    "a2": _row(_A, 1.5, 2.75),
    "b0": _row(_B, 1, 2.5),
    "b1": _row(_B, 2, 4),
    "b1g2": _row(_B, 2, 4, groups=2),
    "b1g4": _row(_B, 2, 4, groups=4),
    "b2": _row(_B, 2.5, 5),
    "b2g2": _row(_B, 2.5, 5, groups=2),
    "b2g4": _row(_B, 2.5, 5, groups=4),
    "b3": _row(_B, 3, 5),
    "b3g2": _row(_B, 3, 5, groups=2),
    "b3g4": _row(_B, 3, 5, groups=4),
    "d2se": _row(_D, 2.5, 5, se=1 / 16),
    "l2pse": _row(_D, 2.5, 5, own_block="repvgg_plus", auxiliary=True),
}

QUANTIZABLE = {
    name: {**row, "own_block": "qarepvgg"} for name, row in VARIANTS.items() if name[0] in "ab"
}

_FIRST = ("stem.branches.kxk.conv", "stem.branches.pointwise.conv")

register_variants("repvgg", RepVGG, VARIANTS, {"tiny": 28}, first_convs=_FIRST)
register_variants("qarepvgg", RepVGG, QUANTIZABLE, first_convs=_FIRST)
