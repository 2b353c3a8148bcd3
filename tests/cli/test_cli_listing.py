"""``repblocks list`` stays short: a few lines a block, and one a network."""

import sys

import timm

from repblocks.blocks import CONV_BLOCKS, STAGE_BLOCKS
from repblocks.cli.listing import main


def test_each_block_and_network_is_listed_in_a_few_lines(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["repblocks", "list"])
    monkeypatch.setenv("COLUMNS", "80")
    main()
    text = capsys.readouterr().out
    words = text.replace(",", " ").split()
    families = {name.rpartition("_")[0] for name in timm.list_models("repblocks_*")}
    assert len(text.splitlines()) <= 20 + 6 * len([*CONV_BLOCKS, *STAGE_BLOCKS, *families])
    assert set(words) >= {*CONV_BLOCKS, *STAGE_BLOCKS}
    for name in timm.list_models("repblocks_*"):
        family, _, variant = name.rpartition("_")
        assert words.count(f"{family}_") == 1
        assert variant in words
    assert "num_conv_branches=4" in words
    assert "Of each network: pretrained=False" in text
