"""What ``model.onnx`` takes on request, and that files are the same when written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from deployment_nets import DESCRIPTION, PREPROCESSING, images, trained_net
from torch import Tensor, nn

from repblocks.deployment import written
from repblocks.deployment.formats import Export, get_format
from repblocks.deployment.formats._pixels import Normalise, normalisation
from repblocks.deployment.onnx_options import OnnxOptions
from repblocks.deployment.pipeline import deploy
from repblocks.errors import ConfigurationError
from repblocks.folding.reference import Reference
from repblocks.folding.switch import fold_blocks

MEAN, STD = PREPROCESSING["mean"], PREPROCESSING["std"]


def deploy_onnx(output: Path, options: OnnxOptions, **changes: Any) -> onnxruntime.InferenceSession:
    model = trained_net()
    folded, _ = fold_blocks(model)
    description = {**DESCRIPTION, **changes}
    deploy(
        model,
        folded,
        output=output,
        description=description,
        example_input=images(),
        formats=["onnx"],
        onnx=options,
    )
    path = output / "model.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def pixels(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def compared(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collect what the written forms are compared on."""
    seen: list[Tensor] = []

    def collect(model: nn.Module, batch: Tensor) -> Reference:
        seen.append(batch)
        return Reference(model, batch, batch.dtype)

    monkeypatch.setattr(written, "_reference", collect)
    return seen


def test_images_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = compared(monkeypatch)
    session = deploy_onnx(tmp_path / "artifact", OnnxOptions(dynamic_size=True))
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert {tuple(batch.shape[2:]) for batch in seen} == {(12, 12), (44, 76)}
    x = torch.randn(2, 3, 19, 8)
    (found,) = session.run(["output"], {"input": x.numpy()})
    with torch.inference_mode():
        wanted = trained_net()(x)
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


def test_a_network_for_one_size_says_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 7)).eval()
    export = Export(model, images(3), tmp_path, onnx=OnnxOptions(dynamic_size=True))
    with pytest.raises(ConfigurationError, match="network takes images of 3x12x12 only"):
        get_format("onnx").write(export)


def test_options_of_a_form_that_is_not_written_are_refused(tmp_path: Path) -> None:
    model = nn.Flatten()
    with pytest.raises(ConfigurationError, match="not among the formats: safetensors, pt2"):
        deploy(
            model,
            model,
            output=tmp_path / "artifact",
            description=DESCRIPTION,
            example_input=images(),
            formats=["safetensors", "pt2"],
            onnx=OnnxOptions(pixels=True),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dynamic_size", [False, True])
def test_pixels_are_normalised_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dynamic_size: bool
) -> None:
    seen = compared(monkeypatch)
    options = OnnxOptions(pixels=True, dynamic_size=dynamic_size)
    session = deploy_onnx(tmp_path / "artifact", options)
    assert session.get_inputs()[0].type == "tensor(uint8)"
    size = ["height", "width"] if dynamic_size else [12, 12]
    assert session.get_inputs()[0].shape == ["batch", *size, 3]
    grid = [(batch * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
            for batch in seen]  # fmt: skip
    assert len([g for g in grid if torch.allclose(g, g.round(), atol=1e-3)]) >= 3 + dynamic_size
    given = pixels(5, 17, 20, 3) if dynamic_size else pixels(5, 12, 12, 3)
    (found,) = session.run(["output"], {"input": given.numpy()})
    channels = given.movedim(3, 1).double() / 255
    shape = (3, 1, 1)
    normalised = (channels - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)
    with torch.inference_mode():
        wanted = trained_net()(normalised.float())
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


def test_a_form_that_takes_pixels_is_read_like_any_other(tmp_path: Path) -> None:
    deploy_onnx(tmp_path / "artifact", OnnxOptions(pixels=True))
    x = Normalise(MEAN, STD)(pixels(3, 12, 12, 3))
    found = get_format("onnx").read(tmp_path / "artifact", nn.Identity())(x)
    with torch.inference_mode():
        torch.testing.assert_close(found, trained_net()(x), rtol=1e-4, atol=1e-5)


def test_pixels_come_back_from_their_images() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    normalise = Normalise(MEAN, STD)
    assert torch.equal(normalise.pixels(normalise(every)), every)
    bright = torch.full((1, 3, 2, 2), 9.0)
    assert normalise.pixels(bright).unique().tolist() == [255]
    assert normalise.pixels(-bright).unique().tolist() == [0]


@pytest.mark.parametrize(
    ("preprocessing", "said"),
    [({}, r"mean \(\) and std \(\)"), ({"mean": [0.5], "std": [0.2]}, r"mean \[0.5\]")],
)
def test_pixels_without_a_recorded_normalisation_are_refused(
    tmp_path: Path, preprocessing: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"the mean and std of 3 channels.*{said}"):
        deploy_onnx(tmp_path / "a", OnnxOptions(pixels=True), preprocessing=preprocessing)
    assert list(tmp_path.iterdir()) == []
    config = {"format_version": 1, "preprocessing": preprocessing}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="onnx_export.pixels=true needs"):
        normalisation(tmp_path, 3)


@pytest.mark.parametrize("options", [OnnxOptions(), OnnxOptions(dynamic_size=True, pixels=True)])
def test_onnx_is_the_same_bytes_again(tmp_path: Path, options: OnnxOptions) -> None:
    config = {"format_version": 1, "preprocessing": PREPROCESSING}
    written = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        folded, _ = fold_blocks(trained_net())
        get_format("onnx").write(Export(folded, images(3), folder, onnx=options))
        written.append((folder / "model.onnx").read_bytes())
    assert written[0] == written[1]
    onnx.checker.check_model(onnx.load_model_from_string(written[0]), full_check=True)


def test_pt2_is_the_same_graph_and_weights_again(tmp_path: Path) -> None:
    programs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        folded, _ = fold_blocks(trained_net())
        get_format("pt2").write(Export(folded, images(3), tmp_path / name))
        programs.append(torch.export.load(tmp_path / name / "model.pt2"))
    first, second = programs
    assert first.graph_module.code == second.graph_module.code
    assert first.state_dict.keys() == second.state_dict.keys() != set()
    assert all(torch.equal(first.state_dict[k], second.state_dict[k]) for k in first.state_dict)
