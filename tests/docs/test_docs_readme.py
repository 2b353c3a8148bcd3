"""The README and the guides that it links are run: Python as it stands, commands on small data."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import timm
import torch
import yaml
from deployment.onnx_graphs import Graph, repvgg_unit

import repblocks

ROOT = Path(__file__).parents[2]
GUIDES = ("README.md", "docs/running.md", "docs/how-a-fold-works.md")
README = "\n".join((ROOT / guide).read_text() for guide in GUIDES)
FENCE = re.compile(r"^```(\S+)( notest)?\n(.*?)^```", re.M | re.S)
BLOCKS = [(language + mark, code) for language, mark, code in FENCE.findall(README)]
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
#: The lines of the bash blocks, and what the text says in passing.
COMMANDS = [
    line.split("#")[0].strip().removeprefix("pip install uv && ")
    for kind, code in BLOCKS
    if kind == "bash"
    for line in code.splitlines()
] + re.findall(r"`(uv run [^`]+)`", FENCE.sub("", README))
#: What a command is for, by the first pattern that it matches whole.
KINDS = {
    "tests": r"uv run pytest",
    "lists": r"uv run (repblocks list|train\.py --help)",
    "quick start": r"uv run train\.py",
    "deploy newest": r"uv run deploy\.py",
    "any network": r"uv run deploy\.py model=.*",
    "fold a file": r"uv run deploy\.py onnx=model\.onnx",
    "deploy": r"uv run deploy\.py .*",
    "sweep": r"uv run train\.py -m .*",
    "validate": r"uv run train\.py mode=validate .*",
    "resume": r"uv run train\.py ckpt_path=CHECKPOINT",
    "fine-tune": r"uv run train\.py init_from=CHECKPOINT .*",
    "again": r"uv run train\.py --config-dir .*",
    "train": r"uv run train\.py .*",
}
TINY = [
    *("data=synthetic", "data.train_size=32", "data.val_size=16", "data.batch_size=16"),
    *("data.image_size=16", "data.num_classes=10", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
]


def kind_of(command):
    return next((kind for kind, form in KINDS.items() if re.fullmatch(form, command)), None)


def commands(kind):
    return pytest.mark.parametrize("command", [c for c in COMMANDS if kind_of(c) == kind])


def process(folder, *words):
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(folder, command, *more):
    """Run a command of the README in a folder, with more arguments; gives what it prints.

    Args:
        folder: Where ``run`` is the run that the README speaks of.
        command: With the names of the README for files of the user's own.
        more: They take the place of the arguments of the same key, and of all data where one is
            ``data=``.
    """
    for name, path in {"CHECKPOINT": "run/checkpoints/last.ckpt", "RUN": "run"}.items():
        command = re.sub(rf"\b{name}\b", path, command)
    _, _, program, *arguments = shlex.split(command)
    replaced = tuple(word.partition("=")[0] for word in more)
    kept = [word for word in arguments if not word.startswith(replaced)]
    script = [sys.executable, ROOT / program]
    start = script if program.endswith(".py") else [Path(sys.executable).with_name(program)]
    return process(folder, *start, *kept, *more)


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory):
    """The run that the quick start leaves in an empty folder."""
    folder = tmp_path_factory.mktemp("quick")
    (command,) = (command for command in COMMANDS if kind_of(command) == "quick start")
    printed = run(folder, command, *TINY, "export=weights")
    (output,) = folder.glob("outputs/train/*/*")
    assert "Artifact: " in printed
    return output


@pytest.fixture
def folder(quick_start, tmp_path):
    """A folder with a copy of that run, before its artifact."""
    shutil.copytree(quick_start, tmp_path / "run", ignore=shutil.ignore_patterns("artifact"))
    return tmp_path


def the_run(folder):
    (output,) = folder.glob("outputs/train/*/*")
    return output


def weights(output):
    return torch.load(output / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    if printed:
        assert f"```\n{printed}```" in README


def test_every_command_is_of_a_known_kind():
    """A new kind of command needs a test of its own."""
    assert {command for command in COMMANDS if kind_of(command) is None} == set()
    assert {kind_of(command) for command in COMMANDS} == set(KINDS)


def test_the_artifact_is_loaded_as_shown(quick_start):
    (code,) = (code for kind, code in BLOCKS if kind == "python notest")
    artifact = quick_start / "artifact"
    shown = {}
    exec(compile(code.replace("DIR", str(artifact)), "README.md", "exec"), shown)
    images = torch.randn(2, 3, 16, 16)
    network = repblocks.load(artifact)
    with torch.no_grad():
        assert torch.equal(shown["model"].eval()(images), network(images))
        random = timm.create_model(f"local-dir:{artifact}").eval()
        assert not torch.allclose(random(images), network(images))


@commands("train")
def test_a_network_is_trained(command, tmp_path):
    run(tmp_path, command, *TINY, "deploy=false")
    output = the_run(tmp_path)
    choices = re.findall(r"\b(?:model|block|experiment|model\.name)=(?!timm)(\w+)", command)
    assert choices
    assert output.parent.name == "-".join(choices) or choices[0] in output.parent.name
    config = yaml.safe_load((output / "config.yaml").read_text())
    for key, value in re.findall(r"\bblock\.(\w+)=(\S+)", command):
        assert config["block"][key] == yaml.safe_load(value)
    assert all(torch.isfinite(value).all() for value in weights(output).values())


@commands("sweep")
def test_a_sweep_ends_with_its_table(command, tmp_path):
    printed = run(tmp_path, command, *TINY, "deploy=false")
    blocks = re.search(r"block=(\S+)", command)[1].split(",")
    table = printed[printed.rindex("overrides") :]
    assert re.findall(r"block=(\w+)", table) == blocks
    (summary,) = tmp_path.glob("multirun/train/*/summary.csv")
    with summary.open() as file:
        assert all(0 <= float(row["accuracy"]) <= 1 for row in csv.DictReader(file))


@commands("resume")
def test_a_run_goes_on_in_its_folder(command, folder):
    run(folder, command, *TINY, "trainer.max_epochs=2", "deploy=false")
    assert [path.name for path in folder.iterdir()] == ["run"]
    last = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4


@commands("fine-tune")
def test_another_number_of_classes_gets_a_new_head(command, folder, quick_start):
    run(folder, command, *TINY, "data.num_classes=20", "deploy=false")
    before, after = weights(quick_start), weights(the_run(folder))
    other = {name for name in before if before[name].shape != after[name].shape}
    assert {after[name].shape[0] for name in other} == {20}


@commands("validate")
def test_a_checkpoint_is_validated(command, folder):
    printed = run(folder, command)
    assert "top-1" in printed
    assert "top-5" in printed
    assert sorted(re.findall(r"class_\d+", printed)) == [f"class_{i}" for i in range(10)]


@commands("again")
def test_a_saved_configuration_runs_again(command, folder, quick_start):
    run(folder, command, "deploy=false", "output=again")
    before, after = weights(quick_start), weights(folder / "again")
    assert all(torch.equal(before[name], after[name]) for name in before)


@commands("deploy newest")
def test_the_newest_run_is_deployed(command, folder):
    runs = folder / "outputs/train"
    runs.mkdir(parents=True)
    shutil.copytree(folder / "run", runs / "old")
    for path in (runs / "old/checkpoints").iterdir():
        os.utime(path, (0, 0))
    (folder / "run").rename(runs / "new")
    run(folder, command)
    assert not (runs / "old/artifact").exists()
    written = {path.name for path in (runs / "new/artifact").iterdir()}
    said = re.search(r"written as (.*?)\. Each file", README, re.S)[1]
    assert written == set(re.findall(r"`([\w.]+)`", said))


@commands("deploy")
def test_a_checkpoint_is_deployed_where_told(command, folder):
    run(folder, command, "formats=[safetensors]")
    network = repblocks.load(folder / "DIR")
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 10)


@commands("fold a file")
def test_a_file_with_branches_is_folded(command, tmp_path):
    graph = Graph()
    graph.output(repvgg_unit(graph, graph.input(2, 4, 6, 6), 4))
    graph.save(tmp_path / "model.onnx")
    run(tmp_path, command)
    (folded,) = tmp_path.glob("outputs/deploy/*/model.onnx")
    kinds = [node.op_type for node in onnx.load(folded).graph.node]
    assert kinds.count("Conv") == 1


@commands("any network")
def test_a_network_that_is_not_ours_is_deployed(command, tmp_path):
    printed = run(tmp_path, command, "formats=[safetensors]")
    assert "folded: difference" in printed
    (artifact,) = tmp_path.glob("outputs/deploy/*")
    assert repblocks.load(artifact)(torch.randn(1, 3, 224, 224)).shape == (1, 1000)


@commands("lists")
def test_what_there_is_is_listed(command, tmp_path):
    printed = run(tmp_path, command)
    listed = (
        {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()} - {"hydra"}
        if "--help" in command
        else {*repblocks.blocks.CONV_BLOCKS, *repblocks.blocks.STAGE_BLOCKS}
    )
    assert {name for name in listed if name not in printed} == set()
    assert not any(tmp_path.iterdir())


def test_what_several_hosts_run_composes(tmp_path):
    (code,) = (code for kind, code in BLOCKS if kind == "bash notest")
    launcher, _, arguments = code.replace("\\\n", " ").partition("train.py")
    assert launcher.startswith("torchrun ")
    words = shlex.split(arguments)
    printed = process(tmp_path, sys.executable, ROOT / "train.py", *words, "--cfg", "job")
    config = yaml.safe_load(printed)
    for key, value in (word.split("=") for word in words):
        assert config["trainer"][key.removeprefix("trainer.")] == yaml.safe_load(value)
