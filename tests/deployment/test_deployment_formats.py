"""What is in the exported files, and that the exporters keep quiet."""

from __future__ import annotations

import copy
import logging
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from deployment_nets import images, trained_net
from onnx.external_data_helper import uses_external_data
from torch import nn

from repblocks.deployment.formats import Export, check_formats, get_format, list_formats
from repblocks.deployment.load import load
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import ConfigurationError, UnknownNameError

Deployed = tuple[Path, DeploymentReport]
THIS_MACHINE = str(Path(__file__).parents[2]).encode()


def test_the_formats_are_known_by_name() -> None:
    quantized = ["onnx_int8", "openvino_int8"]
    assert sorted(list_formats()) == ["onnx", *quantized, "pt2", "safetensors"]
    message = "Unknown export format 'onx'. Did you mean 'onnx'"
    with pytest.raises(UnknownNameError, match=message):
        get_format("onx")


@pytest.mark.parametrize("name", ["safetensors", "onnx", "pt2"])
def test_written_form_runs_at_any_batch_size(deployed: Deployed, name: str) -> None:
    run = get_format(name).read(deployed[0], nn.Identity())
    model = trained_net()
    with torch.inference_mode():
        for count in (1, 2, 5):
            x = images(count)
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-5)


def test_onnx_is_one_file_without_traces_of_this_machine(deployed: Deployed) -> None:
    path = deployed[0] / "model.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert not any(uses_external_data(tensor) for tensor in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == [
        "input",
        "output",
    ]
    assert model.opset_import[0].version >= 18
    assert [node.op_type for node in model.graph.node].count("Conv") == 2
    assert THIS_MACHINE not in path.read_bytes()


def test_pt2_holds_no_example_and_no_traces_of_this_machine(deployed: Deployed) -> None:
    with zipfile.ZipFile(deployed[0] / "model.pt2") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert [len(c) for name, c in contents.items() if "sample_inputs" in name] == [0]
    assert not any(THIS_MACHINE in content for content in contents.values())


def test_tied_weights_and_networks_without_a_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    model[1].weight = model[0].weight
    (tmp_path / "config.json").write_text('{"format_version": 1, "rebuild": false}')
    form = get_format("safetensors")
    form.write(Export(model, torch.zeros(2, 4), tmp_path))
    x = torch.randn(3, 4)
    other = copy.deepcopy(model)
    nn.init.zeros_(other[0].weight)
    assert torch.equal(form.read(tmp_path, other)(x), model(x))


def test_exporters_are_silent(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
    deployed: Deployed,
) -> None:
    model = load(deployed[0])
    capfd.readouterr()
    get_format("onnx").write(Export(model, images(3), tmp_path))
    get_format("onnx").read(tmp_path, model)(images(2))
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_formats_are_checked_before_anything_is_done():
    with pytest.raises(ConfigurationError, match="at least one export format, got none"):
        check_formats([])
    with pytest.raises(UnknownNameError, match="Unknown export format 'onxx'. Did you mean 'onnx'"):
        check_formats(["safetensors", "onxx"])
