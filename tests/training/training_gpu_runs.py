"""Networks that are replayed from CUDA graphs train as they do; on a GPU.

pytest tests/training/training_gpu_runs.py
"""

import copy

import pytest
import timm
import torch
from torch import nn

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.blocks import set_execution
from repblocks.training.cuda_graph import Replayed

CASES = [
    *(("repblocks_mobileone_s0", execution) for execution in ("branchwise", "merged", "auto")),
    ("repblocks_repvgg_a0", "auto"),
]


def trained(model, batches, dtype):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for images, targets in batches:
        with torch.autocast("cuda", dtype, enabled=dtype is not torch.float32):
            loss = nn.functional.cross_entropy(model(images).float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {key: value.double() for key, value in model.state_dict().items()}


def batches():
    generator = torch.Generator().manual_seed(0)
    sizes = [64, 64, 96, 96, 64]
    return [
        (
            torch.randn(8, 3, size, size, generator=generator)
            .cuda()
            .to(memory_format=torch.channels_last),
            torch.randint(5, (8,), generator=generator).cuda(),
        )
        for size in sizes
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "execution"), CASES)
def test_a_replayed_network_trains_as_it_does(name, execution, dtype):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).cuda().to(memory_format=torch.channels_last)
    set_execution(model.train(), execution)
    twin = copy.deepcopy(model)
    truth = trained(model, batches(), dtype)
    replayed = Replayed(twin)
    found = trained(twin, batches(), dtype)
    replayed.stop()
    exact = 1e-3 if dtype is torch.float32 else 5e-2
    for key, value in truth.items():
        scale = value.abs().max().clamp_min(1e-3)
        assert ((found[key] - value).abs().max() / scale).item() < exact, key
