"""A block is one file and one line: the one of CONTRIBUTING.md gets everything by them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a copy of the sources with the block of CONTRIBUTING.md in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("repblocks", "configs", "tests/contract"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml", "tests/truth.py"):
        shutil.copy(ROOT / name, folder / name)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    fences = re.findall(r"^   ```python\n(.*?)^   ```", text, re.M | re.S)
    block, line = (re.sub(r"^   ", "", fence, flags=re.M) for fence in fences)
    (folder / "repblocks/blocks/twin.py").write_text(block)
    with (folder / "repblocks/blocks/__init__.py").open("a") as package:
        package.write(line)
    return folder


def run(checkout, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_block_gets_the_whole_contract_suite(checkout):
    suite = ["tests/contract/test_contract_conv_blocks.py", "-k", "twin"]
    output = run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", *suite)
    passed = int(re.search(r"(\d+) passed", output).group(1))
    assert passed > 100


def test_a_new_block_gets_its_config_node_and_its_help_line(checkout):
    config = run(checkout, "train.py", "block=twin", "block.num_twins=3", "--cfg", "job")
    assert re.search(r"name: twin\b", config)
    assert re.search(r"num_twins: 3\b", config)
    assert re.search(r"block:.*\btwin\b", run(checkout, "train.py", "--help"))
    listing = run(checkout, "-m", "repblocks.cli.listing", "list")
    assert re.search(r"twin\b.*num_twins", listing, re.S)
