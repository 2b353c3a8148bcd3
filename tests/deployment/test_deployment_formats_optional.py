"""The formats that need more: each is proven like the others, or says what is absent."""

from __future__ import annotations

import ast
import math
import zipfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
import yaml
from deployment_nets import ALWAYS, DESCRIPTION, images, trained_net

from repblocks.cli.composing import config_folder
from repblocks.deployment.formats import (
    Export,
    _needs,
    check_formats,
    coreml,
    get_format,
    list_formats,
    packages_of,
    torchscript,
)
from repblocks.deployment.pipeline import deploy
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import ConfigurationError, VerificationError
from repblocks.folding.switch import fold_blocks

Deployed = tuple[Path, DeploymentReport]
THIS_MACHINE = str(Path(__file__).parents[2]).encode()
RUN = ["openvino", "executorch", "torchscript"]
WITH_EXTRA = [name for name in list_formats() if get_format(name).extra]
SOURCES = sorted((Path(_needs.__file__).parent).glob("*.py"))


def deploy_as(output: Path, formats: list[str]) -> DeploymentReport:
    model = trained_net()
    folded, blocks = fold_blocks(model)
    return deploy(
        model,
        folded,
        output=output,
        description=DESCRIPTION,
        example_input=images(),
        formats=formats,
        blocks=blocks,
    )


@pytest.fixture(scope="module")
def optional(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """The folder and report of one deployment in all formats that this machine can write."""
    output = tmp_path_factory.mktemp("optional") / "artifact"
    return output, deploy_as(output, [*RUN, "coreml"])


@pytest.mark.parametrize("name", RUN)
def test_written_form_is_proven_and_runs_at_any_batch_size(optional: Deployed, name: str) -> None:
    folder, report = optional
    assert 0 <= report.forms[name].rms_rel <= report.forms[name].tolerance
    run = get_format(name).read(folder, torch.nn.Identity())
    model = trained_net()
    with torch.inference_mode():
        for count in (1, 2, 5):
            x = images(count)
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_report_lists_every_file_and_every_version(optional: Deployed) -> None:
    folder, report = optional
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {*report.sizes, *ALWAYS} == written
    assert all(report.sizes[name] == (folder / name).stat().st_size for name in report.sizes)
    for name in (*RUN, "coreml"):
        assert all((folder / file).exists() for file in get_format(name).files), name
    assert {"openvino", "executorch", "coremltools"} <= report.versions.keys()


def test_no_written_form_has_traces_of_this_machine(optional: Deployed) -> None:
    paths = [path for path in optional[0].rglob("*") if path.is_file()]
    contents = {path.name: path.read_bytes() for path in paths}
    with zipfile.ZipFile(optional[0] / torchscript.FILE) as archive:
        contents |= {name: archive.read(name) for name in archive.namelist()}
    assert len(contents) > 15
    assert [name for name, content in contents.items() if THIS_MACHINE in content] == []


def test_torchscript_is_for_the_old_mobile_runtime_too(optional: Deployed) -> None:
    from torch.jit import mobile

    phone = mobile._load_for_lite_interpreter(str(optional[0] / torchscript.FILE))
    x = images(5)
    with torch.no_grad():
        torch.testing.assert_close(phone(x), trained_net()(x), rtol=1e-4, atol=1e-5)


def test_runtimes_are_silent(optional: Deployed, capfd: pytest.CaptureFixture[str]) -> None:
    for name in RUN:
        get_format(name).read(optional[0], torch.nn.Identity())(images(2))
    assert capfd.readouterr() == ("", "")


def test_core_ml_is_checked_and_the_report_says_that_it_was_not_run(optional: Deployed) -> None:
    folder, report = optional
    assert report.not_run == ("coreml",)
    assert "coreml" not in report.forms
    sentence = "Not run, as nothing here runs it, but checked part by part: coreml."
    assert sentence in (folder / "report.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"model\.mlpackage is run by Apple's Core ML"):
        get_format("coreml").read(folder, torch.nn.Identity())


def test_core_ml_of_another_network_is_refused(optional: Deployed) -> None:
    folded, _ = fold_blocks(trained_net())
    export = Export(folded, images(3), optional[0])
    coreml.check(export)
    with pytest.raises(VerificationError, match=r"the ends \{'input': \(1, 3, 12, 12\), 'output'"):
        coreml.check(replace(export, example=torch.zeros(3, 3, 14, 14)))
    with torch.no_grad():
        folded.body[1].conv.weight[0, 0, 0, 0] += 1e-6
    message = r"lacks 1 of 3 kernels: body\.1\.conv\.weight"
    with pytest.raises(VerificationError, match=message) as info:
        coreml.check(export)
    assert info.value.difference == math.inf


@pytest.mark.slow  # a C++ compiler takes minutes
def test_aoti_is_proven_and_runs(tmp_path: Path) -> None:
    report = deploy_as(tmp_path / "artifact", ["aoti"])
    assert 0 <= report.forms["aoti"].rms_rel <= report.forms["aoti"].tolerance
    run = get_format("aoti").read(tmp_path / "artifact", torch.nn.Identity())
    x = images(5)
    with torch.inference_mode():
        torch.testing.assert_close(run(x), trained_net()(x), rtol=1e-4, atol=1e-5)


def test_each_extra_brings_packages() -> None:
    assert WITH_EXTRA
    assert all(packages_of(get_format(name).extra) for name in WITH_EXTRA)
    assert packages_of("openvino") == ["openvino"]
    assert packages_of("") == []


@pytest.mark.parametrize("name", WITH_EXTRA)
def test_an_absent_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def absent(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(_needs, "distribution", absent)
    extra = get_format(name).extra
    message = (
        rf"The format {name} needs {packages_of(extra)[0]}.*, which is not installed. Install it "
        rf"with: pip install repblocks\[{extra}\], or in a checkout: uv sync --extra {extra}."
    )
    with pytest.raises(ConfigurationError, match=message):
        deploy_as(tmp_path / "artifact", ["safetensors", name])
    assert list(tmp_path.iterdir()) == []


def test_an_absent_gpu_or_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def absent() -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(_needs, "distribution", str)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError) as info:
        check_formats(["tensorrt", "onnx", "aoti"])
    tensorrt, aoti = str(info.value).splitlines()
    assert tensorrt.startswith("The format tensorrt needs an NVIDIA GPU, and torch finds none.")
    assert aoti.startswith("The format aoti needs a C++ compiler, and none was found.")


def test_no_group_of_the_configuration_writes_code_unasked() -> None:
    groups = [yaml.safe_load(p.read_text()) for p in (config_folder() / "export").glob("*.yaml")]
    names = {name for group in groups for name in group.get("formats", [])}
    assert {"safetensors", "onnx"} <= names
    assert not any(form.executable for form in check_formats(sorted(names)))
    executable = {name for name in list_formats() if get_format(name).executable}
    assert executable == {"aoti", "tensorrt", "torchscript"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    optional = {package for name in WITH_EXTRA for package in packages_of(get_format(name).extra)}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plain = [
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    ]
    named = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not optional & {name.partition(".")[0] for name in (*plain, *named)}
