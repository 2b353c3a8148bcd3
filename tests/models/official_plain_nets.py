"""Stand-ins for networks of other codes whose layers are in a row, as in ``official_nets``."""

import torch
from official_nets import Merged, centred, named, of_norm
from torch import nn
from torch.nn import functional


class Series(Merged):
    """VanillaNet's activation; as there, its convolution is its own parameter."""

    def __init__(self, dim, reach):
        super().__init__()
        self.reach, self.bias = reach, None
        self.weight = nn.Parameter(torch.randn(dim, 1, 2 * reach + 1, 2 * reach + 1) / (reach + 1))
        self.bn = nn.BatchNorm2d(dim, eps=1e-6)

    def forward(self, x):
        y = functional.relu(x)
        y = functional.conv2d(
            y, self.weight, self.bias, padding=self.reach, groups=len(self.weight)
        )
        return self.bn(y) if hasattr(self, "bn") else y

    def switch(self):
        kernel, bias = of_norm(self.weight, 0, self.bn)
        del self.bn
        self.weight.data, self.bias = kernel.detach(), nn.Parameter(bias.detach())


def conv_bias_norm(c_in, c_out, patch=1, stride=1, padding=0):
    return nn.Conv2d(c_in, c_out, patch, stride, padding), nn.BatchNorm2d(c_out, eps=1e-6)


def product(first, second):
    """The convolution of two, the second 1 x 1, each with a norm or none after it."""
    (w1, b1), (w2, b2) = (
        of_norm(m[0].weight, m[0].bias, m[1]) if len(m) > 1 else (m[0].weight, m[0].bias)
        for m in (first, second)
    )
    w2 = w2.flatten(1)
    c_out, c_in, patch = len(w2), w1.shape[1], w1.shape[-1]
    conv = nn.Conv2d(c_in, c_out, patch, first[0].stride, first[0].padding).double()
    conv.weight.data = torch.einsum("oi,icjk->ocjk", w2, w1).detach()
    conv.bias.data = (w2 @ b1 + b2).detach()
    return conv


class VanillaBlock(nn.Module):
    def __init__(self, dim, out, pool, reach):
        super().__init__()
        self.conv1 = nn.Sequential(*conv_bias_norm(dim, dim))
        self.conv2 = nn.Sequential(*conv_bias_norm(dim, out))
        to_size = pool > 2
        self.pool = nn.AdaptiveMaxPool2d(pool) if to_size else nn.MaxPool2d(pool)
        self.act = Series(out, reach)

    def forward(self, x):  # at the end of the annealing
        y = self.conv(x) if hasattr(self, "conv") else self.conv2(self.conv1(x))
        return self.act(self.pool(y))

    def switch(self):
        self.conv = product(self.conv1, self.conv2)
        del self.conv1, self.conv2


class VanillaNet(nn.Module):
    def __init__(self, dims, pools, reach):
        super().__init__()
        stride, padding = (3, 1) if max(pools) > 2 else (4, 0)
        self.stem1 = nn.Sequential(*conv_bias_norm(3, dims[0], 4, stride, padding))
        self.stem2 = nn.Sequential(*conv_bias_norm(dims[0], dims[0]), Series(dims[0], reach))
        self.stages = nn.ModuleList(
            VanillaBlock(dims[i], dims[i + 1], pool, reach) for i, pool in enumerate(pools)
        )
        head = nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Conv2d(dims[-1], 5, 1)
        self.cls1 = nn.Sequential(*head, nn.BatchNorm2d(5, eps=1e-6))
        self.cls2 = nn.Sequential(nn.Conv2d(5, 5, 1))

    def forward(self, x):
        is_deployed = hasattr(self, "stem")
        x = self.stem(x) if is_deployed else self.stem2(self.stem1(x))
        for stage in self.stages:
            x = stage(x)
        return (self.cls(x) if is_deployed else self.cls2(self.cls1(x))).flatten(1)

    def switch(self):
        self.stem = nn.Sequential(product(self.stem1, self.stem2[:2]), self.stem2[2])
        self.cls = nn.Sequential(*self.cls1[:2], product(self.cls1[2:], self.cls2))
        del self.stem1, self.stem2, self.cls1, self.cls2


class FlatVGG(nn.Module):
    """VGG for CIFAR: one list of layers, the convolutions with a bias, and a linear layer."""

    def __init__(self, depths, widths):
        super().__init__()
        layers, channels = [], 3
        for depth, width in zip(depths, widths, strict=True):
            for _ in range(depth):
                conv = nn.Conv2d(channels, width, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(channels, 5)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


SOBEL = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])


class ECBSeries(nn.Module):
    """A 1 x 1, its bias around it, and a 3 x 3 of ``edge`` or of its own."""

    def __init__(self, c_in, c_out, edge=None):
        super().__init__()
        mid = 2 * c_out if edge is None else c_out
        self.k0, self.b0 = (
            nn.Parameter(torch.randn(mid, c_in, 1, 1)),
            nn.Parameter(torch.randn(mid)),
        )
        if edge is None:
            self.k1 = nn.Parameter(torch.randn(c_out, mid, 3, 3) / 4)
            self.b1 = nn.Parameter(torch.randn(c_out))
        else:
            self.scale = nn.Parameter(torch.randn(c_out, 1, 1, 1))
            self.bias = nn.Parameter(torch.randn(c_out))
            self.mask = nn.Parameter(edge.expand(c_out, 1, 3, 3).clone(), requires_grad=False)

    def forward(self, x):
        y = functional.conv2d(x, self.k0)
        y = functional.pad(y, (1, 1, 1, 1)) + self.b0.view(-1, 1, 1)
        if hasattr(self, "k1"):
            return functional.conv2d(y, self.k1, self.b1)
        return functional.conv2d(y, self.scale * self.mask, self.bias, groups=len(self.bias))


class ECB(nn.Module):
    def __init__(self, c_in, c_out, has_act=True):
        super().__init__()
        self.conv3x3 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv1x1_3x3 = ECBSeries(c_in, c_out)
        self.conv1x1_sbx = ECBSeries(c_in, c_out, SOBEL)
        self.conv1x1_sby = ECBSeries(c_in, c_out, SOBEL.T)
        self.conv1x1_lpl = ECBSeries(c_in, c_out, LAPLACIAN)
        if has_act:
            self.act = nn.PReLU(c_out)
            nn.init.uniform_(self.act.weight)

    def forward(self, x):
        y = sum(part(x) for name, part in self.named_children() if name != "act")
        return self.act(y) if hasattr(self, "act") else y

    def switch(self):
        """Into what the official plain network has: the kernel, read off from impulses."""
        series = [name for name, _ in self.named_children() if name.startswith("conv1x1")]
        conv = self.conv3x3
        like = conv.weight.new_zeros
        parts = [self.get_submodule(name) for name in series]
        bias = sum(part(like(1, conv.in_channels, 3, 3))[0, :, 1, 1] for part in parts)
        for c in range(conv.in_channels):
            for i in range(3):
                for j in range(3):
                    impulse = like(1, conv.in_channels, 3, 3)
                    impulse[0, c, i, j] = 1
                    found = sum(part(impulse)[0, :, 1, 1] for part in parts) - bias
                    conv.weight.data[:, c, i, j] += found.detach()
        conv.bias.data += bias.detach()
        for name in series:
            delattr(self, name)


class ECBSR(nn.Module):
    def __init__(self, depth, width, scale):
        super().__init__()
        inner = [ECB(width, width) for _ in range(depth)]
        self.backbone = nn.Sequential(ECB(1, width), *inner, ECB(width, scale**2, False))
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x):
        return self.upsampler(self.backbone(x) + x)


class Conv3XC(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.sk = nn.Conv2d(c_in, c_out, 1)
        sizes = (c_in, 2 * c_in, 1), (2 * c_in, 2 * c_out, 3), (2 * c_out, c_out, 1)
        self.conv = nn.Sequential(*(nn.Conv2d(*size) for size in sizes))
        self.eval_conv = nn.Conv2d(c_in, c_out, 3, padding=1)  # of whatever came before

    def forward(self, x):
        if not hasattr(self, "sk"):
            return self.eval_conv(x)
        return self.conv(functional.pad(x, (1, 1, 1, 1))) + self.sk(x)

    def switch(self):
        first, second, third = (conv.weight for conv in self.conv)
        kernel = torch.einsum("pm,mnij,nc->pcij", third[..., 0, 0], second, first[..., 0, 0])
        self.eval_conv.weight.data = (kernel + centred(self.sk.weight, 3)).detach()
        inner = second.sum((2, 3)) @ self.conv[0].bias + self.conv[1].bias
        bias = third[..., 0, 0] @ inner + self.conv[2].bias + self.sk.bias
        self.eval_conv.bias.data = bias.detach()
        del self.sk, self.conv


class SPAN(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.conv_1 = Conv3XC(3, width)
        for i in range(1, 7):
            parts = {f"c{j}_r": Conv3XC(width, width) for j in (1, 2, 3)}
            setattr(self, f"block_{i}", named(**parts))
        self.conv_cat, self.conv_2 = nn.Conv2d(4 * width, width, 1), Conv3XC(width, width)
        last = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        self.upsampler = nn.Sequential(last, nn.PixelShuffle(scale))

    def forward(self, x):
        start = y = self.conv_1(x)
        ends = []
        for i in range(1, 7):
            block = getattr(self, f"block_{i}")
            first = functional.silu(block.c1_r(y))
            third = block.c3_r(functional.silu(block.c2_r(first)))
            y = (third + y) * (third.sigmoid() - 0.5)
            ends.append(y)
        return self.upsampler(self.conv_cat(torch.cat([start, self.conv_2(y), ends[0], first], 1)))
