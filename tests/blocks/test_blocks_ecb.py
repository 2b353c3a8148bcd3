"""ECB: its branches against the official formula, its filters, its start, what it refuses."""

import pytest
import torch
from torch.nn import functional
from weight_space_forms import check_forms, check_gradients, image, kernel_node, trained

from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError

MASKS = {
    "sobel1": [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
    "sobel0": [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
    "laplacian": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
}


def framed(x, conv, groups):
    """Run a 1 x 1, and pad with its bias: with what it gives on zeros."""
    y = functional.conv2d(x, conv.weight, conv.bias, groups=groups)
    frame = torch.zeros(1, conv.out_channels, y.shape[2] + 2, y.shape[3] + 2, dtype=y.dtype)
    if conv.bias is not None:
        frame = frame + conv.bias.view(1, -1, 1, 1)
    frame = frame.expand(len(y), -1, -1, -1).clone()
    frame[:, :, 1:-1, 1:-1] = y
    return frame


def published(block, x, stride=1, groups=1):
    tree = kernel_node(block)
    dense = tree["kxk"].conv
    total = functional.conv2d(x, dense.weight, dense.bias, stride, 1, groups=groups)
    expand, squeeze = tree["expand_squeeze"].conv0.conv, tree["expand_squeeze"].conv1.conv
    y = framed(x, expand, groups)
    total = total + functional.conv2d(y, squeeze.weight, squeeze.bias, stride, groups=groups)
    for name, mask in MASKS.items():
        branch = tree[name]
        weight = branch.scale.weight.view(-1, 1, 1, 1) * torch.tensor(mask).double()
        y = framed(x, branch.pointwise.conv, groups)
        y = functional.conv2d(y, weight, branch.scale.bias, stride, groups=len(weight))
        total = total + y
    return total + x if "identity" in tree else total


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize(
    ("channels", "stride", "groups"),
    [((4, 4), 1, 1), ((4, 6), 2, 2), ((3, 5), 1, 1), ((4, 4), 1, 4)],
)
def test_the_kernel_is_the_published_block(norm, identity, channels, stride, groups):
    options = {"norm": norm, "use_identity": identity, "groups": groups}
    block = trained("ecb", *channels, 3, stride, **options)
    tree = kernel_node(block)
    assert ("identity" in tree) == (identity and channels == (4, 4))
    x = image(2, channels[0], 7, 8)
    check_forms(block, x, published(block, x, stride, groups))


def test_it_starts_as_published():
    torch.manual_seed(0)
    block = create_block("ecb", 64, 64, 3, norm=False)
    tree = kernel_node(block)
    for name in MASKS:
        for start in (tree[name].scale.weight, tree[name].scale.bias):
            assert 0.5e-3 < start.std() < 2e-3
            assert start.abs().max() < 6e-3
    assert tree["expand_squeeze"].conv0.conv.out_channels == 128


def test_parameters_are_counted_as_published():
    """The official block counts its three masks, which are not trained."""
    block = create_block("ecb", 8, 8, 3, norm=False, activation=None)
    parameters = sum(p.numel() for p in block.parameters())
    assert parameters + 3 * 8 * 9 == 2368
    assert sum(value.numel() for value in block.state_dict().values()) == parameters


@pytest.mark.parametrize(
    ("ndim", "names"),
    [(1, ["sobel0"]), (2, ["sobel0", "sobel1"]), (3, [f"sobel{i}" for i in "012"])],
)
def test_there_is_a_sobel_filter_for_each_axis(ndim, names):
    tree = kernel_node(create_block("ecb", 2, 2, 3, ndim=ndim))
    assert [name for name in tree if name.startswith("sobel")] == names
    line, smooth = torch.tensor([1, 0, -1]), torch.tensor([1, 2, 1])
    for axis, name in enumerate(names):
        taps = torch.ones(())
        for other in range(ndim):
            taps = torch.einsum("...,k->...k", taps, (line if other == axis else smooth).float())
        assert torch.equal(tree[name].filters.weight(taps)[0, 0], taps)
    laplacian = tree["laplacian"].filters.weight(torch.ones(()))[0, 0]
    assert laplacian.sum() == 0
    assert laplacian.flatten()[3**ndim // 2] == -2 * ndim


def test_larger_kernels_have_edges_at_their_centre():
    block = trained("ecb", 3, 4, (5, 1), padding=(2, 0), norm=False)
    tree = kernel_node(block)
    assert set(tree) == {"kxk", "expand_squeeze", "sobel0", "laplacian"}
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        tree["sobel0"].pointwise.conv.weight.fill_(1)
        tree["sobel0"].scale.weight.fill_(1)
        kernel = block.equivalent_kernel()
    assert kernel.kernel_size == (5, 1)
    assert kernel.weight[0, 0, :, 0].tolist() == [0, 1, 0, -1, 0]


def test_a_kernel_of_one_tap_has_no_edges():
    assert set(kernel_node(create_block("ecb", 3, 4, 1))) == {"kxk", "expand_squeeze"}


def test_it_trains_as_one_convolution_with_the_gradients_of_its_branches():
    block = trained("ecb", 4, 4, 3, norm=False, use_identity=True)
    check_gradients(block, image(2, 4, 7, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_multiplier": 0}, "depth_multiplier must be a whole number of at least 1, got 0"),
        ({"use_identity": 1}, "use_identity must be true or false, got 1"),
        ({"norm": 0}, "norm must be true or false, got 0"),
        ({"kernel_size": 4, "padding": 1}, "kernel_size must be odd .* got 4"),
        ({"kernel_size": 2, "padding": 1}, "kernel_size must be odd .* got 2"),
    ],
)
def test_what_it_cannot_be_is_refused(options, message):
    arguments = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options}
    with pytest.raises(ConfigurationError, match=message):
        create_block("ecb", **arguments)
