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

BLOCKS = ["repvgg", "mobileone", "acb", "dbb"]


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


def exported(model, path, channels, *, legacy=False):
    """Calibrate a network and export it with its norms in evaluation mode, and not folded."""
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
            program = torch.onnx.export(
                *(model, (example,)), dynamo=True, dynamic_shapes=({0: "batch"},), optimize=False
            )
            program.save(path, external_data=False)
    return path


def layers(model):
    """Count the convolutions and norms of a module."""
    found = [type(one).__name__ for one in model.modules()]
    return found.count("Conv2d"), found.count("BatchNorm2d")


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_the_dynamo_exporter(tmp_path, block):
    net = nn.Sequential(create_block(block, 4, 8, 3, stride=2), create_block(block, 8, 8, 3))
    path = exported(net, tmp_path / "net.onnx", 4)
    assert kinds(path)["Conv"] > 2
    report = fold_onnx(path, tmp_path / "out")
    found = kinds(tmp_path / "out" / "model.onnx")
    folded = repblocks.fold(net, torch.randn(2, 4, 8, 8))
    assert (found["Conv"], found.get("BatchNormalization", 0)) == layers(folded)
    assert report.after.macs == folded.fold_report.macs_after


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (lambda: create_block("repvgg", 8, 8, 3), {"Conv": 1, "Relu": 1}),
        (lambda: create_block("mobileone", 8, 8, 3, groups=8), {"Conv": 1, "Relu": 1}),
        (lambda: STAGE_BLOCKS["repnext"](8), {"Conv": 3}),
        (Shuffled, {"Conv": 1, "Relu": 1}),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_both_exporters(tmp_path, net, expected, legacy):
    path = exported(net(), tmp_path / "net.onnx", 8, legacy=legacy)
    fold_onnx(path, tmp_path / "out")
    found = kinds(tmp_path / "out" / "model.onnx")
    assert "BatchNormalization" not in found
    assert {kind: found[kind] for kind in expected} == expected
    onnx.checker.check_model(tmp_path / "out" / "model.onnx", full_check=True)


def test_a_small_repvgg_comes_to_one_convolution_a_block(tmp_path):
    sizes = [(4, 8, 2), (8, 8, 1), (8, 16, 2), (16, 16, 1)]
    blocks = [create_block("repvgg", a, b, 3, stride=s) for a, b, s in sizes]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    report = fold_onnx(exported(net, tmp_path / "net.onnx", 4), tmp_path / "out")
    found = kinds(tmp_path / "out" / "model.onnx")
    assert (found["Conv"], found["Relu"], found["Gemm"]) == (4, 4, 1)
    assert report.after.num_nodes == 11
    assert len(report.proofs) == 3
