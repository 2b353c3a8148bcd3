"""Parameters and multiply-adds of RepLKNet, UniRepLKNet and VanillaNet.

Both forms are compared with a closed formula; that of the deployed form with what the official
repositories publish, rounded.
"""

import pytest
import timm
import torch
from models_nets import count_macs, count_parameters


def meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(f"repblocks_{name}", **options)


def counts(name, size, **options):
    model = meta(name, **options)
    return count_parameters(model), count_macs(model, size)


def conv(c_in, c_out, k, size, deployed, *, groups=1, norms=1):
    """A convolution with ``norms`` BatchNorms, or a bias in their place."""
    weights = c_in * c_out * k**2 // groups
    return weights + c_out * (1 if deployed else 2 * norms), weights * size**2


def total(layers, c_last, classes=1000):
    layers = [*layers, ((c_last + 1) * classes, c_last * classes)]
    return tuple(sum(column) for column in zip(*layers, strict=True))


def replknet(dims, kernels, small, ratio, size, deployed):
    size //= 2
    c = dims[0]
    yield conv(3, c, 3, size, deployed)
    yield conv(c, c, 3, size, deployed, groups=c)
    yield conv(c, c, 1, size, deployed)
    size //= 2
    yield conv(c, c, 3, size, deployed, groups=c)
    for i, (depth, dim, k) in enumerate(zip((2, 2, 18, 2), dims, kernels, strict=True)):
        if i:
            yield conv(c, dim, 1, size, deployed)
            size //= 2
            yield conv(dim, dim, 3, size, deployed, groups=dim)
        c, wide = dim, int(dim * ratio)
        for _ in range(depth):
            yield conv(c, wide, 1, size, deployed)
            yield conv(wide, wide, k, size, deployed, groups=wide)
            if small and not deployed:
                yield conv(wide, wide, small, size, deployed, groups=wide)
            yield conv(wide, c, 1, size, deployed)
            yield conv(c, 4 * c, 1, size, deployed)
            yield conv(4 * c, c, 1, size, deployed)
            yield (0 if deployed else 4 * c), 0  # the BatchNorms of the input
    yield 2 * c, c * size**2 if deployed else 0  # the last one


REPLKNET = {
    "31b": ((128, 256, 512, 1024), (31, 29, 27, 13), 5, 1.0, 224),
    "31l": ((192, 384, 768, 1536), (31, 29, 27, 13), 5, 1.0, 384),
    "xl": ((256, 512, 1024, 2048), (27, 27, 27, 13), None, 1.5, 320),
}


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("variant", REPLKNET)
def test_replknet_counts_as_its_formula(variant, deployed):
    *row, size = REPLKNET[variant]
    found = counts(f"replknet_{variant}", size, deploy=deployed)
    assert found == total(replknet(*row, size, deployed), row[0][-1])


def unireplknet(depths, width, third, deployed, size=224):
    def strided(c_in, c_out, size):
        return 9 * c_in * c_out + 3 * c_out, 9 * c_in * c_out * size**2

    table = {13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))}
    size //= 2
    yield strided(3, width // 2, size)
    c = width // 2
    for i, depth in enumerate(depths):
        dim = width * 2**i
        size //= 2
        yield strided(c, dim, size)
        c = dim
        for j in range(depth):
            k = 3 if i == 0 or (i == 2 and j % third) else 13
            yield conv(c, c, k, size, deployed, groups=c)
            if k == 13 and not deployed:
                for small, _ in table[k]:
                    yield conv(c, c, small, size, deployed, groups=c)
                yield 2 * c, 0  # the BatchNorm of the sum
            hidden = c // 4
            yield 2 * c * hidden + hidden + c, 2 * c * hidden
            yield conv(c, 4 * c, 1, size, True)
            yield 4 * c, 0  # the factors of the response norm
            yield conv(4 * c, c, 1, size, deployed)
            yield (0 if deployed else 4 * c + c), 0  # its summands, and the scales
    yield 2 * c, 0  # the layer norm before the classifier


UNIREPLKNET = {
    "a": ((2, 2, 6, 2), 40, 1),
    "f": ((2, 2, 6, 2), 48, 1),
    "p": ((2, 2, 6, 2), 64, 1),
    "n": ((2, 2, 8, 2), 80, 1),
    "t": ((3, 3, 18, 3), 80, 2),
    "s": ((3, 3, 27, 3), 96, 3),
    "b": ((3, 3, 27, 3), 128, 3),
    "l": ((3, 3, 27, 3), 192, 3),
    "xl": ((3, 3, 27, 3), 256, 3),
}


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("variant", UNIREPLKNET)
def test_unireplknet_counts_as_its_formula(variant, deployed):
    depths, width, third = UNIREPLKNET[variant]
    found = counts(f"unireplknet_{variant}", 224, deploy=deployed)
    assert found == total(unireplknet(depths, width, third, deployed), 8 * width)


def vanillanet(depth, deployed, c=512, sizes=(56, 28, 14, 7)):
    dims, size = (c, 2 * c, 4 * c, 8 * c), sizes[0]

    def layer(c_in, hidden, c_out, k, before, after):
        if deployed:
            yield conv(c_in, c_out, k, before, True)
        else:
            yield conv(c_in, hidden, k, before, False)
            yield conv(hidden, c_out, 1, before, False)
        yield conv(c_out, c_out, 7, after, deployed, groups=c_out)

    yield from layer(3, c, c, 4, size, size)
    for i, dim in enumerate(dims):
        blocks = (int(depth > 6), 1, max(1, depth - 6), 1 + int(depth > 5))[i]
        for _ in range(blocks):
            yield from layer(c, c, dim, 1, size, sizes[i])
            c, size = dim, sizes[i]


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("variant", [*map(str, range(5, 14)), "13_x1_5", "13_x1_5_ada_pool"])
def test_vanillanet_counts_as_its_formula(variant, deployed):
    found = counts(f"vanillanet_{variant}", 224, deploy=deployed)
    assert found == vanillanet_total(variant, deployed)


def vanillanet_total(variant, deployed):
    depth, _, factor = variant.partition("_")
    width = 768 if factor else 512
    sizes = (75, 38, 19, 10) if factor.endswith("ada_pool") else (56, 28, 14, 7)
    return total(vanillanet(int(depth), deployed, width, sizes), 8 * width)


#: Millions of parameters, billions of multiply-adds, size of the image.
PUBLISHED = {
    "replknet_31b": (79, 15.3, 224),
    "replknet_31l": (172, 96.0, 384),
    "replknet_xl": (335, 128.7, 320),
    "unireplknet_a": (4.4, 0.6, 224),
    "unireplknet_f": (6.2, 0.9, 224),
    "unireplknet_p": (10.7, 1.6, 224),
    "unireplknet_n": (18.3, 2.8, 224),
    "unireplknet_t": (31, 4.9, 224),
    "unireplknet_s": (56, 9.1, 224),
    "unireplknet_b": (98, 47.2, 384),
    "unireplknet_l": (218, 105.4, 384),
    "unireplknet_xl": (386, 187, 384),
    "vanillanet_5": (15.5, 5.2, 224),
    "vanillanet_6": (32.5, 6.0, 224),
    "vanillanet_7": (32.8, 6.9, 224),
    "vanillanet_8": (37.1, 7.7, 224),
    "vanillanet_9": (41.4, 8.6, 224),
    "vanillanet_10": (45.7, 9.4, 224),
    "vanillanet_11": (50.0, 10.3, 224),
    "vanillanet_12": (54.3, 11.1, 224),
    "vanillanet_13": (58.6, 11.9, 224),
    "vanillanet_13_x1_5": (127.8, 26.5, 224),
    "vanillanet_13_x1_5_ada_pool": (127.8, 48.9, 224),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_formula_of_the_deployed_form_has_the_published_size(name):
    family, variant = name.split("_", 1)
    *published, size = PUBLISHED[name]
    if family == "vanillanet":
        counted = vanillanet_total(variant, True)
    elif family == "replknet":
        row = REPLKNET[variant]
        assert row[-1] == size
        counted = total(replknet(*row, True), row[0][-1])
    else:
        depths, width, third = UNIREPLKNET[variant]
        counted = total(unireplknet(depths, width, third, True, size), 8 * width)
    for found, told, unit in zip(counted, published, (1e6, 1e9), strict=True):
        digit = 0.1 if isinstance(told, float) else 1
        # Most are rounded, one is cut off.
        assert -digit / 2 <= found / unit - told < digit
