"""The group ``block`` is the registry, though it is read without importing torch."""

import inspect
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from repblocks.blocks import CONV_BLOCKS
from repblocks.cli.block_nodes import block_nodes
from repblocks.cli.composing import register

REGISTERED = list(CONV_BLOCKS)


def test_there_is_a_node_for_each_block():
    assert sorted(block_nodes()) == sorted([*REGISTERED, "default"])


@pytest.mark.parametrize("name", REGISTERED)
def test_a_node_holds_the_options_of_its_block(name):
    node = block_nodes()[name]
    parameters = inspect.signature(CONV_BLOCKS[name].build_branches).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert node == {"name": name, "kernel_size": None, **own, "options": "${block_options:}"}


def test_only_options_that_are_set_reach_the_network():
    register()
    config = OmegaConf.create(block_nodes())
    assert config.mobileone.options == {
        "num_conv_branches": 4,
        "use_scale_branch": True,
        "post_norm": False,
    }
    assert config.default.options is None
    config.default.kernel_size = 5
    assert config.default.options == {"kernel_size": 5}


def test_composing_does_not_import_torch():
    code = (
        "import sys, repblocks.cli.train, repblocks.cli.deploy as d; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
