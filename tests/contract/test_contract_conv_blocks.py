"""What every conv block promises, over the registry: a new block is tested without a new test."""

import copy
import pickle

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error, rms_error

from repblocks.algebra import is_batch_norm
from repblocks.blocks import CONV_BLOCKS, create_block
from repblocks.errors import ConfigurationError, NotFoldable, UnknownNameError

EXACT = 1e-12
BASE = (8, 8, 3)
#: Arguments that a block may refuse, in its constructor and by name; see `built`.
SHAPES = [
    {},
    {"out_channels": 12},
    {"stride": 2},
    {"stride": 2, "out_channels": 16, "groups": 4},
    {"dilation": 2},
    {"dilation": 2, "groups": 8},
    {"groups": 8},
    {"groups": 8, "out_channels": 16},
    {"groups": 2, "stride": 3},
    {"padding": 0},
    {"padding": 3, "groups": 8, "dilation": 3},
    {"padding": 0, "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "padding": 1},
    {"kernel_size": 5, "groups": 4},
    {"kernel_size": 7, "padding": 1, "groups": 8},
    {"kernel_size": 4, "padding": 1},
    {"kernel_size": 2, "stride": 2, "padding": 0},
    {"se": 0.25, "activation": "gelu"},
    {"se": 0.5, "activation": None, "groups": 4},
]
RECTANGLES = [
    {"kernel_size": (3, 1), "padding": (1, 0)},
    {"kernel_size": (5, 3), "stride": (1, 2), "dilation": (1, 2)},
    {"kernel_size": (3, 4), "padding": (0, 2), "groups": 2},
]
DIMENSIONS = [(shape, ndim) for ndim in (1, 2, 3) for shape in SHAPES]
DIMENSIONS += [(shape, 2) for shape in RECTANGLES]

pytestmark = pytest.mark.parametrize("name", CONV_BLOCKS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def image(ndim=2, channels=8, size=None):
    size = size or {1: 15, 2: 10, 3: 7}[ndim]
    return torch.randn(3, channels, *(size + i for i in range(ndim)), dtype=torch.float64)


def built(name, ndim=2, **shape):
    """Build a block, or stop where it refuses the shape with a message that names an argument."""
    arguments = {**dict(zip(("in_channels", "out_channels", "kernel_size"), BASE, strict=True))}
    arguments.update(shape)
    try:
        return create_block(name, ndim=ndim, **arguments).double()
    except ConfigurationError as refusal:
        assert shape, f"{name} must build with {BASE}: {refusal}"
        assert any(argument in str(refusal) for argument in arguments), refusal
        even = torch.tensor(arguments["kernel_size"]) % 2 == 0
        assert even.any(), f"{name} refuses {shape}, which its mathematics allows: {refusal}"
        return None


def ready(name, **shape):
    block = built(name, **shape)
    return block if block is None else calibrate(block, image(shape.get("ndim", 2)))


@pytest.mark.parametrize(("shape", "ndim"), DIMENSIONS, ids=str)
def test_both_forms_and_the_kernel_are_one_function(name, shape, ndim):
    block = ready(name, ndim=ndim, **shape)
    if block is None:
        return
    x = image(ndim)
    with torch.no_grad():
        truth, linear = block(x), block.branches(x)
        kernel = block.equivalent_kernel()
        assert relative_error(kernel(x), linear) < EXACT
        assert relative_error(kernel.to_conv()(x), linear) < EXACT
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT
        assert relative_error(block.equivalent_kernel()(x), linear) < EXACT


@pytest.mark.parametrize(("shape", "ndim"), DIMENSIONS, ids=str)
def test_the_kernel_costs_no_more_than_the_branches(name, shape, ndim):
    block = ready(name, ndim=ndim, **shape)
    if block is None:
        return
    macs, spent = block.equivalent_kernel().macs, []

    def count(module, _, output):
        per_output = module.weight[0].numel()
        spent.append(per_output * output[0].numel())

    for module in block.branches.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(count)
    output = block.branches(image(ndim))
    assert macs * output[0, 0].numel() <= sum(spent)


def test_gradients_reach_every_parameter(name):
    block = built(name, se=0.5)
    block(image()).square().sum().backward()
    missing = [key for key, p in block.named_parameters() if p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())


def test_the_kernel_is_differentiable(name):
    block = ready(name)
    block.equivalent_kernel().weight.square().sum().backward()
    reached = [p for p in block.parameters() if p.grad is not None and p.grad.any()]
    assert len(reached) >= len(list(block.parameters())) // 3


def test_switching_leaves_nothing_of_the_training_form(name):
    block = ready(name, se=0.25)
    tail = {key for key in block.state_dict() if key.startswith("tail.")}
    assert not any(key.startswith("conv.") for key in block.state_dict())
    block.switch_to_deploy()
    assert set(block.state_dict()) == tail | {"conv.weight", "conv.bias"}
    assert not any(map(is_batch_norm, block.modules()))
    assert block.is_deployed
    assert not block.training


def test_switching_twice_is_switching_once(name):
    block = ready(name)
    block.switch_to_deploy()
    before = copy.deepcopy(block.state_dict())
    block.switch_to_deploy()
    assert all(torch.equal(before[key], value) for key, value in block.state_dict().items())


def test_switching_keeps_dtype_gradients_and_memory_format(name):
    block = ready(name, out_channels=12)
    block.to(torch.bfloat16, memory_format=torch.channels_last)
    frozen = copy.deepcopy(block).requires_grad_(False)
    for form, trainable in ((block, True), (frozen, False)):
        form.switch_to_deploy()
        assert form.conv.weight.dtype == torch.bfloat16
        assert form.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert form.conv.weight.requires_grad == form.conv.bias.requires_grad == trainable


def test_switching_keeps_the_memory_format_of_volumes(name):
    block = ready(name, ndim=3, out_channels=12).to(memory_format=torch.channels_last_3d)
    block.switch_to_deploy()
    assert block.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_tail_that_trains_leaves_frozen_branches_frozen(name):
    block = ready(name, se=0.5)
    block.branches.requires_grad_(False)
    block.switch_to_deploy()
    assert not any(p.requires_grad for p in block.conv.parameters())
    assert all(p.requires_grad for p in block.tail.parameters())


def test_the_default_device_does_not_matter(name):
    block = ready(name)
    twin = copy.deepcopy(block)
    with torch.device("meta"):
        block.switch_to_deploy()
    twin.switch_to_deploy()
    assert torch.equal(block.conv.weight, twin.conv.weight)


def test_training_mode_is_refused(name):
    block = ready(name).train()
    with pytest.raises(NotFoldable, match=r"training mode.*call \.eval\(\) first"):
        block.switch_to_deploy()
    assert not block.is_deployed


def test_statistics_that_were_never_updated_give_a_warning(name):
    block = built(name).eval()
    with pytest.warns(UserWarning, match="never updated: mean 0, variance 1"):
        block.switch_to_deploy()


def test_hooks_on_a_branch_are_refused(name):
    block = ready(name)
    for module in block.branches.modules():
        handle = module.register_forward_hook(lambda _m, _x, y: 2 * y)
        with pytest.raises(NotFoldable, match="forward hooks, which may change what it computes"):
            block.switch_to_deploy()
        handle.remove()
    block.switch_to_deploy()


def test_another_call_than_that_of_the_class_is_refused(name):
    block = ready(name)
    for module in block.branches.modules():
        module.forward = lambda *inputs, forward=module.forward: 2 * forward(*inputs)
        with pytest.raises(NotFoldable, match="another forward than its class"):
            block.switch_to_deploy()
        del module.forward
    original = type(block.branches)
    block.branches.__class__ = type("Doubling", (original,), {"__call__": lambda _, x: 2 * x})
    with pytest.raises(NotFoldable, match="Doubling overrides __call__"):
        block.switch_to_deploy()
    assert not block.is_deployed


def test_a_linear_layer_is_not_taken_for_a_pointwise_convolution(name):
    block = ready(name)
    block.branches = nn.Sequential(block.branches, nn.Linear(8, 8).double())
    with pytest.raises(NotFoldable, match="acts on the last axis"):
        block.switch_to_deploy()


def test_inference_mode_leaves_weights_that_train(name):
    block = ready(name)
    with torch.inference_mode():
        block.switch_to_deploy()
    block(image()).sum().backward()
    assert block.conv.weight.grad.abs().max() > 0


def test_folding_on_meta_gives_the_shapes(name):
    block = ready(name)
    twin = copy.deepcopy(block).to("meta")
    for form in (block, twin):
        form.switch_to_deploy()
    shapes = {key: value.shape for key, value in block.state_dict().items()}
    assert {key: value.shape for key, value in twin.state_dict().items()} == shapes


def test_copies_and_state_dicts_carry_everything(name):
    block = ready(name, se=0.5)
    twin = built(name, se=0.5).eval()
    twin.load_state_dict(block.state_dict())
    x = image()
    for form in (twin, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(form(x), block(x))
        form.switch_to_deploy()
        assert relative_error(form(x), block(x)) < EXACT
    deployed = copy.deepcopy(twin)
    assert torch.equal(pickle.loads(pickle.dumps(deployed))(x), twin(x))


def test_synchronised_norms_fold(name):
    block = ready(name)
    x = image()
    truth = block(x)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synchronised.modules())
    synchronised.switch_to_deploy()
    assert relative_error(synchronised(x), truth) < EXACT


@pytest.mark.parametrize("seed", range(8))
def test_float32_loses_no_more_than_the_branches_do(name, seed):
    torch.manual_seed(seed)
    block = ready(name, out_channels=16, se=0.25)
    x = image()
    with torch.no_grad():
        truth = block(x)
        block.float()
        before = rms_error(block(x.float()), truth)
        block.switch_to_deploy()
        assert rms_error(block(x.float()), truth) <= 2 * before + 1e-7


@pytest.mark.parametrize("channels", [3, 8])
def test_a_strided_stem_trains_in_channels_last(name, channels):
    """Some CPU builds corrupt memory in a strided pointwise weight gradient of few channels."""
    block = built(name, in_channels=channels, out_channels=32, stride=2).float()
    block.to(memory_format=torch.channels_last)
    x = torch.randn(16, channels, 64, 64).to(memory_format=torch.channels_last)
    for _ in range(3):
        block(x).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())


def test_a_deployed_block_trains_on(name):
    block = ready(name)
    block.switch_to_deploy()
    block.train()(image()).sum().backward()
    assert block.conv.weight.grad.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel_size": 4}, r"kernel_size must be odd to keep the output size, got \(4, 4\)"),
        ({"kernel_size": 0}, "kernel_size must be a whole number of at least 1, got 0"),
        ({"stride": 0}, "stride must be a whole number of at least 1, got 0"),
        ({"dilation": -1}, "dilation must be a whole number of at least 1, got -1"),
        ({"groups": 3}, "groups must divide in_channels, got 3 groups for 8"),
        ({"groups": 8, "out_channels": 12}, "groups must divide out_channels, got 8 groups for 12"),
        ({"padding": -1}, "padding must not be negative, got -1"),
        ({"ndim": 4}, "ndim must be 1, 2 or 3, got 4"),
        ({"stride": (1, 1, 1)}, r"stride must be one whole number or 2 of them.*\(1, 1, 1\)"),
        ({"activation": "rellu"}, "Unknown activation 'rellu'. Did you mean 'relu'"),
        ({"se": 0.01}, "se must leave a hidden channel: 0.01 of 8"),
        ({"no_such_option": 1}, "Unknown option of .* 'no_such_option'"),
    ],
)
def test_wrong_arguments_are_refused(name, wrong, message):
    arguments = dict(zip(("in_channels", "out_channels", "kernel_size"), BASE, strict=True))
    with pytest.raises(ConfigurationError, match=message):
        create_block(name, **{**arguments, **wrong})


def test_unknown_names_show_the_nearest(name):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{name}'"):
        create_block(f"{name}x", *BASE)
