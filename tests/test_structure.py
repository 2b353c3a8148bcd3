"""The rules of the source tree, as tests: layers, sizes, names, registries, light imports."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import repblocks
from repblocks.blocks import CONV_BLOCKS, STAGE_BLOCKS

PACKAGE = Path(repblocks.__file__).parent
ROOT = PACKAGE.parent
LAYERS = [
    "errors",
    "algebra",
    "branches",
    "execution",
    "blocks",
    "folding",
    "expansion",
    "models",
    "data",
    "training",
    "deployment",
    "cli",
]
#: Outside the arrow: the lazy front of the package, and programs on top of it.
OUTSIDE = {"__init__", "predict"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(PACKAGE))


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name.split(".")[1] for name in names if name.startswith("repblocks."))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_left(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer in OUTSIDE:
        return
    assert layer in LAYERS, f"{name_of(path)} is in no layer; the layers are {LAYERS}."
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    wrong = sorted(set(imported_layers(path)) - set(allowed))
    assert not wrong, (
        f"{name_of(path)} is in layer {layer!r} and imports {wrong}; it may import only {allowed}."
    )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_small_and_have_one_idea(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 300, f"{name_of(path)} has {len(lines)} lines; 300 is long already."
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} needs a docstring."


def test_only_the_command_line_knows_hydra():
    for path in SOURCES:
        if path.relative_to(PACKAGE).parts[0] != "cli":
            assert not re.search(r"^\s*(import|from) (hydra|omegaconf)", path.read_text(), re.M)


@pytest.mark.parametrize("folder", ["blocks", "models"])
def test_every_file_is_imported_by_its_package(folder):
    package = importlib.import_module(f"repblocks.{folder}")
    text = Path(package.__file__).read_text()
    for path in (PACKAGE / folder).glob("[!_]*.py"):
        assert f"repblocks.{folder}.{path.stem}" in text, f"{folder}/__init__.py forgot {path.name}"


@pytest.mark.parametrize("registry", [CONV_BLOCKS, STAGE_BLOCKS], ids=["conv", "stage"])
def test_every_block_is_final_in_its_own_file_and_names_its_source(registry):
    for name, cls in registry.items():
        assert cls.__final__, f"{cls.__name__} must be @final"
        module = sys.modules[cls.__module__]
        assert Path(module.__file__).stem == name
        assert "Source:" in module.__doc__
        assert "https://" in module.__doc__


def test_every_file_in_blocks_registers_a_block():
    files = {path.stem for path in (PACKAGE / "blocks").glob("[!_]*.py")}
    assert files == set(CONV_BLOCKS) | set(STAGE_BLOCKS)


def test_every_public_name_loads():
    for name in repblocks.__all__:
        assert getattr(repblocks, name).__module__.startswith("repblocks.")
    with pytest.raises(AttributeError, match="no attribute 'fould'"):
        _ = repblocks.fould
    assert dir(repblocks) == repblocks.__all__


HEAVY = {"timm", "torchvision", "pytorch_lightning", "hydra", "onnx", "onnxruntime", "matplotlib"}


@pytest.mark.parametrize("module", ["repblocks", "repblocks.algebra", "repblocks.blocks"])
def test_imports_stay_light(module):
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not HEAVY & set(done.stdout.split())


def test_nothing_of_the_machine_is_committed():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "uv.lock" not in tracked
    assert max((ROOT / name).stat().st_size for name in tracked if (ROOT / name).is_file()) < 1e6
