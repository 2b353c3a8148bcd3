"""set_to_kernel_: which branch takes a kernel, in blocks with a norm after the sum."""

import pytest
import torch
from truth import relative_error

from repblocks.algebra import ConvKernel
from repblocks.blocks import create_block
from repblocks.errors import NotFoldable
from repblocks.expansion import set_to_kernel_

#: What can take any kernel, beside the defaults that every block is tested with.
TAKES = [
    ("orepa", 5, {"single_init": True}),
    ("orepa", 1, {}),
    ("orepa", 7, {"large_kernel": "branches"}),
    ("expand_conv", 5, {"expansion_rate": 1}),
    ("expand_conv", 3, {"form": "ck"}),
    ("conv3xc", 5, {"gain": 1}),
    ("do_conv", 3, {"depth_multiplier": 20}),
    ("do_conv", 1, {}),
    ("ecb", 5, {"use_identity": True}),
    ("ecb", 3, {"norm": False}),
    ("ecb", 3, {"norm": False, "use_identity": True}),
    ("conv3xc", 3, {"norm": False}),
    ("expand_conv", 3, {"norm": False}),
    ("do_conv", 3, {"norm": False}),
]
TAKES_NONE = [
    ("orepa", 7, {}),
    ("orepa", 7, {"large_kernel": "plain"}),
    ("expand_conv", 5, {"form": "ck"}),
]


def kernel_of(size, groups):
    torch.manual_seed(0)
    weight = torch.randn(4, 4 // groups, size, size, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    return ConvKernel(weight, bias, padding=size // 2, groups=groups)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("name", "size", "options"), TAKES)
def test_a_block_takes_any_kernel_of_its_shape(name, size, options, groups):
    kernel = kernel_of(size, groups)
    block = create_block(name, 4, 4, size, groups=groups, activation=None, **options).double()
    set_to_kernel_(block, kernel)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(block.eval()(x), kernel(x)) < 1e-9


@pytest.mark.parametrize(("name", "size", "options"), TAKES_NONE)
def test_a_block_without_such_a_branch_refuses(name, size, options):
    block = create_block(name, 4, 4, size, activation=None, **options).double()
    size_shown = rf"\({size}, {size}\)"
    with pytest.raises(NotFoldable, match=f"no branch of one convolution .*{size_shown}.*leave"):
        set_to_kernel_(block, kernel_of(size, 1))


def test_the_other_branches_are_small_beside_the_whole():
    kernel = kernel_of(3, 1)
    block = create_block("ecb", 4, 4, 3).double()
    set_to_kernel_(block, kernel)
    tree = block.branches.kernel
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        whole = kernel(x).std()
        for name, branch in tree.items():
            assert branch(x).std() < (2 if name == "kxk" else 0.3) * whole
