"""Files that would run code, or read other files, are refused before they are opened."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from deployment_nets import images
from torch import nn

from repblocks.deployment.formats import Export, get_format
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import CheckpointError

Deployed = tuple[Path, DeploymentReport]
GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
IDENTITY = nn.Identity()


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def rewrite(path: Path, changes: dict[str, Callable[[bytes], bytes]]) -> None:
    """Change records of an archive; a record that is not there is added."""
    with zipfile.ZipFile(path) as archive:
        records = {one.filename: archive.read(one) for one in archive.infolist()}
    root = next(iter(records)).partition("/")[0]
    for name, change in changes.items():
        records[f"{root}/{name}"] = change(records.get(f"{root}/{name}", b""))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def json_change(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return changed


def _graph(content: Any) -> Any:
    return content["graph_module"]["graph"]


def code(mark: Path) -> str:
    return f"__import__('os').mkdir({str(mark)!r})"


def pickled_samples(mark: Path) -> dict[str, Any]:
    return {"data/sample_inputs/model.pt": lambda _: pickle.dumps(Code(mark))}


def pickled_weight(mark: Path) -> dict[str, Any]:
    def change(content: Any) -> None:
        content["config"]["head.bias"] |= {"use_pickle": True, "path_name": "weight_99"}

    buffer = io.BytesIO()
    torch.save(Code(mark), buffer)
    return {WEIGHTS: json_change(change), "data/weights/weight_99": lambda _: buffer.getvalue()}


def pickled_object(mark: Path) -> dict[str, Any]:
    def change(content: Any) -> None:
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
        content["config"]["x"] = {**entry, "tensor_meta": None}

    record = {"data/constants/opaque_obj_0": lambda _: pickle.dumps(Code(mark))}
    return {CONSTANTS: json_change(change), **record}


def weight_elsewhere(_mark: Path) -> dict[str, Any]:
    def change(content: Any) -> None:
        content["config"]["head.bias"]["path_name"] = "../../models/model.json"

    return {WEIGHTS: json_change(change)}


def legacy_weights(mark: Path) -> dict[str, Any]:
    return {"data/weights/model.pt": lambda _: pickle.dumps(Code(mark))}


def compiled_code(_mark: Path) -> dict[str, Any]:
    return {"data/aotinductor/model/model.so": lambda _: b"\x7fELF"}


def size_expression(mark: Path) -> dict[str, Any]:
    def change(content: Any) -> None:
        size = next(
            size["as_expr"]
            for value in _graph(content)["tensor_values"].values()
            for size in value["sizes"]
            if "as_expr" in size
        )
        size["expr_str"] = f"Integer(len([{code(mark)}]))"

    return {GRAPH: json_change(change)}


def size_in_disguise(mark: Path) -> dict[str, Any]:
    """A size of a tensor that is called like what nothing looks at."""

    def change(content: Any) -> None:
        size = {"as_expr": {"expr_str": f"Integer(len([{code(mark)}]))", "hint": None}}
        for name in ("metadata", "guards_code"):
            _graph(content)["sym_int_values"][name] = size

    return {GRAPH: json_change(change)}


def called(target: str, *arguments: Any) -> Callable[[Path], dict[str, Any]]:
    def changes(_mark: Path) -> dict[str, Any]:
        def change(content: Any) -> None:
            node = _graph(content)["nodes"][-1]
            node["target"] = target
            node["inputs"] = [{"name": "", "arg": one, "kind": 1} for one in arguments]

        return {GRAPH: json_change(change)}

    changes.__name__ = target
    return changes


def name_of_an_input(mark: Path) -> dict[str, Any]:
    return {GRAPH: lambda content: content.replace(b'"x"', f'"x={code(mark)}"'.encode())}


def notes(_mark: Path) -> dict[str, Any]:
    def change(content: Any) -> None:
        _graph(content)["nodes"][0]["metadata"]["stack_trace"] = "x"

    return {GRAPH: json_change(change)}


def structure(_mark: Path) -> dict[str, Any]:
    def change(content: Any) -> None:
        signature = content["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = signature["in_spec"].replace("builtins.dict", "os.path")

    return {GRAPH: json_change(change)}


ATTACKS = [
    (pickled_samples, "holds sample inputs, which are a pickle"),
    (pickled_weight, "holds 'head.bias' as a pickle"),
    (pickled_object, "holds the record 'data/constants/opaque_obj_0'"),
    (weight_elsewhere, "takes 'head.bias' from '../../models/model.json'"),
    (legacy_weights, "holds the record 'data/weights/model.pt'"),
    (compiled_code, "holds the record 'data/aotinductor/model/model.so'"),
    (size_expression, r"holds expr_str .Integer\(len"),
    (size_in_disguise, r"holds expr_str .Integer\(len"),
    (called("torch.hub.load", {"as_string": "/tmp"}), "holds target 'torch.hub.load'"),
    (called("torch.load"), "holds target 'torch.load'"),
    (called("_operator.call"), "holds target '_operator.call'"),
    (called("_operator.methodcaller"), "holds target '_operator.methodcaller'"),
    (called("torch.ops.aten.from_file.default"), "holds target 'torch.ops.aten.from_file"),
    (called("torch.ops.aten.add.Tensor\n"), "holds target 'torch.ops.aten.add.Tensor"),
    (called("#x:y"), "holds target '#x:y'"),
    (name_of_an_input, 'holds name "x=__import__'),
    (notes, "holds nn_module_stack"),
    (structure, "holds in_spec"),
]


@pytest.fixture
def path(deployed: Deployed, tmp_path: Path) -> Path:
    return Path(shutil.copy(deployed[0] / "model.pt2", tmp_path))


@pytest.mark.parametrize(("attack", "message"), ATTACKS, ids=[a.__name__ for a, _ in ATTACKS])
def test_an_archive_that_would_run_code_is_refused(
    path: Path, attack: Callable[[Path], dict[str, Any]], message: str
) -> None:
    mark = path.parent / "ran"
    rewrite(path, attack(mark))
    with pytest.raises(CheckpointError, match=message) as error:
        get_format("pt2").read(path.parent, IDENTITY)(images())
    assert "Nothing in it was run" in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("attack", [pickled_object, size_expression])
def test_torch_itself_would_run_it(path: Path, attack: Callable[[Path], dict[str, Any]]) -> None:
    mark = path.parent / "ran"
    rewrite(path, attack(mark))
    with contextlib.suppress(Exception):  # after it ran
        torch.export.load(path)
    assert mark.exists()


def test_an_archive_that_is_only_written_anew_opens(path: Path) -> None:
    expected = get_format("pt2").read(path.parent, IDENTITY)(images())
    rewrite(path, {GRAPH: json_change(lambda _: None)})
    assert torch.equal(get_format("pt2").read(path.parent, IDENTITY)(images()), expected)


@pytest.mark.parametrize("content", [b"", b"x" * 1000, b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="model.pt2 is damaged or no archive of torch.export"):
        get_format("pt2").read(path.parent, IDENTITY)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_archives_of_other_networks_are_plain_graphs(tmp_path: Path, name: str) -> None:
    options = {"img_size": 56, "embed_dim": 12, "num_heads": 3, "depth": 2}
    if name.startswith("swin"):
        options = {"img_size": 56, "embed_dim": 12, "num_heads": (1, 1), "depths": (2, 2)}
    model = timm.create_model(name, num_classes=3, **options).eval()
    x = torch.randn(3, 3, 56, 56)
    get_format("pt2").write(Export(model, x, tmp_path))
    with torch.inference_mode():
        found = get_format("pt2").read(tmp_path, IDENTITY)(x[:2])
        torch.testing.assert_close(found, model(x[:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "weights.bin"])
def test_an_onnx_file_cannot_read_another_one(
    deployed: Deployed, tmp_path: Path, location: str
) -> None:
    model = onnx.load(deployed[0] / "model.onnx")
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location)
    name = tensor.name
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    message = f"model.onnx takes 1 weights from another file \\('{name}' first\\)"
    with pytest.raises(CheckpointError, match=message):
        get_format("onnx").read(tmp_path, IDENTITY)


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="model.onnx is damaged or no ONNX file"):
        get_format("onnx").read(tmp_path, IDENTITY)
