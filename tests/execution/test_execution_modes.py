"""What is done with a block in training besides training it."""

import os

import pytest
import torch
from execution_runs import block_of, distance
from torch import fx, nn
from torch.autograd import forward_ad

from repblocks.errors import RepblocksError
from repblocks.execution import compiled

BLOCKS = [("mobileone", (64, 64, 1), {}), ("mobileone", (64, 64, 3), {"groups": 64})]
BLOCKS += [("repvgg", (64, 64, 3), {})]
IDS = ["pointwise", "depthwise", "dense"]


def of(case, execution="merged"):
    name, shape, options = case
    return block_of(name, *shape, **options, execution=execution).float().train()


@pytest.mark.parametrize("case", BLOCKS, ids=IDS)
@pytest.mark.parametrize("execution", ["auto", "merged"])
def test_models_of_low_precision_train(case, execution):
    block, x = of(case, execution).bfloat16(), torch.randn(4, 64, 20, 20).bfloat16()
    truth = of(case, "branchwise")
    truth.load_state_dict(block.state_dict())
    y = block(x)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert distance(y.double(), truth(x.float()).double()) < 0.05
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own use of it
@pytest.mark.parametrize("case", BLOCKS, ids=IDS)
def test_forward_derivatives_are_those_of_the_branches(case):
    block, x, along = of(case), torch.randn(2, 64, 12, 12), torch.randn(2, 64, 12, 12)

    def derivative():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(block(forward_ad.make_dual(x, along))).tangent

    with pytest.warns(UserWarning, match="runs branchwise here: a forward derivative is taken"):
        found = derivative()
    block.execution = "branchwise"
    assert torch.equal(found, derivative())


@pytest.mark.parametrize("case", BLOCKS, ids=IDS)
def test_a_batch_of_gradients_is_refused(case):
    x = torch.randn(2, 64, 12, 12, requires_grad=True)
    y = of(case)(x)
    with pytest.raises(RepblocksError, match='set execution="branchwise" for is_grads_batched'):
        torch.autograd.grad(y, x, torch.stack([torch.ones_like(y)] * 2), is_grads_batched=True)


@pytest.mark.parametrize("case", BLOCKS, ids=IDS)
def test_symbolic_traces_see_the_branches(case):
    block = of(case, "auto")
    traced = fx.symbolic_trace(block)
    assert any(isinstance(traced.get_submodule(n.target), nn.BatchNorm2d)
               for n in traced.graph.nodes if n.op == "call_module")  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit.*:FutureWarning")  # it is to go
@pytest.mark.filterwarnings("ignore:.*:torch.jit.TracerWarning")
@pytest.mark.parametrize("case", BLOCKS, ids=IDS)
def test_traces_of_torch_jit_see_the_branches(case):
    block, x = of(case), torch.randn(2, 64, 12, 12)
    with pytest.warns(UserWarning, match="branchwise here: torch.jit.trace is at work. The first"):
        traced = torch.jit.trace(block, x, check_trace=False)
    assert torch.equal(traced(x), block.branches(x).relu())


@pytest.mark.parametrize("case", BLOCKS, ids=IDS)
def test_an_exported_batch_may_be_free(case):
    block, x = of(case), torch.randn(2, 64, 12, 12)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    with pytest.warns(
        UserWarning, match="branchwise here: it is exported with sizes that are free"
    ):
        exported = torch.export.export(block, (x,), dynamic_shapes=shapes).module()
    other = torch.randn(5, 64, 12, 12)
    assert distance(exported(other).double(), block(other).double()) < 1e-5


def test_a_setting_that_is_gone_is_another_state():
    block, x = of(BLOCKS[0]), torch.randn(2, 64, 12, 12)
    conv = next(m for m in block.modules() if isinstance(m, nn.Conv2d))
    conv.marked = True
    block(x)
    del conv.marked
    block(x)


def test_what_was_compiled_from_older_sources_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    (tmp_path / "__pycache__").mkdir()
    names = ["compiled_a.f-1.py311.nbi", "compiled_b.f-1.py311.1.nbc"]
    old, new = (tmp_path / "__pycache__" / name for name in names)
    source = tmp_path / "compiled_loops.py"
    for number, path in enumerate((old, source, new)):
        path.touch()
        os.utime(path, (number, number))
    compiled._forget_older()
    assert not old.exists()
    assert new.exists()


def test_a_cache_that_cannot_be_written_leaves_torch(monkeypatch, caplog):
    def refuse():
        raise RuntimeError("cannot cache function 'dot'")

    monkeypatch.setattr(compiled, "_forget_older", refuse)
    compiled._kernels.cache_clear()
    with caplog.at_level("INFO"):
        assert compiled._kernels() is None
    assert "cannot cache function 'dot'" in caplog.text
    compiled._kernels.cache_clear()
