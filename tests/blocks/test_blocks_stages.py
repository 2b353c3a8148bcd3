"""Stage blocks: the formulas and traps of each, and the modules of timm with the same weights."""

import pytest
import torch
from timm.models.fastvit import RepConditionalPosEnc, RepMixer
from timm.models.repghost import RepGhostBottleneck
from timm.models.repvit import RepViTBlock as TimmRepViT
from torch import nn
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.blocks import STAGE_BLOCKS, anneal
from repblocks.blocks.vanilla import MaxPoolTo
from repblocks.errors import ConfigurationError, NotFoldable

EXACT = 1e-12
DIM = 8


def image():
    torch.manual_seed(1)
    return torch.randn(2, DIM, 9, 12, dtype=torch.float64)


def ready(name, **options):
    torch.manual_seed(0)
    block = STAGE_BLOCKS[name](DIM, **options).double()
    anneal(block, 1.0)
    return calibrate(block, image())


def copy_in_order(source, target):
    """Copy parameters and statistics between modules that hold the same in the same order."""
    for of in ("parameters", "buffers"):
        pairs = list(zip(getattr(source, of)(), getattr(target, of)(), strict=True))
        for found, wanted in pairs:
            wanted.data.copy_(found.data.reshape(wanted.shape))


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_rep_cpe_is_that_of_timm(kernel_size):
    ours = ready("rep_cpe", kernel_size=kernel_size)
    theirs = RepConditionalPosEnc(DIM, DIM, kernel_size).double()
    copy_in_order(ours, theirs)
    truth = theirs(image())
    assert relative_error(ours(image()), truth) < 1e-10
    ours.switch_to_deploy()
    assert relative_error(ours(image()), truth) < 1e-10


def test_rep_mixer_is_that_of_timm():
    ours = ready("rep_mixer", mlp_ratio=None, layer_scale=0.5)
    theirs = RepMixer(DIM, 3, 0.5).double().eval()
    mixed = ours.token_mixer[0]["mixed"]
    branches = mixed[0]["mixer"].branches
    copy_in_order(mixed[0]["norm"][0], theirs.norm.identity)
    copy_in_order(branches["identity"].norm, theirs.mixer.identity)
    copy_in_order(branches["kxk0"], theirs.mixer.conv_kxk[0])
    copy_in_order(branches["scale"], theirs.mixer.conv_scale)
    copy_in_order(mixed[1], theirs.layer_scale)
    truth = theirs(image())
    assert relative_error(ours(image()), truth) < 1e-10
    ours.switch_to_deploy()
    assert relative_error(ours(image()), truth) < 1e-10


@pytest.mark.parametrize("legacy", [True, False])
def test_repvit_is_that_of_timm(legacy):
    ours = ready("repvit", legacy=legacy, zero_init=False)
    theirs = TimmRepViT(DIM, 2, 3, False, nn.GELU, legacy).double().eval()
    mixer, branches = theirs.token_mixer, ours.token_mixer.mixer.branches
    summed = branches if legacy else branches.sum
    copy_in_order(summed["kxk"], mixer.conv)
    copy_in_order(summed["pointwise"], mixer.conv1)
    if not legacy:
        copy_in_order(branches.norm, mixer.bn)
    copy_in_order(ours.pw1, theirs.channel_mixer.conv1)
    copy_in_order(ours.pw2, theirs.channel_mixer.conv2)
    truth = theirs(image())
    assert relative_error(ours(image()), truth) < 1e-10
    ours.switch_to_deploy()
    assert relative_error(ours(image()), truth) < 1e-10


@pytest.mark.parametrize("reparam", [True, False])
def test_rep_ghost_is_that_of_timm(reparam):
    ours = ready("rep_ghost", use_norm_branch=reparam)
    theirs = RepGhostBottleneck(DIM, 2 * DIM, DIM, reparam=reparam).double().eval()
    for number, ghost in ((1, theirs.ghost1), (2, theirs.ghost2)):
        copy_in_order(getattr(ours, f"pw{number}"), ghost.primary_conv)
        branches = getattr(ours, f"cheap{number}")[0]["normed"].branches
        copy_in_order(branches["kxk0"] if reparam else branches, ghost.cheap_operation)
        if reparam:
            copy_in_order(branches["identity"], ghost.fusion_bn)
    truth = theirs(image())
    assert relative_error(ours(image()), truth) < 1e-10
    ours.switch_to_deploy()
    assert relative_error(ours(image()), truth) < 1e-10


def test_vanilla_folds_at_the_end_of_the_annealing_only():
    block = ready("vanilla")
    for slope in (0.0, 0.5, 0.999):
        anneal(block, slope)
        with pytest.raises(NotFoldable, match=f"linear where its slope is 1, got {slope:g}"):
            block.switch_to_deploy()
    assert not block.is_deployed
    anneal(block, 1.0)
    truth = block(image())
    block.switch_to_deploy()
    assert relative_error(block(image()), truth) < EXACT
    with pytest.raises(
        ConfigurationError, match=r"progress must be a number from 0 to 1, got 1\.5"
    ):
        anneal(block, 1.5)


def test_vanilla_pools_to_a_size_whatever_the_stride():
    block = ready("vanilla", patch=4, stride=3, padding=1, pool_to=2)
    truth = block(image())
    assert truth.shape[2:] == (2, 2)
    block.switch_to_deploy()
    assert relative_error(block(image()), truth) < EXACT


@pytest.mark.parametrize("shape", [(75, 19), (10, 7, 9), (12,)])
@pytest.mark.parametrize("size", [1, 4, 10, 38])
def test_maxima_that_leave_some_positions_are_those_of_torch(shape, size):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    pool = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[len(shape) - 1]
    assert torch.equal(MaxPoolTo(size)(x), pool(size)(x))


def test_the_slope_of_vanilla_is_in_the_state_dict():
    block, twin = STAGE_BLOCKS["vanilla"](DIM), STAGE_BLOCKS["vanilla"](DIM)
    anneal(block, 0.25)
    twin.load_state_dict(block.state_dict())
    assert twin.conv.act.slope == 0.25


def test_the_summand_of_the_response_norm_goes_into_the_bias():
    block = ready("unireplknet", layer_scale=0.5)
    with torch.no_grad():
        block.grn.gamma.normal_()
        block.pw2.shift.bias.normal_()
        truth = block(image())
        block.switch_to_deploy()
        assert relative_error(block(image()), truth) < EXACT
        y = block.act(block.pw1(block.se(block.mixer(image()))))
        norm = y.square().sum((2, 3), keepdim=True).sqrt()
        share = norm / (norm.mean(1, keepdim=True) + 1e-6)
        formula = block.pw2(y + block.grn.gamma.view(-1, 1, 1) * y * share)
        assert relative_error(image() + formula, truth) < EXACT


@pytest.mark.parametrize("activation", ["relu", "leakyrelu", "prelu"])
@pytest.mark.parametrize("groups", [1, DIM])
@pytest.mark.parametrize("shortcut", ["input", "activated"])
def test_rm_residual_needs_no_addition_for_any_input(activation, groups, shortcut):
    block = ready("rm_residual", activation=activation, groups=groups, shortcut=shortcut)
    truth = block(image())
    inner = block.conv2(block.act(block.conv1(image())))
    kept = image() if shortcut == "input" else block.act(image())
    assert relative_error(functional.relu(inner + kept), truth) < EXACT
    block.switch_to_deploy()
    assert block.carried is None
    assert relative_error(block(image()), truth) < EXACT
    macs = sum(conv.weight.numel() for conv in (block.conv1, block.conv2))
    assert macs == 9 * 2 * DIM * 2 * DIM // groups


def test_rm_residual_goes_on_training_the_slopes_that_it_trained():
    for options, is_trained in (({}, True), ({"activation": "leakyrelu"}, False)):
        block = ready("rm_residual", **{"activation": "prelu", **options})
        block.switch_to_deploy()
        assert block.act.weight.requires_grad == is_trained
        block(image()).square().sum().backward()
        assert is_trained == (block.act.weight.grad is not None)
        if is_trained:
            assert block.act.weight.grad.abs().min() > 0
    frozen = ready("rm_residual", activation="prelu")
    frozen.act.requires_grad_(False)
    frozen.switch_to_deploy()
    assert not frozen.act.weight.requires_grad
    assert all(conv.weight.requires_grad for conv in (frozen.conv1, frozen.conv2))


def test_rm_residual_carries_its_input_only_through_what_passes_it():
    with pytest.raises(ConfigurationError, match="activation must be one of relu.*got 'relu6'"):
        STAGE_BLOCKS["rm_residual"](DIM, activation="relu6")
    block = ready("rm_residual", activation="relu6", deploy_shortcut="add")
    block.deploy_shortcut = "expand"
    with pytest.raises(NotFoldable, match="must be one of relu, leakyrelu, prelu.*got ReLU6"):
        block.switch_to_deploy()
    activated = ready("rm_residual", activation="relu6", shortcut="activated")
    truth = activated(10 * image())
    activated.switch_to_deploy()
    assert relative_error(activated(10 * image()), truth) < EXACT


def test_chunk_conv_is_one_convolution_without_the_biases_of_its_series():
    block = ready("chunk_conv", long_bias=False, deploy_form="one")
    truth = block(image())
    assert torch.equal(truth[:, :2], image()[:, :2])
    block.switch_to_deploy()
    assert block.chunks.weight.shape == (DIM, 1, 11, 11)
    assert relative_error(block(image()), truth) < EXACT
    biased = ready("chunk_conv", deploy_form="one")
    with pytest.raises(NotFoldable, match="which has a bias, does not give zero there"):
        biased.switch_to_deploy()


def test_large_kernels_have_no_norm_left_before_pointwise_convolutions():
    block = ready("replk", kernel_size=7)
    truth = block(image())
    block.switch_to_deploy()
    assert len([m for m in block.modules() if isinstance(m, nn.Conv2d)]) == 5
    assert relative_error(block(image()), truth) < EXACT


@pytest.mark.parametrize("num_sets", [1, 2, DIM])
def test_rep_mlp_is_a_layer_over_patches_that_are_not_square(num_sets):
    block = ready("rep_mlp", patch_size=(3, 4), num_sets=num_sets, mlp_ratio=None)
    x = image()
    truth = block(x)
    normed = block.norm(x)
    patches = normed.unfold(2, 3, 3).unfold(3, 4, 4)  # (N, C, 3, 3, 3, 4)
    sums = block.mixer[0]
    layer, norm = sums["layer"]
    mixed = torch.empty_like(patches)
    for c in range(DIM):
        own, rows = c % num_sets, patches[:, c].flatten(3)
        weight = layer.weight.view(num_sets, 12, 12)[own]
        scale = norm.branch.weight[own] / (norm.branch.running_var[own] + 1e-5).sqrt()
        full = scale * (rows @ weight.T - norm.branch.running_mean[own]) + norm.branch.bias[own]
        mixed[:, c] = full.unflatten(3, (3, 4))
        for name in ("conv0", "conv1"):
            conv = nn.Sequential(*sums[name].branch)
            every = patches[:, c].reshape(-1, 1, 3, 4).expand(-1, num_sets, 3, 4)
            mixed[:, c] += conv(every)[:, own].view(mixed[:, c].shape)
    mixed = mixed.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    assert relative_error(x + block.gate.gates(normed) * mixed, truth) < EXACT
    block.switch_to_deploy()
    assert block.mixer.weight.shape == (num_sets * 12, 12, 1)
    assert relative_error(block(x), truth) < EXACT


def test_rep_mlp_is_made_for_one_size():
    block = ready("rep_mlp", patch_size=(3, 4))
    with pytest.raises(ConfigurationError, match=r"patches of \(3, 4\) positions.*of \(12, 9\)"):
        block(image().mT)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rep_mlp", {"num_sets": 3}, "num_sets must divide dim, got 3 for 8"),
        ("rep_mlp", {"patch_size": (3, 0)}, "patch_size must be .*at least 1.*got 0"),
        ("rep_mlp", {"kernel_sizes": (1, 2)}, r"2 odd whole numbers.*\(1, 2\)"),
        ("rep_cpe", {"kernel_size": 4}, "kernel_size must be odd"),
        ("rep_mixer", {"mlp_ratio": 0}, "mlp_ratio must be a number that leaves.*got 0"),
        ("rep_mixer", {"drop_path": 1}, r"drop_path must be in \[0, 1\), got 1"),
        ("repnext_chunk", {"kernel_sizes": (3, 6, 11)}, r"3 odd whole numbers.*\(3, 6, 11\)"),
        ("chunk_conv", {"deploy_form": "two"}, "deploy_form must be one of chunks, one, got 'two'"),
        ("vanilla", {"schedule": "step"}, "schedule must be one of linear, cosine, got 'step'"),
        ("vanilla", {"pool": 2, "pool_to": 4}, "pool must be 1 with pool_to=4, got 2"),
        ("unireplknet", {"layer_scale": 0}, "layer_scale must be a number above 0, got 0"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ConfigurationError, match=message):
        STAGE_BLOCKS[name](DIM, **options)
