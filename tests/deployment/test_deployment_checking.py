"""A check opens every form that can be opened, and finds one that is another function."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployment_nets import DESCRIPTION, PREPROCESSING, images, trained_net
from PIL import Image
from safetensors.torch import load_file, save_file
from test_deployment_pipeline import deploy_again
from torch import nn

from repblocks.deployment import checking
from repblocks.deployment.checking import check_artifact
from repblocks.deployment.classifying import Classifier
from repblocks.deployment.formats import get_format
from repblocks.deployment.manifest import describe_files, read_manifest
from repblocks.deployment.onnx_options import OnnxOptions
from repblocks.deployment.pipeline import deploy
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import CheckpointError
from repblocks.folding.switch import fold_blocks
from repblocks.predict import main

Deployed = tuple[Path, DeploymentReport]
FORMS = ("safetensors", "onnx", "pt2")


@pytest.fixture
def folder(deployed: Deployed, tmp_path: Path) -> Path:
    return Path(shutil.copytree(deployed[0], tmp_path / "artifact"))


def seal(folder: Path) -> None:
    """Write the manifest anew, as somebody would who changed a file on purpose."""
    forms = {one.form for one in read_manifest(folder).values() if one.form}
    content = describe_files(folder, map(get_format, sorted(forms)))
    (folder / "manifest.json").write_text(json.dumps(content), "utf-8")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def checks(folder: Path) -> dict[str, tuple[str, str]]:
    return {one.name: (one.status, one.note) for one in check_artifact(folder)}


def test_a_form_that_takes_pixels_passes(tmp_path: Path) -> None:
    deploy_again(tmp_path / "a", formats=["safetensors", "onnx"], onnx=OnnxOptions(pixels=True))
    assert {status for status, _ in checks(tmp_path / "a").values()} == {"passed"}


def test_a_copy_passes(folder: Path) -> None:
    found = checks(folder)
    assert {status for status, _ in found.values()} == {"passed"}
    assert set(FORMS) < set(found)
    assert found["safetensors"][1] == "runs; the others are compared with it"
    assert found["onnx"][1].startswith("differs from safetensors by ")
    seal(folder)
    assert checks(folder) == found


def test_a_form_that_is_another_function_is_found(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "head.bias": weights["head.bias"] + 1e-3}, folder / "model.safetensors")
    seal(folder)
    found = checks(folder)
    assert {name for name, one in found.items() if one[0] == "failed"} == {"onnx", "pt2"}
    assert "allowed" in found["pt2"][1]


def test_values_that_are_not_finite_and_weights_that_do_not_fit(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    path = folder / "model.safetensors"
    save_file({**weights, "head.bias": torch.full((7,), torch.nan)}, path)
    seal(folder)
    message = "The form safetensors gives values that are not finite."
    assert checks(folder)["safetensors"] == ("failed", message)
    assert checks(folder)["onnx"] == ("passed", "runs; the others are compared with it")
    save_file({**weights, "head.bias": torch.zeros(3)}, path)
    seal(folder)
    assert "does not fit the network" in checks(folder)["safetensors"][1]


def test_a_network_that_no_name_rebuilds(tmp_path: Path) -> None:
    model = trained_net()
    folded, _ = fold_blocks(model)
    description = {key: value for key, value in DESCRIPTION.items() if key != "model"}
    output = tmp_path / "artifact"
    deploy(model, folded, output=output, description=description, example_input=images())
    found = checks(output)
    assert found["safetensors"][0] == "skipped"
    assert [found[name][0] for name in ("onnx", "pt2")] == ["passed", "passed"]
    assert found["pt2"][1].startswith("differs from onnx by ")


def test_forms_that_cannot_be_opened_here_are_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_folder: Path, _model: nn.Module) -> Any:
        raise ModuleNotFoundError("No module named 'x'", name="x")

    def get(name: str) -> Any:
        form = get_format(name)
        return replace(form, read=absent, extra="runtimes") if name == "onnx" else form

    monkeypatch.setattr(checking, "get_format", get)
    monkeypatch.setattr(checking, "list_formats", lambda: ["safetensors", "onnx"])
    found = checks(folder)
    text = 'needs the package x, which is not installed. Install it with: pip install "repblocks['
    assert found["onnx"][0] == "skipped"
    assert f'{text}runtimes]"' in found["onnx"][1]
    assert found["model.pt2"] == ("failed", "is of the format 'pt2', which is unknown")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolation": "zzz"}, "preprocessing.interpolation is 'zzz', which is unknown."),
        ({"interpolation": ["x"]}, "preprocessing.interpolation is ['x'], which is unknown."),
        ({"crop_pct": "x"}, "preprocessing.crop_pct must be from 0.1 to 10.0, got 'x'."),
        ({"crop_pct": 1e-9}, "preprocessing.crop_pct must be from 0.1 to 10.0, got 1e-09."),
        ({"crop_mode": "zzz"}, "preprocessing.crop_mode must be center or squash or border, got"),
        ({"mean": None}, "preprocessing.mean must be 3 numbers, got None."),
        ({"mean": [0.0]}, "preprocessing.mean must be 3 numbers, got [0.0]."),
        ({"std": [0, 0, 0]}, "preprocessing.std must be 3 numbers above 0, got [0, 0, 0]."),
        ({"in_channels": 1}, "preprocessing.in_channels must be 3, as in input_size, got 1."),
        ({"in_channels": [3]}, "preprocessing.in_channels must be 3, as in input_size, got [3]."),
    ],
)
def test_what_cannot_be_predicted_fails(
    folder: Path, tmp_path: Path, capsys: Any, changes: dict[str, Any], message: str
) -> None:
    change_json(folder / "config.json", preprocessing={**PREPROCESSING, **changes})
    seal(folder)
    status, note = checks(folder)["preprocessing"]
    assert status == "failed"
    assert message in note
    Image.new("RGB", (12, 12)).save(tmp_path / "x.png")
    assert main([str(folder), str(tmp_path / "x.png"), "--form", "onnx"]) == 2
    assert capsys.readouterr().err == f"{note}\n"


@pytest.mark.parametrize("names", [5, "abcdefg", ["a"], [{"a": 1}] * 7])
def test_wrong_class_names_fail(folder: Path, names: Any) -> None:
    change_json(folder / "config.json", class_names=names)
    seal(folder)
    assert checks(folder)["class_names"][0] == "failed"
    with pytest.raises(CheckpointError):
        Classifier(folder)
    change_json(folder / "config.json", class_names=[], num_classes=9)
    seal(folder)
    assert checks(folder)["onnx"] == ("failed", "gives 7 scores, and config.json says 9")


def test_nested_json_fails(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000, "utf-8")
    seal(folder)
    assert checks(folder)["forms"][0] == "failed"
    (folder / "manifest.json").write_text("[" * 200_000, "utf-8")
    assert checks(folder)["manifest.json"][0] == "failed"


@pytest.mark.parametrize("preprocessing", [[1], "x", 3])
def test_preprocessing_that_is_no_group(folder: Path, preprocessing: Any) -> None:
    change_json(folder / "config.json", preprocessing=preprocessing)
    seal(folder)
    assert checks(folder)["forms"][0] == "failed"
    with pytest.raises(CheckpointError, match="does not say how to prepare an image"):
        Classifier(folder)


def test_what_says_only_the_size_is_compared_all_the_same(folder: Path) -> None:
    change_json(folder / "config.json", preprocessing={"input_size": [3, 12, 12]})
    seal(folder)
    found = checks(folder)
    assert found["preprocessing"][0] == "skipped"
    assert found["onnx"][0] == "passed"


@pytest.mark.parametrize("size", [None, "abc", [3, -1, 4], [3, 2**40, 2**40], [3, "x", 4]])
def test_a_config_without_the_size_of_images(folder: Path, size: Any) -> None:
    change_json(folder / "config.json", preprocessing={"input_size": size})
    seal(folder)
    status, note = checks(folder)["forms"]
    assert status == "failed"
    assert f"does not say how to prepare an image: preprocessing.input_size is {size!r}" in note


def test_images_that_the_network_does_not_take(folder: Path) -> None:
    change_json(folder / "config.json", preprocessing={"input_size": [4, 12, 12]})
    seal(folder)
    assert checks(folder)["onnx"][1].startswith("The form onnx does not run: ")


@pytest.mark.parametrize("forms", [None, [], {"onnx": {}}, {"onnx": {"tolerance": "x"}}])
def test_a_report_without_tolerances(folder: Path, forms: Any) -> None:
    change_json(folder / "report.json", forms=forms)
    seal(folder)
    status, note = checks(folder)["forms"]
    assert status == "failed"
    assert "report.json holds no tolerances of its forms: " in note


def test_a_form_without_a_tolerance_fails(folder: Path) -> None:
    change_json(folder / "report.json", forms={})
    seal(folder)
    assert checks(folder)["onnx"][1].endswith("allowed 0.00e+00")
