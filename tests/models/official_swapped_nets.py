"""Stand-ins for networks of DBB, ACNet and OREPA, whose convolutions are blocks; see there."""

import torch
from official_nets import Merged, conv_norm, named, of_norm
from torch import nn
from torch.nn import functional


class NormPad(nn.Module):
    """A norm, then a border of what it makes of zeros."""

    def __init__(self, channels, pad):
        super().__init__()
        self.bn, self.pad = nn.BatchNorm2d(channels), pad

    def forward(self, x):
        bn, y = self.bn, self.bn(x)
        zero = bn.bias - bn.running_mean * bn.weight / (bn.running_var + bn.eps).sqrt()
        inside = functional.pad(torch.ones_like(y[:1, :1]), [self.pad] * 4)
        return functional.pad(y, [self.pad] * 4) + zero.detach().view(-1, 1, 1) * (1 - inside)


class IdConv(nn.Conv2d):
    """A 1 x 1 beside the identity, in groups."""

    def __init__(self, channels, groups):
        super().__init__(channels, channels, 1, groups=groups, bias=False)

    def forward(self, x):
        return x + super().forward(x)


class Swapped(Merged):
    """A block that becomes a convolution, which is read off from impulses in float64."""

    def keep(self, c_in, c_out, k, stride, groups, act):
        self.shape, self.act = (c_in, c_out, k, stride, groups), act

    def forward(self, x):
        parts = dict(self.named_children())
        y = parts[self.merged](x) if self.merged in parts else self.linear(x)
        return functional.relu(y) if self.act else y

    def switch(self):
        c_in, c_out, k, stride, groups = self.shape
        size = 2 * stride * k + 1  # the outputs at the middle see no border
        x = torch.zeros(c_in * k * k + 1, c_in, size, size, dtype=torch.float64)
        number, at = torch.arange(c_in * k * k), (size // 2 // stride)
        first = at * stride - k // 2
        x[number, number // k**2, first + number // k % k, first + number % k] = 1
        with torch.no_grad():
            y = self.linear(x)[:, :, at, at]
        kernel = (y[:-1] - y[-1]).T.reshape(c_out, c_in, k, k)
        own = torch.arange(c_out)[:, None] // (c_out // groups) * (c_in // groups)
        kernel = kernel[torch.arange(c_out)[:, None], own + torch.arange(c_in // groups)]
        lost = {name.split(".")[0] for name in self.state_dict()}
        self.fold(self.merged, kernel, y[-1], *lost, stride=stride, groups=groups)


class DBB(Swapped):
    merged = "dbb_reparam"

    def __init__(self, c_in, c_out, k, stride=1, groups=1, act=True):
        super().__init__()
        self.keep(c_in, c_out, k, stride, groups, act)
        is_depthwise, pad = groups == c_out, k // 2
        inner = 2 * c_in if is_depthwise else c_in
        self.dbb_origin = conv_norm(c_in, c_out, k, stride, groups)
        pool = nn.AvgPool2d(k, stride, pad if is_depthwise else 0)
        if is_depthwise:
            self.dbb_avg = named(avg=pool, avgbn=nn.BatchNorm2d(c_out))
            first = {"conv1": nn.Conv2d(c_in, inner, 1, groups=groups, bias=False)}
        else:
            conv = nn.Conv2d(c_in, c_out, 1, groups=groups, bias=False)
            norms = {"bn": NormPad(c_out, pad), "avg": pool, "avgbn": nn.BatchNorm2d(c_out)}
            self.dbb_avg = named(conv=conv, **norms)
            self.dbb_1x1 = conv_norm(c_in, c_out, 1, stride, groups)
            first = {"idconv1": IdConv(c_in, groups)}
        conv = nn.Conv2d(inner, c_out, k, stride, groups=groups, bias=False)
        last = {"bn1": NormPad(inner, pad), "conv2": conv, "bn2": nn.BatchNorm2d(c_out)}
        self.dbb_1x1_kxk = named(**first, **last)

    def linear(self, x):
        return sum(branch(x) for branch in self.children())


class ACB(Swapped):
    merged = "fused_conv"

    def __init__(self, c_in, c_out, k, stride=1, groups=1, act=True):
        super().__init__()
        self.keep(c_in, c_out, k, stride, groups, act)
        for name, size in {"square": (k, k), "ver": (k, 1), "hor": (1, k)}.items():
            pad = [length // 2 for length in size]
            conv = nn.Conv2d(c_in, c_out, size, stride, pad, groups=groups, bias=False)
            self.add_module(f"{name}_conv", conv)
            self.add_module(f"{name}_bn", nn.BatchNorm2d(c_out))

    def linear(self, x):
        parts = dict(self.named_children())
        return sum(parts[f"{n}_bn"](parts[f"{n}_conv"](x)) for n in ("square", "ver", "hor"))


def acb(*sizes, act=True, **options):
    """An ACB as ACNet has it: in a series with its ReLU."""
    block = ACB(*sizes, act=False, **options)
    return named(acb=block, relu=nn.ReLU()) if act else block


class ConvBN(Merged):
    """What has no branches; its kernel takes in the norm where ``deploys``."""

    def __init__(self, c_in, c_out, k, stride=1, groups=1, act=True, deploys=True):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False)
        self.bn, self.act, self.deploys = nn.BatchNorm2d(c_out), act, deploys

    def forward(self, x):
        y = self.conv(x)
        y = self.bn(y) if hasattr(self, "bn") else y
        return functional.relu(y) if self.act else y

    def switch(self):
        if self.deploys:
            stride, groups = self.conv.stride, self.conv.groups
            kernel, bias = of_norm(self.conv.weight, 0, self.bn)
            self.fold("conv", kernel, bias, "bn", stride=stride, groups=groups)


def kept(*sizes, **options):
    return ConvBN(*sizes, **options, deploys=False)


class BasicBlock(nn.Module):
    def __init__(self, block, c_in, width, stride, plain=ConvBN):
        super().__init__()
        self.shortcut = nn.Identity()
        if stride > 1 or c_in != width:
            self.shortcut = plain(c_in, width, 1, stride, act=False)
        self.conv1 = block(c_in, width, 3, stride)
        self.conv2 = block(width, width, 3, act=False)

    def forward(self, x):
        return functional.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Bottleneck(BasicBlock):
    def __init__(self, block, c_in, width, stride, plain=ConvBN):
        nn.Module.__init__(self)
        self.shortcut = plain(c_in, 4 * width, 1, stride, act=False)
        self.conv1, self.conv2 = plain(c_in, width, 1), block(width, width, 3, stride)
        self.conv3 = plain(width, 4 * width, 1, act=False)

    def forward(self, x):
        y = self.conv3(self.conv2(self.conv1(x)))
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """One residual block a stage, and a second one in the last of those of two 3 x 3."""

    def __init__(self, block, widths, plain=ConvBN, stem=None, residual=BasicBlock):
        super().__init__()
        if stem is None:
            stem = named(conv1=plain(3, widths[0], 7, 2), maxpool=nn.MaxPool2d(3, 2, 1))
        self.stage0 = stem
        channels, self.stages = widths[0], len(widths)
        for i, width in enumerate(widths):
            blocks = [residual(block, channels, width, 2 if i else 1, plain)]
            channels = 4 * width if residual is Bottleneck else width
            if residual is BasicBlock and i == len(widths) - 1:
                blocks.append(residual(block, channels, width, 1, plain))
            setattr(self, f"stage{i + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.stage0(x)
        for i in range(self.stages):
            x = getattr(self, f"stage{i + 1}")(x)
        return self.linear(x.mean((2, 3)))


class MobileNet(nn.Module):
    """Pairs of the depths 1 and 2, the first of the second with stride 2."""

    def __init__(self, block, widths, stem_width, plain=ConvBN):
        super().__init__()
        self.conv1 = block(3, stem_width, 3, 2)
        pairs, channels = [], stem_width
        for width, stride in ((widths[0], 1), (widths[1], 2), (widths[1], 1)):
            depthwise = block(channels, channels, 3, stride, groups=channels)
            pairs.append(named(depthwise=depthwise, pointwise=plain(channels, width, 1)))
            channels = width
        self.stem, self.linear = nn.Sequential(*pairs), nn.Linear(channels, 5)

    def forward(self, x):
        return self.linear(self.stem(self.conv1(x)).mean((2, 3)))


class VGG(nn.Module):
    """Blocks, a maximum after each stage, and two linear layers that only the features need not."""

    def __init__(self, block, depths, widths):
        super().__init__()
        layers, channels, number = {}, 3, 0
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for _ in range(depth):
                number += 1
                layers[f"conv{number}"] = block(channels, width, 3)
                channels = width
            layers[f"maxpool{i + 1}"] = nn.MaxPool2d(2)
        self.stem = named(**layers)
        self.linear1, self.linear2 = nn.Linear(channels, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.stem(x).mean((2, 3))
