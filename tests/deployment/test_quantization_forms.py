"""Quantized forms: written, loaded, run, and judged by their accuracy."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deployment_nets import images, trained_net, write_checkpoint
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_deployment_pipeline import deploy_again
from test_report_page import Page
from torch import Tensor

from repblocks.data import SyntheticDataModule
from repblocks.deployment.accuracy import Agreement
from repblocks.deployment.checking import Check, check_artifact
from repblocks.deployment.formats import Export, get_format
from repblocks.deployment.from_checkpoint import deploy_checkpoint
from repblocks.deployment.manifest import describe_files
from repblocks.deployment.probing import excerpt
from repblocks.deployment.quantization import QuantizationConfig
from repblocks.deployment.quantization.report import check_drop
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import ConfigurationError, VerificationError
from repblocks.folding.switch import fold_blocks

Deployed = tuple[Path, DeploymentReport]
CONFIG = QuantizationConfig(images=48, largest_drop=5.0)


def calibration() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(24, 3, 12, 12, generator=generator) for _ in range(2)]


def labelled() -> list[tuple[Tensor, Tensor]]:
    """Images with the classes that the network gives them: in float32 it is always right."""
    model = trained_net()
    x = torch.randn(200, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return [(part, model(part).argmax(1)) for part in x.split(50)]


def deploy_int8(output: Path, **changes: Any) -> DeploymentReport:
    options: dict[str, Any] = {
        "formats": ["safetensors", "onnx_int8"],
        "validation": labelled(),
        "calibration": calibration(),
        "quantization": CONFIG,
    }
    return deploy_again(output, **{**options, **changes})


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    output = tmp_path_factory.mktemp("quantized") / "artifact"
    return output, deploy_int8(output)


def test_the_written_form_is_about_as_accurate(quantized: Deployed) -> None:
    output, report = quantized
    assert report.quantization is not None
    found = report.quantization.forms["onnx_int8"]
    assert (found.num_images, found.training_top1) == (200, 1.0)
    assert 0.95 <= found.deployed_top1 == 1 - found.num_differing / 200
    assert list(report.forms) == ["safetensors"]
    assert report.sizes["model_int8.onnx"] == (output / "model_int8.onnx").stat().st_size
    run = get_format("onnx_int8").read(output, trained_net())
    for count in (1, 5):
        with torch.no_grad():
            expected = trained_net()(images(count))
        error = (run(images(count)) - expected).square().mean() / expected.square().mean()
        assert 1e-8 < error < 0.05**2


def test_weights_and_activations_are_integers(quantized: Deployed) -> None:
    graph = onnx.load(quantized[0] / "model_int8.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == 2
    assert kinds.count("DequantizeLinear") >= 6
    weights = [t for t in graph.initializer if "weight_quantized" in t.name and len(t.dims) == 4]
    scales = [t for t in graph.initializer if "weight_scale" in t.name]
    assert {onnx.TensorProto.INT8} == {t.data_type for t in weights}
    assert sorted(t.dims[0] for t in scales) == [7, 8, 8], "a scale for each channel"
    values = [onnx.numpy_helper.to_array(t) for t in weights]
    assert max(abs(int(v.min())) for v in values) <= 64 >= max(int(v.max()) for v in values)


def test_the_report_says_what_each_layer_loses(quantized: Deployed) -> None:
    output, report = quantized
    saved = json.loads((output / "report.json").read_text(encoding="utf-8"))["quantization"]
    assert saved["config"]["images"] == saved["num_images"] == 48
    assert [layer["path"] for layer in saved["layers"]] == ["body.0.conv", "body.1.conv", "head"]
    assert sum(layer["error_share"] for layer in saved["layers"]) == pytest.approx(1.0)
    page = (output / "report.md").read_text(encoding="utf-8")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.to_table())
    top1 = f"{saved['forms']['onnx_int8']['deployed_top1']:.2%}"
    assert f"| onnx_int8 | 100.00% | {top1} |" in page
    assert "| body.1.conv |" in page
    assert top1 in console.export_text()
    shown = Page((output / "report.html").read_text(encoding="utf-8"))
    assert shown.texts[f"quantization: {top1}"] >= 1
    assert all(shown.texts[f"quantization: {layer['path']}"] == 1 for layer in saved["layers"])
    assert shown.count("quantization", "rect") == 3


def zeros(values: np.ndarray) -> np.ndarray:
    return np.zeros_like(values)


def others(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(-64, 64, values.shape).astype(np.int8)


def change_weights(folder: Path, change: Callable[[np.ndarray], np.ndarray], most: int) -> None:
    """Change the first kernels of the form in 8 bits."""
    model = onnx.load(folder / "model_int8.onnx")
    found = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    for one in [one for one in found if len(one.dims) >= 2][:most]:
        values = change(onnx.numpy_helper.to_array(one))
        one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))
    onnx.save(model, folder / "model_int8.onnx")


def checked(folder: Path, **changes: Any) -> dict[str, Check]:
    """Check a folder whose manifest was written anew, after changes to its report."""
    path = folder / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**report, **changes}), encoding="utf-8")
    manifest = describe_files(folder, map(get_format, ("safetensors", "onnx_int8")))
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return {one.name: one for one in check_artifact(folder)}


@pytest.fixture
def copied(quantized: Deployed, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized[0], tmp_path / "artifact"))


@pytest.mark.parametrize("change", [zeros, others])
@pytest.mark.parametrize("most", [1, 9])
def test_a_quantized_form_that_is_another_function_fails(
    copied: Path, change: Callable[[np.ndarray], np.ndarray], most: int
) -> None:
    text = "differs from what it gave when it was written by "
    found = checked(copied)["onnx_int8"]
    assert found.status == "passed"
    assert found.note.startswith(text)
    change_weights(copied, change, most)
    found = checked(copied)["onnx_int8"]
    assert found.status == "failed"
    assert found.note.startswith(text)
    assert found.note.endswith(", allowed 1.00e-01")
    assert checked(copied)["safetensors"].status == "passed"


def test_what_a_quantized_form_gave_tells_images_apart(quantized: Deployed) -> None:
    (recorded,) = quantized[1].measured["quantized_scores"].values()
    scores = torch.tensor(recorded)
    assert scores.shape == (4, 7)
    assert (scores - scores.mean(0)).std() > 0.2 * scores.std()


def test_kernels_that_round_in_another_way_pass(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_floats(path: Path) -> Any:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr("repblocks.deployment.formats.onnx_int8.open_session", in_floats)
    assert checked(copied)["onnx_int8"].status == "passed"


def test_a_form_is_compared_with_its_own_record_where_no_other_can_be_run(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    save_file({**weights, "head.bias": torch.full((7,), torch.nan)}, copied / "model.safetensors")
    assert checked(copied)["onnx_int8"].status == "passed"
    change_weights(copied, zeros, 9)
    assert checked(copied)["onnx_int8"].status == "failed"


def test_older_artifacts_have_a_loose_bound_and_say_so(copied: Path) -> None:
    report = json.loads((copied / "report.json").read_text(encoding="utf-8"))
    measured = {k: v for k, v in report["measured"].items() if k != "quantized_scores"}
    for difference, status in ((0.5, "passed"), (0.0, "failed")):
        quantization = {**report["quantization"], "differences": {"onnx_int8": difference}}
        found = checked(copied, measured=measured, quantization=quantization)["onnx_int8"]
        assert found.status == status
        assert found.note.startswith("differs from safetensors by ")
        assert found.note.endswith("as this older artifact does not say what the form gave")


@pytest.mark.parametrize(
    "scores", [[1], "x", {"onnx_int8": [1.0]}, {"onnx_int8": [[10**400]]}, {"onnx_int8": [[1], []]}]
)
def test_a_record_that_is_none_fails(copied: Path, scores: Any) -> None:
    found = checked(copied, measured={"quantized_scores": scores})["forms"]
    assert found.status == "failed"
    assert "report.json holds no tolerances of its forms: " in found.note


def test_a_record_of_other_images_fails(copied: Path) -> None:
    found = checked(copied, measured={"quantized_scores": {"onnx_int8": [[1.0, 2.0]]}})
    assert found["onnx_int8"].note == "gives scores of shape (4, 7) instead of (1, 2)"


def test_of_many_scores_some_are_recorded() -> None:
    assert excerpt(torch.randn(4, 1000)).shape == (4, 100)
    assert excerpt(torch.randn(4, 3, 5, 7)).shape == (4, 53)
    assert excerpt(torch.randn(4, 7)).shape == (4, 7)


@pytest.mark.parametrize("name", ["onnx_int8", "openvino_int8"])
def test_batches_of_any_size_are_the_same_images(tmp_path: Path, name: str) -> None:
    x = torch.cat(calibration())
    form, files = get_format(name), []
    if name == "openvino_int8":
        pytest.importorskip("nncf")
    for number, sizes in enumerate(([48], [1, 0, 30, 17])):
        output = tmp_path / str(number)
        deploy_int8(output, formats=[name], calibration=list(x.split(sizes)))
        files.append(form.read(output, trained_net())(images()))
    assert torch.equal(files[0], files[1]) if name == "onnx_int8" else files[1].isfinite().all()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 9, 9), r"batch 1 holds images of torch.float32 and shape \(3, 9, 9\)"),
        (torch.zeros(3, 12, 12), r"shape \(12, 12\), and the network takes torch.float32"),
        (torch.zeros(2, 3, 12, 12).double(), "batch 1 holds images of torch.float64"),
        (torch.full((2, 3, 12, 12), torch.nan), "batch 1 holds values that are not finite"),
    ],
)
def test_batches_that_are_not_like_the_images_are_refused(
    tmp_path: Path, batch: Tensor, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        deploy_int8(tmp_path / "x", calibration=[images(0), images(2), batch])
    with pytest.raises(ConfigurationError, match="there are 0"):
        deploy_int8(tmp_path / "x", calibration=[images(0)])
    assert list(tmp_path.iterdir()) == []


def test_the_same_images_give_the_same_bytes(quantized: Deployed, tmp_path: Path) -> None:
    report = deploy_int8(tmp_path / "artifact")
    first, second = (p / "model_int8.onnx" for p in (quantized[0], tmp_path / "artifact"))
    assert first.read_bytes() == second.read_bytes()
    assert report.quantization == quantized[1].quantization


def test_a_loss_past_the_limit_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [(x, (y + 1) % 7 if i else y) for i, (x, y) in enumerate(labelled())]
    config = replace(CONFIG, largest_drop=0.5)
    form = replace(get_format("safetensors"), lossy=True, read=lambda *_: lambda x: -x[:, 0, 0, :7])
    monkeypatch.setattr("repblocks.deployment.pipeline.check_formats", lambda _names: [form])
    with pytest.raises(VerificationError, match=r"model.safetensors has a top-1 of .* float32 25"):
        deploy_int8(tmp_path / "artifact", validation=wrong, quantization=config)
    assert list(tmp_path.iterdir()) == []
    report = deploy_int8(
        tmp_path / "artifact", validation=wrong, quantization=replace(config, largest_drop=None)
    )
    assert report.quantization is not None


def test_the_limit_is_in_points() -> None:
    found = Agreement(1000, 9, 0.905, 1.0, 0.9, 1.0)
    check_drop("x", found, 0.5)
    check_drop("x", found, None)
    message = r"top-1 of 90.00% on 1000 .* 90.50%: it loses 0.50 points, and 0.4 are allowed"
    with pytest.raises(VerificationError, match=message):
        check_drop("x", found, 0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": []}, "measures its ranges on images, and there are 0"),
        ({"calibration": [torch.zeros(0, 3, 12, 12)]}, "and there are 0"),
        ({"validation": None, "note": "no data is at x"}, "its accuracy, but no data is at x"),
        ({"validation": []}, "model_int8.onnx cannot be judged on 0 validation images"),
    ],
)
def test_no_images_leave_nothing_behind(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        deploy_int8(tmp_path / "artifact", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_brings_its_images(tmp_path: Path) -> None:
    data = SyntheticDataModule(num_classes=7, image_size=12, train_size=40, val_size=40)
    about = {"preprocessing": data.preprocessing, "class_names": list(data.class_names)}
    path = write_checkpoint(tmp_path / "best.ckpt", trained_net(), **about)
    config = QuantizationConfig(images=30, largest_drop=None)
    report = deploy_checkpoint(
        path, tmp_path / "a", data=data, formats=["onnx_int8"], quantization=config
    )
    assert report.quantization is not None
    assert report.quantization.num_images == 30
    assert report.quantization.forms["onnx_int8"].num_images == 40
    with pytest.raises(ConfigurationError, match="no data was given"):
        deploy_checkpoint(path, tmp_path / "b", formats=["onnx_int8"])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("half_range", [True, False])
def test_openvino(tmp_path: Path, half_range: bool) -> None:
    config = replace(CONFIG, half_range=half_range)
    form, model = get_format("openvino_int8"), fold_blocks(trained_net())[0]
    form.write(Export(model, images(3), tmp_path, calibration(), quantization=config))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model_int8.bin", "model_int8.xml"]
    assert 'element_type="i8"' in (tmp_path / "model_int8.xml").read_text(encoding="utf-8")
    run = form.read(tmp_path, model)
    with torch.no_grad():
        expected = model(images(5))
    error = (run(images(5)) - expected).square().mean() / expected.square().mean()
    assert 1e-8 < error < 0.05**2
