"""The pipeline proves what it writes, repeats itself exactly, and leaves nothing if it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployment_nets import DESCRIPTION, batches, images, trained_net
from torch import Tensor, nn

from repblocks.deployment import pipeline
from repblocks.deployment.formats import Export, Format, get_format
from repblocks.deployment.pipeline import deploy
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import (
    ConfigurationError,
    RepblocksError,
    UnknownNameError,
    VerificationError,
)
from repblocks.folding.switch import fold_blocks

Deployed = tuple[Path, DeploymentReport]


def deploy_again(output: Path, **changes: Any) -> DeploymentReport:
    model = trained_net()
    folded, blocks = fold_blocks(model)
    options: dict[str, Any] = {
        "description": DESCRIPTION,
        "example_input": images(),
        "formats": ["safetensors"],
        "blocks": blocks,
    }
    return deploy(model, changes.pop("folded", folded), output=output, **{**options, **changes})


def use_format(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    changed: Format = replace(get_format("safetensors"), **changes)
    monkeypatch.setattr(pipeline, "check_formats", lambda _names: [changed])


def test_writes_all_files(deployed: Deployed) -> None:
    output, report = deployed
    names = ["config.json", "model.onnx", "model.pt2", "model.safetensors"]
    written = {p.name for p in output.iterdir()}
    assert written == {*names, "manifest.json", "report.html", "report.json", "report.md"}
    assert [p.name for p in output.parent.iterdir()] == ["artifact"]
    assert report.sizes == {name: (output / name).stat().st_size for name in names}


def test_class_names_fit_the_scores(tmp_path: Path) -> None:
    description = {**DESCRIPTION, "class_names": ("a", "b", "c")}
    message = "class_names must hold one name for each of the 7 scores of the network, got 3."
    with pytest.raises(ConfigurationError, match=message):
        deploy_again(tmp_path / "artifact", description=description)
    assert list(tmp_path.iterdir()) == []


def test_report_holds_what_was_found(deployed: Deployed) -> None:
    output, report = deployed
    saved = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(report.to_dict()))
    # Two convolutions with bias, 3 -> 8 and 8 -> 8, on 6x6 outputs, and the head.
    assert report.deployed_form.parameters == (27 * 8 + 8) + (72 * 8 + 8) + (8 * 7 + 7)
    assert report.deployed_form.macs == 36 * (27 * 8 + 72 * 8) + 8 * 7
    assert report.deployed_form.convolutions == 2
    # Besides, the BatchNorm of each of five branches multiplies each value of its output once.
    assert report.training_form.macs == 36 * (30 * 8 + 80 * 8) + 8 * 7 + 5 * 36 * 8
    assert report.training_form.convolutions == 4
    assert [block.path for block in report.blocks] == ["body.0", "body.1"]
    assert report.agreement is not None
    assert (report.agreement.num_images, report.agreement.num_differing) == (48, 0)
    assert sorted(report.forms) == ["onnx", "pt2", "safetensors"]
    assert all(0 < form.rms_rel <= form.tolerance for form in report.forms.values())
    assert set(report.measured["latency_ms"]) == {"training_form", "deployed_form"}


def test_same_input_gives_the_same_bytes(deployed: Deployed, tmp_path: Path) -> None:
    first, second = deployed[0], tmp_path / "again"
    deploy_again(second, validation=batches(), formats=["safetensors", "onnx", "pt2"])
    for name in ("model.safetensors", "config.json", "model.onnx"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    reports = [json.loads((p / "report.json").read_text("utf-8")) for p in (first, second)]
    assert all(report.pop("measured") for report in reports)
    assert reports[0] == reports[1]


def test_wrong_fold_leaves_nothing_behind(tmp_path: Path) -> None:
    folded, _ = fold_blocks(trained_net())
    folded.body[1].conv.weight.data *= 1.001
    with pytest.raises(VerificationError, match=r"first module that differs is 'body\.1'"):
        deploy_again(tmp_path / "deep" / "artifact", folded=folded)
    assert list(tmp_path.iterdir()) == []


def test_wrong_written_form_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = get_format("safetensors").read

    def wrong(folder: Path, model: nn.Module) -> Any:
        run = right(folder, model)

        def wrong_for_large_batches(x: Tensor) -> Tensor:
            return run(x) * (1.001 if len(x) == 5 else 1)

        return wrong_for_large_batches

    use_format(monkeypatch, read=wrong)
    message = "model.safetensors, loaded and run on 5 images, differs from the training form"
    with pytest.raises(VerificationError, match=message) as info:
        deploy_again(tmp_path / "artifact")
    assert f"{info.value.difference:.3g}, allowed {info.value.tolerance:.3g}" in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(export: Export) -> None:
        (export.folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    deploy_again(tmp_path / "artifact")
    before = {p.name: p.read_bytes() for p in (tmp_path / "artifact").iterdir()}
    use_format(monkeypatch, write=half)
    with pytest.raises(RepblocksError, match=r"model.safetensors .*No space left on device"):
        deploy_again(tmp_path / "artifact")
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "artifact").iterdir()} == before


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Unknown export format 'onxx'"):
        deploy_again(tmp_path / "artifact", formats=["safetensors", "onxx"])
    with pytest.raises(ConfigurationError, match=r"float32 images, got torch.float64 of shape \(4"):
        deploy_again(tmp_path / "artifact", example_input=images().double())
    with pytest.raises(ConfigurationError, match=r"float32 of shape \(0, 3, 12, 12\)"):
        deploy_again(tmp_path / "artifact", example_input=images()[:0])
    with pytest.raises(ConfigurationError, match="output cannot be written: /proc/repblocks"):
        deploy_again(Path("/proc/repblocks/artifact"))
    assert list(tmp_path.iterdir()) == []


def test_network_without_a_name_says_so(tmp_path: Path) -> None:
    description = {"class_names": None, "preprocessing": None}
    report = deploy_again(tmp_path / "artifact", description=description, validation=[])
    config = json.loads((tmp_path / "artifact" / "config.json").read_text(encoding="utf-8"))
    assert config["rebuild"] is False
    assert config["architecture"] == "Net"
    assert report.model == {"name": "Net"}
    assert report.agreement is None


def test_training_form_stays_as_it_is(tmp_path: Path) -> None:
    model = trained_net()
    folded, _ = fold_blocks(model)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    deploy(
        model,
        folded,
        output=tmp_path / "artifact",
        description=DESCRIPTION,
        example_input=images(),
        formats=["safetensors"],
    )
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
