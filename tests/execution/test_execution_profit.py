"""What `auto` picks: by shape and device, never by values."""

import pytest
import torch
from execution_runs import block_of

from repblocks.algebra.normalization import is_batch_norm
from repblocks.execution import dispatch

LAST = torch.channels_last


def is_merged(monkeypatch, name, channels, kernel_size, shape, layout=None, **options):
    """Tell whether `auto` merges a block for an input of a shape."""
    for run in ("run_merged", "run_dense"):
        monkeypatch.setattr(dispatch, run, lambda _, x, **_options: x)
    block = block_of(name, channels, channels, kernel_size, **options).float()
    x = torch.zeros(shape).to(memory_format=layout or torch.contiguous_format)
    return dispatch.execute(block.branches, x, "auto") is x


@pytest.mark.parametrize(
    ("channels", "shape", "expected"),
    [
        (64, (16, 64, 32, 32), True),
        (64, (1, 64, 8, 8), False),  # small: the price of merging itself
        (512, (2, 512, 16, 16), False),  # as many channels as positions: products of weights
    ],
)
def test_pointwise_branches_merge_where_the_input_is_large(monkeypatch, channels, shape, expected):
    assert is_merged(monkeypatch, "mobileone", channels, 1, shape) is expected


@pytest.mark.parametrize(
    ("size", "layout", "stride", "expected"),
    [(64, None, 1, True), (8, None, 1, False), (32, LAST, 1, False), (256, LAST, 1, True)],
)
def test_depthwise_branches_merge_by_layout(monkeypatch, size, layout, stride, expected):
    shape = (4, 32, size, size)
    options = {"groups": 32, "stride": stride}
    assert is_merged(monkeypatch, "mobileone", 32, 3, shape, layout, **options) is expected


@pytest.mark.parametrize(
    ("channels", "shape", "expected"),
    [
        (32, (16, 32, 64, 64), True),
        (64, (16, 64, 32, 32), True),
        (64, (1, 64, 32, 32), False),  # 16 positions for each channel
        (16, (64, 16, 14, 14), False),  # small: the price of merging itself
    ],
)
def test_two_merged_branches_beside_a_dense_one(monkeypatch, channels, shape, expected):
    assert is_merged(monkeypatch, "repvgg", channels, 3, shape) is expected


def test_two_depthwise_branches_run_one_by_one(monkeypatch):
    options = {"groups": 32, "num_conv_branches": 1, "use_scale_branch": False}
    assert not is_merged(monkeypatch, "mobileone", 32, 3, (16, 32, 64, 64), **options)


@pytest.mark.parametrize(("size", "expected"), [(64, True), (32, False)])
def test_one_merged_branch_beside_a_dense_one(monkeypatch, size, expected):
    assert is_merged(monkeypatch, "repconv", 64, 3, (8, 64, size, size)) is expected


@pytest.mark.parametrize(
    ("channels", "shape", "expected"),
    [
        (32, (16, 32, 32, 32), True),
        (128, (4, 128, 32, 32), False),  # the covariance of a window: 1152²
        (16, (64, 16, 14, 14), False),
    ],
)
def test_dense_branches_merge_where_there_are_many_positions(
    monkeypatch, channels, shape, expected
):
    assert is_merged(monkeypatch, "dbb", channels, 3, shape) is expected


@pytest.mark.parametrize(
    ("branches", "layout", "expected"),
    [(0, None, False), (1, None, True), (1, LAST, False), (4, LAST, True)],
)
def test_few_pointwise_branches(monkeypatch, branches, layout, expected):
    name, options = "plain", {}
    if branches:
        name, options = "mobileone", {"num_conv_branches": branches}
    shape = (16, 32, 64, 64)
    assert is_merged(monkeypatch, name, 32, 1, shape, layout, **options) is expected


@pytest.mark.parametrize(
    ("channels", "groups", "size", "expected"),
    [(32, 1, 8, True), (32, 1, 6, False), (32, 32, 6, True)],
)
def test_kernels_are_composed_where_positions_are_many(
    monkeypatch, channels, groups, size, expected
):
    monkeypatch.setattr(dispatch, "run_in_weight_space", lambda _, x, **_options: x + 1)
    block = block_of("repvgg", channels, channels, 3, groups=groups, post_norm=True).float()
    x = torch.zeros(1, channels, size, size)
    is_composed = torch.equal(
        dispatch.execute(block.branches, x, "auto"), block.branches.norm(x + 1)
    )
    assert is_composed is expected


@pytest.mark.parametrize(
    ("name", "kernel_size", "options", "size", "expected"),
    [
        ("mobileone", 1, {}, 6, True),
        ("mobileone", 1, {}, 3, False),
        ("repvgg", 3, {}, 8, False),  # a tenth of the multiplications is saved
        ("repvgg", 3, {}, 16, True),
        ("mobileone", 3, {"groups": 32}, 3, True),
        ("plain", 3, {}, 3, False),  # only the norm is saved
    ],
)
def test_frozen_branches_are_summed_where_they_cost_more(
    monkeypatch, name, kernel_size, options, size, expected
):
    monkeypatch.setattr(dispatch, "run_in_weight_space", lambda _, x, **_options: x)
    block = block_of(name, 32, 32, kernel_size, **options).float()
    for norm in filter(is_batch_norm, block.modules()):
        norm.eval()
    x = torch.zeros(1, 32, size, size)
    assert (dispatch.execute(block.branches, x, "auto") is x) is expected
