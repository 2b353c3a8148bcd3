"""The manifest says what an artifact was, and whoever reads a file that differs is told which."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployment_nets import DESCRIPTION, images, trained_net

from repblocks.deployment import opening, pipeline
from repblocks.deployment.checking import check_artifact
from repblocks.deployment.formats import get_format
from repblocks.deployment.load import load
from repblocks.deployment.manifest import describe_files, read_manifest, sealed
from repblocks.deployment.opening import open_best, open_form
from repblocks.deployment.pipeline import deploy
from repblocks.deployment.provenance import code_state
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import CheckpointError, ConfigurationError
from repblocks.folding.switch import fold_blocks

Deployed = tuple[Path, DeploymentReport]
FILES = (
    "config.json",
    "model.onnx",
    "model.pt2",
    "model.safetensors",
    "report.html",
    "report.json",
    "report.md",
)


@pytest.fixture
def folder(deployed: Deployed, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(deployed[0], tmp_path / "artifact"))


def change_manifest(folder: Path, **changes: Any) -> None:
    """Change it as somebody would who means to, with its hash."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["sha256"]
    path.write_text(json.dumps(sealed({**content, **changes})), encoding="utf-8")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def failed(folder: Path) -> dict[str, str]:
    return {one.name: one.note for one in check_artifact(folder) if one.status == "failed"}


def test_lists_every_file_but_itself(deployed: Deployed) -> None:
    content = json.loads((deployed[0] / "manifest.json").read_text(encoding="utf-8"))
    assert tuple(content["files"]) == FILES
    for name, entry in content["files"].items():
        data = (deployed[0] / name).read_bytes()
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["form"] == (name.partition(".")[2] if name.startswith("model") else None)
        assert entry["executable"] is False
    assert (content["format_version"], content["manifest_version"]) == (1, 2)
    assert content["versions"]["torch"] == deployed[1].versions["torch"]
    assert content["git"] == code_state()


def test_the_commit_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = code_state()
    monkeypatch.chdir(tmp_path)
    assert code_state() == state
    if state is not None:
        assert len(state["commit"]) == 40
        assert state["dirty"] in (True, False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_state() is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["byte", "truncated", "missing", "link"])
def test_a_file_that_differs_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    if damage == "byte":
        flip_a_byte(path)
        message = f"{path} is not the file that was written: its sha256 is"
    elif damage == "truncated":
        size = path.stat().st_size
        os.truncate(path, size // 2)
        message = f"{path} is not the file that was written: it has {size // 2} bytes instead of"
    elif damage == "missing":
        path.unlink()
        message = f"{path} is missing"
    else:
        path.rename(folder.parent / "elsewhere")
        path.symlink_to(folder.parent / "elsewhere")
        message = f"{path} is a link"
    found = failed(folder)
    assert found[name].startswith(message)
    form = name.partition(".")[2]
    assert set(found) <= {name, form}
    if name in ("config.json", "model.safetensors"):
        with pytest.raises(CheckpointError, match=message):
            load(folder)
    if name.startswith("model"):
        assert "files are not those that were written" in found[form]
        with pytest.raises(CheckpointError, match=message):
            open_form(folder, get_format(form))


def test_a_link_above_a_file_is_refused(folder: Path) -> None:
    (folder.parent / "outside").mkdir()
    shutil.copy(folder / "report.md", folder.parent / "outside/x.md")
    (folder / "deep").symlink_to(folder.parent / "outside")
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = {**content["files"], "deep/x.md": content["files"]["report.md"]}
    change_manifest(folder, files=files)
    assert failed(folder)["deep/x.md"].startswith(f"{folder / 'deep'} is a link")


def test_a_file_that_is_not_listed_is_named(folder: Path) -> None:
    (folder / "more.txt").write_text("x", encoding="utf-8")
    assert failed(folder) == {"more.txt": "manifest.json does not list it"}
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = {name: entry for name, entry in content["files"].items() if name != "model.onnx"}
    change_manifest(folder, files=files)
    with pytest.raises(CheckpointError, match=r"manifest.json does not list the form 'onnx'"):
        open_form(folder, get_format("onnx"))


@pytest.mark.parametrize("key", ["git", "versions", "format_version", "run", "more", "sha256"])
def test_a_field_of_the_manifest_that_differs_is_found(folder: Path, key: str) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict(reversed(content.items()))), encoding="utf-8")
    assert failed(folder) == {}  # the order of the keys is nobody's matter
    old = content.get(key)
    content[key] = {**old, "torch": "0", "commit": "0"} if isinstance(old, dict) else "0"
    path.write_text(json.dumps(content), encoding="utf-8")
    message = f"{path} is not what was written: its own sha256 is "
    assert [note.startswith(message) for note in failed(folder).values()] == [True]
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def change_entry(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    entry = {**content["files"][name], **changes}
    change_manifest(folder, files={**content["files"], name: entry})


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("model.onnx", None, "is of the format onnx, and listed as None"),
        ("model.onnx", "pt2", "is of the format onnx, and listed as pt2"),
        ("model.onnx", "onxx", "is of the format 'onxx', which is unknown"),
        ("report.md", "onnx", "is of the format None, and listed as onnx"),
    ],
)
def test_a_file_that_is_listed_as_of_another_form_fails(
    folder: Path, name: str, form: str | None, message: str
) -> None:
    change_entry(folder, name, form=form)
    assert failed(folder)[name] == message


@pytest.mark.parametrize("change", [{"bytes": "1"}, {"sha256": 1}, {"form": ["onnx"]}])
def test_an_entry_of_the_manifest_that_cannot_be_is_refused(folder: Path, change: Any) -> None:
    change_entry(folder, "report.md", **change)
    with pytest.raises(CheckpointError, match="manifest.json says of 'report.md' what cannot be"):
        load(folder)


@pytest.mark.parametrize("listed", [False, True])
def test_no_file_of_a_form_is_read_that_is_not_listed_as_its_own(
    folder: Path, listed: bool
) -> None:
    form = replace(get_format("onnx"), more_files=("weights",), read=lambda *_: pytest.fail("read"))
    (folder / "weights").mkdir()
    (folder / "weights/0.bin").write_bytes(b"x")
    if listed:
        content = describe_files(folder, map(get_format, ("safetensors", "onnx", "pt2")))
        (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"manifest.json does not list weights/0.bin\."):
        open_form(folder, form)


def test_numbers_that_are_not_finite_are_named_in_the_manifest(tmp_path: Path) -> None:
    content = describe_files(tmp_path, (), run={"clip": float("inf"), "x": [float("nan")]})
    assert content["run"] == {"clip": "Infinity", "x": ["NaN"]}
    with pytest.raises(ConfigurationError, match="manifest.json can hold plain values only"):
        describe_files(tmp_path, (), run={"x": tmp_path})


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../x", "a/../../x", "a//b", "./x", "a\0b", "a\\..\\b", "C:x", "", "."),
        "manifest.json",
    ],
)
def test_names_that_lead_elsewhere_are_refused(folder: Path, name: str) -> None:
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change_manifest(folder, files={**content["files"], name: content["files"]["report.md"]})
    with pytest.raises(CheckpointError, match="which is no file inside of the artifact. Nothing"):
        load(folder)
    assert list(failed(folder)) == ["manifest.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Cannot read .*manifest.json: FileNotFoundError"),
        ("{", "Cannot read .*manifest.json: JSONDecodeError"),
        ("[]", r"Cannot read .*manifest.json: TypeError it must be an object, got a list\."),
        ('{"manifest_version": 2, "files": []}', "TypeError files must be an object, got a list"),
        ('{"manifest_version": 2, "files": {"x": "y"}}', "TypeError x must be an object, got a s"),
        ('{"manifest_version": 2}', "Cannot read .*manifest.json: KeyError 'files'"),
        ('{"manifest_version": 2, "files": {"x": {}}}', "Cannot read .*manifest.json: TypeError"),
        ('{"manifest_version": 1}', "manifest.json has version 1; this version .* reads 2"),
        ('{"manifest_version": NaN}', "Cannot read .*: ValueError NaN is no number of JSON"),
    ],
)
def test_a_manifest_that_is_none_is_explained(folder: Path, text: str | None, message: str) -> None:
    path = folder / "manifest.json"
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_manifest(folder)
    (check,) = check_artifact(folder)
    assert (check.name, check.status) == ("manifest.json", "failed")
    if text is None:
        assert load(folder)(images()).shape == (4, 7)
    else:
        with pytest.raises(CheckpointError, match=message):
            load(folder)


def test_forms_with_code_are_marked_and_opened_only_with_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = replace(get_format("safetensors"), executable=True)
    for module in (pipeline, opening):
        monkeypatch.setattr(module, "get_format", lambda _name: code, raising=False)
        monkeypatch.setattr(module, "list_formats", lambda: ["safetensors"], raising=False)
    monkeypatch.setattr(pipeline, "check_formats", lambda _names: [code])
    monkeypatch.setattr("repblocks.deployment.checking.get_format", lambda _name: code)
    model = trained_net()
    folded, _ = fold_blocks(model)
    output = tmp_path / "artifact"
    deploy(model, folded, output=output, description=DESCRIPTION, example_input=images())
    assert read_manifest(output)["model.safetensors"].executable
    message = "model.safetensors holds code, which runs when it is opened. If you trust"
    with pytest.raises(ConfigurationError, match=message):
        open_form(output, code)
    with pytest.raises(ConfigurationError, match=f"no form that can be run here. .*{message}"):
        open_best(output)
    with torch.inference_mode():
        assert open_best(output, trust=True)(images()).shape == (4, 7)
    found = {one.name: one for one in check_artifact(output)}
    assert found["model.safetensors"].note == "holds code"
    assert found["safetensors"].status == "skipped"
    assert message in found["safetensors"].note
    assert all(one.status == "passed" for one in check_artifact(output, trust=True))
    monkeypatch.setattr(
        "repblocks.deployment.checking.get_format", lambda _name: replace(code, executable=False)
    )
    assert failed(output)["model.safetensors"] == "marked executable: True, which is not so"


@pytest.mark.parametrize("key", ["checkpoint_path", "weights", "pretrained", "cache_dir"])
def test_a_config_cannot_make_other_files_be_read(folder: Path, key: str) -> None:
    (folder / "manifest.json").unlink()
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"][key] = "/etc/passwd"
    path.write_text(json.dumps(config), encoding="utf-8")
    message = f"config.json wants other files to be read for its network: {key}='/etc/passwd'"
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_checking_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"There is no folder {tmp_path / 'x'}"):
        check_artifact(tmp_path / "x")
