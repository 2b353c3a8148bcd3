"""Networks that torch exported with their branches fold to what ``fold`` makes of the module."""

import onnx
import pytest
import torch
from deployment.onnx_graphs import kinds
from torch import nn
from truth import calibrate

import repblocks
from repblocks.blocks import STAGE_BLOCKS, create_block
from repblocks.deployment.formats._program import silence
from repblocks.deployment.onnx_fold import fold_onnx

BLOCKS = ["repvgg", "mobileone", "acb"]


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1, groups=2)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.conv(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.norm(x).relu()


def exported(model, path, channels, *, legacy=False, optimize=True):
    """Calibrate a network and export it with its branches."""
    torch.manual_seed(0)
    calibrate(model, torch.randn(8, channels, 8, 8))
    example = torch.randn(3, channels, 8, 8)
    with silence():
        if legacy:
            torch.onnx.export(
                *(model, (example,), path),
                dynamo=False,
                input_names=["x"],
                dynamic_axes={"x": {0: "batch"}},
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
            )
        else:
            shapes = ({0: "batch"},)
            program = torch.onnx.export(
                *(model, (example,)), dynamo=True, dynamic_shapes=shapes, optimize=optimize
            )
            program.save(path, external_data=False)
    return path


def layers(model):
    """Count the convolutions and norms of a module."""
    found = [type(one).__name__ for one in model.modules()]
    return found.count("Conv2d"), found.count("BatchNorm2d")


NETS = {
    **{name: (lambda name=name: create_block(name, 8, 8, 3)) for name in BLOCKS},
    "depthwise": lambda: create_block("mobileone", 8, 8, 3, groups=8),
    "repnext": lambda: STAGE_BLOCKS["repnext"](8),
    "shuffled": Shuffled,
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("legacy", [False, True])
def test_it_comes_to_the_layers_of_the_folded_module(tmp_path, name, legacy):
    net = NETS[name]()
    path = exported(net, tmp_path / "net.onnx", 8, legacy=legacy)
    report = fold_onnx(path, tmp_path / "out")
    found = kinds(tmp_path / "out" / "model.onnx")
    folded = repblocks.fold(net, torch.randn(2, 8, 8, 8))
    assert (found["Conv"], found.get("BatchNormalization", 0)) == layers(folded)
    if name in BLOCKS:
        assert report.after.macs == folded.fold_report.macs_after
    onnx.checker.check_model(tmp_path / "out" / "model.onnx", full_check=True)


def test_padding_with_the_image_of_zero_is_left(tmp_path):
    path = exported(create_block("dbb", 8, 8, 3), tmp_path / "net.onnx", 8)
    report = fold_onnx(path, tmp_path / "out")
    before, after = kinds(path), kinds(tmp_path / "out" / "model.onnx")
    assert after["Conv"] < before["Conv"]
    assert report.after.macs < report.before.macs


def test_graphs_that_no_exporter_has_tidied(tmp_path):
    net = nn.Sequential(create_block("repvgg", 8, 8, 3), create_block("mobileone", 8, 8, 3))
    fold_onnx(exported(net, tmp_path / "net.onnx", 8, optimize=False), tmp_path / "out")
    assert kinds(tmp_path / "out" / "model.onnx") == {"Conv": 2, "Relu": 2}


def test_a_small_repvgg_comes_to_one_convolution_a_block(tmp_path):
    sizes = [(4, 8, 2), (8, 8, 1), (8, 16, 2), (16, 16, 1)]
    blocks = [create_block("repvgg", a, b, 3, stride=s) for a, b, s in sizes]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    report = fold_onnx(exported(net, tmp_path / "net.onnx", 4), tmp_path / "out")
    found = kinds(tmp_path / "out" / "model.onnx")
    assert (found["Conv"], found["Relu"], found["Gemm"]) == (4, 4, 1)
    assert report.after.num_nodes == 11
    assert len(report.proofs) == 3
