"""`verify` accepts a right fold, catches a wrong one, and names where it is wrong."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from repblocks.errors import ConfigurationError, VerificationError
from repblocks.folding.recording import run_wide, wide_view_of
from repblocks.folding.reference import Reference
from repblocks.folding.verification import verify
from repblocks.folding.widening import paused, widened


class TwoBranches(nn.Module):
    """relu(bn(conv3x3) + bn(conv1x1)), which folds itself into one convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches: nn.ModuleList | None = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, k, padding=k // 2, bias=False),
                nn.BatchNorm2d(channels),
            )
            for k in (3, 1)
        )
        self.tail = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.branches is None:
            return self.tail(self.conv(x))
        return self.tail(self.branches[0](x) + self.branches[1](x))

    def fold(self) -> None:
        dtype = next(self.parameters()).dtype
        large, small = (fuse_conv_bn_eval(*branch) for branch in self.branches.double())
        large.weight.data[:, :, 1:2, 1:2] += small.weight.data
        large.bias.data += small.bias.data
        self.branches, self.conv = None, large.to(dtype)


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Three blocks with statistics of their own input, then perturbed, and a head."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        *(TwoBranches(8) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    for _ in range(20):
        model(torch.randn(8, 3, 10, 10))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= torch.rand(8) + 0.5
            nn.init.normal_(module.bias)
    return model.eval().to(dtype)


def fold(model: nn.Sequential) -> nn.Sequential:
    folded = copy.deepcopy(model)
    for block in folded:
        if isinstance(block, TwoBranches):
            block.fold()
    return folded


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_accepts_a_right_fold(dtype: torch.dtype) -> None:
    model = network(dtype)
    found = verify(model, fold(model), images())
    limits = {torch.float64: 1.1e-10, torch.float32: 1e-4, torch.bfloat16: 1.0}
    assert 0 < found.rms_rel <= found.tolerance < limits[dtype]
    assert found.rms_rel <= found.max_rel
    assert found.max_abs > 0
    assert found.run_rms_rel > 0
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.first_difference is None
    assert found.num_modules == 3  # the blocks, each on its own input
    assert found.note == ""
    assert (found.own_rms_rel == 0) == (dtype is torch.float64)


@pytest.mark.parametrize("seed", range(8))
def test_accepts_right_folds_of_few_output_values(seed: int) -> None:
    model = network(seed=seed)
    verify(model, fold(model), images(1))


def test_leaves_both_models_and_the_random_state_alone() -> None:
    model = network()
    folded = fold(model)
    model.train()
    model[1].eval()
    before = copy.deepcopy((model.state_dict(), folded.state_dict()))
    modes = [m.training for m in (*model.modules(), *folded.modules())]
    random_state = torch.get_rng_state()
    verify(model, folded, images())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in (*model.modules(), *folded.modules())] == modes
    for old, new in zip(before, (model.state_dict(), folded.state_dict()), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in new)
    assert not any(m._forward_hooks for m in (*model.modules(), *folded.modules()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("what", ["bias", "scale"])
def test_catches_sabotage_and_names_the_block(dtype: torch.dtype, block: int, what: str) -> None:
    model = network(dtype)
    folded = fold(model)
    if what == "bias":
        folded[block].conv.bias.data[0] = 0
    else:
        folded[block].conv.weight.data *= 1.001
    with pytest.raises(VerificationError, match=f"first module that differs is '{block}'") as info:
        verify(model, folded, images())
    assert info.value.path == str(block)
    assert info.value.difference > info.value.tolerance
    assert f"{info.value.difference:.3g}" in str(info.value)
    assert f"allowed {info.value.tolerance:.3g}" in str(info.value)


def test_names_a_plain_layer() -> None:
    model = network()
    folded = fold(model)
    folded[6].bias.data[3] += 0.01
    with pytest.raises(VerificationError, match="'6'"):
        verify(model, folded, images())


def test_convolution_that_takes_its_norm_in_is_no_difference() -> None:
    model = network()
    chain = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    model.insert(2, chain.eval())
    folded = fold(model)
    folded[2][0], folded[2][1] = fuse_conv_bn_eval(folded[2][0], folded[2][1]), nn.Identity()
    verify(model, folded, images())
    folded[2][3].weight.data *= 1.001
    with pytest.raises(VerificationError, match=r"'2\.3'"):
        verify(model, folded, images())


def killing_norm(dtype: torch.dtype) -> nn.BatchNorm2d:
    """A norm whose statistics leave a millionth of the signal beside its bias."""
    norm = nn.BatchNorm2d(8, dtype=dtype).eval()
    nn.init.constant_(norm.running_var, 1e12)
    nn.init.uniform_(norm.bias, 0.5, 1)
    return norm


def test_catches_sabotage_that_the_output_hardly_shows() -> None:
    model = network(torch.float64)
    model.insert(3, killing_norm(torch.float64))
    folded = fold(model)
    verify(model, folded, images())
    folded[1].conv.weight.data *= 1 + 1e-8
    x = images().double()
    truth = model(x).detach()
    # Relative to the output this is less than the tolerance of 1e-10, so it would pass.
    assert float((folded(x) - truth).norm().detach() / truth.norm()) < 1e-11
    with pytest.raises(VerificationError, match="'1'"):
        verify(model, folded, images())


def test_catches_sabotage_that_a_later_layer_hides_completely() -> None:
    model = network()
    norm = killing_norm(torch.float32)
    model.insert(3, nn.Sequential(norm))
    nn.init.constant_(norm.running_var, 1e18)
    folded = fold(model)
    verify(model, folded, images())
    folded[1].conv.weight.data *= 1.001
    with pytest.raises(VerificationError, match=r"The output agrees, but a block .* '1'"):
        verify(model, folded, images())


def dead(model: nn.Sequential) -> nn.Sequential:
    """Make the output constant."""
    nn.init.zeros_(model[6].weight)
    return model


def test_changes_before_a_constant_output_are_judged_on_their_own() -> None:
    model = dead(network())
    folded = fold(model)
    found = verify(model, folded, images())
    assert "does not depend on its input" in found.note
    assert found.num_modules == 3
    folded[2].conv.weight.data *= 1.001
    with pytest.raises(VerificationError, match=r"does not depend on its input.*'2'"):
        verify(model, folded, images())


def test_refuses_a_constant_output_if_a_change_cannot_be_judged_alone() -> None:
    layers = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    model = nn.Sequential(*layers, dead(network())).eval()
    folded = copy.deepcopy(model)
    folded[0], folded[1] = fuse_conv_bn_eval(model[0], model[1]), nn.Identity()
    with pytest.raises(VerificationError, match="does not depend on its input"):
        verify(model, folded, images())


@pytest.mark.parametrize("seed", range(20))
def test_a_right_fold_of_one_output_value_is_no_false_alarm(seed: int) -> None:
    torch.manual_seed(seed)
    layers = [
        layer
        for _ in range(6)
        for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))
    for _ in range(3):
        model(torch.randn(4, 16, 12, 12))
    model.eval()
    folded = copy.deepcopy(model)
    for i in range(0, len(layers), 3):
        folded[i], folded[i + 1] = fuse_conv_bn_eval(model[i], model[i + 1]), nn.Identity()
    verify(model, folded, torch.randn(1, 16, 12, 12))


class Masked(nn.Module):
    """Scores with a mask of minus infinity, as a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> object:
        scores = self.layer(x) + torch.full((4, 4), -torch.inf).triu(1)
        return Scores(scores, {"other": scores / scores})


@dataclass
class Scores:
    """An output that is no container of Python."""

    scores: Tensor
    more: dict[str, Tensor]


def test_equal_infinities_and_nans_in_a_dataclass_agree() -> None:
    torch.manual_seed(0)
    model, x = Masked(), torch.randn(4, 4)
    other = copy.deepcopy(model)
    verify(model, other, x)
    other.layer.weight.data *= 1.001
    with pytest.raises(VerificationError, match="'layer'"):
        verify(model, other, x)


class Casting(nn.Module):
    """Sums in a dtype of its own."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).sum(0, dtype=self.dtype)


def test_another_dtype_of_the_output_is_a_difference() -> None:
    model = Casting(torch.float64)
    other = Casting(None)
    other.load_state_dict(model.state_dict())
    with pytest.raises(VerificationError, match=r"dtypes \{'': 'torch.float32'\}, the original's"):
        verify(model, other, torch.randn(3, 4))


def test_there_is_no_float64_copy_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()

    def refuse(*_: object) -> None:
        raise AssertionError("all weights are converted at once")

    monkeypatch.setattr(nn.Module, "to", refuse)
    monkeypatch.setattr(nn.Module, "double", refuse)
    verify(model, copy.deepcopy(model), images())


def count_runs(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Note in which dtype a model's first layer is run, from now on."""
    runs: list[torch.dtype] = []
    forward = type(model[0]).forward

    def counted(self: nn.Module, x: Tensor) -> Tensor:
        if self.weight.shape == model[0].weight.shape:
            runs.append(x.dtype)
        return forward(self, x)

    monkeypatch.setattr(type(model[0]), "forward", counted)
    return runs


def test_three_runs_in_float64_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    folded = fold(model)
    runs = count_runs(model, monkeypatch)
    verify(model, folded, images())
    # The truth; the folded weights, and what rounding them once more does if that is needed.
    assert runs.count(torch.float64) <= 3
    # The original's own error and its dependence on the input; the folded model as it will run;
    # and both at another size.
    assert runs.count(torch.float32) == 5


def test_blocks_behind_a_mute_output_are_judged_while_the_truth_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = dead(network())
    folded = fold(model)
    runs = count_runs(model, monkeypatch)
    verify(model, folded, images())
    # The truth, the folded model, and another input: does nothing depend on it in float64 either?
    assert runs.count(torch.float64) == 3


def test_dead_blocks_are_judged_once_on_another_input(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    folded = fold(model)
    calls: list[torch.Size] = []
    forward = TwoBranches.forward

    def counted(self: TwoBranches, x: Tensor) -> Tensor:
        calls.extend([x.shape] if self.branches is not None and x.dtype is torch.float64 else [])
        return forward(self, x)

    monkeypatch.setattr(TwoBranches, "forward", counted)
    assert verify(model, folded, images()).num_modules == 3
    # Twice in the network (the truth, another input), and once on an input that is not dead.
    assert 3 * 2 < len(calls) <= 3 * 3
    folded[2].conv.bias.data[0] += 0.01
    folded[2].conv.weight.data *= 1.001
    with pytest.raises(VerificationError):
        verify(model, folded, images())


def test_a_block_is_judged_with_the_hooks_that_belong_to_it() -> None:
    model = network()
    for block in model[1:4]:
        block.register_forward_pre_hook(lambda _block, inputs: (inputs[0] * 3 + 1,))
        block.register_forward_hook(lambda _block, _inputs, output: output.square())
    folded = fold(model)
    assert verify(model, folded, images()).num_modules == 3
    folded[3].conv.weight.data *= 1.001
    with pytest.raises(VerificationError, match="'3'"):
        verify(model, folded, images())


def test_hooks_of_a_wide_run_can_leave_it() -> None:
    seen: list[torch.dtype] = []

    def look(layer: nn.Module, *_: object) -> None:
        with paused():
            seen.extend([layer(torch.ones(1, 2)).dtype, torch.ones(1).dtype])
        seen.append(torch.ones(1).dtype)

    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *_: look(model[1]))
    found = run_wide(model, (torch.ones(1, 2),))
    assert seen == [torch.float32, torch.float32, torch.float64]
    assert found[""].dtype is torch.float64


@pytest.mark.parametrize("shape", [(), (3,), (70001,), (4, 3, 200, 120)])
def test_rounding_moves_each_weight_by_the_same_share_up_or_down(shape: tuple[int, ...]) -> None:
    weight = torch.rand(shape) + 1
    like = weight.to(memory_format=torch.channels_last) if len(shape) == 4 else weight
    before = like.clone()
    with widened(2.0**-24):
        first, second = torch.neg(like), torch.neg(like)
    assert torch.equal(like, before)
    for moved in (first, second):
        share = -moved / weight.double() - 1
        assert torch.allclose(share.abs(), torch.tensor(2.0**-24).double(), rtol=1e-6)
        assert share.numel() < 1000 or abs((share > 0).double().mean() - 0.5) < 0.01
    assert weight.numel() < 1000 or not torch.equal(first, second)


def test_weights_that_a_parent_reads_are_widened() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.layer.weight
            mean, size = weight.mean((1, 2, 3), keepdim=True), torch.ones(()).float()
            return nn.functional.conv2d(x, ((weight - mean) / weight.std()) * size).half()

    torch.manual_seed(0)
    model, x = Reader(), torch.randn(2, 3, 8, 8)
    copied = copy.deepcopy(model).double().layer.weight
    kernel = (copied - copied.mean((1, 2, 3), keepdim=True)) / copied.std()
    found = run_wide(wide_view_of(model), (x,))[""]
    assert torch.equal(found, nn.functional.conv2d(x.double(), kernel).detach())


class Structured(nn.Module):
    """Gives what the constructor says it gives."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> object:
        y = self.layer(x)
        return {
            "tuple": (y, y.sum(1)),
            "list": [y, None],
            "dict": {"scores": y, "features": (y, 2 * y)},
            "text": "nothing",
        }[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_compares_every_tensor_of_an_output(kind: str) -> None:
    torch.manual_seed(0)
    model = Structured(kind)
    x = torch.randn(5, 4)
    verify(model, copy.deepcopy(model), x)
    other = copy.deepcopy(model)
    other.layer.weight.data *= 1.001
    with pytest.raises(VerificationError, match="'layer'"):
        verify(model, other, x)


def test_refuses_other_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    with pytest.raises(ConfigurationError, match="holds no tensor"):
        verify(Structured("text"), Structured("text"), x)
    expected = r"'\[1\]': \(5,\)\}, the original's \{\"\['scores'\]\": \(5, 3\)"
    with pytest.raises(VerificationError, match=expected):
        verify(Structured("dict"), Structured("tuple"), x)
    with pytest.raises(VerificationError, match=r"\{'': \(5, 2\)\}, the original's \{'': \(5, 3\)"):
        verify(nn.Linear(4, 3), nn.Linear(4, 2), x)


def test_outputs_that_are_not_finite_are_named() -> None:
    model = network()
    folded = fold(model)
    folded[2].conv.bias.data[0] = torch.nan
    with pytest.raises(VerificationError, match=r"not finite in 80 of 80 values.* '2'"):
        verify(model, folded, images())
    with pytest.raises(VerificationError, match="The original's output is not finite in 80 of 80"):
        verify(folded, model, images())


def test_tolerance_can_be_set() -> None:
    model = network()
    folded = fold(model)
    folded[6].weight.data *= 1.001
    assert verify(model, folded, images(), tolerance=0.1).rms_rel > 1e-5
    with pytest.raises(VerificationError, match=r"allowed 1e-05"):
        verify(model, folded, images(), tolerance=1e-5)


def test_takes_several_inputs_and_indices() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)

        def forward(self, indices: Tensor, scale: float) -> Tensor:
            return self.embedding(indices) * scale

    torch.manual_seed(0)
    model, inputs = TwoInputs(), (torch.tensor([[0, 3], [6, 1]]), 2.0)
    verify(model, copy.deepcopy(model), inputs)
    other = copy.deepcopy(model)
    other.embedding.weight.data[3] *= 1.01
    with pytest.raises(VerificationError):
        verify(model, other, inputs)


def test_unknown_dtype_is_refused() -> None:
    message = r"No tolerance is known for torch.complex64; known: torch.float64, torch.float32"
    with pytest.raises(ConfigurationError, match=message):
        Reference(nn.Linear(2, 2), torch.randn(2, 2), torch.complex64)
