"""What every fold promises, measured without any part of it: function, input model, cost, plan."""

import copy
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from call_tape import executed
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repblocks.folding.fold import explain, fold
from repblocks.folding.fold_report import FoldReport

# Of what depends on the input, and of the largest value inside: float64's own rounding.
ROUNDING = 1e-12


@dataclass
class Judgement:
    """What was measured of one fold.

    Args:
        report: The report of the fold.
        folded: The folded model.
        seconds: How long the fold took.
        error: Largest RMS error of any output, relative to the part that depends on the input.
        signal: The size of that part, relative to the output.
        before: Calls and multiply-adds of the original.
        after: The same of the folded model.
        broken: The promises that were not kept.
    """

    report: FoldReport
    folded: nn.Module
    seconds: float
    error: float = 0.0
    signal: float = 0.0
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def judge(model: nn.Module, x: Tensor, tolerance: float, larger: int = 3) -> Judgement:
    """Fold a model in float64 and evaluation mode, and compare it with its original.

    Args:
        model: In evaluation mode.
        x: The example input; other values and, where the model takes them, sizes are tried too.
        tolerance: Largest RMS error relative to the part of the output that depends on the input.
        larger: How much larger the other size is.

    The fold does not verify itself: that would hide what is looked for here.
    """
    before, x_before = snapshot(model), x.clone()
    start = time.perf_counter()
    folded = fold(model, x, verify=False)
    seconds = time.perf_counter() - start
    judged = Judgement(folded.fold_report, folded, seconds)
    if snapshot(model) != before or not torch.equal(x, x_before):
        judged.broken.append("the input model or the example was changed")
    judged.before, judged.after = executed(model, x.clone()), executed(folded, x.clone())
    judged.broken += costs_that_grew(judged.before, judged.after)
    judged.broken += plans_that_differ(model, x, judged.report)
    compare(judged, model, x, tolerance, larger)
    return judged


def snapshot(model: nn.Module) -> list[Any]:
    """Note all that a fold might change in a model: classes, modes, tensors."""
    modules = [(path, type(m), m.training, id(m)) for path, m in model.named_modules()]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [*modules, *((name, id(t), checksum(t)) for name, t in tensors.items())]


def checksum(tensor: Tensor) -> int:
    return hash(tensor.detach().cpu().contiguous().numpy().tobytes())


def costs_that_grew(before: Counter[str], after: Counter[str]) -> list[str]:
    return [
        f"{what} grew: {before[what]} to {after[what]}"
        for what in ("macs", "convs")
        if after[what] > before[what]
    ]


def plans_that_differ(model: nn.Module, x: Tensor, report: FoldReport) -> list[str]:
    plans = [explain(model, x).to_dict() for _ in range(2)]
    own = report.to_dict()
    for plan in (*plans, own):
        plan.pop("verification", None)
    if plans[0] != plans[1]:
        return ["a second plan was another"]
    return [] if own == plans[0] else ["what was folded is not what was planned"]


def compare(judged: Judgement, model: nn.Module, x: Tensor, tolerance: float, larger: int) -> None:
    """Compare outputs at the example, at other values, and at other sizes."""
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    signal, largest = dependence(model, x)
    sizes = [rms(t) or 1.0 for t in outputs(model, x)]
    judged.signal = min(part / size for part, size in zip(signal, sizes, strict=True))
    inputs = {"the example": x, "other values": other, **other_sizes(model, x, larger)}
    for name, value in inputs.items():
        truth, found = outputs(model, value), outputs(judged.folded, value)
        if [t.shape for t in truth] != [f.shape for f in found]:
            judged.broken.append(f"another shape at {name}: {[tuple(f.shape) for f in found]}")
            continue
        if not judged.report.folded and not all(map(torch.equal, truth, found)):
            judged.broken.append(f"nothing was folded, but not bit-identical at {name}")
        for t, f, part, size in zip(truth, found, signal, sizes, strict=True):
            growth = max(1.0, rms(t) / size)  # another size may give other magnitudes
            error = rms(t - f) / growth
            judged.error = max(judged.error, error / (part or 1.0))
            limit = tolerance * part + ROUNDING * max(largest, rms(t))
            if not error <= limit:
                judged.broken.append(f"wrong at {name}: {error:.3g}, allowed {limit:.3g}")


def dependence(model: nn.Module, x: Tensor) -> tuple[list[float], float]:
    """Give how much each output depends on the input, and the largest size of a value inside.

    The other input is the same batch in another order: its values are as usual as those of ``x``.
    """
    largest = 0.0

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal largest
        largest = max([largest, *(rms(t) for t in tensors_of(output))])

    twin = copy.deepcopy(model)
    for module in twin.modules():
        module.register_forward_hook(note)
    one = outputs(twin, x)
    signal = [rms(a - b) for a, b in zip(one, outputs(model, x.flip(0)), strict=True)]
    return signal, largest


def other_sizes(model: nn.Module, x: Tensor, more: int) -> dict[str, Tensor]:
    """Make an input of other sizes, if the model takes it: a fold may not depend on them."""
    generator = torch.Generator().manual_seed(2)
    shape = (x.shape[0] + 1, x.shape[1], *[size + more for size in x.shape[2:]])
    larger = torch.randn(shape, generator=generator, dtype=x.dtype)
    try:
        outputs(model, larger)
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return {}
    return {"another size": larger}


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [t.clone() for t in tensors_of(model(x.clone()))]


def tensors_of(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0
