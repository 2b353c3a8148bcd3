"""Stand-ins for the networks of DBB, ACNet and OREPA, which all have the same parts."""

from official_blocks import ConvBN
from official_nets import named
from torch import nn
from torch.nn import functional


class RepVGG(nn.Module):
    """Stages of one and of two blocks, every second one in groups."""

    def __init__(self, block, widths, **groups):
        super().__init__()
        self.stage0 = block(3, widths[0], 3)
        self.stage1 = nn.Sequential(block(widths[0], widths[1], 3, 2))
        blocks = [block(widths[1], widths[2], 3, 2, **groups), block(widths[2], widths[2], 3)]
        self.stage2 = nn.Sequential(*blocks)
        self.linear = nn.Linear(widths[2], 5)

    def forward(self, x):
        return self.linear(self.stage2(self.stage1(self.stage0(x))).mean((2, 3)))


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
