"""swap, insert_bn and recalibrate_bn: blocks before training, and BatchNorm after it."""

import pytest
import timm
import torch
from expansion_nets import NORMS, images, state_shapes, trained
from torch import nn
from truth import relative_error

from repblocks import fold, insert_bn, recalibrate_bn, swap
from repblocks.blocks import CONV_BLOCKS, ConvBlock
from repblocks.errors import ConfigurationError, UnknownNameError
from repblocks.folding.switch import fold_blocks

BATCHES = [images(seed=seed) for seed in range(3)]


def norms(model):
    return [module for module in model.modules() if isinstance(module, tuple(NORMS.values()))]


@pytest.mark.parametrize("block", CONV_BLOCKS)
def test_swapped_blocks_train_and_fold(block):
    model = trained()
    swapped = swap(model, block)
    assert not swapped.training
    assert [e.path for e in swapped.swap_report if e.done] == [
        "stem",
        "depthwise",
        "grouped",
        "tail",
    ]
    assert isinstance(swapped.norm0, nn.Identity)
    swapped.train()(images()).sum().backward()
    x = images(seed=9)
    folded = fold(swapped.eval(), x)
    with torch.no_grad():
        assert relative_error(folded(x), swapped(x)) < 1e-10
    assert {k for k in state_shapes(folded) if "norm" not in k} >= {"stem.weight", "tail.weight"}
    assert state_shapes(fold_blocks(swapped)[0]).keys() > set()


def test_swapped_weights_are_new_and_the_rest_is_kept():
    model = trained()
    swapped = swap(model, "plain")
    assert torch.equal(swapped.pointwise.weight, model.pointwise.weight)
    assert not torch.allclose(swapped.stem.branches.conv.weight, model.stem.weight)


def test_squeeze_and_excitation_is_an_option_of_swap():
    swapped = swap(trained(), "repvgg", se=True)
    assert any(".se." in name for name in swapped.state_dict())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("repvg",), {}, UnknownNameError, "Did you mean 'repvgg'"),
        (("repvgg",), {"groups": 2}, ConfigurationError, "groups is not an option here, got 2"),
        (("acb", lambda *_: False), {}, ConfigurationError, "None of the 5 convolutions"),
    ],
)
def test_swap_refusals(arguments, options, error, message):
    with pytest.raises(error, match=message):
        swap(trained(), *arguments, **options)


def test_batchnorm_is_put_back_after_each_convolution():
    x = images(seed=9)
    deployed = fold(trained(), x)
    assert not norms(deployed)
    model = insert_bn(deployed, BATCHES)
    blocks = [m for m in model.modules() if isinstance(m, ConvBlock)]
    assert len(blocks) == len(norms(model)) == 5
    with torch.no_grad():
        assert relative_error(model(x), deployed(x)) < 1e-12
        again = fold(model, x)
        assert relative_error(again(x), deployed(x)) < 1e-10
    assert state_shapes(again) == state_shapes(deployed)


def test_the_batchnorms_put_back_only_add_the_bias_of_their_convolutions():
    model = insert_bn(fold(trained(), images()), BATCHES[:1])
    seen = {}
    for norm in norms(model):
        norm.register_forward_hook(lambda m, inputs, output: seen.update({m: (inputs[0], output)}))
    with torch.no_grad():
        model(BATCHES[0])
        for read, given in seen.values():
            bias = (given - read)[:1, :, :1, :1]
            torch.testing.assert_close(read + bias, given)
        evaluated = model(BATCHES[0])
        model.train()
        model.drop.eval()
        assert relative_error(model(BATCHES[0]), evaluated) < 1e-3


def test_squeeze_and_excitation_gets_no_batchnorm():
    torch.manual_seed(0)
    net = timm.create_model("seresnet18", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    recalibrate_bn(net, [x])
    model = insert_bn(fold(net, x), [x])
    assert not any(".se." in name for name, m in model.named_modules() if isinstance(m, ConvBlock))


def test_statistics_become_the_mean_over_the_batches():
    model = trained().train()
    model.norm1.eval()
    model.norm0.momentum = 0.3
    with torch.no_grad():
        stems = [model.stem(batch) for batch in BATCHES]
    recalibrate_bn(model, [(batch, None) for batch in BATCHES])
    expected = torch.stack([y.mean((0, 2, 3)) for y in stems]).mean(0)
    torch.testing.assert_close(model.norm0.running_mean, expected)
    expected = torch.stack([y.var((0, 2, 3)) for y in stems]).mean(0)
    torch.testing.assert_close(model.norm0.running_var, expected)
    assert (model.norm0.momentum, model.norm2.momentum) == (0.3, None)
    assert model.training
    assert model.drop.training
    assert not model.norm1.training
    first = model.norm2.running_mean.clone()
    recalibrate_bn(model, BATCHES)
    assert torch.equal(first, model.norm2.running_mean)


def test_only_so_many_batches_are_read():
    read = []

    def batches():
        for batch in BATCHES:
            read.append(batch)
            yield batch

    recalibrate_bn(trained(), batches(), num_batches=2)
    assert len(read) == 2
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        recalibrate_bn(trained(), BATCHES, num_batches=0)
    with pytest.raises(ConfigurationError, match="at least 1 batch, got 0"):
        recalibrate_bn(trained(), [])
