"""Small trained networks of every shape that a block may stand in."""

import torch
from torch import nn
from torch.nn import functional
from truth import calibrate

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Residual(nn.Module):
    """Strided, depthwise, dilated and grouped convolutions, one without BatchNorm, and a sum."""

    def __init__(self, ndim=2, channels=8):
        super().__init__()
        conv, norm = CONVS[ndim], NORMS[ndim]
        self.stem = conv(3, channels, 3, 2, 1, bias=False)
        self.norm0 = norm(channels)
        self.depthwise = conv(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.norm1 = norm(channels)
        self.pointwise = conv(channels, channels, 1, bias=False)
        self.norm2 = norm(channels)
        self.grouped = conv(channels, channels, 3, 1, 2, dilation=2, groups=2)
        self.tail = conv(channels, 2 * channels, 3, 1, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(2 * channels, 5)

    def forward(self, x):
        x = functional.relu(self.norm0(self.stem(x)))
        y = functional.relu(self.norm1(self.depthwise(x)))
        x = functional.relu(x + self.norm2(self.pointwise(y)))
        x = functional.gelu(self.grouped(x))
        x = functional.relu(self.tail(x))
        return self.head(self.drop(x.flatten(2).mean(2)))


def images(ndim=2, count=8, size=12, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *[size] * ndim, generator=generator, dtype=dtype)


def trained(ndim=2, dtype=torch.float64):
    """The network in evaluation mode, with measured and perturbed statistics."""
    torch.manual_seed(0)
    model = Residual(ndim).to(dtype)
    for norm in model.modules():
        if isinstance(norm, tuple(NORMS.values())):
            norm.momentum = None
    return calibrate(model, *(images(ndim, seed=seed, dtype=dtype) for seed in range(3)))


def state_shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
