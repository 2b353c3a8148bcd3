"""A plain network under RepOptimizer goes the way of branches with constant factors."""

import io

import pytest
import timm
import torch
from tiny_runs import DESCRIPTION, SILENT, tiny_config, tiny_data
from torch import nn
from torch.nn import functional

import repblocks.models  # noqa: F401 - registers the networks
from repblocks.algebra import AffineMap, ConvKernel, apply
from repblocks.blocks import create_block
from repblocks.errors import CheckpointError, ConfigurationError, UnknownNameError
from repblocks.training import (
    OptimizerConfig,
    RepAdamW,
    RepOptimizerConfig,
    RepSGD,
    SchedulerConfig,
    constants_of,
    multipliers,
    start_from_branches,
    train,
)
from repblocks.training.optimization import build_optimizer
from repblocks.training.rep_optimizer import Constants, _conv

SHAPES = [
    {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 2},
    {"in_channels": 4, "out_channels": 4, "kernel_size": 3},
    {"in_channels": 4, "out_channels": 4, "kernel_size": 5, "groups": 2},
]


class ConstantScales(nn.Module):
    """What RepOptimizer stands for: three branches, their constant factors, one BatchNorm."""

    def __init__(self, plain, constants):
        super().__init__()
        conv = _conv(plain)
        options = {"stride": conv.stride, "groups": conv.groups, "bias": False}
        sizes = (conv.in_channels, conv.out_channels)
        self.kernel = nn.Conv2d(*sizes, conv.kernel_size, padding=conv.padding, **options)
        self.pointwise = nn.Conv2d(*sizes, 1, **options)
        self.identity = None
        if constants.identity is not None:
            self.identity = nn.Parameter(constants.identity.clone())
        self.norm = nn.BatchNorm2d(conv.out_channels)
        self.register_buffer("s", constants.kernel.view(-1, 1, 1))
        self.register_buffer("t", constants.pointwise.view(-1, 1, 1))

    def forward(self, x):
        y = self.s * self.kernel(x) + self.t * self.pointwise(x)
        if self.identity is not None:
            y = y + self.identity.view(-1, 1, 1) * x
        return self.norm(y).relu()

    def sum(self):
        kernel = self.kernel.weight * self.s.unsqueeze(-1)
        middle = kernel.shape[-1] // 2
        kernel[:, :, middle, middle] += (self.pointwise.weight * self.t.unsqueeze(-1))[..., 0, 0]
        if self.identity is not None:
            per_group = kernel.shape[1]
            for channel, factor in enumerate(self.identity):
                kernel[channel, channel % per_group, middle, middle] += factor
        return kernel


def networks():
    """Give a plain network, its constants, and the network of branches that equals it."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(create_block("plain", **shape) for shape in SHAPES),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).double()
    constants = {}
    for index, shape in enumerate(SHAPES):
        size, has_identity = shape["out_channels"], index > 0
        drawn = torch.rand(3, size, dtype=torch.float64) + 0.5
        constants[str(index)] = Constants(drawn[0], drawn[1], drawn[2] if has_identity else None)
    branches = nn.Sequential(
        *(ConstantScales(plain[index], constants[str(index)]) for index in range(len(SHAPES))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).double()
    branches[-1].load_state_dict(plain[-1].state_dict())
    for index in range(len(SHAPES)):
        _conv(plain[index]).weight.data.copy_(branches[index].sum().detach())
    return plain, constants, branches


def decayed(model):
    """Decay what is part of a kernel, and nothing else."""
    kernels = [p for name, p in model.named_parameters() if p.ndim > 1 or "identity" in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 and "identity" not in name]
    return [{"params": kernels, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]


def updates(model, optimizer, number):
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        images = torch.randn(6, 3, 9, 8, generator=generator, dtype=torch.float64)
        targets = torch.randint(5, (6,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(images), targets).backward()
        optimizer.step()


SGD = {"lr": 0.02, "momentum": 0.9, "nesterov": True}
ADAMW = {"lr": 2e-3, "eps": 1e-150}  # branches would need an eps times their factor


def optimizers(kind, plain, constants, branches):
    groups = decayed(plain)
    if kind == "sgd":
        rep = RepSGD(groups, multipliers(plain, constants, 2), **SGD)
        return rep, torch.optim.SGD(decayed(branches), **SGD)
    rep = RepAdamW(groups, multipliers(plain, constants, 1), **ADAMW)
    return rep, torch.optim.AdamW(decayed(branches), **ADAMW)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_100_updates_are_those_of_the_branches(kind):
    plain, constants, branches = networks()
    rep, ordinary = optimizers(kind, plain, constants, branches)
    start = [_conv(block).weight.detach().clone() for block in plain[:3]]
    updates(plain, rep, 100)
    updates(branches, ordinary, 100)
    for block, branch, before in zip(plain[:3], branches[:3], start, strict=True):
        expected, got = branch.sum().detach(), _conv(block).weight.detach()
        moved = (expected - before).norm()
        assert moved > 0.1 * before.norm(), "it was trained"
        assert (got - expected).norm() < 1e-9 * moved


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_100_updates_of_the_networks_that_train_builds(kind):
    """The plain network and that of constant factors, each under the groups of the library."""
    options = {} if kind == "sgd" else {"options": {"eps": 1e-150}}
    common = {"lr": 0.02 if kind == "sgd" else 2e-3, "base_batch_size": 6, "weight_decay": 0.01}
    own = {"kernel_scale": 0.5, "pointwise_scale": 1.25, "identity_scale": 1.0}
    config = RepOptimizerConfig(name=f"rep_{kind}", **common, **own, **options)
    plain, branches = (small("plain"), small("repvgg", scale=0.5))
    for name, parameter in branches.named_parameters():
        if name.endswith(("kxk.scale.weight", "pointwise.scale.weight")):
            nn.init.constant_(parameter, 0.5 if "kxk" in name else 1.25)
            parameter.requires_grad_(False)
    for path in constants_of(plain, config):
        kernel = kernel_of_sum(branches.get_submodule(path))
        _conv(plain.get_submodule(path)).weight.data.copy_(kernel)
    plain.head.load_state_dict(branches.head.state_dict())
    start = {path: _conv(plain.get_submodule(path)).weight.clone() for path in SMALL}
    ordinary = OptimizerConfig(name=kind, **common, **options)
    for model, optimizer in ((plain, config), (branches, ordinary)):
        updates(model.train(), build_optimizer(model, optimizer, 6), 100)
    for path in SMALL:
        expected = kernel_of_sum(branches.get_submodule(path)).detach()
        got, before = _conv(plain.get_submodule(path)).weight.detach(), start[path]
        moved = (expected - before).norm()
        assert moved > 0.05 * before.norm(), "it was trained"
        assert (got - expected).norm() < 1e-9 * moved


SMALL = ["stem", "stages.0.0", "stages.1.0", "stages.1.1"]


def small(block, **options):
    torch.manual_seed(0)
    shape = {"depths": (1, 2), "widths": (4, 6), "stem_width": 4, "num_classes": 5}
    options = {"block": block, "block_options": options, **shape}
    return timm.create_model("repblocks_repvgg_tiny", **options).double()


def kernel_of_sum(block):
    like = torch.empty(0, dtype=torch.float64)
    value = AffineMap.identity(block.shape.in_channels).with_axes(2)
    return ConvKernel.from_affine(apply(block.branches.sum, value, like), like).weight


def test_the_factors_of_a_search_start_by_their_place_in_a_stage():
    options = {"depths": (1, 4), "widths": (4, 6), "stem_width": 4}
    model = timm.create_model(
        "repblocks_repvgg_tiny", block="repvgg", block_options={"scale": 0.5}, **options
    )
    for name in ("kxk", "pointwise"):
        blocks = [model.stem, *model.stages[1]]
        found = [block.branches.sum[name].scale.weight.unique().tolist() for block in blocks]
        expected = [0.5, 0.5, *(0.5 * (2 / number) ** 0.5 for number in (1, 2, 3))]
        assert [value for (value,) in found] == pytest.approx(expected)
    identities = [block.branches.sum["identity"].scale.weight for block in model.stages[1][1:]]
    assert all(weight.eq(1).all() for weight in identities)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_without_multipliers_the_updates_are_others(kind):
    plain, constants, branches = networks()
    ones = {
        path: Constants(*[torch.ones_like(c.kernel)] * 2, None) for path, c in constants.items()
    }
    rep, ordinary = optimizers(kind, plain, ones, branches)
    updates(plain, rep, 20)
    updates(branches, ordinary, 20)
    expected, got = branches[1].sum().detach(), _conv(plain[1]).weight.detach()
    assert (got - expected).norm() > 1e-2 * expected.norm()


def test_a_parameter_without_gradient_is_left_as_it_is():
    plain, constants, branches = networks()
    for kind in ("sgd", "adamw"):
        rep, _ = optimizers(kind, plain, constants, branches)
        before = _conv(plain[1]).weight.clone()
        rep.zero_grad()
        rep.step()
        assert torch.equal(_conv(plain[1]).weight, before)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_multipliers_are_restored_with_the_state(kind):
    plain, constants, branches = networks()
    rep, _ = optimizers(kind, plain, constants, branches)
    updates(plain, rep, 2)
    buffer = io.BytesIO()
    torch.save(rep.state_dict(), buffer)
    buffer.seek(0)
    zeros = {key: Constants(0 * c.kernel, 0 * c.pointwise, None) for key, c in constants.items()}
    other, _ = optimizers(kind, plain, zeros, branches)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    expected = multipliers(plain, constants, 2 if kind == "sgd" else 1)
    group = other.param_groups[0]
    restored = dict(zip(group["params"], group["multipliers"], strict=True))
    for parameter, factor in expected.items():
        assert torch.equal(restored[parameter], factor)


def test_new_kernels_start_as_the_sum_of_branches():
    torch.manual_seed(0)
    block = create_block("plain", 64, 64, 3)
    model = nn.Sequential(block)
    config = RepOptimizerConfig(kernel_scale=0.5, pointwise_scale=2.0, identity_scale=3.0)
    before = _conv(block).weight.detach().clone()
    start_from_branches(model, constants_of(model, config))
    change = _conv(block).weight.detach() - 0.5 * before
    centre = change[:, :, 1, 1].clone()
    assert change.abs().sum() == pytest.approx(centre.abs().sum().item())
    pointwise = centre - 3 * torch.eye(64)
    bound = 2 / 64**0.5  # torch's initialisation of a pointwise convolution, times its factor
    assert pointwise.abs().max() < bound * 1.001
    assert pointwise.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def tiny(block, **options):
    torch.manual_seed(0)
    return timm.create_model(
        "repblocks_repvgg_tiny", in_chans=1, num_classes=4, block=block, block_options=options
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Give the checkpoint of a search."""
    folder = tmp_path_factory.mktemp("search")
    train(
        tiny_config(),
        tiny("repvgg", scale=0.5),
        tiny_data(train_size=8),
        {"max_epochs": 1, **SILENT},
        output=folder,
        description=DESCRIPTION,
    )
    return folder / "checkpoints/last.ckpt"


def test_constants_are_those_of_a_search(searched):
    model = tiny("plain")
    constants = constants_of(model, RepOptimizerConfig(scales_from=str(searched)))
    state = torch.load(searched, weights_only=True)["state_dict"]
    assert list(constants) == ["stem", *(f"stages.{i}.{j}" for i, j in PLACES)]
    own = constants["stages.1.1"]
    key = "model.stages.1.1.branches.sum.{}.scale.weight"
    for name, got in {
        "kxk": own.kernel,
        "pointwise": own.pointwise,
        "identity": own.identity,
    }.items():
        assert torch.equal(got, state[key.format(name)])
        assert got.unique().numel() > 1, "they were trained"
    assert constants["stages.1.0"].identity is None


PLACES = [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_a_run_searches_then_trains_and_resumes(searched, tmp_path):
    config = tiny_config(
        optimizer=RepOptimizerConfig(scales_from=str(searched), lr=0.01),
        scheduler=SchedulerConfig(name="constant"),
    )

    def run(folder, epochs, ckpt_path=None):
        train(
            config,
            tiny("plain"),
            tiny_data(train_size=16),
            {"max_epochs": epochs, **SILENT},
            output=folder,
            description=DESCRIPTION,
            ckpt_path=ckpt_path,
        )
        return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]

    expected = run(tmp_path / "whole", 2)
    run(tmp_path / "half", 1)
    got = run(tmp_path / "half", 2, tmp_path / "half/checkpoints/last.ckpt")
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_refusals(searched, tmp_path):
    config = tiny_config(optimizer=RepOptimizerConfig())
    with pytest.raises(ConfigurationError, match=r"must be null with optimizer=rep_sgd: what"):
        train(
            config,
            tiny("plain"),
            tiny_data(),
            {"max_epochs": 1, "gradient_clip_val": 1.0, **SILENT},
            output=tmp_path / "run",
            description=DESCRIPTION,
        )
    with pytest.raises(ConfigurationError, match=r"the network has none\. Choose block=plain"):
        build_optimizer(tiny("acb"), RepOptimizerConfig(), 256)
    wide = timm.create_model("repblocks_repvgg_a0", block="plain")
    with pytest.raises(ConfigurationError, match="has no factors of 48 channels .* block 'stem'"):
        constants_of(wide, RepOptimizerConfig(scales_from=str(searched)))
    with pytest.raises(CheckpointError, match="There is no checkpoint at none"):
        constants_of(wide, RepOptimizerConfig(scales_from="none"))
    with pytest.raises(ConfigurationError, match="'rep_sgd' refuses its options {'betta'"):
        build_optimizer(wide, RepOptimizerConfig(options={"betta": 1}), 256)
    with pytest.raises(ConfigurationError, match="kernel_scale must be more than 0, got -1"):
        RepOptimizerConfig(kernel_scale=-1)
    with pytest.raises(ConfigurationError, match="rep_sgd needs the constants.*optimizer=rep_sgd"):
        OptimizerConfig(name="rep_sgd")
    with pytest.raises(UnknownNameError, match="'rep_sdg'. Did you mean 'rep_sgd'"):
        RepOptimizerConfig(name="rep_sdg")
