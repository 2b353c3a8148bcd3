"""``deploy.py model=...`` folds, proves and writes a network that no run of ours trained."""

import json
import logging
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import repblocks
from repblocks.cli import deploy
from repblocks.predict import main

#: The real thing at the least cost: one format, a network of a few layers.
SMALL = ["model=timm", "model.name=resnet10t", "formats=[safetensors]"]
FILES = ("report", "config")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run deploy.py in an empty folder; gives its exit code, and what it printed and said."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["repblocks-deploy", *arguments])
        try:
            deploy.main()
        except SystemExit as caught:
            code = caught.code or 0
        else:
            code = 0
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t")
    torch.save(model.state_dict(), tmp_path / "net.pth")
    return model.eval()


def test_a_network_with_local_weights_becomes_an_artifact(command, saved, tmp_path):
    code, printed, error = command(*SMALL, "model.weights=net.pth", "output=art")
    assert code == 0, error
    assert "repblocks_timm resnet10t" in printed
    assert "random" not in error + printed
    report = json.loads((tmp_path / "art/report.json").read_text())
    assert report["deployed_form"]["convolutions"] == report["training_form"]["convolutions"]
    assert report["fold"]["left"] == []
    assert len(report["fold"]["folded"]) == 14
    x = torch.randn(2, 3, 176, 176)
    loaded = repblocks.load(tmp_path / "art")
    named = timm.create_model(f"local-dir:{tmp_path / 'art'}", pretrained=True).eval()
    with torch.no_grad():
        truth = saved.double()(x.double())
        assert (loaded(x) - truth).norm() < 1e-5 * truth.norm()
        assert torch.equal(named(x), loaded(x))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in loaded.modules())


def test_without_weights_it_says_so(command, tmp_path):
    code, printed, error = command(*SMALL, "model.pretrained=false", "block=acb")
    assert code == 0, error
    assert "The weights are random" in printed + error
    report = json.loads((tmp_path / "outputs/deploy/resnet10t/report.json").read_text())
    before, after = report["training_form"], report["deployed_form"]
    assert after["convolutions"] < before["convolutions"]
    assert after["macs"] < before["macs"]


def pictures(folder):
    """Write six images of each of three classes."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 256, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_images_judge_and_quantize_a_network(command, tmp_path):
    pictures(tmp_path / "pictures")
    code, printed, error = command(
        *("model=timm", "model.name=resnet10t", "model.num_classes=3", "model.pretrained=false"),
        *("formats=[safetensors,onnx_int8]", "quantization.largest_drop=100", "output=art"),
        *("data.root=pictures", "data.image_size=64", "data.held_out=0.5"),
    )
    assert code == 0, printed + error
    report, config = (json.loads((tmp_path / f"art/{n}.json").read_text()) for n in FILES)
    assert report["agreement"]["num_images"] == 9
    assert set(report["measured"]["quantized_scores"]) == {"onnx_int8"}
    assert config["class_names"] == ["cat", "dog", "owl"]
    assert config["preprocessing"]["input_size"] == [3, 64, 64]
    known = timm.data.resolve_model_data_config(timm.create_model("resnet10t"))
    assert config["preprocessing"]["crop_pct"] == known["crop_pct"]
    assert main([str(tmp_path / "art"), str(tmp_path / "pictures/owl"), "--form", "onnx_int8"]) == 0


@pytest.mark.usefixtures("saved")
def test_explain_shows_the_plan_and_writes_nothing(command, tmp_path):
    code, printed, error = command(*SMALL, "model.weights=net.pth", "explain=true")
    assert code == 0, error
    assert "layer4.0.conv2" in printed
    assert "multiply-adds: " in printed
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=timm"], "model.name is required. Set it with model.name=VALUE."),
        (["model=timm", "model.name=resnet19"], "Unknown network of timm 'resnet19'. Did you me"),
        (["model=timm", "model.name=resnet18", "block=acc"], "Unknown block 'acc'."),
        ([*SMALL, "model.weights=none.pth"], "weights cannot be read from none.pth"),
        ([*SMALL, "model.weights=code.pth"], "read from code.pth: it holds more than tensors"),
        ([*SMALL, "model.weights=other.pth"], "The weights of other.pth are not of this network"),
        ([*SMALL, "ckpt_path=x.ckpt"], "ckpt_path and deploy_shortcut belong to a run"),
        ([*SMALL, "data.image_size=64"], "give data.root=DIR, and options of it. Got data.image_s"),
        ([*SMALL, "data.root=nowhere"], "nowhere"),
        ([*SMALL, "data.root=nowhere", "data.imag_size=64"], "Did you mean data.image_size?"),
        ([*SMALL, "data.root=pictures", "data.held_out=0.5"], "for each of the 1000 scores"),
        (
            ["model=timm", "model.name=resnet10t", "formats=[onnx_int8]"],
            "images with data.root=DIR",
        ),
        (["explain=true"], "explain=true shows what would be folded of model=..."),
        (["model=timn"], "Unknown model 'timn'. Did you mean 'timm'?"),
        (["model=repvgg_a0", "model.num_clases=3"], "Did you mean model.num_classes?"),
    ],
)
def test_refusals(command, tmp_path, arguments, message):
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "other.pth")
    torch.save(_Code(tmp_path / "ran"), tmp_path / "code.pth")
    pictures(tmp_path / "pictures")
    before = {path.name for path in tmp_path.iterdir()}
    code, printed, error = command(*arguments)
    assert code == 2
    assert message in printed + error
    assert len(error.splitlines()) < 30
    assert {path.name for path in tmp_path.iterdir()} == before


class _Code:
    """A pickle that would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))
