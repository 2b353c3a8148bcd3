"""The programs of a model: its own, and one of each module below that needs one by itself.

Those are what an untraceable module calls, and what is called several times: folded once, it is the
same for all its calls.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from repblocks.folding.example import Call, mutable, run_example
from repblocks.folding.faithful import is_faithful
from repblocks.folding.flattening import Known, flatten
from repblocks.folding.flow import Flow, Step, enclosing, steps_in
from repblocks.folding.recording import parts
from repblocks.folding.state import reading_only
from repblocks.folding.tracing import Activation


def flows_of(
    model: nn.Module,
    example_input: Any,
    borrowed: Set[int] = frozenset(),
    refused: Mapping[int, str] | None = None,
) -> list[Flow]:
    """Trace a model in evaluation mode, and below it what has a program by itself.

    What stands in several programs gets one by itself in turn. Refused modules are not looked
    into: each, by identity, with the reason.

    Raises:
        WritesToWeightsError: if its code would change borrowed memory.
    """
    known = Known(refused=refused or {})
    while True:
        flows = _flows(model, example_input, borrowed, known)
        several = known.apart | set(_repeated(flows))
        if several == known.apart:
            return flows
        known = replace(known, apart=several)


def _flows(model: nn.Module, example_input: Any, borrowed: Set[int], known: Known) -> list[Flow]:
    flows: list[Flow] = []
    waiting: dict[int, list[Call]] = {
        id(model): [Call("", model, _arguments(model, example_input), {})]
    }
    while waiting:
        calls = waiting.pop(_outermost(waiting))
        with reading_only(borrowed if example_input is not None else frozenset()):
            ran, found = _programs(calls, known, has_example=example_input is not None)
        flows += ran
        for call in found:
            if any(call.module.children()):
                waiting.setdefault(id(call.module), []).append(call)
            else:
                ran[0].called.append(call.module)
    return flows


def _outermost(waiting: Mapping[int, Sequence[Call]]) -> int:
    """Find a module that is inside no other one, so that all calls of it are known."""
    modules = [calls[0].module for calls in waiting.values()]
    inside = {id(part) for module in modules for part in module.modules() if part is not module}
    return next(module for module in waiting if module not in inside)


def _programs(
    calls: Sequence[Call], known: Known, *, has_example: bool
) -> tuple[list[Flow], list[Call]]:
    """Return the program of a module, and the calls in it of modules with programs of their own.

    A module that does something else in each call has one for each of them, of a single step: what
    it calls is folded by itself.
    """
    problem = known.refused.get(id(calls[0].module)) or _objects(calls)
    flow = None if problem else _flow(calls, known)
    if flow is not None:
        return _run(flow, calls, known) if has_example else ([flow], [])
    flows = [
        _untraced(call, known, problem or "It is called in ways that differ.") for call in calls
    ]
    found = [inside for flow in flows for inside in run_example(flow)[0]]
    for flow in flows:
        flow.forget()
    return flows, found


def _objects(calls: Sequence[Call]) -> str:
    """Name what calls are given that may hold activations where no trace sees them."""
    leaves = [leaf for call in calls for leaf in tree_leaves((call.args, dict(call.kwargs)))]
    found = next((x for x in leaves if not isinstance(x, Tensor) and parts(x)), None)
    return f"It is called with a {type(found).__name__} that holds tensors." if found else ""


def _arguments(model: nn.Module, example_input: Any) -> tuple[Any, ...]:
    if example_input is not None:
        return example_input if isinstance(example_input, tuple) else (example_input,)
    parameters = inspect.signature(model.forward).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD]
    return tuple(Activation() for _ in required)


def _flow(calls: Sequence[Call], known: Known) -> Flow | None:
    """Return the program of a module, if it is the same for all its calls.

    What a trace sees of activations is only where they stand; what its operations do depends on
    their ranks, and on whether an axis has one position.
    """
    first, *others = calls
    if any(_kinds(other) != _kinds(first) for other in others):
        return None
    flow, seen = _traced(first, known), _seen(first)
    unlike = (other for other in others if not _is_same(_seen(other), seen))
    return flow if all(_is_same_program(flow, _traced(other, known)) for other in unlike) else None


def _kinds(call: Call) -> list[Any]:
    return [
        (x.dtype, x.shape[1:2], [size == 1 for size in x.shape[1:]], x.ndim)
        for x in _activations(call)
    ]


def _sizes(call: Call) -> list[torch.Size]:
    return [x.shape for x in _activations(call)]


def _activations(call: Call) -> list[Tensor]:
    leaves = tree_leaves((call.args, dict(call.kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _seen(call: Call) -> Any:
    def stand_in(leaf: Any) -> Any:
        is_activation = isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter)
        return Activation if is_activation else leaf

    return map_aggregate((call.args, dict(call.kwargs)), stand_in)


def _traced(call: Call, known: Known, examples: Mapping[int, Sequence[Any]] | None = None) -> Flow:
    flow = flatten(call.path, call.module, *_copies(call), known=known, examples=examples)
    repeated = set(_repeated([flow]))
    if not repeated:
        return flow
    known = replace(known, apart=repeated | known.apart)
    return flatten(call.path, call.module, *_copies(call), known=known, examples=examples)


def _untraced(call: Call, known: Known, problem: str) -> Flow:
    return flatten(call.path, call.module, *_copies(call), problem, known)


def _repeated(flows: Sequence[Flow]) -> Iterator[int]:
    """Find the outermost modules that programs call several times, by identity."""
    steps = [step for flow in flows for step in flow.steps]
    scopes = dict.fromkeys(scope for step in steps for scope in enclosing(step.scope))
    calls = Counter(id(scope.module) for scope in scopes)
    for scope in scopes:
        is_inner = any(calls[id(outer.module)] > 1 for outer in enclosing(scope.parent))
        if calls[id(scope.module)] > 1 and not is_inner:
            yield id(scope.module)


def _run(flow: Flow, calls: Sequence[Call], known: Known) -> tuple[list[Flow], list[Call]]:
    """Run the example; where the code does not do what its trace does, the module is opaque."""
    call, *others = calls
    found, output = run_example(flow)
    examples: dict[int, Sequence[Any]] = {}
    while new := _examples(flow, examples):
        examples.update(new)
        flow = _traced(call, known, examples)
        found, output = run_example(flow)
    written = partial(_traced, known=known, examples=examples)
    if not is_faithful(flow, output, call.module, *_copies(call)):
        problem = "Its code does something else with tensors than with symbols."
        written = partial(_untraced, known=known, problem=problem)
        flow = written(call)
        found, _ = run_example(flow)
    if any(step.is_opaque for step in flow.steps):
        # What was not looked into may call and read something else each time.
        for again in map(written, others):
            found += run_example(again)[0]
            flow.watch.include(again.watch)
            again.forget()
    flow.forget()
    flow.is_of_one_size = all(_sizes(other) == _sizes(call) for other in others)
    return [flow], found


def _examples(flow: Flow, known: Mapping[int, Sequence[Any]]) -> dict[int, Sequence[Any]]:
    """Return what the modules read whose code needs an example, and has none."""
    needing = [step for step in flow.steps if step.needs_example and id(step.module) not in known]
    return {
        id(step.module): [read.value for read in steps_in((step.args, step.kwargs))]
        for step in needing
    }


def _copies(call: Call) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments of a call, which the call may change in place."""
    copied: tuple[tuple[Any, ...], dict[str, Any]] = map_aggregate(
        (call.args, dict(call.kwargs)),
        lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf,
    )
    args, kwargs = copied
    return mutable(args), mutable(kwargs)


def _is_same_program(one: Flow, other: Flow) -> bool:
    def content(flow: Flow) -> Any:
        return [(s.path, s.target, s.is_opaque, s.args, dict(s.kwargs)) for s in flow.steps]

    return _is_same((content(one), one.output), (content(other), other.output))


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether structures of steps, tensors and constants are the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Step):
        return bool(one.number == other.number)
    if isinstance(one, Tensor):
        fits = one.shape == other.shape and one.dtype == other.dtype
        return one is other or (fits and torch.equal(one, other))
    if isinstance(one, slice):
        return _is_same((one.start, one.stop, one.step), (other.start, other.stop, other.step))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one is other or bool(one == other)
