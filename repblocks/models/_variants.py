"""Registration with timm: one row of a table is one network."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import timm
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import Tensor, nn

from repblocks.models._network import Network
from repblocks.models.official import official_state


def register_variants(
    family: str,
    network: type[Network],
    variants: Mapping[str, Mapping[str, Any]],
    input_sizes: Mapping[str, int] | None = None,
    *,
    peer: str = "{family}_{variant}",
    first_convs: Sequence[str] = ("stem.branches.conv",),
    classifiers: Sequence[str] = ("head.fc",),
) -> None:
    """Register ``repblocks_<family>_<variant>`` for each row of a table of arguments.

    Where timm has the network, ``pretrained=True`` takes the weights that timm knows of.

    Args:
        family: Name of the family.
        network: The class that builds it.
        variants: Arguments of the class, by variant; a caller's go over them.
        input_sizes: Height and width that a variant is made for, where it is not 224.
        peer: What timm calls the same network.
        first_convs: Convolutions of the images in the training form, beside that of the deployed
            form: their weights are adapted to other input channels.
        classifiers: Linear layers that give the scores, in either form.
    """
    module = sys.modules[network.__module__]
    names = {variant: f"repblocks_{family}_{variant}" for variant in variants}
    sizes = input_sizes or {}
    cfgs: dict[str, Any] = {}
    for variant, name in names.items():
        own = {
            "classifier": classifiers[0] if len(classifiers) == 1 else tuple(classifiers),
            "first_conv": ("stem.conv", *first_convs),
        }
        tagged = _weights_of_timm(peer.format(family=family, variant=variant))
        for tag, cfg in tagged.items():
            cfgs[f"{name}.{tag}"] = replace(cfg, **own)
        if not tagged:
            cfgs[name] = {**own, "input_size": (3, *(sizes.get(variant, 224),) * 2)}
    known = getattr(module, "default_cfgs", {})  # of another family of the same class
    module.default_cfgs = {**known, **generate_default_cfgs(cfgs)}  # type: ignore[attr-defined] # timm reads it
    for variant, name in names.items():
        entry = _entry(name, network, variants[variant])
        entry.__module__ = module.__name__
        setattr(module, name, register_model(entry))


def _weights_of_timm(name: str) -> dict[str, PretrainedCfg]:
    """Return what timm knows about weights of its network, by tag, the usual ones first."""
    if not timm.is_model(name):
        return {}
    tagged = [get_pretrained_cfg(each) for each in (name, *timm.list_models(f"{name}.*"))]
    return {cfg.tag: cfg for cfg in tagged if cfg is not None and cfg.tag and cfg.has_weights}


def _entry(name: str, network: type[Network], row: Mapping[str, Any]) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        arguments = {**row, **kwargs}
        stages = len(arguments["depths"])
        model: nn.Module = build_model_with_cfg(
            network,
            name,
            pretrained,
            pretrained_filter_fn=_named_as_ours,
            feature_cfg={"out_indices": tuple(range(stages)), "flatten_sequential": True},
            **arguments,
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Create {name}: {network.__doc__}"
    create.__signature__ = _signature(network, row)  # type: ignore[attr-defined] # inspect reads it
    return create


def _named_as_ours(state: Mapping[str, Any], model: Network) -> dict[str, Tensor]:
    """Give timm the weights of a checkpoint under our names, in the form of the network."""
    return official_state(model, state)


def _signature(network: type[Network], row: Mapping[str, Any]) -> inspect.Signature:
    """Return the arguments of the class, with those of the row as defaults."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    pretrained = inspect.Parameter("pretrained", keyword, default=False, annotation=bool)
    own = inspect.signature(network, eval_str=True).parameters.values()
    return inspect.Signature(
        [pretrained, *(p.replace(kind=keyword, default=row.get(p.name, p.default)) for p in own)]
    )
