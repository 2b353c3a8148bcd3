"""A checkpoint alone is enough to deploy."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from deployment_nets import (
    CLASS_NAMES,
    KWARGS,
    NAME,
    PREPROCESSING,
    batches,
    images,
    trained_net,
    write_checkpoint,
)

from repblocks.data import ImageDataModule
from repblocks.deployment import from_checkpoint, quantized_forms
from repblocks.deployment.from_checkpoint import deploy_checkpoint
from repblocks.deployment.load import load
from repblocks.errors import CheckpointError, ConfigurationError, DataError


class Data(ImageDataModule):
    """Ready-made validation batches, or none."""

    class_names = CLASS_NAMES

    def __init__(self, *, is_there: bool = True, crop_pct: float = 1.0) -> None:
        super().__init__()
        self.is_there, self.crop_pct = is_there, crop_pct

    @property
    def preprocessing(self) -> dict[str, Any]:
        return {**PREPROCESSING, "crop_pct": self.crop_pct}

    def load(self, split: str) -> Any:
        if not self.is_there:
            raise DataError(f"No {split} images in data/x.")
        return []

    def val_dataloader(self) -> Any:
        return batches()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "best.ckpt", trained_net())


def test_works_in_an_empty_folder_from_the_checkpoint_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint.parent / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    deploy_checkpoint(checkpoint, "artifact", formats=["safetensors"])
    assert capfd.readouterr() == ("", "")
    assert [p.name for p in folder.iterdir()] == ["artifact"]
    report = json.loads((folder / "artifact" / "report.json").read_text(encoding="utf-8"))
    assert report["agreement"] is None
    assert report["note"] == "no validation data was given"
    assert report["model"]["name"] == NAME
    with torch.inference_mode():
        found, expected = load(folder / "artifact")(images()), trained_net()(images())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_compares_the_validation_images(checkpoint: Path, tmp_path: Path) -> None:
    report = deploy_checkpoint(
        checkpoint, tmp_path / "artifact", data=Data(), formats=["safetensors"]
    )
    assert report.agreement is not None
    assert (report.agreement.num_images, report.agreement.num_differing) == (48, 0)
    assert [block.path for block in report.blocks] == ["body.0", "body.1"]


def test_missing_data_is_a_note(checkpoint: Path, tmp_path: Path) -> None:
    report = deploy_checkpoint(
        checkpoint, tmp_path / "artifact", data=Data(is_there=False), formats=["safetensors"]
    )
    assert report.agreement is None
    assert report.note == "no validation data was found: No val images in data/x."


def test_data_prepared_otherwise_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    message = r"best.ckpt: crop_pct was 1.0 and is 0.9\. Use the data of the run"
    with pytest.raises(ConfigurationError, match=message):
        deploy_checkpoint(checkpoint, tmp_path / "artifact", data=Data(crop_pct=0.9))
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((*CLASS_NAMES[:-1], "x", "y"), f"1 only in training \\({CLASS_NAMES[-1]}\\), 2 only here"),
        (CLASS_NAMES[::-1], "classes are others: their order differs. Use"),
    ],
)
def test_data_of_other_classes_is_refused(
    checkpoint: Path, tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    data = Data()
    data.class_names = names
    with pytest.raises(ConfigurationError, match=message):
        deploy_checkpoint(checkpoint, tmp_path / "artifact", data=data)
    assert not (tmp_path / "artifact").exists()


def test_model_options_can_be_changed(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    with pytest.raises(CheckpointError, match=r"fails with: .*deploy_shortcut"):
        deploy_checkpoint(checkpoint, output, model_options={"deploy_shortcut": "expand"})


def test_an_option_that_the_network_lacks_is_named(tmp_path: Path) -> None:
    model = {"name": "repblocks_repvgg_tiny", "kwargs": {}}
    path = write_checkpoint(tmp_path / "best.ckpt", trained_net(), model=model)
    message = r"repvgg_tiny of the checkpoint has no argument deploy_shortcut\. .* takes: auxili"
    with pytest.raises(ConfigurationError, match=message):
        deploy_checkpoint(path, tmp_path / "x", model_options={"deploy_shortcut": "expand"})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "repvg_a0", "kwargs": {}}, "best.ckpt names the network 'repvg_a0', which is"),
        ({"name": NAME, "kwargs": {**KWARGS, "block": "repvg"}}, "fails with: .*'repvgg'"),
        (
            {"name": NAME, "kwargs": {**KWARGS, "num_classes": 9}},
            "7 class names .*_classes=9",
        ),
        ({"name": NAME, "kwargs": {**KWARGS, "in_chans": 1}}, r" \(8, 3, 3, 3\) for \(8, 1, 3, 3"),
        ({"name": NAME, "kwargs": {**KWARGS, "block": "plain"}}, "do not fit Net: .* unexpected"),
    ],
)
def test_checkpoint_of_another_network(tmp_path: Path, model: Any, message: str) -> None:
    path = write_checkpoint(tmp_path / "best.ckpt", trained_net(), model=model)
    with pytest.raises(CheckpointError, match=message):
        deploy_checkpoint(path, tmp_path / "artifact")
    assert [p.name for p in tmp_path.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize(
    "size",
    [
        *(None, "3x12x12", [3, 12], [3, -12, 12], [3, 0, 12], [3, 12, "12"], [3, 12, 12.0]),
        *([3, 12, float("nan")], [True, 12, 12], [3, 10**9, 10**9], [10**400] * 3, {"c": 3}),
    ],
)
def test_checkpoint_without_a_possible_size_of_its_images(tmp_path: Path, size: Any) -> None:
    sizes = {**PREPROCESSING, "input_size": size}
    path = write_checkpoint(tmp_path / "best.ckpt", trained_net(), preprocessing=sizes)
    with pytest.raises(CheckpointError, match=r"input_size is .{1,90}, not \[channels, height"):
        deploy_checkpoint(path, tmp_path / "artifact")
    assert [p.name for p in tmp_path.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize(
    ("formats", "latency", "drawn"),
    [(["onnx"], False, 0), (["onnx"], True, 5), (["auto"], False, 5), (["onnx_int8"], False, 5)],
)
def test_images_to_quantize_with_are_drawn_where_a_form_needs_them(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, formats: list[str], latency: bool, drawn: int
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(from_checkpoint, "deploy", lambda *_, **options: given.update(options))
    monkeypatch.setattr(quantized_forms, "calibration_batches", lambda *_: [images(5)])
    options: dict[str, Any] = {"formats": formats, "latency": latency}
    deploy_checkpoint(checkpoint, checkpoint.parent / "artifact", data=Data(), **options)
    assert sum(map(len, given["calibration"])) == drawn

    def none(*_: Any) -> Any:
        raise ConfigurationError("no images")

    monkeypatch.setattr(quantized_forms, "calibration_batches", none)
    if formats == ["onnx_int8"]:
        with pytest.raises(ConfigurationError, match="no images"):
            deploy_checkpoint(checkpoint, checkpoint.parent / "artifact", **options)
    else:
        deploy_checkpoint(checkpoint, checkpoint.parent / "artifact", **options)
        assert given["calibration"] == ()


class _Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps(_Code(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"evil.ckpt"):
        deploy_checkpoint(tmp_path / "evil.ckpt", tmp_path / "artifact")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.ckpt"]
