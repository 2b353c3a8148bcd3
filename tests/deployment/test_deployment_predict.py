"""``python -m repblocks.predict``: labels and probabilities from any written form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deployment_nets import CLASS_NAMES, PREPROCESSING, images, trained_net
from PIL import Image

from repblocks.cli.artifact_check import check_main
from repblocks.data.preprocessing import evaluation_transform
from repblocks.deployment.load import load
from repblocks.deployment.pipeline import deploy
from repblocks.deployment.report import DeploymentReport
from repblocks.folding.switch import fold_blocks
from repblocks.predict import main

Deployed = tuple[Path, DeploymentReport]
Read = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour, grey, CMYK and transparent images in two folders, and other files."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels[..., :3]).save(folder / "b.png")
    Image.fromarray(pixels[..., 0]).save(folder / "a.JPG")
    Image.fromarray(pixels).save(folder / "sub/c.png")
    Image.fromarray(pixels[..., :3]).convert("CMYK").save(folder / "e.jpeg")
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    return folder


@pytest.fixture
def folder(deployed: Deployed, tmp_path: Path) -> Path:
    return Path(shutil.copytree(deployed[0], tmp_path / "artifact"))


def expected(folder: Path, path: Path) -> torch.Tensor:
    """As validation does it."""
    with Image.open(path) as image:
        pixels = evaluation_transform(PREPROCESSING)(image.convert("RGB"))
    with torch.inference_mode():
        return load(folder)(pixels[None])[0].double().softmax(0)


def in_order(pictures: Path) -> list[Path]:
    return [pictures / name for name in ("a.JPG", "b.png", "e.jpeg", "sub/c.png")]


@pytest.mark.parametrize("form", ["onnx", "pt2", "safetensors", None])
@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_gives_what_validation_gives(
    deployed: Deployed, pictures: Path, capsys: Read, form: str | None, batch_size: str
) -> None:
    options = ["--json", "--top", "9", "--batch-size", batch_size]
    options += ["--form", form] if form else []
    assert main([str(deployed[0]), str(pictures), *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["file"]) for line in lines] == in_order(pictures)
    for line in lines:
        truth = expected(deployed[0], Path(line["file"]))
        found = line["predictions"]
        assert [one["index"] for one in found] == truth.argsort(descending=True).tolist()
        assert [one["label"] for one in found] == [CLASS_NAMES[one["index"]] for one in found]
        values = torch.tensor([one["probability"] for one in found], dtype=torch.float64)
        torch.testing.assert_close(values, truth.sort(descending=True).values, rtol=1e-4, atol=1e-6)


def test_prints_labels_and_probabilities(deployed: Deployed, pictures: Path, capsys: Read) -> None:
    paths = [str(pictures / "b.png"), str(pictures / "sub/c.png")]
    assert main([str(deployed[0]), *paths, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for path, line in zip(paths, lines, strict=True):
        best = expected(deployed[0], Path(path)).topk(2)
        labels = [CLASS_NAMES[i] for i in best.indices]
        text = "  ".join(f"{a} {p:.2%}" for a, p in zip(labels, best.values, strict=True))
        assert line == f"{path}: {text}"


def test_broken_images_are_named_and_the_others_classified(
    deployed: Deployed, pictures: Path, tmp_path: Path, capsys: Read
) -> None:
    shutil.copytree(pictures, tmp_path / "x")
    content = (tmp_path / "x/b.png").read_bytes()
    (tmp_path / "x/aa.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "x/z.png").write_bytes(b"")
    assert main([str(deployed[0]), str(tmp_path / "x"), "--batch-size", "2"]) == 2
    out, err = capsys.readouterr()
    files = [Path(line.partition(":")[0]) for line in out.splitlines()]
    assert files == in_order(tmp_path / "x")
    assert [line.split()[0] for line in err.splitlines()] == [
        str(tmp_path / "x/aa.png"),
        str(tmp_path / "x/z.png"),
    ]
    assert "could not be read as an image" in err


def test_images_that_cannot_be_resized_or_have_no_white(
    deployed: Deployed, tmp_path: Path, capsys: Read
) -> None:
    Image.new("RGB", (1, 1_000_000)).save(tmp_path / "a.png")
    Image.fromarray(np.ones((12, 12), np.int32)).save(tmp_path / "b.tif")
    Image.fromarray(np.ones((12, 12), np.float32)).save(tmp_path / "c.tif")
    Image.new("RGB", (12, 12)).save(tmp_path / "d.png")
    assert main([str(deployed[0]), str(tmp_path), "--form", "onnx"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'd.png'}: ")
    assert out.count("\n") == 1
    assert "a.png is 1x1000000 pixels, which are too many" in err
    assert err.count("holds numbers of 32 bits") == 2


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_images_of_16_bits_are_scaled(
    deployed: Deployed, tmp_path: Path, capsys: Read, kind: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    Image.fromarray((pixels.astype(np.uint16) * 257).astype(kind)).save(tmp_path / "b.tif")
    with Image.open(tmp_path / "b.tif") as image:
        assert image.mode.startswith("I;16")
    assert main([str(deployed[0]), str(tmp_path), "--form", "onnx", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["predictions"] == second["predictions"]


def _empty(folder: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "empty").mkdir()
    return [str(folder), str(tmp_path / "empty")]


def _changed(name: str) -> Callable[[Path, Path], list[str]]:
    def change(folder: Path, tmp_path: Path) -> list[str]:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        Image.new("RGB", (12, 12)).save(tmp_path / "x.png")
        return [str(folder), str(tmp_path / "x.png")]

    return change


def _config(**changes: Any) -> Callable[[Path, Path], list[str]]:
    def change(folder: Path, tmp_path: Path) -> list[str]:
        (folder / "manifest.json").unlink()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        Image.new("RGB", (12, 12)).save(tmp_path / "x.png")
        return [str(folder), str(tmp_path / "x.png")]

    return change


def _with(*options: str) -> Callable[[Path, Path], list[str]]:
    def change(folder: Path, tmp_path: Path) -> list[str]:
        Image.new("RGB", (12, 12)).save(tmp_path / "x.png")
        (folder / "model.pt2").unlink()
        return [str(folder), str(tmp_path / "x.png"), *options]

    return change


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_empty, "empty holds no image, which is a file that ends in .jpg"),
        (lambda folder, _: [str(folder), "none.png"], "There is no image and no folder none.png."),
        (lambda folder, tmp: [str(tmp / "no"), str(folder)], "artifact holds no image"),
        (_changed("config.json"), "config.json is not the file that was written: its sha256"),
        (_changed("model.onnx"), "model.onnx is not the file that was written: its sha256"),
        (_config(preprocessing={}), "config.json does not say how to prepare an image: prepro"),
        (
            _config(class_names=["a"]),
            "config.json names 1 classes, and its network gives 7 scores.",
        ),
        (_with("--form", "pt2"), "has no form pt2; it has onnx, safetensors."),
        (_with("--form", "onx"), "Unknown export format 'onx'. Did you mean 'onnx'?"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: Read, prepare: Any, message: str
) -> None:
    assert main(prepare(folder, tmp_path)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("option", ["--top=0", "--batch-size=-1", "--top=x"])
def test_numbers_are_checked(option: str, capsys: Read) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["artifact", "x.png", option])
    assert option.partition("=")[0] in capsys.readouterr().err


def test_another_network_than_any_name_rebuilds(
    tmp_path: Path, pictures: Path, capsys: Read
) -> None:
    model = trained_net()
    folded, _ = fold_blocks(model)
    description = {
        "preprocessing": {**PREPROCESSING},
        "class_names": ["\x1b[31m", *CLASS_NAMES[1:]],
    }
    output = tmp_path / "artifact"
    options: dict[str, Any] = {"description": description, "formats": ["safetensors", "pt2"]}
    deploy(model, folded, output=output, example_input=images(), **options)
    paths = [str(path) for path in in_order(pictures)]
    assert main([str(output), *paths, "--top", "7"]) == 0
    out, _ = capsys.readouterr()
    assert "\x1b" not in out
    assert out.count("?[31m ") == len(paths)
    assert main([str(output), *paths, "--form", "safetensors"]) == 2
    assert "holds weights alone, of a network without a registered name" in capsys.readouterr().err
    (output / "model.pt2").unlink()
    assert main([str(output), *paths]) == 2
    assert "holds no form that can be run here. model.safetensors holds" in capsys.readouterr().err


def test_nothing_that_a_file_says_steers_the_terminal(
    folder: Path, tmp_path: Path, capsys: Read
) -> None:
    (tmp_path / "a\x1b[31m.png").write_bytes(b"no image")
    Image.new("RGB", (12, 12)).save(tmp_path / "b\u202e.png")
    assert main([str(folder), *map(str, sorted(tmp_path.glob("*.png")))]) == 2
    out, err = capsys.readouterr()
    assert "b?.png: " in out
    assert "a?[31m.png could not be read as an image" in err
    (folder / "more\x1b[2J").write_text("x", encoding="utf-8")
    assert check_main([str(folder)]) == 2
    checked = capsys.readouterr().out
    assert "more?[2J" in checked
    change = _config(architecture="\x1b]0;x\x07", class_names=["\x9b2J"] * 7)
    assert main([*change(folder, tmp_path), "--form", "\x1b[31m"]) == 2
    named = capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "x.png"), "--form", "onnx"]) == 0
    text = "".join((out, err, checked, named, *capsys.readouterr()))
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & {*text}


def test_grey_networks_read_colour_images(tmp_path: Path, capsys: Read) -> None:
    from torch import nn

    model = nn.Sequential(nn.Conv2d(1, 4, 12), nn.Flatten()).eval()
    grey = {"input_size": [1, 12, 12], "in_channels": 1, "mean": [0.5], "std": [0.5]}
    description = {"preprocessing": {**PREPROCESSING, **grey}}
    output = tmp_path / "artifact"
    deploy(
        *(model, model),
        output=output,
        description=description,
        example_input=torch.randn(4, 1, 12, 12),
        formats=["onnx"],
    )
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "l.png")
    Image.fromarray(np.stack([pixels] * 3, 2)).save(tmp_path / "rgb.png")
    assert main([str(output), str(tmp_path / "l.png"), str(tmp_path / "rgb.png"), "--json"]) == 0
    grey_line, colour_line = map(json.loads, capsys.readouterr().out.splitlines())
    assert grey_line["predictions"] == colour_line["predictions"]
    x = torch.from_numpy(pixels)[None, None].float() / 255 * 2 - 1
    truth = model(x)[0].detach().softmax(0).max()
    assert grey_line["predictions"][0]["probability"] == pytest.approx(float(truth), rel=1e-4)
    assert grey_line["predictions"][0]["label"] == str(grey_line["predictions"][0]["index"])
