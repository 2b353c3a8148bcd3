"""Stand-ins for the networks of other codes: their module names, and the order of their layers.

They are written from these facts alone, and small: what they compute must be what ours compute.
"""

import torch
from torch import nn
from torch.nn import functional
from truth import relative_error


def named(**parts):
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    return model


def conv_norm(c_in, c_out, k, stride=1, groups=1):
    conv = nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False)
    return named(conv=conv, bn=nn.BatchNorm2d(c_out))


class Merged(nn.Module):
    """A module that becomes a convolution: subclasses say which, and what they lose."""

    def fold(self, name, kernel, bias, *lost, stride=1, groups=1):
        c_out, c_in, k, _ = kernel.shape
        conv = nn.Conv2d(c_in * groups, c_out, k, stride, k // 2, groups=groups).double()
        conv.weight.data, conv.bias.data = kernel.detach(), bias.detach()
        for each in lost:
            if hasattr(self, each):
                delattr(self, each)
        setattr(self, name, conv)


def of_norm(kernel, bias, bn):
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return kernel * scale.view(-1, 1, 1, 1), bn.bias + (bias - bn.running_mean) * scale


def centred(kernel, k):
    return functional.pad(kernel, [(k - kernel.shape[-1]) // 2] * 4)


class QABlock(Merged):
    """QARepVGG, version 1 or 2; ``keeps_norm`` as in YOLOv6."""

    def __init__(self, c_in, c_out, stride, version=2, keeps_norm=False):
        super().__init__()
        self.stride, self.keeps_norm = stride, keeps_norm
        self.rbr_dense = conv_norm(c_in, c_out, 3, stride)
        if version == 1:
            self.rbr_1x1 = conv_norm(c_in, c_out, 1, stride)
        else:
            self.rbr_1x1 = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
        if c_in == c_out and stride == 1:
            self.rbr_identity = nn.BatchNorm2d(c_in) if version == 1 else nn.Identity()
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x):
        if hasattr(self, "rbr_reparam"):
            y = self.rbr_reparam(x)
            return functional.relu(self.bn(y) if self.keeps_norm else y)
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        if hasattr(self, "rbr_identity"):
            y = y + self.rbr_identity(x)
        return functional.relu(self.bn(y))

    def switch(self):  # of version 2
        kernel, bias = of_norm(self.rbr_dense.conv.weight, 0, self.rbr_dense.bn)
        kernel = kernel + centred(self.rbr_1x1.weight, 3)
        if hasattr(self, "rbr_identity"):
            kernel = kernel + centred(torch.eye(len(kernel)).double()[:, :, None, None], 3)
        lost = ["rbr_dense", "rbr_1x1", "rbr_identity"]
        if not self.keeps_norm:
            kernel, bias = of_norm(kernel, bias, self.bn)
            lost.append("bn")
        self.fold("rbr_reparam", kernel, bias, *lost, stride=self.stride)


class QARepVGG(nn.Module):
    def __init__(self, depths, widths, stem_width, **options):
        super().__init__()
        self.stage0 = QABlock(3, stem_width, 1, **options)
        channels, self.depth = stem_width, len(depths)
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(QABlock(channels, width, 1 if j else 2, **options))
                channels = width
            setattr(self, f"stage{i + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.stage0(x)
        for i in range(self.depth):
            x = getattr(self, f"stage{i + 1}")(x)
        return self.linear(x.mean((2, 3)))


class LargeKernel(Merged):
    def __init__(self, dim, k, small):
        super().__init__()
        self.lkb_origin = conv_norm(dim, dim, k, groups=dim)
        if small:
            self.small_conv = conv_norm(dim, dim, small, groups=dim)

    def forward(self, x):
        if hasattr(self, "lkb_reparam"):
            return self.lkb_reparam(x)
        y = self.lkb_origin(x)
        return y + self.small_conv(x) if hasattr(self, "small_conv") else y

    def switch(self):
        kernel, bias = of_norm(self.lkb_origin.conv.weight, 0, self.lkb_origin.bn)
        if hasattr(self, "small_conv"):
            small, more = of_norm(self.small_conv.conv.weight, 0, self.small_conv.bn)
            kernel, bias = kernel + centred(small, kernel.shape[-1]), bias + more
        lost = ("lkb_origin", "small_conv")
        self.fold("lkb_reparam", kernel, bias, *lost, groups=len(kernel))


class LKBlock(nn.Module):
    def __init__(self, dim, k, small, ratio):
        super().__init__()
        wide = int(dim * ratio)
        self.pw1, self.pw2 = conv_norm(dim, wide, 1), conv_norm(wide, dim, 1)
        self.large_kernel = LargeKernel(wide, k, small)
        self.prelkb_bn = nn.BatchNorm2d(dim)

    def forward(self, x):
        y = functional.relu(self.pw1(self.prelkb_bn(x)))
        return x + self.pw2(functional.relu(self.large_kernel(y)))


class LKMlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.preffn_bn = nn.BatchNorm2d(dim)
        self.pw1, self.pw2 = conv_norm(dim, 4 * dim, 1), conv_norm(4 * dim, dim, 1)

    def forward(self, x):
        return x + self.pw2(functional.gelu(self.pw1(self.preffn_bn(x))))


class RepLKNet(nn.Module):
    def __init__(self, depths, dims, kernel_sizes, small_kernel=5, dw_ratio=1.0):
        super().__init__()
        d = dims[0]
        sizes = ((3, d, 3, 2, 1), (d, d, 3, 1, d), (d, d, 1, 1, 1), (d, d, 3, 2, d))
        self.stem = nn.ModuleList(conv_norm(*size) for size in sizes)
        self.stages, self.transitions = nn.ModuleList(), nn.ModuleList()
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            small = small_kernel and min(small_kernel, kernel_sizes[i] - 2)
            blocks = []
            for _ in range(depth):
                blocks += [LKBlock(dim, kernel_sizes[i], small, dw_ratio), LKMlp(dim)]
            self.stages.append(named(blocks=nn.Sequential(*blocks)))
            if i + 1 < len(dims):
                after = dims[i + 1]
                pair = conv_norm(dim, after, 1), conv_norm(after, after, 3, 2, after)
                self.transitions.append(nn.Sequential(*pair))
        self.norm, self.head = nn.BatchNorm2d(dims[-1]), nn.Linear(dims[-1], 5)

    def forward(self, x):
        for layer in self.stem:
            x = functional.relu(layer(x))
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.transitions):
                for layer in self.transitions[i]:
                    x = functional.relu(layer(x))
        return self.head(self.norm(x).mean((2, 3)))


#: Kernel sizes and dilations beside a kernel of 7.
BESIDE_7 = ((5, 1), (3, 2), (3, 3))


class Dilated(Merged):
    def __init__(self, dim):
        super().__init__()
        self.lk_origin = nn.Conv2d(dim, dim, 7, padding=3, groups=dim, bias=False)
        self.origin_bn = nn.BatchNorm2d(dim)
        for k, r in BESIDE_7:
            conv = nn.Conv2d(dim, dim, k, 1, r * (k // 2), r, dim, bias=False)
            setattr(self, f"dil_conv_k{k}_{r}", conv)
            setattr(self, f"dil_bn_k{k}_{r}", nn.BatchNorm2d(dim))

    def forward(self, x):
        y = self.lk_origin(x)
        if hasattr(self, "origin_bn"):
            y = self.origin_bn(y)
            for k, r in BESIDE_7:
                y = y + getattr(self, f"dil_bn_k{k}_{r}")(getattr(self, f"dil_conv_k{k}_{r}")(x))
        return y

    def switch(self, after):
        kernel, bias = of_norm(self.lk_origin.weight, 0, self.origin_bn)
        for k, r in BESIDE_7:
            conv, bn = (self._modules.pop(f"dil_{kind}_k{k}_{r}") for kind in ("conv", "bn"))
            small, more = of_norm(conv.weight, 0, bn)
            reach = r * (k - 1) + 1
            wide = small.new_zeros(len(small), 1, reach, reach)
            wide[:, :, ::r, ::r] = small
            kernel, bias = kernel + centred(wide, 7), bias + more
        self.fold("lk_origin", *of_norm(kernel, bias, after), "origin_bn", groups=len(kernel))


class Response(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(0.5 + torch.rand(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.randn(1, 1, 1, dim))

    def forward(self, x):
        size = x.square().sum((1, 2), keepdim=True).sqrt()
        y = x + self.gamma * x * size / (size.mean(3, keepdim=True) + 1e-6)
        return y + self.beta if hasattr(self, "beta") else y


class UniBlock(Merged):
    def __init__(self, dim, k):
        super().__init__()
        small = nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim, bias=False)
        self.dwconv = Dilated(dim) if k == 7 else small
        self.norm = nn.BatchNorm2d(dim)
        self.se = named(down=nn.Conv2d(dim, dim // 4, 1), up=nn.Conv2d(dim // 4, dim, 1))
        self.pwconv1 = nn.Sequential(nn.Identity(), nn.Linear(dim, 4 * dim))
        self.act = nn.Sequential(nn.GELU(), Response(4 * dim))
        last = nn.Linear(4 * dim, dim, bias=False)
        self.pwconv2 = nn.Sequential(last, nn.Identity(), nn.BatchNorm2d(dim))
        self.gamma = nn.Parameter(0.5 + torch.rand(dim))

    def forward(self, x):
        y = self.dwconv(x)
        y = self.norm(y) if hasattr(self, "norm") else y
        gate = self.se.up(functional.relu(self.se.down(y.mean((2, 3), keepdim=True))))
        y = self.act(self.pwconv1((y * gate.sigmoid()).permute(0, 2, 3, 1)))
        y = self.pwconv2[0](y).permute(0, 3, 1, 2)
        y = self.pwconv2[2](y) if len(self.pwconv2) == 3 else y
        return x + (y * self.gamma.view(-1, 1, 1) if hasattr(self, "gamma") else y)

    def switch(self):
        if isinstance(self.dwconv, Dilated):
            self.dwconv.switch(self.norm)
        else:
            kernel, bias = of_norm(self.dwconv.weight, 0, self.norm)
            self.fold("dwconv", kernel, bias, groups=len(kernel))
        linear, _, bn = self.pwconv2
        before = linear.weight @ self.act[1].beta.flatten()
        kernel, bias = of_norm(linear.weight[:, :, None, None], before, bn)
        scaled = nn.Linear(linear.in_features, linear.out_features).double()
        scaled.weight.data = (kernel[:, :, 0, 0] * self.gamma[:, None]).detach()
        scaled.bias.data = (bias * self.gamma).detach()
        self.pwconv2 = nn.Sequential(scaled, nn.Identity())
        del self.norm, self.gamma, self.act[1].beta


class ChannelNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(dim)), nn.Parameter(torch.rand(dim))

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-6)
        return x.permute(0, 3, 1, 2)


class UniRepLKNet(nn.Module):
    def __init__(self, depths, dims, kernel_sizes):
        super().__init__()

        def strided(c_in, c_out):
            return [nn.Conv2d(c_in, c_out, 3, 2, 1), ChannelNorm(c_out)]

        half = dims[0] // 2
        stem = nn.Sequential(*strided(3, half), nn.GELU(), *strided(half, dims[0]))
        self.downsample_layers = nn.ModuleList([stem])
        self.stages = nn.ModuleList()
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            if i:
                self.downsample_layers.append(nn.Sequential(*strided(dims[i - 1], dim)))
            sizes = kernel_sizes[i]
            blocks = (UniBlock(dim, sizes[j % len(sizes)]) for j in range(depth))
            self.stages.append(nn.Sequential(*blocks))
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], 5)

    def forward(self, x):
        for before, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(before(x))
        return self.head(self.norm(x.mean((2, 3))))


class UniRepLKNetBackbone(UniRepLKNet):
    """The same for detection and segmentation: a norm for the features of each stage, no head."""

    def __init__(self, depths, dims, kernel_sizes):
        super().__init__(depths, dims, kernel_sizes)
        del self.norm, self.head
        for i, dim in enumerate(dims):
            setattr(self, f"norm{i}", ChannelNorm(dim))

    def forward(self, x):
        found = []
        for i, (before, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = stage(before(x))
            found.append(getattr(self, f"norm{i}")(x))
        return found


def switch(model):
    for module in list(model.modules()):
        if hasattr(module, "switch") and not isinstance(module, Dilated):
            module.switch()
    return model


def assert_same_scores(found, truth, x, tolerance=1e-10):
    """Check the scores of a network against a stand-in's, which must tell images apart."""
    with torch.no_grad():
        wanted = truth(x)
        assert wanted.std(0).max() > 1e-3 * wanted.abs().max()
        assert relative_error(found(x), wanted) < tolerance
