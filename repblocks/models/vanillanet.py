"""VanillaNet: few wide layers without shortcuts.

Source:
    Chen et al., VanillaNet: the Power of Minimalism in Deep Learning, NeurIPS 2023, table 6,
    https://arxiv.org/abs/2305.12972
    Official code: https://github.com/huawei-noah/VanillaNet

In training each layer is two convolutions with an activation between them, which
``repblocks.blocks.anneal(model, progress)`` takes away: it has to be called before each epoch, and
no fold is possible before its end.

Differences: the classifier is one linear layer in both forms, where the official one has an
annealed activation in training, too; no convolution has a bias before its BatchNorm; no
variant pools to a fixed size. Initial
weights are torch's. Official weights are those of the end of the annealing: no file says how far it
was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from repblocks.blocks import STAGE_BLOCKS, RepBlock
from repblocks.errors import ConfigurationError
from repblocks.models._network import Network, check_stages, doubled
from repblocks.models._rules import (
    Rules,
    deployed_where_biased,
    norm_folded,
    unit_norm,
    without_biases,
)
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class VanillaNet(Network):
    """A stem of 4 x 4 patches, and stages of vanilla blocks; later ones start with a pooling.

    Args:
        depths: Blocks of each stage; the first may have none.
        dims: Channels of each stage.
        pool_to: Height and width that each stage after the first pools to, at any size of the
            images, after a stem of stride 3; None for half of what it was. The reductions that
            ``feature_info`` tells hold for images of about 224 pixels then.
        act_reach: Positions on each side that a series activation reads.
        schedule: How the annealed activations follow the training: ``"linear"`` or ``"cosine"``.
        block: A conv block by name for the depthwise places of the series; None for ``plain``.
        block_options: Options of the block.
        in_chans: Channels of the images.
        num_classes: Scores.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        deploy: Build the deployed form.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int] = (512, 1024, 2048, 4096),
        *,
        pool_to: Sequence[int] | None = None,
        act_reach: int = 3,
        schedule: str = "linear",
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, dims=dims)
        pools = _pools(pool_to, len(dims))
        size, chosen = Slot.create(block, block_options, "plain").of_stage(2 * act_reach + 1)
        if size % 2 == 0:
            raise ConfigurationError(f"kernel_size must be odd to keep the size, got {size}.")
        options = {"act_reach": size // 2, "schedule": schedule, **chosen}
        vanilla = STAGE_BLOCKS["vanilla"]
        stages, channels = [], dims[0]
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks = []
            for j in range(depth):
                pool = pools[i] if j == 0 else {}
                blocks.append(vanilla(channels, out_channels=dim, **pool, **options))
                channels = dim
            stages.append(nn.Sequential(*(blocks or [nn.Identity()])))
        stride, padding = (4, 0) if pool_to is None else (3, 1)
        stem = {"hidden": dims[0], "patch": 4, "stride": stride, "padding": padding}
        super().__init__(
            vanilla(in_chans, out_channels=dims[0], **stem, **options),
            stages,
            dims,
            doubled(stride, len(dims)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
        )

    def official_rules(self) -> Rules:
        """Return the names of the official code, and what they are."""
        flat = [
            f"stages.{i}.{j}"
            for i, stage in enumerate(self.stages)
            for j, block in enumerate(stage.children())
            if isinstance(block, RepBlock)  # a stage may have none
        ]
        return (
            (r"^stem2\.2\.", "stem.act."),
            (r"^stem([12])\.", r"stem.conv\1."),
            (r"^stem\.0\.", "stem.conv."),
            (r"^stem\.1\.", "stem.act."),
            (r"^stages\.(\d+)\.(?=conv|act)", lambda m: f"{flat[int(m[1])]}."),
            (r"\.conv([12])\.0\.", r".conv.conv\1.conv."),
            (r"\.conv([12])\.1\.", r".conv.conv\1.norm."),
            (r"\.act\.(?=(weight|bias)$)", ".series.conv.branches.conv."),
            (r"\.act\.bn\.", ".series.conv.branches.norm."),
            (r"^cls\.2\.", "head.fc."),
        )

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with one linear layer in the head, and two convolutions if need be."""
        state = deployed_where_biased(state, ((r"\.series\.conv\.branches\.conv\.", ".series."),))
        state = _with_one_classifier(without_biases(state))
        own = self.state_dict()
        for name in own:
            path = name.removesuffix(".conv1.conv.weight")
            if path != name and {f"{path}.weight", f"{path}.bias"} <= state.keys():
                state = _with_two_convolutions(state, own, path)
        trained = [name for name in state if name.endswith(".conv1.conv.weight")]
        slopes = {
            name.replace("conv1.conv.weight", "act.slope"): torch.ones(()) for name in trained
        }
        return {**slopes, **state}


def _pools(pool_to: Sequence[int] | None, stages: int) -> list[dict[str, int]]:
    """Return the pooling with which each stage starts."""
    if pool_to is None:
        return [{}, *({"pool": 2} for _ in range(stages - 1))]
    if not isinstance(pool_to, Sequence) or len(pool_to) != stages - 1 or not pool_to:
        raise ConfigurationError(
            f"pool_to must hold a size for each of the {stages - 1} stages after the first, got "
            f"{pool_to!r}."
        )
    return [{}, *({"pool_to": size} for size in pool_to)]


def _with_one_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state in which the two last layers and the norm between them are one."""
    names = [name for name in state if name.startswith(("cls1.", "cls2."))]
    if not {"cls1.2.weight", "cls1.2.bias", "cls1.3.running_var", "cls2.0.weight"} <= set(names):
        return state
    weight, bias = norm_folded(state, "cls1.2", "cls1.3", _EPS)
    last = state["cls2.0.weight"].double().flatten(1)
    head = {
        "head.fc.weight": last @ weight.flatten(1),
        "head.fc.bias": last @ bias + state["cls2.0.bias"].double(),
    }
    return {name: value for name, value in state.items() if name not in names} | head


def _with_two_convolutions(
    state: dict[str, Tensor], own: Mapping[str, Tensor], path: str
) -> dict[str, Tensor]:
    """Return a state in which a deployed convolution is the larger of two, and one does nothing."""
    shapes = {i: own[f"{path}.conv{i}.conv.weight"].shape for i in (1, 2)}
    large, unit = (1, 2) if shapes[1][2:].numel() > 1 else (2, 1)
    found = dict(state)
    weight, bias = found.pop(f"{path}.weight"), found.pop(f"{path}.bias")
    eye = torch.eye(shapes[unit][0]).to(weight).view(shapes[unit])
    for i, kernel, shift in ((large, weight, bias), (unit, eye, eye.new_zeros(len(eye)))):
        found[f"{path}.conv{i}.conv.weight"] = kernel
        found |= unit_norm(f"{path}.conv{i}.norm", shift, _EPS)
    return found


_EPS = 1e-6
_DEPTHS = {5: (0, 1, 1, 1), 6: (0, 1, 1, 2), **{n: (1, 1, n - 6, 2) for n in range(7, 14)}}

VARIANTS: dict[str, dict[str, Any]] = {str(n): {"depths": row} for n, row in _DEPTHS.items()}
VARIANTS["13_x1_5"] = {"depths": _DEPTHS[13], "dims": doubled(768)}
VARIANTS["13_x1_5_ada_pool"] = {**VARIANTS["13_x1_5"], "pool_to": (38, 19, 10)}

register_variants("vanillanet", VanillaNet, VARIANTS, first_convs=("stem.conv.conv1.conv",))
