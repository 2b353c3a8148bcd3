"""What the README shows is run: its Python as it stands, its commands on small data."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^```(\S+)( notest)?\n(.*?)^```", README, re.M | re.S)
PYTHON = [code for language, skipped, code in FENCES if language == "python" and not skipped]
COMMANDS = [
    line.split("#")[0].strip()
    for language, skipped, code in FENCES
    if language == "bash" and not skipped
    for line in code.splitlines()
]
#: A train.py line is composed and checked as it stands; training itself is run elsewhere, once.
TRAIN = [command for command in COMMANDS if command.startswith("uv run train.py ")]


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    if printed:
        assert f"```\n{printed}```" in README


@pytest.mark.parametrize("command", TRAIN)
def test_train_commands_compose(command):
    overrides = [part for part in shlex.split(command)[3:] if part != "-m"]
    overrides = [re.sub(r"=(\w+),.*", r"=\1", part) for part in overrides]
    done = subprocess.run(
        [sys.executable, "train.py", *overrides, "--cfg", "job"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_are_known():
    """A new kind of command needs a test of its own."""
    first = {" ".join(command.split()[:3]) for command in COMMANDS}
    assert first == {"pip install uv", "uv run deploy.py", "uv run train.py"}
