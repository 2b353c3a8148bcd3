"""The laws of the algebra, over random sizes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import relative_error

from repblocks.algebra import AffineMap, ConvKernel, concat_kernels
from repblocks.algebra.affine import merged_columns
from repblocks.algebra.parallel import add, concat
from repblocks.algebra.serial import compose

LAWS = settings(max_examples=60, deadline=None)
CHANNELS = 12
seeds = st.integers(0, 2**16)
groups = st.sampled_from([1, 2, 3, 4, 6, 12])


@st.composite
def kernels(draw, pads=True, bias=True):
    ndim, size = 2, draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    g = draw(groups)
    generator = torch.Generator().manual_seed(draw(seeds))
    weight = torch.randn(CHANNELS, CHANNELS // g, *size, generator=generator, dtype=torch.float64)
    b = torch.randn(CHANNELS, generator=generator, dtype=torch.float64)
    side = st.integers(-1, 3) if pads else st.just(0)
    return ConvKernel(
        weight,
        b if bias and draw(st.booleans()) else None,
        tuple(draw(st.integers(1, 3)) for _ in range(ndim)),
        tuple((draw(side), draw(side)) for _ in range(ndim)) if pads else 0,
        tuple(draw(st.integers(1, 3)) for _ in range(ndim)),
        g,
    )


@st.composite
def parallel_kernels(draw):
    """Kernels whose outputs lie at the same places: all lie inside one window."""
    stride = draw(st.integers(1, 2))
    found = []
    for _ in range(3):
        size, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        g = draw(groups)
        extent = (size - 1) * dilation + 1
        low = draw(st.integers(-2, 3))
        generator = torch.Generator().manual_seed(draw(seeds))
        weight = torch.randn(CHANNELS, CHANNELS // g, size, generator=generator)
        bias = torch.randn(CHANNELS, generator=generator)
        pair = ((low, extent - 1 - low),)
        found.append(ConvKernel(weight.double(), bias.double(), stride, pair, dilation, g))
    return found


def image(ndim=2, size=40):
    return torch.randn(2, CHANNELS, *([size] * ndim), dtype=torch.float64)


@LAWS
@given(kernels(pads=False), kernels())
def test_composition_runs_one_after_the_other(b, a):
    x = image()
    assert relative_error((b @ a)(x), b(a(x))) < 1e-11


@LAWS
@given(kernels(pads=False), kernels(pads=False), kernels())
def test_composition_is_associative(c, b, a):
    left, right = (c @ b) @ a, c @ (b @ a)
    assert (left.axes, left.groups) == (right.axes, right.groups)
    assert relative_error(left.weight, right.weight) < 1e-11
    assert (left.bias is None) == (right.bias is None)
    assert left.bias is None or relative_error(left.bias, right.bias) < 1e-11


@LAWS
@given(parallel_kernels())
def test_sums_run_side_by_side_and_commute(three):
    a, b, c = three
    x = image(1, 20)
    truth = a(x) + b(x) + c(x)
    assert relative_error((a + b + c)(x), truth) < 1e-12
    assert relative_error((c + (b + a))(x), truth) < 1e-12
    both = concat_kernels(a, b, c)
    assert relative_error(both(x), torch.cat([a(x), b(x), c(x)], 1)) < 1e-12


@LAWS
@given(parallel_kernels(), groups, seeds)
def test_composition_without_outer_bias_distributes(three, g, seed):
    a, b, _ = three
    generator = torch.Generator().manual_seed(seed)
    outer = torch.randn(CHANNELS, CHANNELS // g, 2, generator=generator, dtype=torch.float64)
    f = ConvKernel(outer, groups=g)
    x = image(1, 20)
    assert relative_error((f @ (a + b))(x), (f @ a + f @ b)(x)) < 1e-12


@LAWS
@given(kernels())
def test_the_identity_is_neutral(a):
    one = ConvKernel.identity(CHANNELS, like=a.weight)
    assert torch.equal((a @ one).weight, a.weight)
    inside = ConvKernel(a.weight, a.bias, a.stride, 0, a.dilation, a.groups)
    assert torch.equal((one @ inside).weight, a.weight)


@LAWS
@given(st.lists(st.integers(0, CHANNELS - 1), min_size=6, max_size=6), seeds)
def test_any_selection_of_channels_composes(chosen, seed):
    """Slices, repeats and shuffles are maps like any other."""
    generator = torch.Generator().manual_seed(seed)
    selection = AffineMap(CHANNELS, torch.tensor(chosen).unsqueeze(1))
    weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    conv = ConvKernel(weight, groups=2, padding=1)
    x = image(2, 9)
    found = ConvKernel.from_affine(compose(conv.to_affine(), selection))
    assert relative_error(found(x), conv(x[:, chosen])) < 1e-12
    doubled = ConvKernel.from_affine(
        compose(conv.to_affine(), add(selection, selection)).with_axes(2)
    )
    assert relative_error(doubled(x), conv(2 * x[:, chosen])) < 1e-12
    parts = concat(selection.rows(4, 6), selection.rows(0, 4))
    order = chosen[4:] + chosen[:4]
    found = ConvKernel.from_affine(compose(conv.to_affine(), parts))
    assert relative_error(found(x), conv(x[:, order])) < 1e-12


@LAWS
@given(st.integers(1, 4), st.integers(1, 5), seeds)
def test_merged_columns_hold_each_channel_once(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, 4, (rows, columns), generator=generator)
    merged, column = merged_columns(index)
    assert torch.equal(merged.gather(1, column), index)
    for row, old in zip(merged, index, strict=True):
        assert set(row.tolist()) == set(old.tolist())
