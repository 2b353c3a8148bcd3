"""expand: the same function as blocks, in evaluation and training mode, and folded back."""

import copy

import pytest
import timm
import torch
from expansion_nets import Residual, images, state_shapes, trained
from torch import nn
from torch.nn import functional
from truth import relative_error, rms_error

import repblocks
from repblocks import expand, fold
from repblocks.blocks import CONV_BLOCKS, ConvBlock
from repblocks.errors import ConfigurationError, NotFoldable, UnknownNameError

EXPANDABLE = [name for name, block in CONV_BLOCKS.items() if block.takes_any_kernel]
blocks = pytest.mark.parametrize("block", EXPANDABLE)


@pytest.mark.parametrize("block", sorted({*CONV_BLOCKS} - {*EXPANDABLE}))
def test_a_block_that_does_not_take_any_kernel_is_refused(block):
    with pytest.raises(ConfigurationError, match="has no branch of one convolution of kernel size"):
        expand(trained(), block, batches())


def placed(model):
    return [name for name, module in model.named_modules() if isinstance(module, ConvBlock)]


def batches(ndim=2, dtype=torch.float64):
    return [images(ndim, seed=seed, dtype=dtype) for seed in range(4)]


@blocks
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_evaluation_mode_is_the_same_function(block, ndim):
    model = trained(ndim)
    expanded = expand(model, block, batches(ndim))
    assert placed(expanded) == ["stem", "depthwise", "grouped", "tail"]
    x = images(ndim, seed=9)
    with torch.no_grad():
        assert relative_error(expanded(x), model(x)) < 1e-12


@blocks
def test_folded_back_it_is_the_folded_original(block):
    model, x = trained(), images(seed=9)
    folded, back = fold(model, x), fold(expand(model, block, batches()), x)
    assert state_shapes(back) == state_shapes(folded)
    assert back.fold_report.macs_after == folded.fold_report.macs_after
    with torch.no_grad():
        assert relative_error(back(x), folded(x)) < 1e-10


@blocks
def test_single_precision_is_as_exact_as_the_original(block):
    model = trained(dtype=torch.float32)
    expanded = expand(model, block, batches(dtype=torch.float32))
    exact = copy.deepcopy(model).double()
    for seed in range(8):
        x = images(seed=20 + seed, dtype=torch.float32)
        with torch.no_grad():
            truth = exact(x.double())
            assert rms_error(expanded(x), truth) <= 2 * rms_error(model(x), truth) + 1e-6


@blocks
def test_training_starts_from_the_same_loss(block):
    """On the batch that was measured, BatchNorms normalise by what they keep."""
    model, x = trained(), images(count=64)
    model.drop.p = 0.0
    labels = torch.arange(64) % 5
    expanded = expand(model, block, [x])
    start = functional.cross_entropy(expanded.train()(x), labels)
    assert start.item() == pytest.approx(
        functional.cross_entropy(model(x), labels).item(), rel=0.01
    )
    with pytest.warns(UserWarning, match="expand has no data"):
        blind = expand(model, block)
    with torch.no_grad():
        off = (blind.train()(x) - model(x)).norm()
        assert (expanded(x) - model(x)).norm() < 0.2 * off


@blocks
def test_every_parameter_is_trained(block):
    model = trained()
    expanded = expand(model, block, batches()).train()
    expanded(images()).square().mean().backward()
    for name, parameter in expanded.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_what_is_left_has_its_reason():
    class Odd(Residual):
        def __init__(self):
            super().__init__()
            self.again = nn.Conv2d(16, 16, 3, padding=1)
            self.even = nn.Conv2d(16, 16, (1, 4), padding="same")
            self.mirrored = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
            self.hooked = nn.Conv2d(16, 16, 3, padding=1)
            self.hooked.register_forward_hook(lambda *_: None)
            self.unused = nn.Conv2d(16, 16, 3)

        def forward(self, x):
            x = self.even(self.again(self.again(functional.relu(self.tail(self.stem(x))))))
            return self.hooked(self.mirrored(x))

    model = Odd().double().eval()
    expanded = expand(model, "repvgg", batches(), lambda path, _: path != "tail")
    reasons = {entry.path: entry.reason for entry in expanded.expand_report}
    assert [entry.path for entry in expanded.expand_report if entry.done] == ["stem"]
    assert reasons["stem"] == ""
    assert reasons["tail"] == "It was not asked for."
    for path in ("again", "unused"):
        assert reasons[path].startswith("It is not called exactly once")
    assert reasons["even"].startswith("Blocks pad both sides alike")
    assert reasons["mirrored"].startswith("Blocks pad with zeros")
    assert reasons["hooked"].startswith("The forward hooks of Conv2d would be lost")
    x = images()
    with torch.no_grad():
        assert relative_error(expanded(x), model(x)) < 1e-12


def test_modes_gradients_layout_and_the_original_are_kept():
    model = trained(dtype=torch.float32).to(memory_format=torch.channels_last).train()
    model.norm1.eval()
    for module in (model.stem, model.norm0):
        module.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expanded = expand(model, "dbb", batches(dtype=torch.float32))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert expanded.training
    assert expanded.stem.training
    assert not expanded.norm1.training
    assert not any(p.requires_grad for p in expanded.stem.parameters())
    assert all(p.requires_grad for p in expanded.tail.parameters())
    kernel = next(p for p in expanded.tail.parameters() if p.shape[-1] == 3)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert {p.dtype for p in expanded.parameters()} == {torch.float32}


def test_options_reach_the_block_and_fold_back():
    model, x = trained(), images(seed=9)
    expanded = expand(model, "mobileone", batches(), num_conv_branches=3)
    names = {name for name in expanded.state_dict() if name.startswith("tail.branches.")}
    assert len({name.split(".")[2] for name in names}) >= 3
    with torch.no_grad():
        assert relative_error(fold(expanded, x)(x), model(x)) < 1e-10


def test_a_convolution_without_any_bias_is_expanded_only_when_asked_for():
    model, x = trained(), images(seed=9)
    model.tail.bias = None
    left = expand(model, "acb", batches())
    assert placed(left) == ["stem", "depthwise", "grouped"]
    assert state_shapes(fold(left, x)) == state_shapes(fold(model, x))
    (tail,) = (entry for entry in left.expand_report if entry.path == "tail")
    assert tail.reason.startswith("It has neither a bias nor a BatchNorm after it")
    asked = expand(model, "acb", batches(), where=lambda path, _: path == "tail")
    assert placed(asked) == ["tail"]


PRE_ACTIVATED = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "resnetv2_18")
]


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035", "repvit_m0_9", *PRE_ACTIVATED])
def test_networks_of_timm_expand_and_fold_back(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).double().eval()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    repblocks.recalibrate_bn(model, [x])
    expanded = expand(model, "acb", [x])
    folded, back = fold(model, x), fold(expanded, x)
    with torch.no_grad():
        assert relative_error(expanded(x), model(x)) < 1e-9
        assert relative_error(back(x), folded(x)) < 1e-9
    assert state_shapes(back) == state_shapes(folded)
    assert back.fold_report.macs_after == folded.fold_report.macs_after


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            ("repvg", batches()),
            {},
            UnknownNameError,
            "Unknown conv block 'repvg'. Did you mean 'repvgg'",
        ),
        (
            ("repvgg", batches()),
            {"stride": 2},
            ConfigurationError,
            "stride is not an option here, got 2",
        ),
        (("repvgg", batches()), {"se": True}, ConfigurationError, "se is not an option here"),
        (("mobileone", batches()), {"branches": 2}, UnknownNameError, "'branches'"),
        (("acb", []), {}, ConfigurationError, "data must hold at least 1 batch, got 0"),
        (("acb", torch.ones(1)), {}, ConfigurationError, "got one tensor of shape"),
        (("acb", [{"x": 1}]), {}, ConfigurationError, "batch 0 is dict"),
        (("acb", batches(), lambda *_: False), {}, ConfigurationError, "None of the 5 conv"),
    ],
)
def test_refusals(arguments, options, error, message):
    with pytest.raises(error, match=message):
        expand(trained(), *arguments, **options)


def test_a_batchnorm_without_statistics_is_left():
    model = trained()
    model.norm0 = nn.BatchNorm2d(8, track_running_stats=False).double().eval()
    expanded = expand(model, "acb", batches())
    (stem,) = (entry for entry in expanded.expand_report if entry.path == "stem")
    assert not stem.done
    assert "running statistics" in stem.reason
    assert NotFoldable("x").reason == "x"
