"""cuda_graph=true replays the network; where that cannot be done, it is said before training."""

import weakref

import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import tiny_config, tiny_model, tiny_train
from torch import nn

from repblocks import create_block
from repblocks.errors import ConfigurationError
from repblocks.training import cuda_graph, read_checkpoint
from repblocks.training.cuda_graph import Replayed


class Memory:
    """Stands for what a graph holds, which is part of a cycle."""

    def __init__(self):
        self.itself = self


class Graphs:
    """Stands for torch's capture, which needs a GPU: passes run before, and what is replayed."""

    def __init__(self, error=None):
        self.captured, self.error, self.held = [], error, []

    def __call__(self, model, sample, *, allow_unused_input):
        assert allow_unused_input
        assert not torch.is_autocast_cache_enabled()
        assert not any(reference() for reference in self.held)
        assert torch.cuda.graph(None, capture_error_mode="global") == "thread_local"
        plain, kind, memory = model.forward, torch.is_autocast_enabled("cpu"), Memory()
        self.held.append(weakref.ref(memory))
        for _ in range(3):
            model(*sample)
        if self.error is not None:
            raise self.error
        self.captured.append((sample[0].shape, kind))

        def replay(images):
            assert images.shape == sample[0].shape
            assert memory.itself is memory
            return plain(images)

        model.forward = replay


@pytest.fixture
def graphs(monkeypatch):
    found = Graphs()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    monkeypatch.setattr(torch.cuda, "graph", lambda _, capture_error_mode: capture_error_mode)
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
    assert "forward" not in vars(model)


def test_a_forward_pass_that_was_put_in_place_comes_back():
    model = network()
    model.forward = own = lambda images: images
    Replayed(model).stop()
    assert model.forward is own


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


@pytest.fixture
def models(monkeypatch):
    """Let any device do, and give the networks that are trained."""
    found = []
    monkeypatch.setattr(cuda_graph, "_check", lambda *_, **__: None)
    monkeypatch.setattr("tiny_runs.tiny_model", lambda: found.append(tiny_model()) or found[-1])
    return found


def test_a_run_is_as_without_it_to_the_random_numbers(tmp_path, graphs, models):
    states = []
    for is_replayed in (True, False):
        folder = tmp_path / str(is_replayed)
        tiny_train(folder, tiny_config(cuda_graph=is_replayed, ema_decay=0.9))
        states.append(read_checkpoint(folder / "checkpoints/last.ckpt").state_dict)
    assert len(graphs.captured) == 1
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert "forward" not in vars(models[0])


class Failing(pl.Callback):
    def on_train_batch_end(self, *_):
        raise RuntimeError("no more")


def test_a_run_that_fails_leaves_the_network_as_it_was(tmp_path, graphs, models):
    with pytest.raises(RuntimeError, match="no more"):
        tiny_train(tmp_path, tiny_config(cuda_graph=True), callbacks=[Failing()])
    assert len(graphs.captured) == 1
    assert "forward" not in vars(models[0])


def test_without_a_gpu_it_is_refused_before_training(tmp_path):
    message = "accelerator must be gpu, of CUDA, got cpu; .*batches must be 1, got 2.*false"
    with pytest.raises(ConfigurationError, match=message):
        tiny_train(tmp_path, tiny_config(cuda_graph=True), accumulate_grad_batches=2)


def test_it_is_refused_with_compile(tmp_path):
    with pytest.raises(ConfigurationError, match="compile must be false, got True"):
        tiny_train(tmp_path, tiny_config(cuda_graph=True, compile=True))
