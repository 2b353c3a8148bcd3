"""Registration with timm: one row of a table is one network."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn


def register_variants(
    family: str,
    network: type[nn.Module],
    variants: Mapping[str, Mapping[str, Any]],
    input_sizes: Mapping[str, int] | None = None,
    *,
    first_convs: Sequence[str] = (),
) -> None:
    """Register ``repblocks_<family>_<variant>`` for each row of a table of arguments.

    Args:
        family: Name of the family.
        network: The class that builds it.
        variants: Arguments of the class, by variant; a caller's go over them.
        input_sizes: Height and width that a variant is made for, where it is not 224.
        first_convs: More convolutions of the images than that of the deployed stem: their weights
            are adapted to other input channels.
    """
    module = sys.modules[network.__module__]
    names = {variant: f"repblocks_{family}_{variant}" for variant in variants}
    sizes = input_sizes or {}
    cfgs = {
        name: {
            "classifier": "head.fc",
            "first_conv": ("stem.conv", *first_convs),
            "input_size": (3, *(sizes.get(variant, 224),) * 2),
        }
        for variant, name in names.items()
    }
    known = getattr(module, "default_cfgs", {})  # of another family of the same class
    module.default_cfgs = {**known, **generate_default_cfgs(cfgs)}  # type: ignore[attr-defined] # timm reads it
    for variant, name in names.items():
        entry = _entry(name, network, variants[variant])
        entry.__module__ = module.__name__
        setattr(module, name, register_model(entry))


def _entry(name: str, network: type[nn.Module], row: Mapping[str, Any]) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        arguments = {**row, **kwargs}
        stages = len(arguments["depths"])
        model: nn.Module = build_model_with_cfg(
            network,
            name,
            pretrained,
            feature_cfg={"out_indices": tuple(range(stages)), "flatten_sequential": True},
            **arguments,
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Create {name}: {network.__doc__}"
    create.__signature__ = _signature(network, row)  # type: ignore[attr-defined] # inspect reads it
    return create


def _signature(network: type[nn.Module], row: Mapping[str, Any]) -> inspect.Signature:
    """Return the arguments of the class, with those of the row as defaults."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    pretrained = inspect.Parameter("pretrained", keyword, default=False, annotation=bool)
    own = inspect.signature(network, eval_str=True).parameters.values()
    return inspect.Signature(
        [pretrained, *(p.replace(kind=keyword, default=row.get(p.name, p.default)) for p in own)]
    )
