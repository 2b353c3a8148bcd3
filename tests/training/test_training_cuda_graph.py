"""cuda_graph=true replays the network; where that cannot be done, it is said before training."""

import pytest
import torch
from tiny_runs import tiny_config, tiny_train
from torch import nn

from repblocks import create_block
from repblocks.errors import ConfigurationError
from repblocks.training.cuda_graph import Replayed


class Graphs:
    """Stands for torch's capture, which needs a GPU: passes run before, and what is replayed."""

    def __init__(self, error=None):
        self.captured, self.error = [], error

    def __call__(self, model, sample, *, allow_unused_input):
        assert allow_unused_input
        assert not torch.is_autocast_cache_enabled()
        plain, kind = model.forward, torch.is_autocast_enabled("cpu")
        for _ in range(3):
            model(*sample)
        if self.error is not None:
            raise self.error
        self.captured.append((sample[0].shape, kind))

        def replay(images):
            assert images.shape == sample[0].shape
            return plain(images)

        model.forward = replay


@pytest.fixture
def graphs(monkeypatch):
    found = Graphs()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    return found


def network():
    torch.manual_seed(0)
    return nn.Sequential(create_block("repvgg", 3, 4, 3), nn.Flatten(), nn.Linear(100, 2))


def test_it_is_captured_once_for_each_shape_and_leaves_buffers_as_they_were(graphs):
    model, images = network(), torch.randn(4, 3, 5, 5)
    model.eval()(images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    twin = network()
    twin.load_state_dict(before)
    replayed = Replayed(model.train())
    found, truth = model(images), twin.train()(images)
    assert torch.equal(found, truth)
    for key, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    model(images)
    model(images[:2])
    model(images[:2])
    assert [len(shape) and shape[0] for shape, _ in graphs.captured] == [4, 2]
    replayed.stop()
    assert model.forward.__func__ is nn.Sequential.forward


def test_evaluation_and_passes_without_gradients_are_not_replayed(graphs):
    model, images = network(), torch.randn(4, 3, 5, 5)
    Replayed(model)
    with torch.no_grad():
        model.train()(images)
    model.eval()(images)
    assert not graphs.captured


def test_it_is_captured_as_it_is_cast(graphs):
    model, images = network(), torch.randn(4, 3, 5, 5)
    model.eval()(images)
    Replayed(model.train())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype is torch.bfloat16
    assert [kind for _, kind in graphs.captured] == [True]


def test_what_cannot_be_captured_is_said(graphs):
    graphs.error = RuntimeError("operation not permitted when stream is capturing.")
    model, images = network(), torch.randn(4, 3, 5, 5)
    model.eval()(images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Replayed(model.train())
    with pytest.raises(
        ConfigurationError, match=r"Sequential cannot .* capturing\. Set cuda_graph"
    ):
        model(images)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_without_a_gpu_it_is_refused_before_training(tmp_path):
    message = "accelerator must be gpu, of CUDA, got cpu; .*batches must be 1, got 2.*false"
    with pytest.raises(ConfigurationError, match=message):
        tiny_train(tmp_path, tiny_config(cuda_graph=True), accumulate_grad_batches=2)


def test_it_is_refused_with_compile():
    with pytest.raises(ConfigurationError, match="cuda_graph must be false with compile=true"):
        tiny_config(cuda_graph=True, compile=True)
