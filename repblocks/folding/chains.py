"""Find the convolutions of any model, with the normalisation and the activation that follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from repblocks.algebra.kernel import Conv
from repblocks.algebra.normalization import is_batch_norm
from repblocks.folding.flow import Step
from repblocks.folding.operation import Kind
from repblocks.folding.programs import flows_of
from repblocks.folding.recording import evaluation_copy
from repblocks.folding.region import Region
from repblocks.folding.sites import Sites
from repblocks.folding.users import Users


@dataclass(frozen=True)
class ConvChain:
    """A convolution that is called once, and what alone reads it.

    Args:
        conv: Name of the convolution in its model.
        norm: Name of the BatchNorm that alone reads it, if one does.
        activation: Name of the module without parameters that alone reads those, if one does.
        is_normalised: Whether a normalisation alone reads it, a module or a function, so that it
            has a bias when it is folded.
    """

    conv: str
    norm: str | None = None
    activation: str | None = None
    is_normalised: bool = False


def conv_chains(model: nn.Module, example_input: Any = None) -> list[ConvChain]:
    """Return the convolutions of a model that may be replaced, in the order of the program.

    Args:
        model: Any module, in any mode; it is not changed.
        example_input: A tensor, or a tuple of the model's positional arguments.
    """
    twin = evaluation_copy(model)
    flows = flows_of(twin, example_input)
    users = Users.of(twin, flows)
    found: list[ConvChain] = []
    for flow in flows:
        region = Region.of(flow)
        sites = Sites(flow, region, users)
        convs = [step for step in flow.steps if isinstance(step.module, Conv)]
        found += [_chain(step, region, sites) for step in convs if sites.empties(step)]
    return found


def _chain(conv: Step, region: Region, sites: Sites) -> ConvChain:
    norm = next(_only_reader(conv, region, sites), None)
    if norm is not None and norm.module is not None and is_batch_norm(norm.module):
        activation = next(_only_reader(norm, region, sites), None)
        return ConvChain(conv.path, norm.path, _path(activation), is_normalised=True)
    return ConvChain(conv.path, None, _path(norm), _is_normalised(conv, region, sites))


def _is_normalised(step: Step, region: Region, sites: Sites) -> bool:
    while step not in region.required and len(set(region.readers[step])) == 1:
        (step,) = set(region.readers[step])
        kind = region.operations[step].kind
        if kind is Kind.NORM or kind not in (Kind.SCALE, Kind.MOVE):
            return kind is Kind.NORM and sites.gives_way(step)
    return False


def _path(step: Step | None) -> str | None:
    """Return the name of an activation: a module that has no parameters and is not affine."""
    if step is None or step.module is None or any(True for _ in step.module.parameters()):
        return None
    return step.path


def _only_reader(step: Step, region: Region, sites: Sites) -> Iterator[Step]:
    readers = list(dict.fromkeys(region.readers[step]))
    if len(readers) == 1 and readers[0].module is not None and sites.replaceable(readers[0].module):
        yield readers[0]
