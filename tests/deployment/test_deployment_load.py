"""A deployed network is rebuilt from its folder alone, or the error says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from deployment_nets import CLASS_NAMES, NAME, PREPROCESSING, images, trained_net
from safetensors.torch import load_file, save_file
from torch import nn

from repblocks.deployment.load import load
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import CheckpointError

Deployed = tuple[Path, DeploymentReport]


@pytest.fixture
def folder(deployed: Deployed, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(deployed[0] / name, tmp_path)
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


def test_rebuilds_the_deployed_network(folder: Path) -> None:
    model = load(str(folder))
    assert not model.training
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with torch.inference_mode():
        torch.testing.assert_close(model(images()), trained_net()(images()), rtol=1e-4, atol=1e-5)
    assert model.pretrained_cfg["mean"] == PREPROCESSING["mean"]


def test_timm_rebuilds_it_too(folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(model(images()), load(folder)(images()))
    config = timm.data.resolve_model_data_config(model)
    for key in ("mean", "std", "input_size"):
        assert list(config[key]) == PREPROCESSING[key]
    assert config["interpolation"] == "bilinear"
    assert config["crop_pct"] == 1.0
    assert tuple(model.pretrained_cfg["label_names"]) == CLASS_NAMES
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    assert other(images()).shape == (4, 3)


def test_config_says_everything(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == NAME
    assert config["num_classes"] == 7
    assert config["num_features"] == 8
    assert config["model_args"]["deploy"] is True
    assert config["model_args"]["block"] == "repvgg"
    assert config["rebuild"] is True
    assert config["format_version"] == 1
    assert config["preprocessing"] == PREPROCESSING
    assert tuple(config["class_names"]) == CLASS_NAMES


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "folder"])
def test_damaged_files_are_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    if damage == "folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match=f"Cannot read {path}: .*deploy"):
        load(folder)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"Cannot read {tmp_path / 'none' / 'config.json'}"):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "repvg"}, "names the network 'repvg', which is not registered"),
        ({"architecture": ["x"]}, r"names the network \['x'\], which is not registered"),
        ({"model_args": {"depth": 3}}, r"arguments .*'depth': 3.* fails with: .*'depth'"),
        ({"model_args": [1]}, r"config.json: model_args must be a table of arguments, got \[1\]"),
        ({"format_version": 2}, "has format version 2; this version of repblocks reads 1"),
        ({"rebuild": False}, "has no registered name"),
    ],
)
def test_wrong_configs_are_explained(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_config_that_is_no_table(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="has format version None"):
        load(folder)


def test_weights_of_another_network_are_listed(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["head.weight"] = torch.zeros(9, 8)
    del weights["head.bias"]
    weights["extra"] = torch.zeros(2)
    save_file(weights, path)
    message = (
        r"in 3 of 6 tensors: extra: \(2,\) instead of nothing; head.bias: missing instead of "
        r"\(7,\); head.weight: \(9, 8\) instead of \(7, 8\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load(folder)
