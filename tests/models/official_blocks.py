"""Stand-ins for the blocks of DBB, ACNet and OREPA, written as those of ``official_nets`` are."""

import math

import torch
from official_nets import Merged, centred, conv_norm, named, of_norm
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


class OREPA(Merged):
    """Six kernels, each with a row of factors; of ``later`` ones in a series, one of its own."""

    def __init__(self, c_in, c_out, k, stride=1, groups=1, act=True, has_norm=True):
        super().__init__()
        self.stride, self.groups, self.act = stride, groups, act
        inner, width = c_in * (1 if groups <= 4 else 2), c_in // groups
        shapes = {
            "origin": (c_out, width, k, k),
            "avg_conv": (c_out, width, 1, 1),
            "pfir_conv": (c_out, width, 1, 1),
            "1x1": (c_out, width, 1, 1),
            "1x1_kxk_idconv1": (inner, width, 1, 1),
            "1x1_kxk_conv2": (c_out, inner // groups, k, k),
            "gconv_dw": (8 * c_in, 1, k, k),
            "gconv_pw": (c_out, 8 * width, 1, 1),
        }
        for name, shape in shapes.items():
            value = torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
            self.register_parameter(f"weight_orepa_{name}", nn.Parameter(value))
        self.vector = nn.Parameter(torch.randn(6, c_out))
        self.register_buffer("weight_orepa_avg_avg", torch.ones(k, k, dtype=torch.float64) / k**2)
        eye = torch.eye(width).repeat(inner // width, 1)
        self.register_buffer("id_tensor", eye.view(inner, width, 1, 1))
        half, taps = c_out / 2, torch.arange(k, dtype=torch.float64) + 0.5
        rows = [torch.cos(math.pi * taps * (i % half + 1) / k) for i in range(c_out)]
        lines = [row[:, None] if i < half else row[None] for i, row in enumerate(rows)]
        self.register_buffer("weight_orepa_prior", torch.stack([x.expand(k, k) for x in lines]))
        if has_norm:
            self.bn = nn.BatchNorm2d(c_out)

    def kernel(self):
        own = {name.removeprefix("weight_orepa_"): w for name, w in self.named_parameters()}
        c_out, width, k, _ = own["origin"].shape
        g, rows = self.groups, own["vector"].view(6, -1, 1, 1, 1)
        first = (own["1x1_kxk_idconv1"] + self.id_tensor).view(g, -1, width)
        second = own["1x1_kxk_conv2"].view(g, c_out // g, -1, k, k)
        deep = own["gconv_dw"].view(g, width, 8, k, k)
        wide = own["gconv_pw"].view(c_out // g, g, width, 8)  # the groups in turn
        kernels = (
            own["origin"],
            own["avg_conv"] * self.weight_orepa_avg_avg,
            own["pfir_conv"] * self.weight_orepa_prior[:, None],
            torch.einsum("gti,gothw->goihw", first, second).flatten(0, 1),
            centred(own["1x1"], k),
            torch.einsum("githw,ogit->goihw", deep, wide).flatten(0, 1),
        )
        return sum(row * kernel for row, kernel in zip(rows, kernels, strict=True))

    def forward(self, x):
        parts = dict(self.named_children())
        if self.merged in parts:
            y = parts[self.merged](x)
        else:
            kernel = self.kernel()
            padding = kernel.shape[-1] // 2
            y = functional.conv2d(x, kernel, None, self.stride, padding, groups=self.groups)
            y = self.bn(y)
        return functional.relu(y) if self.act else y

    merged = "orepa_reparam"

    def switch(self):
        if hasattr(self, "bn"):
            kernel, bias = of_norm(self.kernel(), 0, self.bn)
            lost = {name.split(".")[0] for name in self.state_dict()}
            self.fold(self.merged, kernel, bias, *lost, stride=self.stride, groups=self.groups)


class OREPALarge(OREPA):
    """A series of three, of which the official code turns no kernel around."""

    merged = "or_large_reparam"

    def __init__(self, c_in, c_out, k, stride):
        nn.Module.__init__(self)
        assert k == 7
        self.stride, self.groups, self.act = stride, 1, True
        self.weight0 = OREPA(c_in, c_out, 3, has_norm=False)
        self.weight1 = OREPA(c_out, c_out, 3, has_norm=False)
        self.weight2 = OREPA(c_out, c_out, 3, has_norm=False)
        self.bn = nn.BatchNorm2d(c_out)

    def kernel(self):
        kernel = self.weight0.kernel().transpose(0, 1)
        for later in (self.weight1, self.weight2):
            kernel = functional.conv2d(kernel, later.kernel(), padding=2)
        return kernel.transpose(0, 1)


class PointwiseOREPA(OREPA):
    """A 1 x 1, and two in a row, of which the square one starts as the identity."""

    merged = "or1x1_reparam"

    def __init__(self, c_in, c_out, k, stride=1, act=True):
        nn.Module.__init__(self)
        assert k == 1
        self.stride, self.groups, self.act = stride, 1, act
        inner = min(c_in, c_out)
        self.weight_or1x1_origin = nn.Parameter(torch.randn(c_out, c_in, 1, 1) / c_in**0.5)
        self.weight_or1x1_l2i_conv1 = nn.Parameter(torch.randn(inner, c_in, 1, 1) / c_in**0.5)
        self.weight_or1x1_l2i_conv2 = nn.Parameter(torch.randn(c_out, inner, 1, 1) / inner**0.5)
        self.vector, self.bn = nn.Parameter(torch.randn(2, c_out)), nn.BatchNorm2d(c_out)

    def kernel(self):
        first, second = self.weight_or1x1_l2i_conv1, self.weight_or1x1_l2i_conv2
        series = (second.flatten(1) @ first.flatten(1))[..., None, None]
        rows = self.vector.view(2, -1, 1, 1, 1)
        return rows[0] * self.weight_or1x1_origin + rows[1] * series


class DenseOREPA(nn.Module):
    """OREPA's RepVGG block: its six kernels without the 1 x 1, which stands beside them."""

    def __init__(self, c_in, c_out, k, stride=1):
        super().__init__()
        self.rbr_dense = OREPA(c_in, c_out, k, stride, act=False)
        self.rbr_dense.vector.data[4] = 0
        self.rbr_1x1 = conv_norm(c_in, c_out, 1, stride)
        if c_in == c_out and stride == 1:
            self.rbr_identity = nn.BatchNorm2d(c_in)

    def forward(self, x):
        return functional.relu(sum(branch(x) for branch in self.children()))
