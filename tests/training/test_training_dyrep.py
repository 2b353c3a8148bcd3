"""Blocks that grow in training: the optimizer, the average, checkpoints and a resumed run."""

import shutil
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import DESCRIPTION, SILENT, tiny_config, tiny_data
from torch import nn

from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError
from repblocks.expansion import grow_
from repblocks.expansion.grown import is_grown, summed
from repblocks.training import train
from repblocks.training.checkpoint import load_weights, read_checkpoint
from repblocks.training.classifier import ImageClassifier
from repblocks.training.config import RepOptimizerConfig
from repblocks.training.dyrep import DyRep
from repblocks.training.optimization import parameter_groups
from repblocks.training.refitting import refit_


def network():
    pl.seed_everything(3, verbose=False)
    return nn.Sequential(
        create_block("plain", 1, 8, 3, stride=2),
        create_block("plain", 8, 8, 3),
        create_block("plain", 8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def run(output, *callbacks, ckpt_path=None, model=None, epochs=3, **options):
    model = model or network()
    settings = {"max_epochs": epochs, "log_every_n_steps": 1, **SILENT}
    train(
        tiny_config(ema_decay=0.9, **options),
        model,
        tiny_data(),
        settings,
        output=output,
        description=DESCRIPTION,
        ckpt_path=ckpt_path,
        callbacks=callbacks,
    )
    return model


class Watch(pl.Callback):
    """Compare evaluation before and after each change; runs after what changes."""

    def __init__(self, dyrep):
        self.dyrep, self.errors, self.optimizers = dyrep, [], []

    def on_train_batch_start(self, *_):
        change = self.dyrep._change

        def watched(trainer, classifier, images):
            networks = [classifier.model, classifier.ema.module]
            before = [evaluated(network, images) for network in networks]
            change(trainer, classifier, images)
            after = [evaluated(network, images) for network in networks]
            self.errors += [(a - b).abs().max().item() for a, b in zip(after, before, strict=True)]
            self.optimizers.append(trainer.optimizers[0])

        if "_change" not in vars(self.dyrep):
            self.dyrep._change = watched


@torch.no_grad()
def evaluated(model, images):
    modes = {module: module.training for module in model.modules()}
    scores = model.eval()(images)
    for module, mode in modes.items():
        module.training = mode
    return scores


def grown(model):
    return [[*filter(is_grown, summed(block))] for block in model[:3]]


def test_blocks_grow_and_are_trained(tmp_path):
    dyrep = DyRep(1, branches=["dbb.pointwise", "repvgg.identity"])
    watch = Watch(dyrep)
    start = network()
    model = run(tmp_path, watch, dyrep)
    assert len(watch.errors) == 4
    assert max(watch.errors) < 1e-5
    # The first one allows no identity, the last one has one tap.
    assert grown(model) == [["dbb__pointwise"], ["dbb__pointwise", "repvgg__identity"], []]
    optimizer = watch.optimizers[-1]
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(model.parameters()) == set(optimizer.state)
    assert all((optimizer.state[p]["momentum_buffer"] != 0).any() for p in held if p.ndim > 1)
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    load_weights(start, checkpoint.state_dict, new_head=False)
    assert list(start.state_dict()) == list(model.state_dict())
    averaged = checkpoint.raw["state_dict"]
    assert all(torch.equal(averaged[f"ema.module.{k}"], v) for k, v in start.state_dict().items())


class Stop(pl.Callback):
    def __init__(self, updates):
        self.updates = updates

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.updates:
            raise KeyError(self.updates)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), DyRep(1), checkpoint_every_n_steps=5)


@pytest.mark.parametrize("updates", [13, 28])
def test_a_resumed_run_ends_bit_identical(tmp_path, whole, updates):
    """There are 12 updates an epoch: the checkpoints are of 12, before a change, and of 25."""
    options = {"checkpoint_every_n_steps": 5}
    with pytest.raises(KeyError):
        run(tmp_path / "stopped", Stop(updates), DyRep(1), **options)
    folder = shutil.copytree(tmp_path / "stopped", tmp_path / "resumed")
    found = [path for path in (folder / "checkpoints").glob("*.ckpt") if path.name != "best.ckpt"]
    newest = max(found, key=lambda path: read_checkpoint(path).raw["global_step"])
    assert read_checkpoint(newest).raw["global_step"] == {13: 12, 28: 25}[updates]
    resumed = run(folder, DyRep(1), ckpt_path=newest, **options)
    assert grown(resumed) == grown(whole) != grown(network())
    assert list(resumed.state_dict()) == list(whole.state_dict())
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_weak_branches_are_cut(tmp_path):
    class Weaken(pl.Callback):
        def on_train_epoch_end(self, _, classifier):
            for network in (classifier.model, classifier.ema.module):
                for block in network[:2]:
                    for name in filter(is_grown, summed(block)):
                        nn.init.constant_(summed(block)[name].norm.weight, 1e-4)

    model = run(tmp_path, Weaken(), DyRep(1, until_epoch=3, branches=["dbb.pointwise"]), epochs=4)
    # One grew before the second epoch and was cut before the third, when the other grew.
    assert sum(map(len, grown(model))) == 1


def test_blocks_that_cannot_grow_are_left(tmp_path, caplog):
    model = network()
    model[0] = create_block("do_conv", 1, 8, 3, stride=2)
    nn.init.zeros_(model[1].branches.norm.weight)
    frozen = model[1].branches.norm.requires_grad_(False)
    before = list(model.state_dict())
    run(tmp_path, DyRep(1, num_blocks=2), model=model, epochs=2)
    assert not frozen.weight.any()
    assert list(model.state_dict()) == before
    assert "DyRep leaves 0 as it is: DOConvBlock has no branch" in caplog.text
    assert "DyRep leaves 1 as it is: A BatchNorm of the main branch of Plain" in caplog.text


def test_refit_keeps_the_state_of_what_stays():
    model = network()
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1), lr=0.1, momentum=0.9)
    model(torch.randn(4, 1, 12, 12)).square().mean().backward()
    optimizer.step()
    kept = {p: optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()}
    grow_(model, "1", ["dbb.pointwise"])
    changes = refit_(optimizer, parameter_groups(model, 0.1))
    new = set(summed(model[1])["dbb__pointwise"].parameters())
    assert set(changes.added) == new
    assert changes.removed == ()
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], kept[p]) for p in kept)
    assert [len(group["params"]) for group in optimizer.param_groups] == [
        len(group["params"]) for group in parameter_groups(model, 0.1)
    ]
    model[1] = nn.Identity()
    changes = refit_(optimizer, parameter_groups(model, 0.1))
    assert new < set(changes.removed)
    assert not set(changes.removed) & set(optimizer.state)
    with pytest.raises(ConfigurationError, match="as many as the optimizer has, 2, got 1"):
        refit_(optimizer, parameter_groups(model, 0.1)[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs must be .*at least 1, got 0"),
        ({"num_blocks": 0.5}, r"num_blocks must be .*at least 1, got 0\.5"),
        ({"until_epoch": 0}, "until_epoch must be .*at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        DyRep(**options)


def test_runs_whose_network_cannot_change_are_refused():
    classifier = ImageClassifier(network(), 4, tiny_config(), batch_size=8)
    with pytest.raises(ConfigurationError, match="do not allow, got 2 of them"):
        DyRep(1).setup(SimpleNamespace(world_size=2), classifier, "fit")
    for key in ("compile", "cuda_graph"):
        classifier.config = tiny_config(**{key: True})
        with pytest.raises(ConfigurationError, match="so that compile and cuda_graph must be"):
            DyRep(1).setup(SimpleNamespace(world_size=1), classifier, "fit")
    classifier.config = tiny_config(optimizer=RepOptimizerConfig())
    with pytest.raises(ConfigurationError, match="choose another optimizer"):
        DyRep(1).setup(SimpleNamespace(world_size=1), classifier, "fit")
    with pytest.raises(ConfigurationError, match="needs an ImageClassifier, got LightningModule"):
        DyRep(1).setup(SimpleNamespace(world_size=1), pl.LightningModule(), "fit")
