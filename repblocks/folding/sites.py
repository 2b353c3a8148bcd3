"""Where a layer is put, so that the hierarchy stays: a slot, a whole module, or a graph."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from torch import fx, nn

from repblocks.algebra.kernel import Conv
from repblocks.blocks import RepBlock
from repblocks.errors import NotFoldable
from repblocks.folding.arguments import is_callable_as_graph, takes_one_argument
from repblocks.folding.flow import Flow, Scope, Step, enclosing
from repblocks.folding.layers import weights_of
from repblocks.folding.operation import Kind
from repblocks.folding.region import Candidate, Region
from repblocks.folding.users import Users


@dataclass(frozen=True, eq=False)
class Emptied:
    """A step that becomes the identity: a module, or a function in the code of a module.

    Args:
        step: The step.
        operand: What it then gives back.
    """

    step: Step
    operand: Step


@dataclass(frozen=True, eq=False)
class Site:
    """Where a candidate's layer is put.

    Args:
        path: The module that the layer takes the place of, or whose graph it is put into.
        emptied: Steps that become the identity.
        scope: Whose graph is edited; None if the layer takes a module's place.
        result: The node of that graph whose value the layer gives.
        source: The node of that graph that the layer reads.
    """

    path: str
    emptied: tuple[Emptied, ...] = ()
    scope: Scope | None = None
    result: fx.Node | None = None
    source: fx.Node | None = None


class Sites:
    """Finds the places for the candidates of a flow.

    Args:
        flow: The flow.
        region: Its affine part.
        users: Who calls each module of the whole model, and who looks into it.
    """

    def __init__(self, flow: Flow, region: Region, users: Users) -> None:
        self.region = region
        self.users = users
        self._inside: dict[Scope, set[Step]] = {}
        for step in flow.steps:
            for scope in enclosing(step.scope):
                self._inside.setdefault(scope, set()).add(step)
        self._mutators = [step for step in flow.steps if step.mutates]

    def find(self, step: Step, candidate: Candidate, absorbed: Set[Step]) -> Site:
        """Return the place for the layer of a candidate, the one that changes least.

        Args:
            step: What the candidate computes.
            candidate: The candidate.
            absorbed: Steps that all their readers compute anew, so that they may go.

        Raises:
            NotFoldable: if there is none.
        """
        interior = sorted(candidate.interior, key=lambda s: s.number)
        if any(s.is_aliased for s in interior):
            raise NotFoldable("It changes in place what is read under another name.")
        slot = self._slot(interior, candidate, absorbed)
        if slot is None and (candidate.value.is_viewed or not _is_linear_at(candidate)):
            raise NotFoldable("Views inside it have to stay.")
        return slot or self._elsewhere(step, candidate, absorbed)

    def replaceable(self, module: nn.Module) -> bool:
        """Tell whether a module may give way: it is called once, and nothing else reads it."""
        return self.users.obstacle(module) is None

    def is_shared(self, step: Step) -> bool:
        """Tell whether the module that a step is, or whose code it is in, is called repeatedly."""
        module = step.module or (step.scope.module if step.scope is not None else None)
        return module is not None and self.users.calls[id(module)] > 1

    def _slot(
        self, interior: Sequence[Step], candidate: Candidate, absorbed: Set[Step]
    ) -> Site | None:
        """Put the layer in the place of one in a chain, and empty the others."""
        if not self._is_chain(interior, candidate.source, absorbed):
            return None
        shared = [n for n, s in enumerate(interior[:-1]) if len(set(self.region.readers[s])) > 1]
        own = interior[shared[-1] + 1 :] if shared else interior
        is_conv = bool(candidate.value.map.axes)
        layers = [s for s in own if self._path(s, is_conv)]
        if not layers or not all(self.gives_way(s) for s in interior):
            return None
        slot = max(layers, key=lambda s: (_taps(s), -s.number))
        if not self._reads_in_time(candidate.source, slot) or not self._stay(interior, slot):
            return None
        path, gone = self._block(slot, interior) or (self._path(slot, is_conv), {slot})
        emptied = [self._emptied(s) for s in interior if s not in gone and self._is_emptied(s)]
        return Site(path, tuple(emptied))

    def _path(self, step: Step, is_conv: bool) -> str:
        """Give the module whose place a layer may take: it is one, or does nothing else; or ""."""
        if isinstance(step.module, Conv if is_conv else nn.Linear):
            return step.path
        operation, scope = self.region.operations[step], step.scope
        if step.is_opaque and operation.kind is Kind.WEIGHT and is_conv:
            return step.path
        if step.module is not None or scope is None or operation.kind is not Kind.WEIGHT:
            return ""
        is_alone = (
            self._inside[scope] == {step}
            and scope.output is step
            and self.replaceable(scope.module)
        )
        is_called_so = scope.args == operation.operands and not scope.kwargs
        is_kind = (weights_of(step)[0].ndim > 2) == is_conv
        return scope.path if is_alone and is_called_so and is_kind else ""

    def _block(self, slot: Step, interior: Sequence[Step]) -> tuple[str, Set[Step]] | None:
        """Give the path of the block that a layer stands in, if it does no more than the chain.

        Other modules stay around their layer; a block is there to be folded.
        """
        for scope in enclosing(slot.scope):
            inside = self._inside[scope]
            is_block = isinstance(scope.module, RepBlock) and self.replaceable(scope.module)
            if is_block and inside <= set(interior):
                return scope.path, inside
        return None

    def _stay(self, interior: Sequence[Step], slot: Step) -> bool:
        """Tell whether views between a slot and what is emptied see the same shapes as before."""
        place = interior.index(slot)
        for part in (interior[:place][::-1], interior[place + 1 :]):
            is_behind_view = False
            for step in part:
                operation = self.region.operations[step]
                if is_behind_view and operation.kind not in (Kind.MOVE, Kind.NORM, Kind.SCALE):
                    return False
                is_behind_view |= operation.kind is Kind.MOVE and step.module is None
        return True

    def _is_chain(self, interior: Sequence[Step], source: Step, absorbed: Set[Step]) -> bool:
        before = source
        for step in interior:
            operation = self.region.operations[step]
            if operation.operands != (before,) or operation.through:
                return False
            if before is not source and before not in absorbed:
                return False
            before = step
        return True

    def gives_way(self, step: Step) -> bool:
        """Tell whether a step may become the identity, or stays where it is."""
        return self.region.operations[step].kind is Kind.MOVE or self.empties(step)

    def empties(self, step: Step) -> bool:
        """Tell whether a module, or a function in the code of one, may become the identity."""
        if step.module is not None:
            return self.replaceable(step.module)
        if step.scope is None:
            return True
        return self.replaceable(step.scope.module) and is_callable_as_graph(step.scope)

    def _emptied(self, step: Step) -> Emptied:
        return Emptied(step, self.region.operations[step].operands[0])

    def _is_emptied(self, step: Step) -> bool:
        return step.scope is not None and self.region.operations[step].kind is not Kind.MOVE

    def _elsewhere(self, step: Step, candidate: Candidate, absorbed: Set[Step]) -> Site:
        """Put the layer as late as possible: a module's place if it computes just this, or a graph.

        What comes after the layer then becomes the identity.
        """
        emptied: list[Emptied] = []
        while True:
            inside = candidate.interior - {one.step for one in emptied}
            site = self._whole_module(step, candidate.source, inside) or self._graph(
                step, candidate.source
            )
            if site is not None:
                return replace(site, emptied=tuple(emptied))
            operation = self.region.operations[step]
            before = operation.operands[0]
            is_link = len(operation.operands) == 1 and before in candidate.interior
            is_alone = before in absorbed and len(set(self.region.readers[before])) == 1
            if not (is_link and is_alone and self.gives_way(step)):
                raise NotFoldable("No one module sees both what is read and what is given.")
            if self._is_emptied(step):
                emptied.append(self._emptied(step))
            step = before

    def _whole_module(self, step: Step, source: Step, inside: Set[Step]) -> Site | None:
        """Find the smallest module that computes just these steps."""
        for scope in enclosing(step.scope):
            is_below_opaque = scope.parent is None and bool(scope.path)
            if scope.output is not step or is_below_opaque:
                return None
            if not all(_is_within(s, scope) for s in inside):
                continue
            begins = min(inside, key=lambda s: s.number)
            fits = scope.args == (source,) and not scope.kwargs and self.replaceable(scope.module)
            fits &= scope.parent is not None or takes_one_argument(scope)
            return Site(scope.path) if fits and self._reads_in_time(source, begins) else None
        return None

    def _graph(self, step: Step, source: Step) -> Site | None:
        """Find the smallest module whose code sees both source and result.

        Raises:
            NotFoldable: if it cannot become a graph.
        """
        for scope in enclosing(step.scope):
            result = scope.node_of(step)
            read = scope.node_of(source, before=result)
            if result is None or read is None:
                continue
            obstacle = self.users.obstacle(scope.module)
            if obstacle is not None:
                raise obstacle
            if not is_callable_as_graph(scope):
                raise NotFoldable("It stands in a module that is called with unusual arguments.")
            if not self._reads_in_time(source, step):
                raise NotFoldable("What it reads is changed in place before.")
            return Site(scope.path, (), scope, result, read)
        return None

    def _reads_in_time(self, source: Step, place: Step) -> bool:
        """Tell whether nothing changes the source in place before the layer reads it."""
        return not any(
            source.storage & m.mutates and source.number < m.number < place.number
            for m in self._mutators
        )


def _is_linear_at(candidate: Candidate) -> bool:
    """Tell whether the layer can read the source as it is: a linear one its last axis."""
    shape = candidate.source.shape
    last = -1 if shape is None else len(shape) - 1
    return bool(candidate.value.map.axes) or candidate.start == last


def _taps(step: Step) -> int:
    if step.is_opaque:
        return 0
    weight = step.module.weight if step.module is not None else weights_of(step)[0]
    return weight[0, 0].numel()  # type: ignore[index] # a layer has a weight


def _is_within(step: Step, scope: Scope) -> bool:
    return step.scope is None or scope in enclosing(step.scope)
