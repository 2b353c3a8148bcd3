"""The table of options in docs/blocks.md is that of the signatures."""

import re
from pathlib import Path

import pytest

from repblocks.blocks import CONV_BLOCKS

PAGE = (Path(__file__).parents[2] / "docs" / "blocks.md").read_text()
ROWS = re.findall(r"^\| `(\w+)(?:=[\w-]+)?` \| .* \| ((?:`\w+`(?:, )?)+) \|$", PAGE, re.M)


def test_the_options_are_found():
    assert {"first_scale", "single_start", "use_affine", "post_norm", "norm"} <= {
        o for o, _ in ROWS
    }


@pytest.mark.parametrize(("option", "blocks"), ROWS)
def test_each_option_names_the_blocks_that_have_it(option, blocks):
    have = [name for name, cls in CONV_BLOCKS.items() if option in cls.__signature__.parameters]
    assert re.findall(r"\w+", blocks) == have
