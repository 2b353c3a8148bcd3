"""compile=true trains the same network to the same weights."""

import functools

import pytest
import torch
from tiny_runs import tiny_config, tiny_data, tiny_train
from torch import nn

from repblocks import create_block
from repblocks.training import read_checkpoint


def network_without_chance():
    torch.manual_seed(0)
    block = create_block("repvgg", 1, 4, kernel_size=3, stride=2)
    return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


def trained(folder, **options):
    tiny_train(folder, tiny_config(ema_decay=0.9, **options), data=tiny_data(train_size=16))
    return read_checkpoint(folder / "checkpoints/last.ckpt").state_dict


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_trains_as_the_network_does(tmp_path, monkeypatch, backend):
    compilations = []

    def compiling(graph, inputs):
        compilations.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    monkeypatch.setattr("tiny_runs.tiny_model", network_without_chance)
    expected = trained(tmp_path / "plain")
    compiled = functools.partialmethod(nn.Module.compile, backend=compiling)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    torch.compiler.reset()
    found = trained(tmp_path / "compiled", compile=True)
    assert compilations
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
