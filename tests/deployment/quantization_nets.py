"""Small networks for the tests of quantization."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Dense, depthwise and grouped convolutions, a pool and linear layers, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.PReLU(8),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, groups=4),
            nn.LeakyReLU(0.1),
            nn.MaxPool2d(2),
        )
        self.fc1 = nn.Linear(48, 10)
        self.fc2 = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.body(self.stem(x)).flatten(1)).relu())


class Unequal(nn.Module):
    """Nothing here is a pair: another reader, no homogeneous step, shared weights, two uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.tied, self.twin = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.twin.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        y = y + self.b(y)
        y = self.c(nn.functional.gelu(self.b(y)))
        y = self.twin(self.tied(y).relu())
        return y.mean((1, 2))


def unlike_channels(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Make the channels of a network very different in size, seeded."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            shape = (-1, *[1] * (module.weight.ndim - 1))
            sizes = torch.exp(2 * torch.randn(module.weight.shape[0]))
            module.weight.data = torch.randn_like(module.weight) * sizes.view(shape) / 3
            if module.bias is not None:
                module.bias.data = torch.randn_like(module.bias) * sizes
    return network.eval().to(dtype)


def images(count: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
