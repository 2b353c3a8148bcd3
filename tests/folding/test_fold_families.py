"""The networks of timm: folded exactly, never larger, as compact as timm's own, and explained."""

import copy

import pytest
from call_tape import executed
from family_nets import NETS, TINY, build
from fold_promises import judge
from left_norms import false_reasons
from timm.utils import reparameterize_model

TOLERANCE = 1e-9
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NETS if name not in TINY]


@pytest.mark.parametrize("name", [*TINY, *SLOW])
def test_a_network_of_timm_keeps_every_promise(name):
    model, x = build(name)
    judged = judge(model, x, TOLERANCE, larger=32)
    broken = judged.broken + false_reasons(model, x, judged.report, judged.after["norms"])
    theirs = executed(reparameterize_model(copy.deepcopy(model)).to(x), x)
    broken += [f"timm has less {what}" for what in larger(judged.after, theirs)]
    assert judged.signal > 1e-3, "the output hardly depends on the input: every fold would pass"
    assert broken == []


def larger(ours, theirs):
    """Name what timm's own folding has less of."""
    layers = ours["convs"] + ours["linears"], theirs["convs"] + theirs["linears"]
    counts = {"layers": layers, "multiply-adds": (ours["macs"], theirs["macs"])}
    return [what for what, (own, other) in counts.items() if own > other]
