"""Every stage block under every execution: one function."""

import pytest
import torch
from execution_runs import assert_same, image, step
from torch import nn

from repblocks.blocks import STAGE_BLOCKS, set_execution
from repblocks.errors import ConfigurationError
from repblocks.execution import EXECUTIONS

stages = pytest.mark.parametrize("name", STAGE_BLOCKS)


def built(name):
    torch.manual_seed(0)
    block = STAGE_BLOCKS[name](16).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return block


class Chosen(nn.Module):
    """All of a stage block under the execution that is set."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        set_execution(self.block, self.execution)
        return self.block(x)


@pytest.mark.parametrize("is_frozen", [False, True])
@stages
@pytest.mark.filterwarnings("ignore:execution=.* runs branchwise here")
def test_all_executions_are_one_step(name, is_frozen):
    block, x = built(name), image(2, 16, 14, 14)
    if is_frozen:
        block(x)
        block.apply(lambda m: m.eval() if hasattr(m, "running_mean") else m)
    truth = step(Chosen(block), x, "branchwise")
    for execution in ("merged", "weight_space", "auto"):
        assert_same(step(Chosen(block), x, execution), truth, 1e-11)


@stages
def test_each_takes_an_execution_and_checks_it(name):
    for execution in EXECUTIONS:
        block = STAGE_BLOCKS[name](16, execution=execution)
        chosen = {m.execution for m in block.modules() if hasattr(m, "execution")}
        assert execution in chosen
    with pytest.raises(ConfigurationError, match="execution must be one of .*, got 'fast'"):
        STAGE_BLOCKS[name](16, execution="fast")


@pytest.mark.parametrize("name", ["rep_cpe", "rep_mlp"])
def test_those_with_branches_of_their_own_merge_them(name, monkeypatch):
    block, x = built(name), image(2, 16, 14, 14)
    block(x)
    block.apply(lambda m: m.eval() if hasattr(m, "running_mean") else m)
    called = []
    run = "repblocks.execution.dispatch.run_in_weight_space"
    monkeypatch.setattr(run, lambda tree, x, **_: called.append(tree) or tree(x))
    block.execution = "weight_space"
    block(x)
    assert called
