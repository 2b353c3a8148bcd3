"""The merged execution in what surrounds a training step: averages, copies, compilers, autocast."""

import copy

import pytest
import torch
from execution_runs import block_of, distance, image, step
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

CASES = [
    ("mobileone", (8, 8, 1), {}),
    ("mobileone", (8, 8, 3), {"groups": 8}),
    ("repvgg", (8, 8, 3), {}),
    ("dbb", (8, 8, 3), {}),
]
blocks = pytest.mark.parametrize(("name", "shape", "options"), CASES, ids=str)
AVERAGES = {
    "timm": lambda model: ModelEmaV3(model, decay=0.5),
    "torch": lambda model: AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True
    ),
}


def network(name, shape, options, execution):
    first = block_of(name, *shape, execution=execution, **options)
    second = block_of(name, *shape, seed=1, execution=execution, **options)
    return nn.Sequential(first, second)


def train(model, steps, after=lambda: None, seed=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for number in range(steps):
        x = image(3, 8, 9, 9, seed=seed + number)
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()
        after()


def assert_same_state(found, truth):
    for key, value in truth.state_dict().items():
        assert distance(found.state_dict()[key], value) < 1e-9, key


@pytest.mark.parametrize("average", AVERAGES)
@blocks
def test_a_moving_average_of_the_weights(name, shape, options, average):
    averages = {}
    for execution in ("branchwise", "merged"):
        model = network(name, shape, options, execution)
        averages[execution] = AVERAGES[average](model)
        train(model, 4, lambda e=execution, m=model: update(averages[e], m))
    assert_same_state(averages["merged"].module, averages["branchwise"].module)
    x = image(2, 8, 9, 9)
    outputs = [average.eval()(x) for average in averages.values()]
    assert distance(*outputs) < 1e-9


def update(average, model):
    is_torch = isinstance(average, AveragedModel)
    (average.update_parameters if is_torch else average.update)(model)


@blocks
def test_a_copy_in_the_middle_of_training_goes_on_by_itself(name, shape, options):
    model = network(name, shape, options, "merged")
    train(model, 2)
    twin, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    train(twin, 2, seed=2)
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value), key
    train(model, 2, seed=2)
    assert_same_state(twin, model)
    truth = network(name, shape, options, "branchwise")
    train(truth, 2)
    train(truth, 2, seed=2)
    assert_same_state(model, truth)


# Where the graph breaks, the compiler of torch 2.15 looks at the gradient of what is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
@blocks
def test_a_compiled_block_is_the_same_for_several_steps(name, shape, options, backend):
    x = image(3, 8, 9, 9)
    truth, compiled = (block_of(name, *shape, execution="merged", **options) for _ in range(2))
    run = torch.compile(compiled, backend=backend, fullgraph=False)
    for _ in range(2):
        for model in (truth, run):
            model(x).square().mean().backward()
    assert_same_state(compiled, truth)
    largest = max(p.grad.abs().max() for p in truth.parameters())
    for (key, found), expected in zip(compiled.named_parameters(), truth.parameters(), strict=True):
        assert (found.grad - expected.grad).abs().max() < 1e-9 * largest, key


@blocks
def test_autocast_keeps_gradients_and_statistics_in_float32(name, shape, options):
    block = block_of(name, *shape, activation=None, **options)
    x = image(3, 8, 9, 9)
    truth = step(block, x, "branchwise")
    with torch.autocast("cpu", torch.bfloat16):
        found = step(block.float(), x.float(), "merged")
    kept = [*found.of_weights.values(), found.of_input]
    kept += [value for key, value in found.buffers.items() if "running" in key]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    for key, value in truth.buffers.items():
        assert distance(found.buffers[key], value) < 1e-2, key
    assert distance(found.output, truth.output) < 5e-2
